"""An Optax transformation from K gradients to one update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxrec.multi_objective.base import Weighting, cosines, nan_unless_finite, norms
from jaxrec.multi_objective.gradients import gram_matrix, weighted_sum


class MultiObjectiveState(NamedTuple):
  """State of `multi_objective`; the first four fields describe the last step and are zero before it.

  weights: [K] float32, weights of the gradients; NaN if anything was not finite.
  cosines: [K, K] float32, cosines between the gradients.
  norms: [K] float32, norms of the gradients; 0 at a stationary point of that objective.
  combined_norm: float32, norm of the gradient passed to the inner optimizer.
  num_nonfinite: int32, steps so far whose Gram matrix, losses or weights were not finite.
  count: int32, steps so far.
  weighting: state of the weighting.
  inner: state of the inner optimizer.
  """

  weights: Array
  cosines: Array
  norms: Array
  combined_norm: Array
  num_nonfinite: Array
  count: Array
  weighting: Any
  inner: Any


def multi_objective(
  weighting: Weighting,
  inner: optax.GradientTransformation,
  *,
  num_objectives: int = 2,
  select: Any = None,
  path: int | None = None,
  axis_name: str | Sequence[str] | None = None,
  seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
  """Returns a transformation whose `update` takes K gradients and passes their weighted sum to `inner`.

  `update(grads, state, params, *, losses, gram=None, to_params_gradient=None, reuse_weights=False, **extra)`:

  grads: tuple of K pytrees of one structure: gradients of whole losses (summed over microbatches and over the devices
    that share the batch), like `params` unless `to_params_gradient` is given.
  losses: [K] losses of the same batch.
  gram: [K, K] inner products of the gradients, if known; None computes them, with `select`, `path` and `axis_name`.
  to_params_gradient: maps the combined pytree to a gradient like `params`, for a part of the backward pass that then
    runs once instead of K times.
  reuse_weights: grads is a single gradient, of the sum of the losses weighted by `state.weights`. Weights, cosines
    and norms in the state stay unchanged: for steps between those that solve for the weights.
  extra: passed to `inner`.

  A NaN or infinity in the Gram matrix or the losses makes the weights and the update NaN and is counted in the state;
  it is never replaced. Put clipping into `inner`, where it acts on the combined gradient.

  Args:
    weighting: a rule for the weights, such as `mgda()`; see `WEIGHTINGS`.
    inner: optimizer of the combined gradient.
    num_objectives: K.
    select: leaves to include in the inner products; see `gram_matrix`.
    path: objective whose gradient says which of their numbers are included; see `gram_matrix`.
    axis_name: mesh axes of sharded gradients; see `gram_matrix`.
    seed: seed of random weightings; the key of a step is `fold_in(key(seed), count)`.

  Raises:
    ValueError: from `init` if the weighting is for another number of objectives; from `update` if there are not K
      gradients and K losses.

  >>> from jaxrec.multi_objective.weighting import fixed
  >>> optimizer = multi_objective(fixed([1, 0.5]), optax.sgd(1.0))
  >>> state = optimizer.init(jnp.zeros(1))
  >>> grads = (jnp.array([2.0]), jnp.array([4.0]))
  >>> optimizer.update(grads, state, losses=jnp.ones(2))[0].tolist()  # -(2 + 4 / 2)
  [-4.0]
  """
  inner = optax.with_extra_args_support(inner)

  def init(params):
    zeros = jnp.zeros(num_objectives, jnp.float32)
    none = jnp.zeros((), jnp.int32)
    square = jnp.zeros((num_objectives, num_objectives), jnp.float32)
    return MultiObjectiveState(
      zeros, square, zeros, zeros[0], none, none, weighting.init(num_objectives), inner.init(params)
    )

  def update(grads, state, params=None, *, losses, gram=None, to_params_gradient=None, reuse_weights=False, **extra):
    if reuse_weights:
      updates, inner_state = inner.update(grads, state.inner, params, **extra)
      is_finite = jnp.isfinite(state.weights).all() & jnp.isfinite(losses).all()
      return updates, state._replace(
        combined_norm=_norm(grads), num_nonfinite=state.num_nonfinite + (~is_finite).astype(jnp.int32),
        count=state.count + 1, inner=inner_state,
      )  # fmt: skip
    _check(grads, losses, num_objectives)
    if gram is None:
      gram = gram_matrix(grads, axis_name, select, path)
    key = jax.random.fold_in(jax.random.key(seed), state.count)
    weights, weighting_state = weighting.update(gram, losses, state.weighting, key)
    weights = nan_unless_finite(weights, gram, losses)
    combined = weighted_sum(weights, grads)
    combined = combined if to_params_gradient is None else to_params_gradient(combined)
    updates, inner_state = inner.update(combined, state.inner, params, **extra)
    described = (value.astype(jnp.float32) for value in (weights, cosines(gram), norms(gram), _norm(combined)))
    num_nonfinite = state.num_nonfinite + (~jnp.isfinite(weights).all()).astype(jnp.int32)
    return updates, MultiObjectiveState(*described, num_nonfinite, state.count + 1, weighting_state, inner_state)

  return optax.GradientTransformationExtraArgs(init, update)


def _norm(tree: Any) -> Array:
  return optax.tree.norm(jax.tree.map(lambda x: x.astype(jnp.float32), tree))


def _check(grads: Any, losses: Any, num_objectives: int) -> None:
  """Raises ValueError unless there are a tuple or list of K gradients and a vector of K losses."""
  if not isinstance(grads, (tuple, list)):
    raise ValueError(f"grads must be a tuple of {num_objectives} gradients, not a {type(grads).__name__}")
  if len(grads) != num_objectives:
    raise ValueError(f"got {len(grads)} gradients for {num_objectives=}; pass num_objectives to multi_objective")
  if jnp.shape(losses) != (num_objectives,):
    raise ValueError(f"losses must have shape ({num_objectives},), not {jnp.shape(losses)}")
