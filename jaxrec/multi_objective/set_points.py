"""Weightings that hold the second of two losses at a level: the band of AutoCDSR's constraints, and a controller."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrec.multi_objective.base import Weighting, nan_unless_finite, stateless


def band(count: int = 10, multiplier_range: Sequence[float] = (-0.5, 0.5)) -> Weighting:
  """Returns the weighting (1, highest) while loss 2 > tan(pi / (4 count)) * loss 1, and (1, lowest) below that.

  The ratio of the losses is driven to that number: .0787 for a count of 10. With a recommendation loss of 4.5 a share
  of .35 is kept, with a count of 5 one of .71, with 20 one of .18. Gradients have no influence.

  Args:
    count: K of the preferences p_k = (cos(k pi / 2 K), sin(k pi / 2 K)), at least 1.
    multiplier_range: (lowest, highest) weight of the second gradient. A negative lowest one pushes the second loss up;
      0 leaves it alone.

  Raises:
    ValueError: a count below 1, a range that is not ascending, or, from `init`, not two objectives.

  Source: AutoCDSR (arXiv 2505.21811): with the preference p_1, its min-norm problem has the directions of the active
  constraints only (`pareto(preference_vectors(count), 1, "constraints")`).
  Choice: for two losses the constraints alone make the weights, which are then unbounded: they are clipped, as there
  with `multiplier_range`. Between the two lines of the band the published rule descends on both: highest here too.

  >>> band(10).update(jnp.eye(2), jnp.array([4.5, 0.36]), (), None)[0].tolist()  # .36 / 4.5 = .080
  [1.0, 0.5]
  """
  if count < 1:
    raise ValueError(f"{count=} must be at least 1")
  lowest, highest = _ascending("multiplier_range", multiplier_range)
  slope = math.tan(math.pi / (4 * count))

  def weigh(gram, losses, key):
    return _second(jnp.where(losses[1] > slope * losses[0], highest, lowest), gram)

  return stateless(weigh, _check_two)


class SetPointState(NamedTuple):
  """State of `set_point`: the weight, the mean of the second loss without it, and the number of updates so far."""

  weight: Float[Array, ""]
  base: Float[Array, ""]
  count: Int[Array, ""]


def set_point(
  kappa: float = 0.5, learning_rate: float = 0.01, maximum: float = 1.0, base_updates: int = 100
) -> Weighting:
  """Returns the weighting (1, lambda) whose lambda is moved until the second loss is `kappa` times what it was without.

  In the first `base_updates` updates lambda is 0, and the mean L_base of the second loss is taken. Then lambda becomes
  clip(lambda + learning_rate * (L - kappa * L_base), 0, maximum) with the loss L of each batch. Gradients have no
  influence.

  Args:
    kappa: what is to be left of the second loss, above 0.
    learning_rate: change of lambda in an update, per unit of the second loss: a share that is .1 too high moves lambda
      by .001 with the default.
    maximum: of lambda, in units of loss 1 per unit of loss 2.
    base_updates: updates, at least 1, in which L_base is measured. Let them begin where training has settled: see
      `delayed`.

  Raises:
    ValueError: an argument out of its range, or, from `init`, not two objectives.

  Choice: an integral controller, ours.

  >>> rule = set_point(kappa=0.5, learning_rate=1.0, base_updates=1)
  >>> _, state = rule.update(jnp.eye(2), jnp.array([4.0, 0.5]), rule.init(2), None)
  >>> rule.update(jnp.eye(2), jnp.array([4.0, 0.5]), state, None)[0].tolist()  # .5 - .5 * .5
  [1.0, 0.25]
  """
  if not (kappa > 0 and learning_rate >= 0 and maximum >= 0 and base_updates >= 1):
    raise ValueError(
      f"{kappa=} must be above 0, {learning_rate=} and {maximum=} at least 0, {base_updates=} at least 1"
    )

  def init(num_objectives):
    _check_two(num_objectives)
    return SetPointState(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))

  def update(gram, losses, state, key):
    loss = losses[1].astype(jnp.float32)
    measures = state.count < base_updates
    base = jnp.where(measures, state.base + (loss - state.base) / (state.count + 1).astype(loss.dtype), state.base)
    moved = jnp.clip(state.weight + learning_rate * (loss - kappa * base), 0, maximum)
    weight = jnp.where(measures, 0, moved)
    weights = nan_unless_finite(_second(weight, gram), gram, losses)
    return weights, SetPointState(weight, base, state.count + 1)

  return Weighting(init, update)


def _second(weight, gram):
  return jnp.stack([jnp.ones((), gram.dtype), jnp.asarray(weight, gram.dtype)])


def _check_two(num_objectives):
  if num_objectives != 2:
    raise ValueError(f"this weighting is for 2 objectives, but there are {num_objectives}")


def _ascending(name, values):
  values = tuple(float(value) for value in values)
  if len(values) != 2 or not values[0] <= values[1]:
    raise ValueError(f"{name}={values} must be (lowest, highest)")
  return values
