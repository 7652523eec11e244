"""Segment attention with the whole attention matrix in memory: the fastest on GPUs for short rows.

It differs from `reference` in what it rounds: products take the dtype of the inputs (with sums in float32), so that
bfloat16 inputs use the matrix units. The backward pass computes the weights again instead of keeping them.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels.bias import RelativeBias, dense_bias
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
) -> Float[Array, "B N H E"]:
  """Same as `reference.attention`, with products in the dtype of the inputs; O(N^2) time and memory.

  Source: Zhai et al. 2024, arXiv 2402.17152, equation 2.
  """
  may_attend = mask.to_dense(k.shape[1])[:, None]  # [B, 1, N, S]
  added = None if bias is None else dense_bias(bias)  # [B or 1, H or 1, N, S]
  return _attention(activation, scale, q, k, v, added, may_attend)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(activation, scale, q, k, v, added, may_attend):
  return _forward(activation, scale, q, k, v, added, may_attend)[0]


def _forward(activation, scale, q, k, v, added, may_attend):
  weights, _ = _weights(activation, _scores(scale, q, k, added), may_attend)
  out = _product("bhns,bshe->bnhe", weights, v).astype(v.dtype)  # [B, N, H, E]
  return out, (q, k, v, added, may_attend)


def _backward(activation, scale, residuals, d_out):
  q, k, v, added, may_attend = residuals
  weights, slope = _weights(activation, _scores(scale, q, k, added), may_attend)
  dv = _product("bhns,bnhe->bshe", weights, d_out)
  d_weights = _product("bnhe,bshe->bhns", d_out, v)
  d_scores = slope(d_weights)  # [B, H, N, S]
  dq = scale * _product("bhns,bshd->bnhd", d_scores, k)
  dk = scale * _product("bhns,bnhd->bshd", d_scores, q)
  d_added = None if added is None else _sum_to(d_scores, added.shape).astype(added.dtype)
  return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), d_added, None


_attention.defvjp(_forward, _backward)


def _scores(scale, q, k, added) -> Float[Array, "B H N S"]:
  scores = scale * _product("bnhd,bshd->bhns", q, k)
  return scores if added is None else scores + added


def _weights(activation: str, scores: Float[Array, "B H N S"], may_attend: Bool[Array, "B 1 N S"]):
  """The attention weights, and the function from their gradient to that of the scores."""
  if activation == "silu":
    gate = jax.nn.sigmoid(scores)
    weights = jnp.where(may_attend, scores * gate, 0)
    return weights, lambda d: jnp.where(may_attend, d * gate * (1 + scores * (1 - gate)), 0)
  scores = jnp.where(may_attend, scores, jnp.finfo(scores.dtype).min)
  weights = jnp.where(may_attend, jax.nn.softmax(scores, axis=-1), 0)
  return weights, lambda d: weights * (d - (weights * d).sum(axis=-1, keepdims=True))


def _product(equation, a, b):
  """A product in the narrower of the two dtypes, with its sums in float32 or wider."""
  dtype = a.dtype if a.dtype.itemsize < b.dtype.itemsize else b.dtype
  return jnp.einsum(equation, a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.promote_types(dtype, jnp.float32))


def _sum_to(x, shape):
  axes = tuple(axis for axis, size in enumerate(shape) if size == 1 and x.shape[axis] != 1)
  return x.sum(axis=axes, keepdims=True)
