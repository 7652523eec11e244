"""Which tiles of the attention matrix are alive: a list of (query tile, key tile) pairs, made from the intervals."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from pallas_kernels.mask import IntervalMask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WorkList:
  """Live tiles in the order of their query tiles; entries from `count` on are not to be computed.

  query_tile: row * (query tiles of a row) + query tile.
  key_tile: row * (key tiles of a row) + key tile.
  count: number of live tiles.
  """

  query_tile: Int[Array, " L"]
  key_tile: Int[Array, " L"]
  count: Int[Array, ""]


def live_tiles(mask: IntervalMask, num_keys: int, block_q: int, block_k: int) -> Bool[Array, "B Tq Tk"]:
  """Whether any query of a tile may read any key of a tile; the interval spanned by a tile's queries is taken as a
  whole.

  N must be a multiple of `block_q` and `num_keys` one of `block_k`.
  """
  rows, num_queries = mask.shape
  first_key = jnp.arange(0, num_keys, block_k)  # [Tk]
  self_index = mask.self_index()
  spans = [
    (mask.start_a, mask.end_a),
    (mask.start_b, mask.end_b),
    (self_index, jnp.where(self_index >= 0, self_index + 1, self_index)),
  ]
  live = jnp.zeros((rows, num_queries // block_q, first_key.size), bool)
  for start, end in spans:
    is_empty = start >= end
    start = jnp.where(is_empty, num_keys, start).reshape(rows, -1, block_q).min(axis=-1)  # [B, Tq]
    end = jnp.where(is_empty, 0, end).reshape(rows, -1, block_q).max(axis=-1)  # [B, Tq]
    live |= (first_key < end[..., None]) & (first_key + block_k > start[..., None])
  return live


def work_list(mask: IntervalMask, num_keys: int, block_q: int, block_k: int, multiple: int = 1) -> WorkList:
  """The live tiles of `mask` as a list whose length is a multiple of `multiple`."""
  live = live_tiles(mask, num_keys, block_q, block_k)
  rows, query_tiles, key_tiles = live.shape
  size = -(-live.size // multiple) * multiple
  (flat,) = jnp.nonzero(live.reshape(-1), size=size, fill_value=0)
  flat = flat.astype(jnp.int32)
  key_tile = flat // (query_tiles * key_tiles) * key_tiles + flat % key_tiles
  return WorkList(flat // key_tiles, key_tile, live.sum(dtype=jnp.int32))


def count_live_tiles(mask: IntervalMask, num_keys: int, block_q: int, block_k: int) -> int:
  """Number of tiles that an implementation with these block sizes computes; for benchmarks and tests."""
  padded = pad_queries(mask, -mask.shape[1] % block_q)
  return int(live_tiles(padded, num_keys + -num_keys % block_k, block_q, block_k).sum())


def pad_queries(mask: IntervalMask, amount: int) -> IntervalMask:
  """The mask with `amount` more queries that read nothing."""
  return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, amount))), mask)
