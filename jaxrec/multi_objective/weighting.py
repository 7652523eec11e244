"""Rules that weigh objectives: fixed, uncertainty, MGDA, Pareto, PCGrad, CAGrad. `build` makes one from a config."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp

from jaxrec.multi_objective.base import Weighting, check_normalization, nan_unless_finite, normalized, norms, stateless
from jaxrec.multi_objective.conflicts import cagrad, pcgrad
from jaxrec.multi_objective.min_norm import min_norm_weights
from jaxrec.multi_objective.pareto import pareto

__all__ = ["WEIGHTINGS", "Weighting", "build", "cagrad", "fixed", "mgda", "pareto", "pcgrad", "uncertainty"]


def fixed(weights: Sequence[float]) -> Weighting:
  """Returns the weighting that always answers `weights`, one number for each objective.

  Raises:
    ValueError: from `init`, if there are not as many objectives.
  """
  weights = tuple(float(weight) for weight in weights)

  def check(num_objectives):
    if num_objectives != len(weights):
      raise ValueError(f"{weights=} are for {len(weights)} objectives, there are {num_objectives}")

  return stateless(lambda gram, losses, key: jnp.array(weights, gram.dtype), check)


def uncertainty(learning_rate: float) -> Weighting:
  """Returns the weighting by learned variances: weight exp(-s_k), with s_k the logarithm of a variance.

  The state is s `[K]` float32, at first 0 (all weights 1). Each update, after giving its weights, moves s down the
  gradient 1 - exp(-s_k) L_k of sum_k exp(-s_k) L_k + s_k, whose minimum is at the weights 1 / L_k.

  Args:
    learning_rate: step of that descent; s moves by at most about `learning_rate * (1 + exp(-s_k) L_k)` at a time.

  Source: Kendall et al. 2018 (arXiv 1705.07115), eq. 7, with s = log sigma^2.
  Choice: twice the published objective, so that training starts at the plain sum of the losses. Plain gradient descent
  on s: the losses' optimizer need not know of it.
  """
  if learning_rate < 0:
    raise ValueError(f"{learning_rate=} must not be negative")

  def update(gram, losses, log_variance, key):
    weights = jnp.exp(-log_variance)
    moved = log_variance - learning_rate * (1 - weights * losses)
    return nan_unless_finite(weights.astype(gram.dtype), gram, losses), moved.astype(log_variance.dtype)

  return Weighting(lambda num_objectives: jnp.zeros(num_objectives, jnp.float32), update)


def mgda(normalization: str = "none", rescale: bool = False) -> Weighting:
  """Returns the multiple-gradient descent algorithm: min-norm weights of the (normalized) gradients.

  Args:
    normalization: what gradients are divided by first: "none", "l2" (their norm), "loss" or "loss+" (loss times norm).
      Without it the smallest gradient gets most of the weight. Losses must be positive for the last two, else all
      weights are NaN.
    rescale: divide the weights by the same numbers, so that the update is the min-norm vector itself and descends on
      every objective.

  Objectives whose gradient is exactly zero have weight 0 and the others share all of it; `norms` shows them.

  Raises:
    ValueError: for an unknown normalization.

  Source: Sener & Koltun 2018 (arXiv 1810.04650), eq. 3 and algorithm 2; normalizations from the code released with it.
  Choice: a zero gradient is left out, where the published rule gives it all the weight and stops for good.
  Choice: `rescale=False` as in the released code, which solves for normalized gradients and weighs the raw ones. With a
  normalization that vector need not descend on every objective.
  """
  check_normalization(normalization)

  def weigh(gram, losses, key):
    scaled, divisor = normalized(gram, losses, normalization)
    weights = min_norm_weights(scaled, norms(gram) > 0)
    return weights / divisor if rescale else weights

  return stateless(weigh)


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
  "fixed": fixed,
  "uncertainty": uncertainty,
  "mgda": mgda,
  "pareto": pareto,
  "pcgrad": pcgrad,
  "cagrad": cagrad,
}


def build(config: Mapping) -> Weighting:
  """The weighting that `config` describes: "name" is one of `WEIGHTINGS`, other entries are its arguments.

  Raises:
    ValueError: for an unknown name, an unknown or a missing argument.

  >>> build({"name": "mgda", "normalization": "l2"}).init(2)
  ()
  """
  options = dict(config)
  name = options.pop("name", None)
  if name not in WEIGHTINGS:
    raise ValueError(f"weighting name={name!r} is not one of {sorted(WEIGHTINGS)}")
  known = inspect.signature(WEIGHTINGS[name]).parameters
  if unknown := sorted(set(options) - set(known)):
    raise ValueError(f"weighting {name!r} has no field {unknown}; it has {sorted(known)}")
  if missing := [field for field, p in known.items() if p.default is p.empty and field not in options]:
    raise ValueError(f"weighting {name!r} needs a value for {missing}")
  return WEIGHTINGS[name](**options)
