"""The order of rows on the devices, and back to the order of ids: the only module that knows the MOD layout.

Row r of a table is stored on device r mod S, at `first_row + r // S` of its stack. Checkpoints hold rows in the order
of ids (`Layout.to_logical`), so that they can be restored onto any number of devices.
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
from jaxtyping import Array, Bool, Int, Integer, PRNGKeyArray, UInt32

from jaxrec.embedding.exchange import NO_ROW
from jaxrec.embedding.placement import Placement
from jaxrec.embedding.table import Table
from pallas_kernels import varying

_CHUNK = 8192  # Rows that `initial_rows` makes at a time.


class Stack(NamedTuple):
  """The array that holds all sharded tables of one kind, or one replicated table.

  kind: one of its tables; all of them agree in width, dtype, optimizer, rounding and admission.
  num_rows: rows on each device.
  members: names of its tables, in the order of their rows.
  """

  name: str
  kind: Table
  is_replicated: bool
  num_rows: int
  members: tuple[str, ...]


class Layout:
  """The stacks of a set of tables, and the mapping between ids and their rows.

  Args:
    tables: tables by name.
    placements: the results of `place_tables`.
    num_shards: number of row shards.
    axes: mesh axes over which rows are sharded.
    column_axis: mesh axis over which the columns of each row are sharded.
    num_columns: number of column shards.
  """

  def __init__(
    self,
    tables: Mapping[str, Table],
    placements: Mapping[str, Placement],
    num_shards: int,
    axes: tuple[str, ...],
    column_axis: str | None,
    num_columns: int = 1,
  ):
    self.tables, self.placements = tables, placements
    self.num_shards, self.axes = num_shards, axes
    self.num_columns, self.column_axis = num_columns, column_axis
    self.stacks = {placement.stack: self._stack(placement.stack) for placement in placements.values()}

  def _stack(self, name):
    members = [placement for placement in self.placements.values() if placement.stack == name]
    num_rows = sum(placement.rows_per_device for placement in members)
    is_replicated = members[0].is_replicated
    return Stack(name, self.tables[members[0].table], is_replicated, num_rows, tuple(p.table for p in members))

  def spec(self, stack: str, shape: tuple[int, ...]) -> PartitionSpec:
    """Returns the PartitionSpec of an array with one entry per row, each of shape `()` or `(width,)`."""
    if self.stacks[stack].is_replicated:
      return PartitionSpec()
    return PartitionSpec(self.axes, *[self.column_axis] * len(shape))

  @property
  def specs(self) -> dict[str, dict[str, PartitionSpec]]:
    """PartitionSpecs of the rows and slots of every stack."""
    return {
      name: {"rows": self.spec(name, (stack.kind.width,))}
      | {slot: self.spec(name, shape) for slot, (shape, _) in stack.kind.slots.items()}
      for name, stack in self.stacks.items()
    }

  def is_padding(self, table: str, ids: Integer[Array, "*T"]) -> Bool[Array, "*T"]:
    """Returns which ids read zeros by design: negative ones and `padding_id`."""
    padding = self.tables[table].padding_id
    is_negative = ids == NO_ROW if ids.dtype == jnp.uint32 else ids < 0
    return is_negative if padding is None else is_negative | (ids == padding)

  def global_rows(self, table: str, ids: Integer[Array, "*T"]) -> UInt32[Array, "*T"]:
    """Returns the global row of each id, or its row in the table where that is replicated.

    NO_ROW for padding and for ids out of range.
    """
    placement, wide = self.placements[table], ids.astype(jnp.uint32)
    is_row = ~self.is_padding(table, ids) & (wide < np.uint32(self.tables[table].num_rows))
    is_row &= wide.astype(ids.dtype) == ids  # Of 64 bits.
    if not placement.is_replicated:
      shards = jnp.uint32(self.num_shards)
      first = wide // shards + jnp.uint32(placement.first_row)
      wide = (wide % shards) * jnp.uint32(self.stacks[placement.stack].num_rows) + first
    return jnp.where(is_row, wide, NO_ROW)

  def ids(self, table: str, shard: Int[Array, ""]) -> UInt32[Array, " R"]:
    """Returns the ids of a table's rows on one device, in the order of the rows.

    Rows that fill the last device have ids beyond the table.
    """
    placement = self.placements[table]
    local = jnp.arange(placement.rows_per_device, dtype=jnp.uint32)
    if placement.is_replicated:
      return local
    return local * jnp.uint32(self.num_shards) + shard.astype(jnp.uint32)

  def rounding_seeds(self, stack: str, row: Int[Array, " U"], shard: Int[Array, ""]) -> UInt32[Array, " U"]:
    """Returns a number per row from which to draw random bits; it depends on the table and the id alone."""
    num_shards = 1 if self.stacks[stack].is_replicated else self.num_shards
    first = jnp.asarray([self.placements[name].first_row for name in self.stacks[stack].members])
    salt = jnp.asarray([_salt(name) for name in self.stacks[stack].members])
    member = jnp.searchsorted(first, row, side="right") - 1  # [U]
    return ((row - first[member]) * num_shards + shard).astype(jnp.uint32) ^ salt[member].astype(jnp.uint32)

  def initial_rows(self, stack: str, key: PRNGKeyArray, shard: Int[Array, ""], column: Int[Array, ""]) -> Array:
    """Returns the initial rows of one device: a chunk at a time, each row from its own key.

    Args:
      stack: name of the stack.
      key: key of the whole state.
      shard: index of the device's row shard.
      column: index of its column shard.
    """
    num_columns = 1 if self.stacks[stack].is_replicated else self.num_columns
    parts = [self._initial(name, key, shard, column, num_columns) for name in self.stacks[stack].members]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)

  def _initial(self, name, key, shard, column, num_columns):
    table, placement = self.tables[name], self.placements[name]
    key = jax.random.fold_in(key, _salt(name))
    width = table.width // num_columns
    shards, shard = (1, jnp.int32(0)) if placement.is_replicated else (self.num_shards, shard)
    size, chunk = placement.rows_per_device, min(_CHUNK, placement.rows_per_device)

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
    """Returns, by table, arrays whose row r belongs to id r; the last rows pad the table to a multiple of S."""
    return {
      name: {kind: self._logical(placement, array) for kind, array in stacks[placement.stack].items()}
      for name, placement in self.placements.items()
    }

  def from_logical(self, tables: Mapping[str, Mapping[str, Array]]) -> dict[str, dict[str, Array]]:
    """Inverts `to_logical`."""
    return {
      name: {kind: self._physical(stack, [tables[t][kind] for t in stack.members]) for kind in tables[stack.members[0]]}
      for name, stack in self.stacks.items()
    }

  def _logical(self, placement, array):
    if placement.is_replicated:
      return array
    array = array.reshape(self.num_shards, -1, *array.shape[1:])  # [S, rows, ...]
    array = array[:, placement.first_row : placement.first_row + placement.rows_per_device]
    return array.swapaxes(0, 1).reshape(-1, *array.shape[2:])  # [rows * S, ...]

  def _physical(self, stack, arrays):
    if stack.is_replicated:
      return arrays[0]
    parts = [x.reshape(-1, self.num_shards, *x.shape[1:]).swapaxes(0, 1) for x in arrays]  # [S, rows, ...]
    return jnp.concatenate(parts, axis=1).reshape(-1, *arrays[0].shape[1:])


@functools.cache
def _salt(name: str) -> int:
  """Returns a number that is a function of the name alone, the same in every process."""
  return zlib.crc32(name.encode()) & 0x7FFFFFFF
