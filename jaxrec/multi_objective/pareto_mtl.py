"""Pareto multi-task learning: weights that lead into the region of a preference first, then to the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxrec.multi_objective.base import Weighting, anchored, check_normalization, normalized, norms, stateless
from jaxrec.multi_objective.min_norm import min_norm_weights

DIRECTIONS = ("gradients_and_constraints", "constraints")
# (recommendation, auxiliary). The released code of AutoCDSR has the axes (attention, recommendation).
PREFERENCES = ((1.0, 0.0), (0.0, 1.0), (0.7071, 0.7071))


def pareto(
  preferences: Sequence[Sequence[float]] = PREFERENCES,
  index: int = 1,
  directions: str = "gradients_and_constraints",
  normalization: str = "l2",
  anchor: int | None = 0,
  floor: float = 0.05,
  multiplier_range: Sequence[float] | None = None,
) -> Weighting:
  """Returns the Pareto MTL weighting; by default recommendation has weight 1 and the auxiliary objective lambda.

  The entries of a preference are the objectives in the order of the losses: recommendation first, the auxiliary
  objective second. For two objectives with the auxiliary loss smaller, the defaults give the closed form
  lambda(rho) = (1 - 2 rho) / (2 - rho), with rho the cosine between the two gradients: the auxiliary loss is minimized
  with weight 1 / 2 if they are orthogonal, more if they conflict, and maximized if rho > 1 / 2. If no constraint is
  active (recommendation loss < 0.41 * auxiliary loss), lambda is 1.

  Args:
    preferences: P vectors of K numbers; the region of vector p is where p . losses is the largest of all.
    index: index of the vector of the desired region.
    directions: vectors of the min-norm problem while the losses are outside the region: "gradients_and_constraints" or
      "constraints" only.
    normalization: divisor of the gradients in the min-norm problem: "none", "l2", "loss" or "loss+"; see `mgda`. The
      weights multiply the raw gradients.
    anchor: objective whose weight is scaled to exactly 1; None scales to sum |w| = 1.
    floor: lower bound, as a share of sum |w| in 0..1, on the anchor's weight as a divisor.
    multiplier_range: (lowest, highest) weight of the other objectives after scaling; None: no clipping.

  Raises:
    ValueError: an argument is out of range, or, from `init`, the preferences are not for K objectives.

  Source: Lin et al. 2019, Pareto Multi-Task Learning (arXiv 1912.12854), eq. 9-14; AutoCDSR (arXiv 2505.21811),
  whose published form has "constraints" only and whose released code the default.
  Choice: with preferences other than the default ones the anchor's weight can be tiny or negative, where lambda has a
  pole and then changes sign, which ascends on the anchor; `floor` bounds |lambda| by 1 / floor and keeps the anchor's
  weight at 1. With the default preferences its share is never below 1 / 2.
  Choice: negative lambda is kept, as published; `multiplier_range=(0, 1)` rules out maximizing the auxiliary loss.
  Choice: objectives with zero gradient are excluded from the gradients, because they would end the search.

  >>> rule, gram = pareto(), jnp.eye(2)  # Orthogonal gradients, the auxiliary loss is far smaller: lambda(0) = 1 / 2.
  >>> rule.update(gram, jnp.array([5.0, 0.1]), rule.init(2), None)[0].round(3).tolist()
  [1.0, 0.5]
  """
  _check(preferences, index, directions, anchor, floor, multiplier_range)
  check_normalization(normalization)
  vectors = np.asarray(preferences, np.float64)

  def check(num_objectives):
    if vectors.shape[1] != num_objectives:
      raise ValueError(f"preferences have {vectors.shape[1]} entries each, but there are {num_objectives} objectives")

  def weigh(gram, losses, key):
    weights = pareto_weights(normalized(gram, losses, normalization)[0], losses, vectors, index, directions)[0]
    total = jnp.abs(weights).sum()
    weights = weights / jnp.where(total == 0, 1, total)
    return weights if anchor is None else anchored(weights, anchor, floor, multiplier_range)

  return stateless(weigh, check)


def pareto_weights(
  gram: Float[Array, "K K"],
  losses: Float[Array, "K"],
  preferences: Sequence[Sequence[float]] | np.ndarray,
  index: int,
  directions: str = "gradients_and_constraints",
) -> tuple[Float[Array, "K"], Bool[Array, "P"]]:
  """Returns weights whose combined gradient is the min-norm direction of a Pareto MTL step, and the active constraints.

  Constraint p is active while (preference_p - preference_index) . losses > 0. The min-norm problem is over the active
  constraints' directions sum_k (preference_p - preference_index)_k grad_k, and over the gradients, except with
  `directions="constraints"` and a constraint active. The weights multiply the gradients; some may be negative, and
  their sum is not 1.

  Args:
    gram: inner products of the gradients.
    losses: loss of each objective.
    preferences: P vectors of K numbers.
    index: index of the vector of the desired region.
    directions: "gradients_and_constraints" or "constraints".

  >>> orthogonal = jnp.eye(2)
  >>> weights, active = pareto_weights(orthogonal, jnp.array([2.0, 1.0]), [[1, 0], [0, 1]], 1)
  >>> active.tolist()
  [True, False]
  >>> [round(weight, 5) for weight in weights.tolist()]  # on the line from (0, 1) to the constraint (1, -1)
  [0.4, 0.2]
  """
  offset = np.asarray(preferences, np.float64) - np.asarray(preferences, np.float64)[index]  # [P, K]
  active = (jnp.asarray(offset, losses.dtype) * losses[None]).sum(-1) > 0
  uses_gradients = ~active.any() | (directions == "gradients_and_constraints")
  is_moving = norms(gram) > 0
  participates = jnp.concatenate([(is_moving | ~is_moving.any()) & uses_gradients, active])
  mixes = jnp.concatenate([jnp.eye(len(losses), dtype=gram.dtype), jnp.asarray(offset, gram.dtype)])  # [K + P, K]
  products = jnp.einsum("ai,ij,bj->ab", mixes, gram, mixes, precision="highest")
  return (min_norm_weights(products, participates)[:, None] * mixes).sum(0), active


def preference_vectors(count: int) -> list[list[float]]:
  """Returns `count + 1` unit vectors (cos, sin) at equal angles from the first to the second of two objectives.

  Source: AutoCDSR (arXiv 2505.21811), p_k = (cos(k pi / 2 K), sin(k pi / 2 K)) for k = 0..K.

  >>> [[round(x, 3) for x in vector] for vector in preference_vectors(2)]
  [[1.0, 0.0], [0.707, 0.707], [0.0, 1.0]]
  """
  angles = [k * math.pi / (2 * count) for k in range(count + 1)]
  return [[math.cos(angle), math.sin(angle)] for angle in angles]


def _check(preferences, index, directions, anchor, floor, multiplier_range):
  lengths = sorted({len(vector) for vector in preferences})
  if len(lengths) != 1 or len(preferences) < 2:
    raise ValueError(
      f"preferences must be two vectors or more of one length, not {len(preferences)} of lengths {lengths}"
    )
  if not 0 <= index < len(preferences):
    raise ValueError(f"{index=} must be the index of one of the {len(preferences)} preferences")
  if directions not in DIRECTIONS:
    raise ValueError(f"{directions=} is not one of {DIRECTIONS}")
  if anchor is not None and not 0 <= anchor < lengths[0]:
    raise ValueError(f"{anchor=} must be the index of one of the {lengths[0]} objectives, or None")
  if not 0 < floor <= 1:
    raise ValueError(f"{floor=} must be above 0 and at most 1")
  if multiplier_range is not None and (anchor is None or not multiplier_range[0] <= multiplier_range[1]):
    raise ValueError(f"{multiplier_range=} must be (lowest, highest), and needs an anchor")
