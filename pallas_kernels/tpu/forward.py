"""The forward kernel for TPUs: query tiles, and for each the live key tiles, one after another.

silu: `out_i = sum_j may_attend(i, j) * silu(scale * q_i·k_j + bias_ij) * v_j`; softmax: online, with a running maximum
and sum. The grid is (groups of heads, entries of the `TileOrder`): tiles that no query may read are neither fetched nor
computed. A tile is computed in chunks of keys, so that the matrix unit multiplies one chunk while the vector unit
activates another. Interior tiles take a path without a mask.

Source: Zhai et al. 2024, arXiv 2402.17152, equations 2 and 3; Milakov & Gimelshein 2018, arXiv 1805.02867 (softmax).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels import schedule
from pallas_kernels.mask import in_spans
from pallas_kernels.tpu import tiles
from pallas_kernels.tpu.bias import TileBias, bias_operands, notes_and_buckets
from pallas_kernels.tpu.call import (
  UNMASKED,
  Operand,
  call,
  flags_of,
  for_each_chunk,
  key_ranges,
  matmul,
  of_keys,
  of_queries,
  paths,
  sums_of_queries,
)
from pallas_kernels.tpu.problem import Integers, TileSpec, divide


def forward(
  spec: TileSpec,
  integers: Integers,
  tables: tuple[Array | None, Array | None],
  q: Float[Array, "B H N D"],
  k: Float[Array, "B H S D"],
  v: Float[Array, "B H S E"],
) -> tuple[Float[Array, "B H N E"], Float[Array, "B H 1 N"] | None]:
  """Returns the output in the dtype of v and, for softmax, the logarithm of each query's sum of exponentials."""
  heads, block_q, block_k = spec.heads, spec.block_q, spec.block_k
  key_rows = jnp.swapaxes(integers.key, 1, 2)  # [B, 8, S]
  inputs = {
    "q": of_queries(spec, q),
    "k": of_keys(spec, k),
    "v": of_keys(spec, v),
    "query": Operand(integers.query, (1, block_q, 8), lambda p: (p.row, p.query, 0)),
    "key": Operand(key_rows, (1, 8, block_k), lambda p: (p.row, 0, p.key)),
    **bias_operands(spec, tables, integers, before=block_q, sign=1),
    **key_ranges(integers.mask, block_q, k.shape[2]),
  }
  out = jax.ShapeDtypeStruct((*q.shape[:3], v.shape[3]), v.dtype)
  outputs = {"out": of_queries(spec, out)}
  fields = 7 if spec.position_heads else 6 if spec.time_heads else 5
  scratch = {
    "sum": ((heads, block_q, v.shape[3]), spec.dtype),
    "columns": ((fields, block_q, tiles.LANES), jnp.int32),
  }
  if spec.activation == "softmax":
    log_sum = jax.ShapeDtypeStruct((*q.shape[:2], 1, q.shape[2]), spec.dtype)
    outputs["log_sum"] = sums_of_queries(spec, log_sum)
    scratch |= {name: ((heads, block_q, tiles.LANES), spec.dtype) for name in ("largest", "total")}
  if spec.position_heads:
    scratch["strip"] = ((spec.table_heads(spec.position_heads), tiles.LANES, block_q + block_k), spec.dtype)
    scratch["found"] = ((block_q, spec.key_chunk), spec.dtype)
  notes, buckets = notes_and_buckets(spec, integers, block_q, spec.key_chunk)
  inputs |= buckets
  order = schedule.tile_order(integers.mask, k.shape[2], block_q, block_k, by="query", notes=notes)
  results = call(_kernel, f"{spec.activation}_attention_forward", spec, order, "query", inputs, outputs, scratch)
  return results[0], results[1] if len(results) > 1 else None


def _kernel(spec, refs):
  has = flags_of(refs)
  pl.when(has(schedule.FIRST))(lambda: _start(spec, refs))
  for path, taken in paths(spec, refs).items():
    pl.when(taken)(functools.partial(_tile, spec, refs, path))
  pl.when(has(schedule.LAST))(lambda: _finish(spec, refs))


def _start(spec, refs):
  refs.sum[...] = jnp.zeros_like(refs.sum)
  for field in range(refs.columns.shape[0]):
    refs.columns[field] = jnp.broadcast_to(refs.query[0, :, field : field + 1], refs.columns.shape[1:])
  if spec.activation == "softmax":
    refs.largest[...] = jnp.full_like(refs.largest, -jnp.inf)
    refs.total[...] = jnp.zeros_like(refs.total)


def _finish(spec, refs):
  for head in range(spec.heads):
    out = refs.sum[head]  # [block_q, E]
    if spec.activation == "softmax":
      total = refs.total[head]  # [block_q, 128], all lanes equal
      has_key = total > 0
      out = out / jnp.where(has_key, total, 1)[:, :1]
      log_sum = jnp.where(has_key, refs.largest[head] + jnp.log(jnp.where(has_key, total, 1)), jnp.inf)
      refs.log_sum[0, head] = log_sum.T[:1]  # [1, block_q]
    refs.out[0, head] = out.astype(refs.out.dtype)


def _tile(spec, refs, path):
  """Adds the present tile to the sums of its queries."""
  if spec.position_heads and path != "search":
    for head in range(spec.table_heads(spec.position_heads)):
      tiles.fill_strip(refs.strip.at[head], refs.window[0, head])

  def add(columns):
    may_attend = None if path in UNMASKED else _may_attend(spec, refs, columns)
    bias = _bias(spec, refs, path, columns, may_attend)
    for head in range(spec.heads):
      scores = matmul(refs.q[0, head], refs.k[0, head, columns], (1, 1), spec.dtype) * (spec.half * spec.scale)
      _add_chunk(spec, refs, head, columns, scores + bias.of(head), may_attend)

  # Chunks of keys that no query of the tile reads are left out.
  tile = refs.place.row * spec.query_tiles + refs.place.query
  first_key, size = refs.place.key * spec.block_k, spec.key_chunk
  first = divide(jnp.maximum(refs.first_key[tile] - first_key, 0), size)
  end = divide(jnp.minimum(refs.end_key[tile] - first_key, spec.block_k) + size - 1, size)
  for_each_chunk(path, spec.block_k, size, add, first, end)


def _query_column(refs, field, width):
  """An integer of each query, `[block_q, width]`."""
  return jnp.concatenate([refs.columns[field]] * (width // tiles.LANES), axis=1)


def _may_attend(spec, refs, columns):
  shape = (spec.block_q, columns.size)
  key = jax.lax.broadcasted_iota(jnp.int32, shape, 1) + (refs.place.key * spec.block_k + columns.start)
  return in_spans([_query_column(refs, i, shape[1]) for i in range(5)], key)


def _bias(spec, refs, path, columns, may_attend):
  query = [_query_column(refs, i, columns.size) if i < refs.columns.shape[0] else None for i in (5, 6)]
  key = refs.key[0, :, columns]  # [8, chunk]
  return TileBias(
    spec, refs, path, query=query, key=(key[0:1], key[1:2]), rows=spec.block_q, columns=columns,
    chunks=spec.block_k // columns.size, may_attend=may_attend,
  )  # fmt: skip


def _add_chunk(spec, refs, head, columns, scores, may_attend):
  if spec.activation == "silu":
    weights = scores + scores * jnp.tanh(scores)  # Of half the scores.
    if may_attend is not None:
      weights = jnp.where(may_attend, weights, 0)
  else:
    weights = _rescale(refs, head, scores, may_attend)
  v = refs.v[0, head, columns]
  refs.sum[head] += matmul(weights.astype(v.dtype), v, (1, 0), spec.dtype)


def _rescale(refs, head, scores, may_attend):
  """Moves the running maximum, sum and output of the softmax on, and returns the weights of the chunk."""
  if may_attend is not None:
    scores = jnp.where(may_attend, scores, -jnp.inf)
  old = refs.largest[head]  # [block_q, 128]
  new = jnp.maximum(old, scores.max(axis=1, keepdims=True))
  finite = jnp.where(jnp.isfinite(new), new, 0)
  shrink = jnp.exp(old - finite)
  weights = jnp.exp(scores - finite[:, :1])
  refs.largest[head] = new
  refs.total[head] = refs.total[head] * shrink + weights.sum(axis=1, keepdims=True)
  refs.sum[head] *= shrink[:, :1]
  return weights
