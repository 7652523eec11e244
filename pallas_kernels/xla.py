"""Segment attention in plain JAX: live tiles only, memory linear in N, forward and backward.

The intervals of the mask give a list of live (query tile, key tile) pairs. A loop with a dynamic end takes a group of
pairs at a time: gather the tiles, multiply them as one batch, add the results to their query tiles (and, backward,
key tiles). Pairs of which every query may read every key come first, and are computed without a mask. Nothing larger
than a group of tiles exists besides inputs and outputs.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.export import is_symbolic_dim
from jaxtyping import Array, Float

from pallas_kernels import schedule
from pallas_kernels.bias import RelativeBias, look_up, position_index, time_bucket_between
from pallas_kernels.dtypes import at_least_float32
from pallas_kernels.groups import KeyGroups, without_own
from pallas_kernels.mask import IntervalMask, in_spans
from pallas_kernels.primitives import without_gradient
from pallas_kernels.sizes import is_known
from pallas_kernels.varying import axes_of, vary

# Time buckets, a byte each, that are computed once for all layers of a model; else once in each pass.
_MAX_BUCKETS_KEPT = 2**24


@dataclasses.dataclass(frozen=True)
class BlockSizes:
  """Sizes that change speed, never results. Raises: ValueError for a size below 1.

  query, key: tokens in a tile.
  group: tile pairs computed together.
  """

  query: int = 128
  key: int = 128
  group: int = 16

  def __post_init__(self):
    if min(self.query, self.key, self.group) < 1:
      raise ValueError(f"{self} needs positive sizes")


def attention(
  q: Float[Array, "B N H D"],
  k: Float[Array, "B S H D"],
  v: Float[Array, "B S H E"],
  mask: IntervalMask,
  bias: RelativeBias | None,
  groups: KeyGroups | None = None,
  *,
  activation: str,
  scale: float,
  block_sizes: BlockSizes | None = None,
  fill_device: bool = False,
) -> Float[Array, "B N H E"] | tuple[Float[Array, "B N H E"], Float[Array, "B N H _"]]:
  """Same as `reference.attention`, in time proportional to the live tiles and in O(N) memory.

  A result whose gradient is not needed costs nothing in the backward pass.

  fill_device: whether default groups of tiles fill a GPU; otherwise a group's scores fit in the cache of a CPU core.
  """
  rows, num_queries, num_keys = *q.shape[:2], k.shape[1]
  blocks = block_sizes or default_block_sizes(num_queries, num_keys, q.shape[2], 2**24 if fill_device else 2**16)
  key_tiles = -(-num_keys // blocks.key)
  bias = bias or RelativeBias()
  table_size = 0 if bias.position_table is None else bias.position_table.shape[-1]
  spec = _Spec(activation, scale, blocks, key_tiles, table_size, at_least_float32(q.dtype))
  mask = schedule.pad_queries(mask, schedule.padding(num_queries, blocks.query))
  work = schedule.work_list(mask, key_tiles * blocks.key, blocks.query, blocks.key, blocks.group)
  own_key = None if groups is None else groups.own_key
  index = _TileIndex(
    work=work,
    spans=_tiles_of(_spans(mask), blocks.query),
    query_time=_optional(_tiles_of, bias.query_time, blocks.query),
    key_time=_optional(_tiles_of, bias.key_time, blocks.key),
    query_position=_optional(_tiles_of, bias.query_position, blocks.query),
    key_position=_optional(_tiles_of, bias.key_position, blocks.key),
    own_key=_optional(_tiles_of, own_key, blocks.query),
  )
  size = work.query_tile.size * blocks.query * blocks.key
  if bias.time_table is not None and is_known(q, k) and size <= _MAX_BUCKETS_KEPT:
    index = dataclasses.replace(index, buckets=_buckets(index, work.query_tile, work.key_tile).astype(jnp.uint8))
  values = (_to_tiles(v, blocks.key),)
  if groups is not None:
    values = (*values, _tiles_of(groups.one_hot(v.dtype), blocks.key))  # [B * Tk, block_k, G]
  outs = _tiled_attention(
    spec,
    _to_tiles(q, blocks.query),
    _to_tiles(k, blocks.key),
    values,
    (bias.time_table, bias.position_table),
    index,
  )  # [B * Tq, H, block_q, E], and of groups
  out, *sums = (_from_tiles(out, rows, num_queries) for out in outs)  # [B, N, H, E]
  if groups is None:
    return out.astype(v.dtype)
  return out.astype(v.dtype), sums[0] if groups.is_absolute else sums[0].astype(v.dtype)


def default_block_sizes(num_queries: int, num_keys: int, num_heads: int, scores: int = 2**16) -> BlockSizes:
  """Tiles of at most 32 x 32 tokens for rows of up to 512, 64 x 64 below 1,024, 128 x 128 for longer ones, and of 64 x
  64 where a length is a symbol.

  About `scores` scores in a group. Short rows hold several short sequences, which small tiles follow closely. The
  default's fit in the cache of a core: measured on a CPU, larger tiles multiply faster, but lose that again in the
  elementwise work and on the diagonal.
  """
  if is_symbolic_dim(num_queries) or is_symbolic_dim(num_keys):
    return BlockSizes(64, 64, max(1, scores // (num_heads * 64 * 64)))
  longest = max(num_queries, num_keys)
  side = 32 if longest <= 512 else 64 if longest < 1024 else 128
  query, key = (_even_parts(length, side) for length in (num_queries, num_keys))
  return BlockSizes(query, key, max(1, scores // (num_heads * query * key)))


def _even_parts(length: int, most: int) -> int:
  """The size of the parts of at most `most` that waste least padding; a multiple of 8."""
  parts = -(-length // most)
  return _round_up(-(-length // parts), 8)


def _spans(mask: IntervalMask) -> Array:
  parts = mask.start_a, mask.end_a, mask.start_b, mask.end_b, mask.self_index()
  return jnp.stack([x.astype(jnp.int32) for x in parts], axis=-1)  # [B, N, 5]


def _round_up(x: int, multiple: int) -> int:
  return -(-x // multiple) * multiple


def _optional(function, value, *args):
  return None if value is None else function(value, *args)


def _to_tiles(x: Float[Array, "B N H D"], block: int) -> Float[Array, "T H block D"]:
  return jnp.swapaxes(_tiles_of(x, block), 1, 2)


def _from_tiles(x: Float[Array, "T H block E"], rows: int, length: int) -> Float[Array, "B N H E"]:
  x = jnp.swapaxes(x, 1, 2)  # [B * tiles, block, H, E]
  return x.reshape(rows, length + schedule.padding(length, x.shape[1]), *x.shape[2:])[:, :length]


def _transposed(x: Float[Array, "T H block D"]) -> Float[Array, "T H D block"]:
  return jnp.swapaxes(x, -1, -2)


def _tiles_of(x: Array, block: int) -> Array:
  """`[B, N, ...]` to `[B * tiles, block, ...]`, padded with zeros."""
  rows, length, *rest = x.shape
  x = jnp.pad(x, ((0, 0), (0, schedule.padding(length, block))) + ((0, 0),) * len(rest))
  return x.reshape(rows * (x.shape[1] // block), block, *rest)  # [B * tiles, block, ...]


@dataclasses.dataclass(frozen=True)
class _Spec:
  """What is known at compilation."""

  activation: str
  scale: float
  blocks: BlockSizes
  key_tiles: int  # in a row
  position_table_size: int
  dtype: jnp.dtype


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _TileIndex:
  """The integers of the problem, by tile.

  work: the live pairs of tiles.
  spans: the masks of the queries `[T, block, 5]`.
  query_time ... key_position: the inputs of the bias `[T, block]`.
  own_key: each query's own key `[T, block]`, where absolute weights are added up by group.
  buckets: the time bucket of each pair of the work list `[L, block_q, block_k]`. It depends on times and mask alone,
    so that the compiler finds that all layers of a model ask for the same.
  """

  work: schedule.WorkList
  spans: Array
  query_time: Array | None
  key_time: Array | None
  query_position: Array | None
  key_position: Array | None
  own_key: Array | None
  buckets: Array | None = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiled_attention(spec, q, k, values, tables, index):
  """What the weights make of the values `[T, H, block_k, E]`, and their sums by group, a value `[T, block_k, G]` that
  all heads share."""
  return _forward(spec, q, k, values, tables, index)[0]


def _forward(spec, q, k, values, tables, index):
  if spec.activation == "silu":
    return _silu_forward(spec, q, k, values, tables, index), None
  outs, log_sum = _softmax_forward(spec, q, k, values, tables, index)
  return outs, (outs, log_sum)


def _forward_with_residuals(spec, *arguments):
  """`_forward` for differentiation: keeps what the backward pass needs."""
  arguments = jax.tree.map(lambda x: x.value, arguments)
  outs, softmax = _forward(spec, *arguments)
  return outs, (*arguments, softmax)


def _silu_forward(spec, q, k, values, tables, index):
  def add_group(group, outs):
    qi, kj, may_attend, entries, is_own = group
    scores = _scores(spec, q[qi], k[kj], tables, entries)  # [G, H, block_q, block_k]
    weights = jnp.where(may_attend, scores * jax.nn.sigmoid(scores), 0)
    return tuple(out.at[qi].add(_weigh(weights, v[kj], is_own, spec)) for out, v in zip(outs, values, strict=True))

  return _for_each_group(spec, index, add_group, _zero_outputs(spec, q, values, index))


def _softmax_forward(spec, q, k, values, tables, index):
  """Online softmax: a running maximum, sum and weighted sum for each query."""

  def add_group(group, state):
    running_max, total, outs = state
    qi, kj, may_attend, entries, is_own = group
    scores = _scores(spec, q[qi], k[kj], tables, entries)
    scores = jnp.where(may_attend, scores, -jnp.inf)  # [G, H, block_q, block_k]
    new_max = running_max.at[qi].max(scores.max(axis=-1))
    finite_max = jnp.where(jnp.isfinite(new_max[qi]), new_max[qi], 0)  # [G, H, block_q]
    shrink = jnp.exp(running_max[qi] - finite_max)
    weights = jnp.exp(scores - finite_max[..., None])
    # Pairs of one query tile may share a group: rescaling is a set (they all write the same), then each adds its part.
    total = total.at[qi].set(total[qi] * shrink).at[qi].add(weights.sum(axis=-1))
    outs = tuple(out.at[qi].set(out[qi] * shrink[..., None]) for out in outs)
    outs = tuple(out.at[qi].add(_weigh(weights, v[kj], is_own, spec)) for out, v in zip(outs, values, strict=True))
    return new_max, total, outs

  shape = q.shape[:3]
  start = jnp.full(shape, -jnp.inf, spec.dtype), jnp.zeros(shape, spec.dtype), _zero_outputs(spec, q, values, index)
  running_max, total, outs = _for_each_group(spec, index, add_group, start)
  has_key = total > 0
  log_sum = jnp.where(has_key, running_max + jnp.log(jnp.where(has_key, total, 1)), jnp.inf)
  return tuple(out / jnp.where(has_key, total, 1)[..., None] for out in outs), log_sum


def _zero_outputs(spec, q, values, index):
  has_own = index.own_key is not None
  return tuple(jnp.zeros((*q.shape[:3], v.shape[-1] + (has_own and v.ndim == 3)), spec.dtype) for v in values)


def _weigh(weights, v, is_own, spec):
  if v.ndim == 4:
    return _matmul("ghnm,ghme->ghne", weights, v, spec.dtype)
  if is_own is None:
    return _matmul("ghnm,gme->ghne", weights, v, spec.dtype)
  others, own = without_own(weights, is_own)
  return jnp.concatenate([_matmul("ghnm,gme->ghne", others, v, spec.dtype), own], axis=-1)


def _backward(spec, residuals, d_outs):
  """Gradients of the results whose cotangents are not known to be zero; values that heads share have none."""
  q, k, values, tables, index, softmax = residuals
  asked = [i for i, d_out in enumerate(d_outs) if not isinstance(d_out, SymbolicZero)]
  d_outs = {i: d_outs[i].astype(spec.dtype) for i in asked}
  inner = None if softmax is None else sum((softmax[0][i] * d_outs[i]).sum(axis=-1) for i in asked)  # [T, H, block_q]
  # On CPUs a product over the first axis of the weights is fast only where the result has the tokens last.
  q_t = _transposed(q)  # [T, H, D, block_q]
  d_out_t = _transposed(d_outs[0]) if 0 in asked else None

  def add_group(group, state):
    dq, dk, dv, d_tables = state
    qi, kj, may_attend, entries, is_own = group
    scores = _scores(spec, q[qi], k[kj], tables, entries)
    sign = 1 if is_own is None or softmax is not None else jnp.sign(scores)
    d_weights = sum(_d_weights(d_outs[i][qi], values[i][kj], is_own, sign, spec) for i in asked)
    if softmax is None:
      gate = jax.nn.sigmoid(scores)
      weights = jnp.where(may_attend, scores * gate, 0)
      d_scores = jnp.where(may_attend, d_weights * (gate + scores * gate * (1 - gate)), 0)
    else:
      weights = jnp.where(may_attend, jnp.exp(scores - softmax[1][qi][..., None]), 0)
      d_scores = weights * (d_weights - inner[qi][..., None])
    if d_out_t is not None:
      dv = dv.at[kj].add(_matmul("ghen,ghnm->ghem", d_out_t[qi], weights, spec.dtype))
    dq = dq.at[qi].add(spec.scale * _matmul("ghnm,ghmd->ghnd", d_scores, k[kj], spec.dtype))
    dk = dk.at[kj].add(spec.scale * _matmul("ghdn,ghnm->ghdm", q_t[qi], d_scores, spec.dtype))
    return dq, dk, dv, _add_table_gradients(d_tables, entries, d_scores)

  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, spec.dtype), (q, _transposed(k), _transposed(values[0]), tables))
  dq, dk, dv, d_tables = _for_each_group(spec, index, add_group, zeros)
  dk, dv = _transposed(dk), _transposed(dv)  # [T, H, block_k, D]
  cast = jax.tree.map(lambda d, x: d.astype(x.dtype), (dq, dk, dv, d_tables), (q, k, values[0], tables))
  cast = without_gradient(cast, "xla")
  return (*cast[:2], (cast[2], *([None] * (len(values) - 1))), cast[3], None)


def _d_weights(d_out, v, is_own, sign, spec):
  """`[G, H, block_q, block_k]`."""
  if v.ndim == 4:
    return _matmul("ghne,ghme->ghnm", d_out, v, spec.dtype)
  if is_own is None:
    return _matmul("ghne,gme->ghnm", d_out, v, spec.dtype)
  return sign * jnp.where(is_own, d_out[..., -1:], _matmul("ghne,gme->ghnm", d_out[..., :-1], v, spec.dtype))


_tiled_attention.defvjp(_forward_with_residuals, _backward, symbolic_zeros=True)


def _for_each_group(spec, index, add_group, state):
  """Folds `add_group(group, state)` over the live tiles, `blocks.group` pairs at a time; whole groups of interior tiles
  without a mask."""
  work, size = index.work, spec.blocks.group

  def fold(begin, end, is_interior, state):
    def body(i, state):
      first = i * size
      qi = jax.lax.dynamic_slice_in_dim(work.query_tile, first, size)
      kj = jax.lax.dynamic_slice_in_dim(work.key_tile, first, size)
      is_live = first + jnp.arange(size, dtype=jnp.int32) < work.count  # [G]
      may_attend = True if is_interior else _may_attend(spec, index.spans[qi], kj, is_live)
      is_own = None if index.own_key is None else _is_own(spec, index.own_key[qi], kj)
      return add_group((qi, kj, may_attend, _table_entries(index, first, qi, kj, spec), is_own), state)

    return jax.lax.fori_loop(begin, end, body, state)

  state = vary(state, axes_of(work))
  interior = work.interior // size
  state = fold(0, interior, True, state)
  return fold(interior, (work.count + size - 1) // size, False, state)


def _may_attend(spec, spans, kj, is_live):
  """The mask of each pair, `[G, 1, block_q, block_k]`."""
  key = _keys(spec, kj)
  inside = in_spans(list(jnp.moveaxis(spans[..., None], 2, 0)), key)  # [G, block_q, block_k]
  return (inside & is_live[:, None, None])[:, None]


def _is_own(spec, own_key, kj):
  """Whether each pair is of a query and its own key, `[G, 1, block_q, block_k]`."""
  return (own_key[..., None] == _keys(spec, kj))[:, None]


def _keys(spec, kj):
  """The indices of the keys of tiles in their rows, `[G, 1, block_k]`."""
  block = spec.blocks.key
  return (((kj % spec.key_tiles) * block)[:, None] + jnp.arange(block, dtype=jnp.int32)[None])[:, None]


def _scores(spec, q, k, tables, entries):
  """`scale * q·k + bias` of each pair, `[G, H, block_q, block_k]`."""
  scores = spec.scale * _matmul("ghnd,ghmd->ghnm", q, k, spec.dtype)
  for table, entry in zip(tables, entries, strict=True):
    if table is not None:
      scores += look_up(table.astype(spec.dtype), entry)
  return scores


def _table_entries(index, first, qi, kj, spec):
  """Rows of the time table and of the position table, `[G, block_q, block_k]` each; None where there is no table."""
  bucket = entry = None
  if index.buckets is not None:
    bucket = jax.lax.dynamic_slice_in_dim(index.buckets, first, spec.blocks.group).astype(jnp.int32)
  elif index.query_time is not None:
    bucket = _buckets(index, qi, kj)
  if index.query_position is not None:
    difference = index.query_position[qi][:, :, None] - index.key_position[kj][:, None, :]
    entry = position_index(difference, spec.position_table_size)
  return bucket, entry


def _buckets(index, qi, kj):
  return time_bucket_between(index.query_time[qi][:, :, None], index.key_time[kj][:, None, :])


def _add_table_gradients(d_tables, entries, d_scores):
  pairs = zip(d_tables, entries, strict=True)
  return tuple(None if table is None else _add_table_gradient(table, entry, d_scores) for table, entry in pairs)


def _add_table_gradient(d_table, entry, d_scores):
  if d_table.ndim == 1:
    return d_table.at[entry].add(d_scores.sum(axis=1), mode="promise_in_bounds")
  return d_table.at[:, entry].add(jnp.moveaxis(d_scores, 1, 0), mode="promise_in_bounds")


def _matmul(equation, a, b, dtype):
  """Products of the smaller of the two input types, accumulated in `dtype`."""
  common = jnp.bfloat16 if jnp.bfloat16 in (a.dtype, b.dtype) else dtype
  return jnp.einsum(equation, a.astype(common), b.astype(common), preferred_element_type=dtype)
