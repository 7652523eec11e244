"""The mathematics of a tile, in registers.

`query_axis` is the axis of the tile along which the queries lie; the keys lie along the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.gpu.problem import SPANS, Spec
from pallas_kernels.mask import in_spans

_LOG2_E = math.log2(math.e)
# A masked pair gets the score that makes its weight zero: cheaper than masking the weights, which are rounded next.
_WITHOUT_WEIGHT = {"silu": 0.0, "softmax": -jnp.inf}


def may_attend(query: Sequence[Int[Array, " N"]], key: Int[Array, "I J"], query_axis: int) -> Bool[Array, "I J"]:
  """Whether each pair is allowed. query: vectors, the first five are the mask; key: index of the key of each pair."""
  return in_spans([_spread(x, key.shape, query_axis) for x in query[:SPANS]], key)


def masked(
  spec: Spec, may_attend: Bool[Array, "I J"], scores: Float[Array, "I J"], d_weights: Float[Array, "I J"] | None
) -> tuple[Float[Array, "I J"], Float[Array, "I J"] | None]:
  """Scores and gradients of the weights that give masked pairs no weight and no gradient."""
  scores = jnp.where(may_attend, scores, _WITHOUT_WEIGHT[spec.activation])
  if d_weights is None or spec.activation == "softmax":
    return scores, d_weights
  return scores, jnp.where(may_attend, d_weights, 0.0)


def _silu_weights(scores, carry):
  half = scores * 0.5
  return half + half * jnp.tanh(half), carry


def _softmax_weights(scores, carry):
  """Weights relative to the largest score so far; rescales the sums so far to it."""
  out, largest, total = carry
  scores = scores * _LOG2_E
  new_largest = jnp.maximum(largest, scores.max(axis=1))
  weights = jnp.exp2(scores - _spread(new_largest, scores.shape, 0))
  shrink = jnp.exp2(largest - new_largest)
  return weights, (out * _spread(shrink, out.shape, 0), new_largest, total * shrink + weights.sum(axis=1))


# The weights of a tile, given its scores and the sums so far; and the sums so far, to which they may be added.
WEIGHTS: dict[str, Callable] = {"silu": _silu_weights, "softmax": _softmax_weights}


def normalised(
  out: Float[Array, "N E"], largest: Float[Array, " N"], total: Float[Array, " N"]
) -> tuple[Float[Array, "N E"], Float[Array, " N"]]:
  """The output, and the binary logarithm of the sum of exponentials: infinite for a query without keys."""
  has_key = total > 0
  divisor = jnp.where(has_key, total, 1.0)
  log_sum = jnp.where(has_key, largest + jnp.log(divisor) * _LOG2_E, jnp.inf)
  return out * _spread(1.0 / divisor, out.shape, 0), log_sum


def gradients(
  spec: Spec,
  scores: Float[Array, "I J"],
  d_weights: Float[Array, "I J"] | None,
  softmax: Sequence[Float[Array, " N"]] | None,
  query_axis: int,
) -> tuple[Float[Array, "I J"], Float[Array, "I J"] | None]:
  """The weights and the gradient of the scores. softmax: log_sum and sum_j weights_ij d_weights_ij of each query."""
  if spec.activation == "silu":
    gate = 0.5 + 0.5 * jnp.tanh(0.5 * scores)
    weights = scores * gate
    slope = gate + weights * (1.0 - gate)
  else:
    log_sum, inner = (_spread(x, scores.shape, query_axis) for x in softmax)
    weights = jnp.exp2(scores * _LOG2_E - log_sum)
  if d_weights is None:
    return weights, None
  return weights, d_weights * slope if spec.activation == "silu" else weights * (d_weights - inner)


def _spread(x, shape, axis):
  return lax.broadcast_in_dim(x, shape, (axis,))
