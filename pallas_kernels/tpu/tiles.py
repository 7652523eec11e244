"""What a tile of attention needs inside a TPU kernel: its mask, its relative bias and the gradient of the bias.

Forward tiles are `[queries, keys]`, backward tiles `[keys, queries]`: the functions take the integers of queries and
keys in shapes that broadcast to the tile, and don't care which is which.

**Time.** Buckets widen with distance, so a chunk of a tile far from the diagonal meets few edges of them: its bias
takes a comparison and a selection for each. Near the diagonal the bucket is looked up. The bits of
`float32(|t_i - t_j|)` down to the second of the fraction count quarters of octaves. Such a cell is narrower than a
bucket and contains at most one edge: a value below the edge, one from it on, and a comparison give the exact bucket of
`time_bucket` by lookups in 128 lanes, without a logarithm. A lookup costs as much as twelve comparisons.

**Position.** Where `p_i - p_j` is `i - j` plus a constant, as it is where the tokens of a sequence lie side by side,
the bias of a tile is constant along its diagonals. It is read from a strip `strip[r, l] = z[l - r]` of 128 rows at
multiples of 128 lanes, where `z` is the window of the table that the tile needs. Elsewhere (tokens sorted by domain)
the table is searched, 128 entries at a time.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.bias import FIRST_CELL, REACHED_BUCKETS, edges_in_cells, first_seconds_of_buckets, position_index

Ref = Any  # an array in the memory of the kernel
LANES, SUBLANES = 128, 8


# --- Time ---


_EDGES, _BELOW, _ABOVE = edges_in_cells()
_BELOW, _ABOVE = _BELOW.astype(np.int32), _ABOVE.astype(np.int32)


def time_cells(table: Float[Array, "H T"], dtype: jnp.dtype) -> Float[Array, "R 128"]:
  """What `time_bias` looks up: a row of edges, two of buckets, and two of values for each head."""
  numbers = jnp.asarray(np.stack([_EDGES, _BELOW, _ABOVE]), dtype)
  values = jnp.stack([table[:, _BELOW], table[:, _ABOVE]], axis=1).astype(dtype)  # [H, 2, 128]
  return jnp.concatenate([numbers, values.reshape(-1, LANES)])


def seconds_and_cell(
  query_time: Int[Array, "..."], key_time: Int[Array, "..."]
) -> tuple[Float[Array, "n m"], Int[Array, "n m"]]:
  """`float32(max(|t_i - t_j|, 1))` and the cell that it lies in."""
  seconds = jnp.maximum(jnp.abs(query_time - key_time).astype(jnp.float32), 1.0)
  return seconds, (jax.lax.bitcast_convert_type(seconds, jnp.int32) >> 21) - FIRST_CELL


def time_bias(
  seconds: Float[Array, "n m"], cell: Int[Array, "n m"], cells: Float[Array, "R 128"], head: int
) -> Float[Array, "n m"]:
  """The value of `head`'s time table for each pair."""
  return _below_or_above(seconds, cell, cells, 3 + 2 * head)


def bucket_edges() -> Int[np.ndarray, " 80"]:
  """The first second of each bucket, and beyond the last ones that no difference reaches."""
  edges = first_seconds_of_buckets()[: REACHED_BUCKETS + SUBLANES]
  return np.minimum(edges, np.iinfo(np.int32).max).astype(np.int32)


def past_edges(
  difference: Int[Array, "n m"], lowest: Int[Array, ""], edges: Ref, count: int
) -> list[Bool[Array, "n m"]]:
  """Whether `t_i - t_j` has reached each of the `count` edges above bucket `lowest`."""
  return [difference >= edges[lowest + 1 + i] for i in range(count)]


def few_bias(past: list[Bool[Array, "n m"]], lowest: Int[Array, ""], table: Ref, head: int | Array) -> Array:
  """`time_bias` of pairs whose differences are positive and reach only edges in `past`."""
  bias = table[head, lowest]
  for i, reached in enumerate(past):
    bias = jnp.where(reached, table[head, lowest + 1 + i], bias)
  return bias


def add_few_to_bins(
  bins: Ref, head: int, past: list[Bool[Array, "n m"]], lowest: Int[Array, ""], values: Float[Array, "n m"]
) -> None:
  """Adds the values to the bins of their buckets: what is past one edge without what is past the next."""
  sums = [_eight_rows(values)] + [_eight_rows(jnp.where(reached, values, 0)) for reached in past]
  for i, total in enumerate(sums):
    rows = pl.ds(pl.multiple_of((lowest + i) * SUBLANES, SUBLANES), SUBLANES)
    bins[head, rows] += total - sums[i + 1] if i < len(past) else total


def _eight_rows(values: Float[Array, "n m"]) -> Float[Array, "8 128"]:
  """The sum of all `[8, 128]` parts."""
  columns = [values[:, first : first + LANES] for first in range(0, values.shape[1], LANES)]
  return sum(columns).reshape(-1, SUBLANES, LANES).sum(axis=0)


def time_buckets(
  seconds: Float[Array, "n m"], cell: Int[Array, "n m"], cells: Float[Array, "R 128"]
) -> Int[Array, "n m"]:
  """The bucket of each pair."""
  return _below_or_above(seconds, cell, cells, 1).astype(jnp.int32)


def _below_or_above(seconds, cell, cells, row):
  edge, below, above = (_look_up(cells[i : i + 1], cell) for i in (0, row, row + 1))
  return jnp.where(seconds >= edge, above, below)


def _look_up(row: Float[Array, "1 128"], index: Int[Array, "n m"]) -> Float[Array, "n m"]:
  """`row[index]` for indices in 0..127."""
  table = jnp.broadcast_to(row, (index.shape[0], LANES))
  parts = [
    jnp.take_along_axis(table, index[:, first : first + LANES], axis=1, mode="promise_in_bounds")
    for first in range(0, index.shape[1], LANES)
  ]
  return jnp.concatenate(parts, axis=1)


# --- Position: diagonals ---


def position_windows(
  table: Float[Array, "H W"], difference: Int[Array, " M"], before: int, length: int, sign: int, dtype: jnp.dtype
) -> Float[Array, "M H 8 L"]:
  """For each tile offset the window `z[l] = table[offset + sign * (before - l)]`, eight times: row t begins t later.

  Args:
    table: the position table of each head.
    difference: `p_i - p_j` of the first pair of the tile.
    before: queries (forward) or keys (backward) of a tile, whose diagonals lie before those of its first row.
    length: queries and keys of a tile.
    sign: +1 where the rows of a tile are queries, -1 where they are keys.
    dtype: of the windows.
  """
  lane = jnp.arange(length, dtype=jnp.int32)[None] - jnp.arange(SUBLANES, dtype=jnp.int32)[:, None]  # [8, L]
  index = position_index(difference[:, None, None] + sign * (before - lane)[None], table.shape[1])  # [M, 8, L]
  return jnp.moveaxis(table.astype(dtype)[:, index], 0, 1)


def table_gradient(
  gradient: Float[Array, "M H 8 L"], difference: Int[Array, " M"], before: int, sign: int, table_size: int
) -> Float[Array, "H W"]:
  """The transpose of `position_windows`."""
  lane = jnp.arange(gradient.shape[-1], dtype=jnp.int32)[None] - jnp.arange(SUBLANES, dtype=jnp.int32)[:, None]
  index = position_index(difference[:, None, None] + sign * (before - lane)[None], table_size)  # [M, 8, L]
  zeros = jnp.zeros((gradient.shape[1], table_size), gradient.dtype)
  return zeros.at[:, index].add(jnp.moveaxis(gradient, 1, 0))


def fill_strip(strip: Ref, window: Float[Array, "8 L"]) -> None:
  """Writes `strip[r, l] = z[l - r]`, where row t of the window holds `z[l - t]`."""
  for first in range(0, LANES, SUBLANES):
    strip[first : first + SUBLANES] = pltpu.roll(window, first, 1)


def fold_strip(strip: Ref) -> Float[Array, "8 L"]:
  """The transpose of `fill_strip`."""
  length = strip.shape[1]
  rows = (strip[first : first + SUBLANES] for first in range(0, LANES, SUBLANES))
  return sum(pltpu.roll(row, -i * SUBLANES % length, 1) for i, row in enumerate(rows))


def read_strip(strip: Ref, rows: int, columns: pl.Slice) -> Float[Array, "n m"]:
  """Columns of a tile of so many rows, from its strip; they start at a multiple of 128."""
  parts = [strip[:, _on_strip(rows, above, columns)] for above in range(0, rows, LANES)]
  return jnp.concatenate(parts, axis=0)


def add_to_strip(strip: Ref, columns: pl.Slice, tile: Float[Array, "n m"]) -> None:
  """The transpose of `read_strip`."""
  rows = tile.shape[0]
  for above in range(0, rows, LANES):
    strip[:, _on_strip(rows, above, columns)] += tile[above : above + LANES]


def _on_strip(rows, above, columns):
  start = rows - above + columns.start
  return pl.ds(start if isinstance(start, int) else pl.multiple_of(start, LANES), columns.size)


# --- Position: search ---


def search_table(table: Ref, head: int, index: Int[Array, "n m"], out: Ref, is_live: Array) -> None:
  """Writes `table[head].ravel()[index]` where `is_live`, looking at 128 entries at a time."""
  place, slot = index >> 7, index & (LANES - 1)
  low, high = _range(place, is_live)
  out[...] = jnp.zeros_like(out)

  def look_at(row, _):
    values = _look_up(table[head, pl.ds(row, 1)], slot)
    out[...] = jnp.where(place == row, values, out[...])
    return _

  jax.lax.fori_loop(low, high + 1, look_at, None)


def add_to_bins(bins: Ref, head: int, index: Ref, values: Ref) -> None:
  """Adds `values` `[n, 128]` to rows `8 index ... 8 index + 7` of `bins[head]`, except where the index is negative.

  Lanes stay apart.
  The tile is cut into squares of 128, and each is searched for the bins between its smallest and its largest: few in
  a sorted history.
  """

  def add_square(i, _):
    rows = pl.ds(pl.multiple_of(i * LANES, LANES), LANES)
    _add_square(bins, head, index[rows], values[rows])
    return _

  jax.lax.fori_loop(0, index.shape[0] // LANES, add_square, None)


def _add_square(bins, head, index, values):
  low, high = _range(index, index >= 0)

  def add(bin_, _):
    rows = pl.ds(pl.multiple_of(bin_ * SUBLANES, SUBLANES), SUBLANES)
    bins[head, rows] += _eight_rows(jnp.where(index == bin_, values, 0))
    return _

  jax.lax.fori_loop(low, high + 1, add, None)


def add_to_rows(rows: Ref, head: int, index: Ref, values: Ref) -> None:
  """Like `add_to_bins` for many bins: bin i is row i, and eight are looked for at once."""

  def add_square(i, _):
    part = pl.ds(pl.multiple_of(i * LANES, LANES), LANES)
    _add_square_to_rows(rows, head, index[part], values[part])
    return _

  jax.lax.fori_loop(0, index.shape[0] // LANES, add_square, None)


def _add_square_to_rows(rows, head, index, values):
  low, high = _range(index, index >= 0)

  def add(eight, _):
    first = pl.multiple_of(eight * SUBLANES, SUBLANES)
    sums = [_eight_rows(jnp.where(index == first + i, values, 0)).sum(axis=0, keepdims=True) for i in range(SUBLANES)]
    rows[head, pl.ds(first, SUBLANES)] += jnp.concatenate(sums, axis=0)
    return _

  jax.lax.fori_loop(low >> 3, (high >> 3) + 1, add, None)


def _range(index, is_live):
  """The smallest and the largest live index, as scalars; an empty range where none is live."""
  number = index.astype(jnp.float32)
  low, high = jnp.where(is_live, number, jnp.inf).min(), jnp.where(is_live, number, -jnp.inf).max()
  return jnp.minimum(low, 2.0**30).astype(jnp.int32), jnp.maximum(high, -1.0).astype(jnp.int32)
