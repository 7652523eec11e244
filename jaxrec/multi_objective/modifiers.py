"""Weightings made from another one: with smoothed inner products, with clipped weights, with a later start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrec.multi_objective.base import Weighting, anchored, nan_unless_finite

LOSS_DECAY = 0.99  # of the running mean of the first loss in `delayed`


class SmoothedState(NamedTuple):
  """State of `smoothed`: sum of decayed Gram matrices, number of updates, and the state of the weighting."""

  gram: Float[Array, "K K"]
  count: Int[Array, ""]
  weighting: Any


def smoothed(weighting: Weighting, decay: float) -> Weighting:
  """Returns the weighting with a running mean of the Gram matrix, so that its angles are not those of a single batch.

  Args:
    weighting: any.
    decay: of the mean, 0..1; .9 averages over about ten updates.

  Raises:
    ValueError: a decay outside 0..1.

  >>> from jaxrec.multi_objective.weighting import mgda
  >>> rule = smoothed(mgda(), 0.5)
  >>> _, state = rule.update(jnp.diag(jnp.array([1.0, 1.0])), jnp.ones(2), rule.init(2), None)
  >>> weights, _ = rule.update(jnp.diag(jnp.array([1.0, 4.0])), jnp.ones(2), state, None)  # mean (1, 3)
  >>> [round(weight, 4) for weight in weights.tolist()]
  [0.75, 0.25]
  """
  if not 0 <= decay < 1:
    raise ValueError(f"smoothing decay={decay} must be at least 0 and below 1")

  def init(num_objectives):
    square = jnp.zeros((num_objectives, num_objectives), jnp.float32)
    return SmoothedState(square, jnp.zeros((), jnp.int32), weighting.init(num_objectives))

  def update(gram, losses, state, key):
    total = decay * state.gram + (1 - decay) * gram.astype(jnp.float32)
    count = state.count + 1
    mean = (total / (1 - decay ** count.astype(jnp.float32))).astype(gram.dtype)
    weights, inner = weighting.update(mean, losses, state.weighting, key)
    return weights, SmoothedState(total, count, inner)

  return Weighting(init, update)


def clamped(weighting: Weighting, multiplier_range: Sequence[float]) -> Weighting:
  """Returns the weighting with the first weight scaled to 1 and the others then clipped.

  Where the first weight is below a twentieth of the sum of all, that twentieth is the divisor.

  Args:
    weighting: any.
    multiplier_range: (lowest, highest).

  Raises:
    ValueError: a range that is not ascending.
  """
  multiplier_range = tuple(float(x) for x in multiplier_range)
  if len(multiplier_range) != 2 or not multiplier_range[0] <= multiplier_range[1]:
    raise ValueError(f"clamp={multiplier_range} must be (lowest, highest)")

  def update(gram, losses, state, key):
    weights, state = weighting.update(gram, losses, state, key)
    return nan_unless_finite(anchored(weights, 0, 0.05, multiplier_range), gram, losses), state

  return Weighting(weighting.init, update)


class DelayedState(NamedTuple):
  """State of `delayed`: updates so far, whether the weighting has started, the decayed sum of the first loss, and the
  state of the weighting, which is that of its `init` until then."""

  count: Int[Array, ""]
  has_started: Bool[Array, ""]
  loss: Float[Array, ""]
  weighting: Any


def delayed(weighting: Weighting, start_after: int = 0, start_below: float = math.inf) -> Weighting:
  """Returns the weighting from some update on; before it the first objective has weight 1 and the others none.

  It starts once both hold, and stays started.

  Args:
    weighting: any.
    start_after: updates before it: steps, where weights are found in every step.
    start_below: the first loss, as a running mean over about 100 updates, must have come down to this: the value at
      which training without the other objectives levels off.

  Raises:
    ValueError: a negative number of updates, or a NaN.

  >>> from jaxrec.multi_objective.weighting import fixed
  >>> rule = delayed(fixed([1, 0.5]), start_after=1)
  >>> first, state = rule.update(jnp.eye(2), jnp.ones(2), rule.init(2), None)
  >>> first.tolist(), rule.update(jnp.eye(2), jnp.ones(2), state, None)[0].tolist()
  ([1.0, 0.0], [1.0, 0.5])
  """
  if start_after < 0 or math.isnan(start_below):
    raise ValueError(f"{start_after=} must be at least 0 and {start_below=} a number")

  def init(num_objectives):
    start = jnp.zeros((), jnp.int32), jnp.zeros((), bool), jnp.zeros((), jnp.float32)
    return DelayedState(*start, weighting.init(num_objectives))

  def update(gram, losses, state, key):
    total = LOSS_DECAY * state.loss + (1 - LOSS_DECAY) * losses[0].astype(jnp.float32)
    mean = total / (1 - LOSS_DECAY ** (state.count + 1).astype(jnp.float32))
    has_started = state.has_started | ((state.count >= start_after) & (mean <= start_below))
    weights, inner = weighting.update(gram, losses, state.weighting, key)
    inner = jax.tree.map(lambda new, old: jnp.where(has_started, new, old), inner, state.weighting)
    first_only = (jnp.arange(len(losses)) == 0).astype(weights.dtype)
    weights = nan_unless_finite(jnp.where(has_started, weights, first_only), gram, losses)
    return weights, DelayedState(state.count + 1, has_started, total, inner)

  return Weighting(init, update)
