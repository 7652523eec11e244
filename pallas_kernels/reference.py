"""The definition of segment attention: dense, obvious, and the judge of all other implementations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.bias import RelativeBias, dense_bias
from pallas_kernels.dtypes import at_least_float32
from pallas_kernels.groups import KeyGroups, without_own
from pallas_kernels.mask import IntervalMask


def attention(
  q: Float[Array, "B N H D"],
  k: Float[Array, "B S H D"],
  v: Float[Array, "B S H E"],
  mask: IntervalMask,
  bias: RelativeBias | None,
  *,
  activation: str,
  scale: float,
  groups: KeyGroups | None = None,
) -> Float[Array, "B N H E"] | tuple[Float[Array, "B N H E"], Float[Array, "B N H _"]]:
  """`out_i = sum_j may_attend(i, j) * activation(scale * q_i·k_j + bias_ij) * v_j`, or the softmax over the keys that
  may be attended. With `groups` also the sums of absolute weights by group, then of the own key, `[B, N, H, G + 1]`.

  Source: Zhai et al. 2024, arXiv 2402.17152, equation 2.
  """
  weights = attention_weights(q, k, mask, bias, activation=activation, scale=scale)
  out = jnp.einsum("bhns,bshe->bnhe", weights, v.astype(weights.dtype)).astype(v.dtype)  # [B, N, H, E]
  if groups is None:
    return out
  others, own = without_own(weights, groups.is_own())
  sums = jnp.einsum("bhns,bsg->bhng", others, groups.one_hot(weights.dtype))
  return out, jnp.swapaxes(jnp.concatenate([sums, own], axis=-1), 1, 2)  # [B, N, H, G + 1]


def attention_weights(
  q: Float[Array, "B N H D"],
  k: Float[Array, "B S H D"],
  mask: IntervalMask,
  bias: RelativeBias | None = None,
  *,
  activation: str = "silu",
  scale: float = 1.0,
) -> Float[Array, "B H N S"]:
  """The attention matrix itself, for tests and pictures."""
  dtype = at_least_float32(q.dtype)
  may_attend = mask.to_dense(k.shape[1])[:, None]  # [B, 1, N, S]
  scores = scale * jnp.einsum("bnhd,bshd->bhns", q.astype(dtype), k.astype(dtype))  # [B, H, N, S]
  if bias is not None:
    scores += dense_bias(bias)
  if activation == "silu":
    return jax.nn.silu(jnp.where(may_attend, scores, 0))
  has_key = may_attend.any(axis=-1, keepdims=True)
  scores = jnp.where(may_attend, scores, jnp.where(has_key, -jnp.inf, 0))
  return jnp.where(may_attend, jax.nn.softmax(scores, axis=-1), 0)
