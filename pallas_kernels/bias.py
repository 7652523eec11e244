"""HSTU's relative attention bias, computed from O(N) inputs wherever a tile of it is needed.

`bias_ij = time_table[bucket(|t_i - t_j|)] + position_table[p_i - p_j + P - 1]`

Source: Zhai et al. 2024, arXiv 2402.17152, section 3.2 and the released code: `rab^{p,t}`.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from pallas_kernels.integers import as_integers

NUM_TIME_BUCKETS = 129
REACHED_BUCKETS = 72  # of them: those of differences below 2^31 seconds
CELLS = 128  # of the numbers from 1 to 2^31: see `edges_in_cells`
FIRST_CELL = 4 * 127  # that of one second: the upper 11 bits of float32(1)
_BUCKET_WIDTH = 0.301  # in natural logarithms of seconds


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RelativeBias:
  """What `segment_attention` adds to `scale * q·k`. Either table may be absent.

  time_table: one value for each time bucket, shared by the heads `[129]` or for each head `[H, 129]`.
  query_time, key_time: seconds. HSTU takes the time of the *next* event as the query's time. The kernels for TPUs and
    GPUs need differences below 2^31 seconds.
  position_table: one value for each difference of positions `-(P-1)..P-1`: `[2P-1]` or `[H, 2P-1]`. Larger
    differences use the ends.
  query_position, key_position: index of a token inside its own sequence.

  >>> position = jnp.array([[0, 1]])
  >>> bias = RelativeBias(position_table=jnp.array([5.0, 0.0, 7.0]), query_position=position, key_position=position)
  >>> dense_bias(bias)[0, 0].tolist()  # 7 belongs to the difference 1, of the second query to the first key.
  [[0.0, 5.0], [7.0, 0.0]]
  """

  time_table: Float[Array, "*H T"] | None = None
  query_time: Int[Array, "B N"] | None = None
  key_time: Int[Array, "B S"] | None = None
  position_table: Float[Array, "*H W"] | None = None
  query_position: Int[Array, "B N"] | None = None
  key_position: Int[Array, "B S"] | None = None

  def validate(self, rows: int, num_queries: int, num_keys: int, num_heads: int) -> None:
    """Raises: ValueError where tables and inputs do not fit together or do not fit q and k."""
    shapes = {
      "query_time": (rows, num_queries), "key_time": (rows, num_keys),
      "query_position": (rows, num_queries), "key_position": (rows, num_keys),
    }  # fmt: skip
    for kind in ("time", "position"):
      table = getattr(self, f"{kind}_table")
      for name in (f"query_{kind}", f"key_{kind}"):
        value = getattr(self, name)
        if (table is None) != (value is None):
          raise ValueError(f"bias.{kind}_table and bias.{name} must be given together")
        if value is not None and value.shape != shapes[name]:
          raise ValueError(f"bias.{name} has shape {value.shape}, needs {shapes[name]}")
      if table is not None and (table.ndim > 2 or (table.ndim == 2 and table.shape[0] != num_heads)):
        raise ValueError(f"bias.{kind}_table has shape {table.shape}, needs one axis, or {num_heads=} rows")
    if self.time_table is not None and self.time_table.shape[-1] != NUM_TIME_BUCKETS:
      raise ValueError(f"bias.time_table has {self.time_table.shape[-1]} buckets, needs {NUM_TIME_BUCKETS}")
    if self.position_table is not None and self.position_table.shape[-1] % 2 == 0:
      raise ValueError(f"bias.position_table has {self.position_table.shape[-1]} entries, needs an odd number 2P-1")


def check_integers(bias: RelativeBias, kernels: str) -> None:
  """Raises NotImplementedError for times and positions that are not int32. Dtypes suffice."""
  for name in ("query_time", "key_time", "query_position", "key_position"):
    value = getattr(bias, name)
    if value is not None and value.dtype != jnp.int32:
      raise NotImplementedError(f"bias.{name} has dtype {value.dtype}; the {kernels} kernels need int32")


def time_bucket(seconds: Int[Array, "..."]) -> Int[Array, "..."]:
  """`min(floor(ln(max(|seconds|, 1)) / 0.301), 128)` in correctly rounded float32, whatever the precision elsewhere.

  The logarithms of different machines differ in the last bit, which moves the edges by up to a minute; see `cell_words`
  for what does without one.

  >>> time_bucket(jnp.array([0, 1, 2, -60, 86_400, 2**31 - 1])).tolist()
  [0, 0, 2, 13, 37, 71]
  """
  seconds = as_integers("seconds", seconds)
  return _bucket(jnp.abs(seconds.astype(jnp.float32)), np.iinfo(seconds.dtype).max)


def time_bucket_between(query_time: Int[Array, "..."], key_time: Int[Array, "..."]) -> Int[Array, "..."]:
  """`time_bucket(query_time - key_time)`, also where the difference of two int32 takes 33 bits.

  >>> time_bucket_between(jnp.array(2**31 - 1), jnp.array([2**31 - 3, -(2**31)])).tolist()
  [2, 73]
  """
  difference = query_time - key_time
  seconds = jnp.abs(difference.astype(jnp.float32))
  bits = 8 * difference.dtype.itemsize
  seconds = jnp.where((difference < 0) == (query_time < key_time), seconds, 2.0**bits - seconds)
  return _bucket(seconds, 2**bits - 1)


def _bucket(seconds: Float[Array, "..."], largest: int) -> Int[Array, "..."]:
  """The bucket of float32 numbers that are not negative and at most `largest`."""
  bits = jax.lax.bitcast_convert_type(jnp.maximum(seconds, 1), jnp.uint32)
  cell = (bits >> 21).astype(jnp.int32) - FIRST_CELL
  return bucket_in_cell(bits, jnp.asarray(cell_words(largest)).at[cell].get(mode="promise_in_bounds"))


def first_seconds_of_buckets() -> np.ndarray:
  """The smallest count of seconds in each bucket, `[129]` int64; of a bucket that no count falls in, the next one's."""
  low, high = np.ones(NUM_TIME_BUCKETS, np.int64), np.full(NUM_TIME_BUCKETS, 2**62)
  while (low < high).any():
    middle = (low + high) // 2
    logarithm = np.log(middle.astype(np.float32).astype(np.float64)).astype(np.float32)
    reached = logarithm / np.float32(_BUCKET_WIDTH) >= np.arange(NUM_TIME_BUCKETS)
    low, high = np.where(reached, low, middle + 1), np.where(reached, middle, high)
  return low


_EDGES = first_seconds_of_buckets()


def edges_in_cells(largest: int = 2**31 - 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """For each cell: the edge in it (infinite: none), the bucket below the edge and the bucket from it on.

  With them `time_bucket` is found without a logarithm. The upper 11 bits of float32(max(|seconds|, 1)), less
  `FIRST_CELL`, name one of four cells of each power of two. A cell is narrower than a bucket, so at most one bucket
  begins inside it.

  Args:
    largest: number of seconds; 2^31 - 1 has `CELLS` cells.
  """
  num_cells = 4 * (largest.bit_length() + 1)
  first = ((np.arange(num_cells + 1) + FIRST_CELL) << 21).astype(np.int32).view(np.float32)
  edges = _EDGES[largest >= _EDGES].astype(np.float32)
  below = np.searchsorted(edges, first[:-1], side="right") - 1
  above = np.searchsorted(edges, first[1:], side="left") - 1
  return np.where(above > below, edges[np.minimum(above, len(edges) - 1)], np.inf).astype(np.float32), below, above


@functools.cache
def cell_words(largest: int = 2**31 - 1) -> np.ndarray:
  """Of each cell the bucket of its first number (low 11 bits), and the 21 lower bits of the last number before the next
  bucket begins, all ones if none does. uint32, for `bucket_in_cell`; see `edges_in_cells`."""
  edge, below, _ = edges_in_cells(largest)
  last = edge.view(np.uint32) - np.uint32(1)  # its lower bits are all ones where the edge is infinite
  return (last << np.uint32(11)) | below.astype(np.uint32)


def bucket_in_cell(bits: UInt32[Array, "..."], word: UInt32[Array, "..."]) -> Int[Array, "..."]:
  """The bucket of the float32 number with representation `bits`, given the word of its cell."""
  begins = jax.lax.shift_left(bits, jnp.uint32(11)) > word
  low = jax.lax.bitwise_and(word, jnp.uint32(0x7FF)).astype(jnp.int32)
  return jnp.where(begins, low + 1, low)


def position_index(difference: Int[Array, "..."], table_size: int) -> Int[Array, "..."]:
  """Row of a position table of `table_size = 2P-1` entries for `p_i - p_j`, clipped to its ends."""
  return jnp.clip(difference + table_size // 2, 0, table_size - 1)


def dense_bias(bias: RelativeBias) -> Float[Array, "B H N S"] | float:
  """The whole bias: for the reference implementation and for pictures."""
  total = 0.0
  for table, entry in zip((bias.time_table, bias.position_table), table_entries(bias), strict=True):
    if table is not None:
      total += look_up(table, entry)
  return total


def table_entries(bias: RelativeBias) -> tuple[Int[Array, "B N S"] | None, Int[Array, "B N S"] | None]:
  """The entries of the time table and of the position table that each pair reads; None where there is no table."""
  bucket = entry = None
  if bias.time_table is not None:
    bucket = time_bucket_between(bias.query_time[:, :, None], bias.key_time[:, None, :])
  if bias.position_table is not None:
    difference = bias.query_position[:, :, None] - bias.key_position[:, None, :]
    entry = position_index(difference, bias.position_table.shape[-1])
  return bucket, entry


def look_up(table: Float[Array, "*H T"], index: Int[Array, "G N S"]) -> Float[Array, "G _ N S"]:
  """`table[index]` with the head axis second: of size 1 for a table that the heads share, else H."""
  if table.ndim == 1:
    return table.at[index].get(mode="promise_in_bounds")[:, None]  # [G, 1, N, S]
  return jnp.moveaxis(table.at[:, index].get(mode="promise_in_bounds"), 0, 1)  # [G, H, N, S]
