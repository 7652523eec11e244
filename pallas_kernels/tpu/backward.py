"""The backward kernel for TPUs: key tiles, and for each the live query tiles, one after another.

Tiles are transposed, `[keys, queries]`, so that the gradients of keys and values are plain products, and what is known
of a query is a row that costs nothing to repeat. The gradients of a key tile stay in scratch memory until its last
query tile; those of all queries of a row stay in their output block. So scores are computed once, in five products.

With `s` the score and `w` its weight:

    dv_j = sum_i w_ij do_i
    ds_ij = activation'(s_ij) do_i·v_j, for softmax w_ij (do_i·v_j - do_i·out_i)
    dk_j = scale * sum_i ds_ij q_i
    dq_i = scale * sum_j ds_ij k_j

and the gradient of a table's entry is the sum of `ds` over the pairs that read it.

Source: Dao et al. 2022, arXiv 2205.14135, appendix B.2 (softmax); Zhai et al. 2024, arXiv 2402.17152, equation 2.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels import schedule
from pallas_kernels.bias import REACHED_BUCKETS
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
from pallas_kernels.tpu.problem import QUERY_CHUNK, Integers, TileSpec, divide, window_differences


class SoftmaxSums(NamedTuple):
  """What the gradient of softmax needs of each query.

  log_sum: the logarithm of the sum of exponentials.
  mean: `do_i·out_i`, the mean of `do_i·v_j` over the weights.
  """

  log_sum: Float[Array, "B H 1 N"]
  mean: Float[Array, "B H 1 N"]


def backward(
  spec: TileSpec,
  integers: Integers,
  tables: tuple[Array | None, Array | None],
  q: Float[Array, "B H N D"],
  k: Float[Array, "B H S D"],
  v: Float[Array, "B H S E"],
  d_out: Float[Array, "B H N E"],
  sums: SoftmaxSums | None,
) -> tuple[Array, Array, Array, tuple[Array | None, Array | None]]:
  """Returns the gradients of q (not cast), k, v and of both tables."""
  heads, block_q, block_k = spec.heads, spec.block_q, spec.block_k
  query_rows = jnp.swapaxes(integers.query, 1, 2)  # [B, 8, N]
  inputs = {
    "q": of_queries(spec, q),
    "k": of_keys(spec, k),
    "v": of_keys(spec, v),
    "d_out": of_queries(spec, d_out),
    "query": Operand(query_rows, (1, 8, block_q), lambda p: (p.row, 0, p.query)),
    "key": Operand(integers.key, (1, block_k, 8), lambda p: (p.row, p.key, 0)),
    **bias_operands(spec, tables, integers, before=block_k, sign=-1),
    **key_ranges(integers.mask, QUERY_CHUNK, k.shape[2]),
  }
  if sums is not None:
    inputs |= {name: sums_of_queries(spec, value) for name, value in sums._asdict().items()}
  outputs = {
    "dq": Operand(
      jax.ShapeDtypeStruct(q.shape, spec.dtype), (1, heads, *q.shape[2:]), lambda p: (p.row, p.group, 0, 0)
    ),
    "dk": of_keys(spec, k),
    "dv": of_keys(spec, v),
    **_table_outputs(spec),
  }
  scratch = {
    "sum_k": ((heads, block_k, k.shape[3]), spec.dtype),
    "sum_v": ((heads, block_k, v.shape[3]), spec.dtype),
    "columns": ((2, block_k, tiles.LANES), jnp.int32),
  }
  if spec.position_heads:
    strip = (spec.table_heads(spec.position_heads), tiles.LANES, block_q + block_k), spec.dtype
    scratch |= {"strip": strip, "d_strip": strip, "found": ((block_k, QUERY_CHUNK), spec.dtype)}
  if spec.time_heads or spec.position_heads:
    scratch |= {"bin_index": ((block_k, QUERY_CHUNK), jnp.int32), "bin_values": ((block_k, QUERY_CHUNK), spec.dtype)}
  notes, buckets = notes_and_buckets(spec, integers, QUERY_CHUNK, block_k)
  inputs |= buckets
  order = schedule.tile_order(integers.mask, k.shape[2], block_q, block_k, by="key", notes=notes)
  results = call(_kernel, f"{spec.activation}_attention_backward", spec, order, "key", inputs, outputs, scratch)
  gradients = dict(zip(outputs, results, strict=True))
  dq, dk, dv = (gradients[name] for name in ("dq", "dk", "dv"))
  return spec.scale * dq, dk, dv, _table_gradients(spec, integers, gradients)


def _table_outputs(spec):
  """One block for each group of heads, for all steps of the grid."""

  def whole(*shape):
    value = jax.ShapeDtypeStruct((spec.groups, *shape), spec.dtype)
    return Operand(value, (1, *shape), lambda p: (p.group,) + (0,) * len(shape))

  outputs = {}
  if spec.time_heads:
    rows = (REACHED_BUCKETS + tiles.SUBLANES) * tiles.SUBLANES
    outputs["d_time"] = whole(spec.table_heads(spec.time_heads), rows, tiles.LANES)
  if spec.position_heads:
    heads = spec.table_heads(spec.position_heads)
    outputs["d_window"] = whole(heads, spec.num_windows, tiles.SUBLANES, spec.block_q + spec.block_k)
    outputs["d_found"] = whole(heads, spec.table_rows, tiles.LANES)
  return outputs


def _table_gradients(spec, integers, gradients):
  """Sums what the groups found; `[H, ...]` or, of a table that the heads share, `[1, ...]`."""

  def heads_of(value, of_table):
    return value.sum(axis=0) if of_table == 1 else value.reshape(of_table, *value.shape[2:])

  time = position = None
  if spec.time_heads:
    bins = heads_of(gradients["d_time"], spec.time_heads)  # [H, 8 bins, 128]
    time = bins.reshape(len(bins), -1, tiles.SUBLANES * tiles.LANES).sum(axis=-1)
  if spec.position_heads:
    window = jnp.moveaxis(heads_of(gradients["d_window"], spec.position_heads), 1, 0)  # [M, H, 8, L]
    differences = window_differences(spec, integers)
    position = tiles.table_gradient(window, differences, spec.block_k, -1, spec.table_size)
    position += heads_of(gradients["d_found"], spec.position_heads)[:, : spec.table_size].sum(axis=-1)
  return time, position


def _kernel(spec, refs):
  has = flags_of(refs)
  pl.when(pl.program_id(1) == 0)(lambda: _clear(refs, "d_time", "d_window", "d_found"))
  pl.when(has(schedule.FIRST_OF_ROW))(lambda: _clear(refs, "dq"))
  pl.when(has(schedule.FIRST))(lambda: _start(refs))
  for path, taken in paths(spec, refs).items():
    pl.when(taken)(functools.partial(_tile, spec, refs, path))
  pl.when(has(schedule.LAST))(lambda: _finish(spec, refs))


def _clear(refs, *names):
  for name in names:
    if hasattr(refs, name):
      ref = getattr(refs, name)
      ref[...] = jnp.zeros_like(ref)


def _start(refs):
  _clear(refs, "sum_k", "sum_v")
  for field in range(2):
    refs.columns[field] = jnp.broadcast_to(refs.key[0, :, field : field + 1], refs.columns.shape[1:])


def _finish(spec, refs):
  refs.dk[0] = (spec.scale * refs.sum_k[...]).astype(refs.dk.dtype)
  refs.dv[0] = refs.sum_v[...].astype(refs.dv.dtype)


def _tile(spec, refs, path):
  """Adds the present tile to the sums of its keys, its queries and the tables."""
  use_strip = spec.position_heads and path != "search"
  if use_strip:
    _clear(refs, "d_strip")
    for head in range(spec.table_heads(spec.position_heads)):
      tiles.fill_strip(refs.strip.at[head], refs.window[0, head])

  def add(columns):
    may_attend = None if path in UNMASKED else _may_attend(spec, refs, columns)
    query, key = refs.query[0, :, columns], refs.columns[...]  # [8, chunk], [2, block_k, 128]
    bias = TileBias(
      spec, refs, path, query=(query[5:6], query[6:7]), key=key, rows=spec.block_k, columns=columns,
      chunks=spec.block_q // QUERY_CHUNK, may_attend=may_attend,
    )  # fmt: skip
    for head in range(spec.heads):
      _add_chunk(spec, refs, head, columns, bias)

  def add_if_live(columns):
    pl.when(_is_live(spec, refs, columns))(lambda: add(columns))

  for_each_chunk(path, spec.block_q, QUERY_CHUNK, add if path in UNMASKED else add_if_live)
  if use_strip:
    window = spec.window_of(refs.place.query, refs.place.key)
    for head in range(spec.table_heads(spec.position_heads)):
      refs.d_window[0, head, window] += tiles.fold_strip(refs.d_strip.at[head])


def _is_live(spec, refs, columns):
  """Whether a query of the chunk reads a key of the tile."""
  first_key = refs.place.key * spec.block_k
  queries = (refs.place.row * spec.query_tiles + refs.place.query) * spec.block_q + columns.start
  chunk = divide(queries, QUERY_CHUNK)
  return (refs.first_key[chunk] < first_key + spec.block_k) & (refs.end_key[chunk] > first_key)


def _may_attend(spec, refs, columns):
  query = refs.query[0, :, columns]  # [8, chunk]
  shape = (spec.block_k, columns.size)
  key = jax.lax.broadcasted_iota(jnp.int32, shape, 0) + refs.place.key * spec.block_k
  return in_spans([query[i : i + 1] for i in range(5)], key)


def _add_chunk(spec, refs, head, columns, bias):
  q, k, v, d_out = refs.q[0, head, columns], refs.k[0, head], refs.v[0, head], refs.d_out[0, head, columns]
  scores = matmul(k, q, (1, 1), spec.dtype) * (spec.half * spec.scale) + bias.of(head)  # [block_k, chunk]
  d_weights = matmul(v, d_out, (1, 1), spec.dtype)
  if spec.activation == "silu":
    weights, d_scores = _silu(scores, d_weights)
  else:
    weights = jnp.exp(scores - refs.log_sum[0, head, :, columns])
    d_scores = weights * (d_weights - refs.mean[0, head, :, columns])
  if bias.may_attend is not None:
    weights, d_scores = (jnp.where(bias.may_attend, x, 0) for x in (weights, d_scores))
  bias.add_gradient(head, d_scores)
  d_scores = d_scores.astype(q.dtype)
  refs.sum_v[head] += matmul(weights.astype(v.dtype), d_out, (1, 0), spec.dtype)
  refs.sum_k[head] += matmul(d_scores, q, (1, 0), spec.dtype)
  rows = pl.ds(pl.multiple_of(refs.place.query * spec.block_q + columns.start, QUERY_CHUNK), QUERY_CHUNK)  # [chunk]
  refs.dq[0, head, rows] += matmul(d_scores, k, (0, 0), spec.dtype)


def _silu(half, d_weights):
  """The weights `x sigmoid(x)` of scores x = 2 half, and `d_weights` times their derivative."""
  tanh = jnp.tanh(half)
  gate = 0.5 + 0.5 * tanh
  weights = half + half * tanh
  return weights, d_weights * (gate + weights * (1 - gate))
