"""An attention problem as the TPU kernels see it: sizes, integers by tile, and notes on the tiles."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int

from pallas_kernels import schedule
from pallas_kernels.bias import RelativeBias, time_bucket
from pallas_kernels.mask import IntervalMask


def divide(x: Int[Array, "..."], by: int) -> Int[Array, "..."]:
  """`x // by` of numbers that are not negative; `//` itself asks which TPU this is, and there may be none."""
  return jax.lax.div(x, jnp.asarray(by, x.dtype))


@dataclasses.dataclass(frozen=True)
class BlockSizes:
  """Sizes that change speed, never results.

  query, key: tokens in a tile, multiples of 128.
  heads: heads of a tile that are computed in one step; must divide the number of heads.

  Raises:
    ValueError: a size below 1.
  """

  query: int = 512
  key: int = 1024
  heads: int = 1

  def __post_init__(self):
    if min(self.query, self.key, self.heads) < 1:
      raise ValueError(f"{self} needs positive sizes")


@dataclasses.dataclass(frozen=True)
class TileSpec:
  """What is known at compilation.

  heads: of a tile, computed together.
  time_heads, position_heads: rows of the tables: 0 (no table), 1 (shared) or H.
  dtype: of scores and sums.
  """

  activation: str
  scale: float
  num_heads: int
  block_q: int
  block_k: int
  query_tiles: int  # in a row
  key_tiles: int
  heads: int
  time_heads: int
  position_heads: int
  table_size: int
  dtype: jnp.dtype
  interpret: bool | pltpu.InterpretParams

  @property
  def half(self) -> float:
    """What scores are multiplied by: silu(x) is h + h tanh(h) for h = x / 2."""
    return 0.5 if self.activation == "silu" else 1.0

  @property
  def key_chunk(self) -> int:
    """Keys that the forward kernel computes at a time."""
    return 256 if self.block_k % 256 == 0 else 128

  @property
  def integers_of_row(self) -> int:
    """Integers of a row in the scalar memory of a kernel: entries and lowest buckets of its tiles, ranges of keys."""
    chunks = max(self.block_k // self.key_chunk, self.block_q // QUERY_CHUNK)
    of_tile = 2 + (words_of_tile(chunks) if self.time_heads else 0)
    return self.query_tiles * (self.key_tiles * of_tile + 2 * self.block_q // QUERY_CHUNK)

  @property
  def groups(self) -> int:
    """Groups of heads."""
    return self.num_heads // self.heads

  def table_heads(self, of_table: int) -> int:
    """Heads of a table that a group needs."""
    return self.heads if of_table > 1 else of_table

  @property
  def table_rows(self) -> int:
    """Entries of the position table, in whole eights."""
    return -(-self.table_size // 8) * 8

  @property
  def window_step(self) -> int:
    """Offsets of tiles from the diagonal are multiples of it."""
    return math.gcd(self.block_q, self.block_k)

  @property
  def num_windows(self) -> int:
    """Offsets of tiles from the diagonal that exist."""
    return (self.query_tiles * self.block_q + self.key_tiles * self.block_k) // self.window_step

  def window_of(self, query_tile: Array, key_tile: Array) -> Array:
    """Which window of the position table a tile needs."""
    offset = query_tile * self.block_q + (self.key_tiles - key_tile) * self.block_k
    return divide(offset, self.window_step)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Integers:
  """The integers of the problem; queries and keys padded to whole tiles.

  mask: of the padded queries.
  query: columns start_a, end_a, start_b, end_b, own, time, position, 0.
  key: columns time, position, and zeros.
  notes: on each tile: `SHIFTED`.
  shift: see `SHIFTED`.
  """

  mask: IntervalMask
  query: Int[Array, "B N 8"]
  key: Int[Array, "B S 8"]
  notes: Int[Array, "B Tq Tk"]
  shift: Int[Array, ""]


# Notes on a tile. SHIFTED: `p_i - p_j` is `i - j + shift` for all keys that its queries read. FEW, ONE: no `t_i - t_j`
# is negative, and those of each chunk meet at most so many edges of time buckets.
SHIFTED, FEW, ONE = 1, 2, 4
EDGES = {FEW: 3, ONE: 1}
QUERY_CHUNK = 128  # Queries that the backward kernel computes at a time.
_IN_WORD, _BITS = 4, 7  # Buckets in an integer, bits of each.


def integers_of(mask: IntervalMask, bias: RelativeBias, num_keys: int, block_q: int, block_k: int) -> Integers:
  """Lays out what the kernels read of the mask and of the bias."""
  rows, num_queries = mask.shape
  padded = schedule.pad_queries(mask, -num_queries % block_q)
  query_time, query_position = (_or_zeros(x, mask.shape) for x in (bias.query_time, bias.query_position))
  key_time, key_position = (_or_zeros(x, (rows, num_keys)) for x in (bias.key_time, bias.key_position))
  query = _columns((*mask.spans(), query_time, query_position), block_q)
  query = query.at[:, num_queries:, 4].set(-1)  # Padding has no key of its own.
  shift = jnp.int32(0) if mask.own_key is None else mask.own_key[0, 0].astype(jnp.int32)
  notes = jnp.zeros((rows, padded.shape[1] // block_q, -(-num_keys // block_k)), jnp.int32)
  if bias.position_table is not None:
    shifted = _pad(_is_shifted(mask, query_position, key_position, shift), block_q)
    notes += shifted.reshape(rows, -1, block_q).all(axis=-1)[:, :, None].astype(jnp.int32) * SHIFTED
  return Integers(padded, query, _columns((key_time, key_position), block_k), notes, shift)


def _or_zeros(values, shape):
  return jnp.zeros(shape, jnp.int32) if values is None else values.astype(jnp.int32)


def _pad(values, block):
  return jnp.pad(values, ((0, 0), (0, -values.shape[1] % block)), mode="edge")


def buckets_of_chunks(
  spec: TileSpec, integers: Integers, queries: int, keys: int
) -> tuple[Int[Array, "B Tq Tk"], Int[Array, " _"]]:
  """What the kernel that cuts tiles into chunks of so many queries and keys must know of their times.

  Returns:
    The notes FEW and ONE on each tile, and for `lowest_bucket` the lowest bucket of each chunk, flattened.
  """
  query = integers.query[:, :, 5].reshape(len(integers.query), -1, 1, queries)
  key = integers.key[:, :, 0].reshape(len(integers.key), 1, -1, keys)
  nearest, farthest = query.min(axis=-1) - key.max(axis=-1), query.max(axis=-1) - key.min(axis=-1)
  lowest, highest = time_bucket(nearest), time_bucket(farthest)
  is_past = (nearest >= 0) & (farthest >= 0)

  def of_tiles(x):  # [B, Tq, Tk, chunks of a tile]
    x = x.reshape(len(x), spec.query_tiles, spec.block_q // queries, spec.key_tiles, spec.block_k // keys)
    return jnp.moveaxis(x, 2, 3).reshape(len(x), spec.query_tiles, spec.key_tiles, -1)

  notes = sum(of_tiles(is_past & (highest - lowest <= most)).all(axis=-1) * note for note, most in EDGES.items())
  lowest = of_tiles(lowest)
  lowest = jnp.pad(lowest, ((0, 0), (0, 0), (0, 0), (0, -lowest.shape[3] % _IN_WORD)))
  shifts = _BITS * jnp.arange(_IN_WORD, dtype=jnp.int32)
  return notes.astype(jnp.int32), (lowest.reshape(-1, _IN_WORD) << shifts).sum(axis=-1, dtype=jnp.int32)


def lowest_bucket(words: Any, tile: Int[Array, ""] | int, chunks: int, chunk: int) -> Int[Array, ""]:
  """The lowest time bucket of a chunk, from the second result of `buckets_of_chunks`; tiles are numbered as there."""
  word = words[tile * words_of_tile(chunks) + chunk // _IN_WORD]
  return (word >> (chunk % _IN_WORD * _BITS)) & (2**_BITS - 1)


def words_of_tile(chunks: int) -> int:
  """Integers in which the lowest buckets of a tile of so many chunks stand."""
  return -(-chunks // _IN_WORD)


def _columns(values, block):
  columns = jnp.stack([x.astype(jnp.int32) for x in values], axis=-1)  # [B, N, n]
  return jnp.pad(columns, ((0, 0), (0, -columns.shape[1] % block), (0, 8 - columns.shape[2])))


def _is_shifted(mask, query_position, key_position, shift):
  """Whether each query finds `p_i - p_j = i - j + shift` at every key that it reads, `[B, N]`."""
  key_offset = key_position - jnp.arange(key_position.shape[1], dtype=jnp.int32)[None]  # [B, S]
  query_offset = query_position - jnp.arange(query_position.shape[1], dtype=jnp.int32)[None] - shift  # [B, N]
  changes = jnp.cumsum(key_offset[:, 1:] != key_offset[:, :-1], axis=1, dtype=jnp.int32)
  changes = jnp.pad(changes, ((0, 0), (1, 0)))  # [B, S]: changes up to each key
  last_key = key_position.shape[1] - 1

  def at(values, index):
    return jnp.take_along_axis(values, jnp.clip(index, 0, last_key), axis=1)  # [B, N]

  own = mask.self_index()
  result = (own < 0) | (at(key_offset, own) == query_offset)
  for start, end in ((mask.start_a, mask.end_a), (mask.start_b, mask.end_b)):
    same = (at(changes, start) == at(changes, end - 1)) & (at(key_offset, start) == query_offset)
    result &= (start >= end) | same
  return result


def window_differences(spec: TileSpec, integers: Integers) -> Int[Array, " M"]:
  """`p_i - p_j` of the first query and the first key of a tile, for every offset of a tile from the diagonal."""
  offset = jnp.arange(spec.num_windows, dtype=jnp.int32) * spec.window_step
  return offset - spec.key_tiles * spec.block_k + integers.shift
