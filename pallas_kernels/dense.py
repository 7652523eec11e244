"""Segment attention with the whole attention matrix in memory: the fastest on GPUs for short rows.

It differs from `reference` in what it rounds: products take the dtype of the inputs (with sums in float32), so that
bfloat16 inputs use the matrix units. The backward pass computes the weights again instead of keeping them.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.bias import RelativeBias, look_up, table_entries
from pallas_kernels.dtypes import at_least_float32
from pallas_kernels.groups import KeyGroups, without_own
from pallas_kernels.mask import IntervalMask

_MAX_COMPARED = 129  # entries of a table


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
  """Same as `reference.attention`, with products in the dtype of the inputs; O(N^2) time and memory.

  Source: Zhai et al. 2024, arXiv 2402.17152, equation 2.
  """
  may_attend = mask.to_dense(k.shape[1])[:, None]  # [B, 1, N, S]
  bias = bias or RelativeBias()
  tables = bias.time_table, bias.position_table
  groups = None if groups is None else (groups.one_hot(v.dtype), groups.is_own())
  return _attention(activation, scale, q, k, v, tables, table_entries(bias), may_attend, groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(activation, scale, q, k, v, tables, entries, may_attend, groups):
  return _forward(activation, scale, q, k, v, tables, entries, may_attend, groups)[0]


def _forward(activation, scale, q, k, v, tables, entries, may_attend, groups):
  tables = jax.tree.map(jnp.asarray, tables)  # A gradient of NumPy tables: JAX hands them over as they are.
  weights, _ = _weights(activation, _scores(scale, q, k, tables, entries), may_attend)
  out = _product("bhns,bshe->bnhe", weights, v).astype(v.dtype)  # [B, N, H, E]
  out = out if groups is None else (out, _sums_by_group(weights, *groups))
  return out, (q, k, v, tables, entries, may_attend, groups)


def _backward(activation, scale, residuals, d_out):
  q, k, v, tables, entries, may_attend, groups = residuals
  d_out, d_sums = (d_out, None) if groups is None else d_out
  weights, to_d_scores = _weights(activation, _scores(scale, q, k, tables, entries), may_attend)
  dv = _product("bhns,bnhe->bshe", weights, d_out)
  d_weights = _product("bnhe,bshe->bhns", d_out, v)  # [B, H, N, S]
  if groups is not None:
    d_weights += jnp.sign(weights) * _d_sizes(d_sums, *groups)
  d_scores = to_d_scores(d_weights)
  dq = scale * _product("bhns,bshd->bnhd", d_scores, k)
  dk = scale * _product("bhns,bnhd->bshd", d_scores, q)
  d_tables = tuple(
    None if table is None else _table_gradient(table, entry, d_scores).astype(table.dtype)
    for table, entry in zip(tables, entries, strict=True)
  )
  return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), d_tables, None, None, None


_attention.defvjp(_forward, _backward)


def _sums_by_group(weights, is_group, is_own) -> Float[Array, "B N H _"]:
  """The sums of absolute weights by group, then of the own key, `[B, N, H, G + 1]`."""
  others, own = without_own(weights, is_own)
  sums = jnp.concatenate([_product("bhns,bsg->bhng", others, is_group), own], axis=-1)
  return jnp.swapaxes(sums, 1, 2)


def _d_sizes(d_sums, is_group, is_own) -> Float[Array, "B H N S"]:
  """The gradient of the absolute weights."""
  own = jnp.swapaxes(d_sums[..., -1], 1, 2)[..., None]  # [B, H, N, 1]
  return jnp.where(is_own, own, _product("bnhg,bsg->bhns", d_sums[..., :-1], is_group))


def _scores(scale, q, k, tables, entries) -> Float[Array, "B H N S"]:
  scores = scale * _product("bnhd,bshd->bhns", q, k)
  for table, entry in zip(tables, entries, strict=True):
    if table is not None:
      scores += look_up(table.astype(scores.dtype), entry)
  return scores


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
  return jnp.einsum(equation, a.astype(dtype), b.astype(dtype), preferred_element_type=at_least_float32(dtype))


def _table_gradient(table: Float[Array, "*H T"], entry: Int[Array, "B N S"], d_scores: Float[Array, "B H N S"]):
  """The sum of `d_scores` over the pairs that read each entry of the table."""
  d_scores = d_scores.sum(axis=1, keepdims=True) if table.ndim == 1 else d_scores
  add_up = {"default": _by_scatter}
  if table.shape[-1] <= _MAX_COMPARED:
    add_up["cuda"] = _by_comparison
  add_up = {name: functools.partial(function, table.shape[-1]) for name, function in add_up.items()}
  return jax.lax.platform_dependent(entry, d_scores, **add_up).reshape(table.shape)


def _by_scatter(size, entry, d_scores):
  sums = jnp.zeros((d_scores.shape[1], size), d_scores.dtype)
  return sums.at[:, entry].add(jnp.moveaxis(d_scores, 1, 0), mode="promise_in_bounds")


def _by_comparison(size, entry, d_scores):
  """Reads the scores `size` times: faster on GPUs, where atomic additions to one number wait for each other."""
  is_entry = entry[:, None, :, :, None] == jnp.arange(size).reshape(1, 1, 1, 1, -1)  # [B, 1, N, S, T], never in memory
  return jnp.where(is_entry, d_scores[..., None], 0).sum(axis=(0, 2, 3))
