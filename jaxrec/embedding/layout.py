"""How the rows of tables are laid out over devices, and back: the one place that knows about MOD.

Row r of a table is on device r mod S, there at `first_row + r // S` of its stack. Checkpoints hold rows in logical
order (`Layout.to_logical`), so that they can be restored onto any number of devices.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int, Integer, PRNGKeyArray, UInt32

from jaxrec.embedding.exchange import NOTHING
from jaxrec.embedding.table import REPLICATED, Placement, Table
from pallas_kernels import varying

_CHUNK = 8192  # Rows made at a time by `initial_rows`.


class Stack(NamedTuple):
  """An array that holds tables of one kind.

  kind: one of its tables: width, dtype, optimizer and rounding are those of all.
  num_rows: on each device.
  members: names of its tables, in the order of their rows.
  """

  name: str
  kind: Table
  is_replicated: bool
  num_rows: int
  members: tuple[str, ...]


class Layout:
  """The stacks of a set of tables; see `jaxrec.embedding.tables.Tables` for the arguments."""

  def __init__(
    self,
    tables: Mapping[str, Table],
    places: Mapping[str, Placement],
    num_shards: int,
    axes: tuple[str, ...],
    column_axis: str | None,
  ):
    self.tables, self.places, self.num_shards, self.axes, self.column_axis = (
      tables,
      places,
      num_shards,
      axes,
      column_axis,
    )
    self.stacks = {place.stack: self._stack(place.stack) for place in places.values()}

  def _stack(self, name):
    members = [place for place in self.places.values() if place.stack == name]
    num_rows = sum(place.rows_per_device for place in members)
    is_replicated = members[0].placement == REPLICATED
    return Stack(name, self.tables[members[0].table], is_replicated, num_rows, tuple(p.table for p in members))

  def spec(self, stack: str, shape: tuple[int, ...]) -> PartitionSpec:
    """How what is kept for each row lies on the mesh, a shape of `()` or `(width,)` a row."""
    if self.stacks[stack].is_replicated:
      return PartitionSpec()
    return PartitionSpec(self.axes, *[self.column_axis] * len(shape))

  @property
  def specs(self) -> dict[str, dict[str, PartitionSpec]]:
    """Of all arrays of the state."""
    return {
      name: {"rows": self.spec(name, (stack.kind.width,))}
      | {slot: self.spec(name, shape) for slot, (shape, _) in stack.kind.slots.items()}
      for name, stack in self.stacks.items()
    }

  def number(self, table: str, ids: Integer[Array, "..."]) -> tuple[Integer[Array, "..."], Int[Array, ""]]:
    """Rows of ids and how many ids are out of range.

    Returns:
      Rows numbered through all devices, or in the table itself where it is replicated; uint32, NOTHING for none.
    """
    size, padding, place = self.tables[table].num_rows, self.tables[table].padding_id, self.places[table]
    wide = ids.astype(jnp.uint32)
    is_nothing = (ids < 0) | (wide == NOTHING)
    if padding is not None:
      is_nothing |= ids == padding
    is_row = ~is_nothing & (wide < np.uint32(size))
    if place.placement != REPLICATED:
      shards = jnp.uint32(self.num_shards)
      first = wide // shards + jnp.uint32(place.first_row)
      wide = (wide % shards) * jnp.uint32(self.stacks[place.stack].num_rows) + first
    return jnp.where(is_row, wide, NOTHING), jnp.sum(~is_nothing & ~is_row, dtype=jnp.int32)

  def ids(self, table: str, shard: Int[Array, ""]) -> UInt32[Array, " R"]:
    """The ids of a table's rows on a device, in their order there; ids past the last row fill up the devices."""
    place = self.places[table]
    local = jnp.arange(place.rows_per_device, dtype=jnp.uint32)
    if place.placement == REPLICATED:
      return local
    return local * jnp.uint32(self.num_shards) + shard.astype(jnp.uint32)

  def row_of(self, table: str, ids: Int[Array, "*T"], shard: Int[Array, ""]) -> Int[Array, "*T"]:
    """Where each id is among `ids` of a device; -1 for ids of other devices, 0 and negative ones."""
    if self.places[table].placement == REPLICATED:
      return jnp.where(ids > 0, ids, -1)
    return jnp.where((ids > 0) & (ids % self.num_shards == shard), ids // self.num_shards, -1)

  def random_number(self, stack: str, row: Int[Array, " U"], shard: Int[Array, ""]) -> UInt32[Array, " U"]:
    """A number for each row of a device by which to draw at random: it depends on the table and the id alone."""
    num_shards = 1 if self.stacks[stack].is_replicated else self.num_shards
    first = jnp.asarray([self.places[name].first_row for name in self.stacks[stack].members])
    salt = jnp.asarray([_salt(name) for name in self.stacks[stack].members])
    member = jnp.searchsorted(first, row, side="right") - 1  # [U]
    return ((row - first[member]) * num_shards + shard).astype(jnp.uint32) ^ salt[member].astype(jnp.uint32)

  def initial_rows(
    self, stack: str, key: PRNGKeyArray, shard: Int[Array, ""], column: Int[Array, ""] | int, num_columns: int
  ) -> Array:
    """The rows of a device, made a chunk at a time, each from a key of its own."""
    parts = [self._initial(name, key, shard, column, num_columns) for name in self.stacks[stack].members]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)

  def _initial(self, name, key, shard, column, num_columns):
    table, place = self.tables[name], self.places[name]
    key = jax.random.fold_in(key, _salt(name))
    width = table.width // num_columns
    shards, shard = (1, jnp.int32(0)) if place.placement == REPLICATED else (self.num_shards, shard)
    size, chunk = place.rows_per_device, min(_CHUNK, place.rows_per_device)

    def row(local):
      values = table.initializer(jax.random.fold_in(key, local * shards + shard), (1, table.width))
      return jax.lax.dynamic_slice_in_dim(values[0], column * width, width).astype(table.dtype)

    def add(index, rows):
      start = jnp.minimum(index * chunk, size - chunk)
      made = jax.vmap(row)(start + jnp.arange(chunk))
      return jax.lax.dynamic_update_slice_in_dim(rows, made, start, axis=0)

    rows = varying.vary(jnp.zeros((size, width), table.dtype), varying.axes_of((shard, column)))
    return jax.lax.fori_loop(0, -(-size // chunk), add, rows)

  def to_logical(self, stacks: Mapping[str, Mapping[str, Array]]) -> dict[str, dict[str, Array]]:
    """By table, arrays whose row r is that of id r; a few rows at the end fill up the devices."""
    return {
      name: {kind: self._logical(place, array) for kind, array in stacks[place.stack].items()}
      for name, place in self.places.items()
    }

  def from_logical(self, tables: Mapping[str, Mapping[str, Array]]) -> dict[str, dict[str, Array]]:
    """Undoes `to_logical`."""
    return {
      name: {kind: self._physical(stack, [tables[t][kind] for t in stack.members]) for kind in tables[stack.members[0]]}
      for name, stack in self.stacks.items()
    }

  def _logical(self, place, array):
    if place.placement == REPLICATED:
      return array
    array = array.reshape(self.num_shards, -1, *array.shape[1:])  # [S, rows, ...]
    array = array[:, place.first_row : place.first_row + place.rows_per_device]
    return array.swapaxes(0, 1).reshape(-1, *array.shape[2:])  # [rows * S, ...]

  def _physical(self, stack, arrays):
    if stack.is_replicated:
      return arrays[0]
    parts = [x.reshape(-1, self.num_shards, *x.shape[1:]).swapaxes(0, 1) for x in arrays]  # [S, rows, ...]
    return jnp.concatenate(parts, axis=1).reshape(-1, *arrays[0].shape[1:])


@functools.cache
def _salt(name: str) -> int:
  """The same number for the same name, in every process."""
  return zlib.crc32(name.encode()) & 0x7FFFFFFF
