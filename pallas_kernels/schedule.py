"""Which tiles of the attention matrix are alive: a list of (query tile, key tile) pairs, made from the intervals."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from pallas_kernels.mask import IntervalMask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WorkList:
  """Live tiles: first those that need no mask, then the others, each in the order of their query tiles.

  query_tile: row * (query tiles of a row) + query tile.
  key_tile: row * (key tiles of a row) + key tile.
  interior: number of tiles that need no mask: every query of the tile may read every key.
  count: number of live tiles; entries from there on are not to be computed.
  """

  query_tile: Int[Array, " L"]
  key_tile: Int[Array, " L"]
  interior: Int[Array, ""]
  count: Int[Array, ""]


def live_tiles(mask: IntervalMask, num_keys: int, block_q: int, block_k: int) -> Bool[Array, "B Tq Tk"]:
  """Whether any query of a tile may read any key of a tile; the interval spanned by a tile's queries is taken as a
  whole.

  N must be a multiple of `block_q` and `num_keys` one of `block_k`.
  """
  first_key = _first_keys(num_keys, block_k)
  live = jnp.zeros((mask.shape[0], mask.shape[1] // block_q, first_key.size), bool)
  for start, end in _hulls(mask, block_q, num_keys):
    live |= (first_key < end[..., None]) & (first_key + block_k > start[..., None])
  return live


def padding(length: int, block: int) -> int:
  """What a length lacks to a multiple of `block`; in a form that lets JAX divide a symbolic length by it."""
  return -(-length // block) * block - length


def _first_keys(num_keys, block_k) -> Int[Array, "1 1 Tk"]:
  return (jnp.arange(num_keys // block_k, dtype=jnp.int32) * block_k)[None, None]


def _hulls(mask, block_q, nowhere):
  """The interval spanned by the first, by the second and by the own keys of each query tile: starts and ends `[B, Tq]`.

  An empty one starts at `nowhere` and ends at 0.
  """
  rows, tiles = mask.shape[0], mask.shape[1] // block_q
  own = mask.self_index()
  spans = ((mask.start_a, mask.end_a), (mask.start_b, mask.end_b), (own, jnp.where(own >= 0, own + 1, own)))
  for start, end in spans:
    is_empty = start >= end
    first = jnp.where(is_empty, nowhere, start).reshape(rows, tiles, block_q).min(axis=-1)
    yield first, jnp.where(is_empty, 0, end).reshape(rows, tiles, block_q).max(axis=-1)


def key_range(mask: IntervalMask, block_q: int, num_keys: int) -> tuple[Int[Array, "B Tq"], Int[Array, "B Tq"]]:
  """The smallest interval with all keys that any query of a tile may read; of a tile that reads none, [num_keys, 0)."""
  starts, ends = zip(*_hulls(mask, block_q, num_keys), strict=True)
  return functools.reduce(jnp.minimum, starts), functools.reduce(jnp.maximum, ends)


def work_list(mask: IntervalMask, num_keys: int, block_q: int, block_k: int, multiple: int = 1) -> WorkList:
  """The live tiles of `mask` as a list whose length is a multiple of `multiple`."""
  live = live_tiles(mask, num_keys, block_q, block_k)
  _, query_tiles, key_tiles = live.shape
  size = -(-live.size // multiple) * multiple
  live = live.reshape(-1)
  interior = live & interior_tiles(mask, num_keys, block_q, block_k).reshape(-1)
  edge = live & ~interior
  num_interior, count = interior.sum(dtype=jnp.int32), live.sum(dtype=jnp.int32)
  place = jnp.where(interior, jnp.cumsum(interior) - 1, num_interior + jnp.cumsum(edge) - 1)
  index = jnp.arange(live.size, dtype=jnp.int32)
  flat = jnp.zeros(size, jnp.int32).at[jnp.where(live, place, size)].set(index, mode="drop")
  key_tile = flat // (query_tiles * key_tiles) * key_tiles + flat % key_tiles
  return WorkList(flat // key_tiles, key_tile, num_interior, count)


def count_live_tiles(mask: IntervalMask, num_keys: int, block_q: int, block_k: int) -> int:
  """Number of tiles that an implementation with these block sizes computes; for benchmarks and tests."""
  padded = pad_queries(mask, -mask.shape[1] % block_q)
  return int(live_tiles(padded, num_keys + -num_keys % block_k, block_q, block_k).sum())


def pad_queries(mask: IntervalMask, amount: int) -> IntervalMask:
  """The mask with `amount` more queries that read nothing."""
  return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, amount))), mask)


FIRST, LAST, LIVE, INTERIOR, FIRST_OF_ROW = (1 << bit for bit in range(5))
_FLAG_BITS, NOTE_BITS = 5, 3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TileOrder:
  """The order in which a kernel with a sequential grid visits tiles, for scalar prefetch.

  Every outer tile has at least one entry, so that its output is always written; an entry that is not `LIVE` computes
  nothing.

  outer: row * (outer tiles of a row) + outer tile, ascending.
  inner: inner tile of the same row, the caller's note on the tile, and flags: `FIRST` and `LAST` entry of the outer
    tile, `LIVE`, `INTERIOR` (every query of the tile may read every key) and `FIRST_OF_ROW`. See `inner_tile` and
    `note_of`.
  count: number of entries; those after it are not to be visited.
  """

  outer: Int[Array, " L"]
  inner: Int[Array, " L"]
  count: Int[Array, ""]


def tile_order(
  mask: IntervalMask, num_keys: int, block_q: int, block_k: int, *, by: str, notes: Int[Array, "B Tq Tk"]
) -> TileOrder:
  """The live tiles with their flags, by="query": key tiles within each query tile, or by="key": the reverse.

  `notes` of at most `NOTE_BITS` bits travel with their tiles. N and `num_keys` must be multiples of the blocks.
  """
  live = live_tiles(mask, num_keys, block_q, block_k)  # [B, Tq, Tk]
  interior = interior_tiles(mask, num_keys, block_q, block_k)
  flags = live.astype(jnp.int32) * LIVE + interior.astype(jnp.int32) * INTERIOR + notes * 2**_FLAG_BITS
  if by == "key":
    live, flags = jnp.swapaxes(live, 1, 2), jnp.swapaxes(flags, 1, 2)
  _, outer_tiles, inner_tiles = live.shape
  nothing = ~live.any(axis=-1, keepdims=True) & (jnp.arange(inner_tiles) == 0)[None, None]
  visited = live | nothing  # [B, outer tiles, inner tiles]
  count = visited.sum(dtype=jnp.int32)
  (flat,) = jnp.nonzero(visited.reshape(-1), size=visited.size, fill_value=0)
  flat = flat.astype(jnp.int32)  # [L]
  outer = flat // inner_tiles
  flags = flags.reshape(-1)[flat].astype(jnp.int32)
  is_last_entry = jnp.arange(flat.size, dtype=jnp.int32) == count - 1
  is_last = jnp.roll(_starts(outer), -1) | is_last_entry
  for is_so, flag in ((_starts(outer), FIRST), (_starts(outer // outer_tiles), FIRST_OF_ROW), (is_last, LAST)):
    flags += is_so.astype(jnp.int32) * flag
  return TileOrder(outer, flat % inner_tiles * 2 ** (_FLAG_BITS + NOTE_BITS) + flags, count)


def _starts(ids: Int[Array, " L"]) -> Bool[Array, " L"]:
  return jnp.concatenate([jnp.ones(1, bool), ids[1:] != ids[:-1]])


def inner_tile(entry: Int[Array, "..."]) -> Int[Array, "..."]:
  """The inner tile of an entry of `TileOrder.inner`."""
  return entry >> (_FLAG_BITS + NOTE_BITS)


def note_of(entry: Int[Array, "..."]) -> Int[Array, "..."]:
  """The caller's note in an entry of `TileOrder.inner`."""
  return (entry >> _FLAG_BITS) & (2**NOTE_BITS - 1)


def interior_tiles(mask: IntervalMask, num_keys: int, block_q: int, block_k: int) -> Bool[Array, "B Tq Tk"]:
  """Tiles that need no mask: an interval of every query covers all their keys. It may miss some, and never errs."""
  rows, tiles = mask.shape[0], mask.shape[1] // block_q
  first_key = _first_keys(num_keys, block_k)
  interior = jnp.zeros((rows, tiles, first_key.size), bool)
  for start, end in ((mask.start_a, mask.end_a), (mask.start_b, mask.end_b)):
    start = start.reshape(rows, tiles, block_q).max(axis=-1)[..., None]  # [B, Tq, 1]
    end = end.reshape(rows, tiles, block_q).min(axis=-1)[..., None]
    interior |= (start <= first_key) & (end >= first_key + block_k)
  return interior
