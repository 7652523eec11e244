"""The relative bias of a tile: the operands that it needs, its values and the gradients of its tables."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.bias import position_index
from pallas_kernels.tpu import tiles
from pallas_kernels.tpu.call import UNMASKED, Operand
from pallas_kernels.tpu.problem import Integers, TileSpec, buckets_of_chunks, lowest_bucket, window_differences


def bias_operands(
  spec: TileSpec, tables: tuple[Array | None, Array | None], integers: Integers, *, before: int, sign: int
) -> dict[str, Operand]:
  """The tables in the layouts of `tpu_tiles`, times `spec.half`.

  Time: "edges" and "values" of the buckets as scalars, and "cells" to look up. Position: "window" and "table".
  """
  operands = {}
  time_table, position_table = (None if x is None else spec.half * jnp.atleast_2d(x) for x in tables)
  if time_table is not None:
    heads = spec.table_heads(spec.time_heads)
    edges = jnp.asarray(tiles.bucket_edges())
    cells = jax.vmap(lambda x: tiles.time_cells(x, spec.dtype))(time_table.reshape(-1, heads, time_table.shape[1]))
    operands["edges"] = Operand(edges)
    operands["values"] = Operand(time_table[:, : edges.size].astype(spec.dtype))
    operands["cells"] = Operand(cells, (1, *cells.shape[1:]), lambda p: (p.group if spec.time_heads > 1 else 0, 0, 0))
  if position_table is not None:
    heads, length = spec.table_heads(spec.position_heads), spec.block_q + spec.block_k

    def group(p):
      return p.group if spec.position_heads > 1 else 0

    windows = tiles.position_windows(
      position_table, window_differences(spec, integers), before, length, sign, spec.dtype
    )
    table = jnp.pad(position_table.astype(spec.dtype), ((0, 0), (0, -spec.table_size % tiles.LANES)))
    table = table.reshape(spec.position_heads, -1, tiles.LANES)
    operands["window"] = Operand(
      windows, (1, heads, tiles.SUBLANES, length), lambda p: (spec.window_of(p.query, p.key), group(p), 0, 0)
    )
    operands["table"] = Operand(table, (heads, *table.shape[1:]), lambda p: (group(p), 0, 0))
  return operands


def notes_and_buckets(
  spec: TileSpec, integers: Integers, queries: int, keys: int
) -> tuple[Int[Array, "B Tq Tk"], dict[str, Operand]]:
  """The notes on tiles with chunks of so many queries and keys, and the operand "lowest", the buckets of the chunks."""
  if not spec.time_heads:
    return integers.notes, {}
  notes, lowest = buckets_of_chunks(spec, integers, queries, keys)
  return integers.notes + notes, {"lowest": Operand(lowest)}


class TileBias:
  """The bias of a part of a tile, times `spec.half`, computed once for all heads that share a table.

  path: through the tile, see `paths`.
  query, key: times and positions, of shapes that broadcast to that of the part; None for what the bias lacks.
  rows: of the tile.
  columns: of the part.
  chunks: parts of a tile.
  may_attend: the mask of the part; None on a path without one.
  """

  def __init__(self, spec, refs, path, *, query, key, rows, columns, chunks, may_attend):
    self._spec, self._refs, self._path = spec, refs, path
    self._rows, self._columns, self.may_attend = rows, columns, may_attend
    self._computed = {}
    (query_time, query_position), (key_time, key_position) = query, key
    if spec.time_heads and path in UNMASKED:
      tile = (refs.place.row * spec.query_tiles + refs.place.query) * spec.key_tiles + refs.place.key
      self._lowest = lowest_bucket(refs.lowest, tile, chunks, columns.start // columns.size)
      self._past = tiles.past_edges(query_time - key_time, self._lowest, refs.edges, UNMASKED[path])
    elif spec.time_heads:
      self._seconds, self._cell = tiles.seconds_and_cell(query_time, key_time)
    if path == "search":
      self._index = position_index(query_position - key_position, spec.table_size)

  def of(self, head: int) -> Float[Array, "n m"] | float:
    """The bias of a head of the group."""
    total = 0.0
    if self._spec.time_heads:
      total += self._once(self._time, head if self._spec.time_heads > 1 else 0)
    if self._spec.position_heads:
      total += self._once(self._position, head if self._spec.position_heads > 1 else 0)
    return total

  def _once(self, function, head):
    if (function, head) not in self._computed:
      self._computed[function, head] = function(head)
    return self._computed[function, head]

  def _time(self, head):
    if self._path in UNMASKED:
      first = self._refs.place.group * self._spec.heads if self._spec.time_heads > 1 else 0
      return tiles.few_bias(self._past, self._lowest, self._refs.values, first + head)
    return tiles.time_bias(self._seconds, self._cell, self._refs.cells[0], head)

  def _position(self, head):
    if self._path != "search":
      return tiles.read_strip(self._refs.strip.at[head], self._rows, self._columns)
    tiles.search_table(self._refs.table, head, self._index, self._refs.found, self.may_attend)
    return self._refs.found[...]

  def add_gradient(self, head: int, d_scores: Float[Array, "n m"]) -> None:
    """Adds the gradient of the part's scores to those of the tables."""
    if self._spec.time_heads:
      row, bins = head if self._spec.time_heads > 1 else 0, self._refs.d_time.at[0]
      if self._path in UNMASKED:
        tiles.add_few_to_bins(bins, row, self._past, self._lowest, d_scores)
      else:
        self._add(tiles.add_to_bins, bins, row, self._once(self._buckets, 0), d_scores)
    if self._spec.position_heads:
      row = head if self._spec.position_heads > 1 else 0
      if self._path != "search":
        tiles.add_to_strip(self._refs.d_strip.at[row], self._columns, d_scores)
      else:
        self._add(tiles.add_to_rows, self._refs.d_found.at[0], row, self._index, d_scores)

  def _buckets(self, _):
    return tiles.time_buckets(self._seconds, self._cell, self._refs.cells[0])

  def _add(self, add, bins, head, index, d_scores):
    self._refs.bin_index[...] = jnp.where(self.may_attend, index, -1)
    self._refs.bin_values[...] = d_scores
    add(bins, head, self._refs.bin_index, self._refs.bin_values)
