"""Weightings of objectives: fixed, uncertainty and MGDA, and those of other files by name; `build` reads a config."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp

from jaxrec.multi_objective.base import Weighting, check_normalization, nan_unless_finite, normalized, norms, stateless
from jaxrec.multi_objective.conflicts import cagrad, pcgrad
from jaxrec.multi_objective.min_norm import min_norm_weights
from jaxrec.multi_objective.modifiers import clamped, delayed, smoothed
from jaxrec.multi_objective.pareto_mtl import pareto
from jaxrec.multi_objective.set_points import band, set_point

__all__ = [
  "MODIFIERS", "WEIGHTINGS", "Weighting", "band", "build", "cagrad", "fixed", "mgda", "pareto", "pcgrad", "set_point",
  "uncertainty",
]  # fmt: skip


def fixed(weights: Sequence[float]) -> Weighting:
  """Returns the weighting with constant weights.

  Args:
    weights: one number per objective.

  Raises:
    ValueError: from `init`, for another number of objectives.

  >>> fixed([1, 0.5]).update(jnp.eye(2), jnp.ones(2), (), None)[0].tolist()
  [1.0, 0.5]
  """
  weights = tuple(float(weight) for weight in weights)

  def check(num_objectives):
    if num_objectives != len(weights):
      raise ValueError(f"{weights=} are for {len(weights)} objectives, but there are {num_objectives}")

  return stateless(lambda gram, losses, key: jnp.array(weights, gram.dtype), check)


def uncertainty(learning_rate: float) -> Weighting:
  """Returns the weighting by learned variances: weight exp(-s_k), with s_k the logarithm of a variance.

  The state is s `[K]` float32, initially 0 (all weights 1). Each update returns its weights and then moves s down the
  gradient 1 - exp(-s_k) L_k of sum_k exp(-s_k) L_k + s_k, whose minimum has the weights 1 / L_k.

  Args:
    learning_rate: step size of that descent; s moves by at most about `learning_rate * (1 + exp(-s_k) L_k)` per step.

  Raises:
    ValueError: a negative learning rate.

  Source: Kendall et al. 2018 (arXiv 1705.07115), eq. 7, with s = log sigma^2.
  Choice: twice the published objective, so that training starts at the plain sum of the losses. Plain gradient descent
  on s, independent of the optimizer of the losses.
  """
  if learning_rate < 0:
    raise ValueError(f"{learning_rate=} must not be negative")

  def update(gram, losses, log_variance, key):
    weights = jnp.exp(-log_variance)
    moved = log_variance - learning_rate * (1 - weights * losses)
    return nan_unless_finite(weights.astype(gram.dtype), gram, losses), moved.astype(log_variance.dtype)

  return Weighting(lambda num_objectives: jnp.zeros(num_objectives, jnp.float32), update)


def mgda(normalization: str = "none", rescale: bool = False) -> Weighting:
  """Returns the multiple-gradient descent algorithm (MGDA): min-norm weights of the (normalized) gradients.

  Objectives whose gradient is exactly zero get weight 0, and the others share all of it; `norms` in the state shows
  them.

  Args:
    normalization: divisor of each gradient in the min-norm problem: "none", "l2" (its norm), "loss" or "loss+" (loss
      times norm). With "none" the smallest gradient gets most of the weight. The last two need positive losses, else
      all weights are NaN.
    rescale: divide the weights by the same numbers, so that the update is the min-norm vector itself and descends on
      every objective.

  Raises:
    ValueError: for an unknown normalization.

  Source: Sener & Koltun 2018 (arXiv 1810.04650), eq. 3 and algorithm 2; normalizations from the code released with it.
  Choice: a zero gradient is excluded; the published rule gives it all the weight and stops forever.
  Choice: `rescale=False` as in the released code, which solves for normalized gradients and applies the weights to the
  raw ones. With a normalization this update need not descend on every objective.

  >>> rule, gram = mgda(), jnp.array([[4.0, 0.0], [0.0, 1.0]])  # Orthogonal gradients of norms 2 and 1.
  >>> weights, _ = rule.update(gram, jnp.ones(2), rule.init(2), None)
  >>> [f"{weight:.2f}" for weight in weights]  # The shorter one has the larger weight.
  ['0.20', '0.80']
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
  "band": band,
  "set_point": set_point,
}
MODIFIERS = ("clamp", "smoothing", "start_after", "start_below")


def build(config: Mapping) -> Weighting:
  """Returns the weighting that a config describes.

  Args:
    config: "name" is a key of `WEIGHTINGS`; the other entries are arguments of that function, or modify any weighting:
      "clamp", the range of `clamped`; "smoothing", the decay of `smoothed`; "start_after" and "start_below" of
      `delayed`.

  Raises:
    ValueError: an unknown name, an unknown or a missing argument.

  >>> build({"name": "mgda", "normalization": "l2"}).init(2)
  ()
  """
  options = dict(config)
  name = options.pop("name", None)
  if name not in WEIGHTINGS:
    raise ValueError(f"weighting name={name!r} is not one of {sorted(WEIGHTINGS)}")
  modifiers = {field: options.pop(field) for field in MODIFIERS if field in options}
  known = inspect.signature(WEIGHTINGS[name]).parameters
  if unknown := sorted(set(options) - set(known)):
    raise ValueError(f"weighting {name!r} has no field {unknown}; it has {sorted({*known, *MODIFIERS})}")
  if missing := [field for field, p in known.items() if p.default is p.empty and field not in options]:
    raise ValueError(f"weighting {name!r} needs a value for {missing}")
  return _modified(WEIGHTINGS[name](**options), modifiers)


def idle_updates(config: Mapping) -> int:
  """Returns in how many first updates the weighting of a config gives all weight to the first objective, at least.

  >>> idle_updates({"name": "set_point", "start_after": 50}), idle_updates({"name": "pareto"})
  (150, 0)
  """
  measured = inspect.signature(WEIGHTINGS[config["name"]]).parameters.get("base_updates")
  return config.get("start_after", 0) + (config.get("base_updates", measured.default) if measured else 0)


def _modified(weighting, modifiers):
  """A late start comes last: until then the others keep nothing."""
  if "clamp" in modifiers:
    weighting = clamped(weighting, modifiers["clamp"])
  if "smoothing" in modifiers:
    weighting = smoothed(weighting, modifiers["smoothing"])
  start = {name: modifiers[name] for name in ("start_after", "start_below") if name in modifiers}
  return delayed(weighting, **start) if start else weighting
