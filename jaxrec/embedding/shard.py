"""The part of one stack that one device stores, and what the device does with it under `jax.shard_map`."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from jaxrec.embedding import exchange, rounding
from jaxrec.embedding.exchange import NO_ROW
from jaxrec.embedding.layout import Layout
from jaxrec.embedding.row_optimizers import full_mean, sharded_mean

Arrays = dict[str, Array]  # "rows" and the slots of a stack.
_DISTINCT_AND_SORTED = {"mode": "drop", "unique_indices": True, "indices_are_sorted": True}


@flax.struct.dataclass
class Plan:
  """Which rows a step looked up, and their indices in the buffers of the lookup.

  index: for each id, the index of its row in the buffer of its stack on its device; the same structure as `ids`.
  requested: by stack, the rows that all devices requested from each device, as indices on that device.
  occurrences: by stack, the number of ids of each requested row; of a replicated table, of each of its rows.
  counts: summed over the devices: "rows", distinct rows that were requested; "out_of_range", ids beyond the table;
    "overflow", distinct rows that exceeded the exchange buffer. Rows that overflow read zeros and are not trained: if
    it is above 0, raise `capacity`.

  >>> from jaxrec.embedding import Table, Tables
  >>> tables = Tables({"item": Table(num_rows=10, width=4)})
  >>> rows, plan = tables.lookup(tables.init(jax.random.key(0)), {"item": jnp.array([3, 7, 3])})
  >>> {name: int(count) for name, count in plan.counts.items()}["out_of_range"]
  0
  """

  index: Any
  requested: dict[str, Array]
  occurrences: dict[str, Array]
  counts: dict[str, Int[Array, ""]]


class RowGradient(NamedTuple):
  """The gradient of the distinct rows of a stack that a step looked up, on the devices that own them.

  row: indices on the device, ascending; those after the last looked-up row are beyond the table.
  value: float32, summed over all ids of all devices; zeros after the last looked-up row.
  occurrences: number of ids of the row.
  """

  row: Int[Array, " U"]
  value: Float[Array, "U D"]
  occurrences: Int[Array, " U"]


class Lookup(NamedTuple):
  """The result of a lookup in one stack: the fetched float32 rows, and the fields of `Plan` for this stack.

  index: `Plan.index` of the tables of this stack.
  """

  rows: Float[Array, "U D"]
  index: Any
  requested: Int[Array, " U"]
  occurrences: Int[Array, " U"]
  counts: dict[str, Int[Array, ""] | int]


class StackShard:
  """Computations of one device on its rows of one stack; `Tables` runs them on all devices at once.

  Args:
    layout: layout of all tables.
    stack: name of the stack.
    capacity: distinct rows requested from each other device; None takes `exchange.default_capacity`.
  """

  def __init__(self, layout: Layout, stack: str, capacity: int | None):
    self.layout, self.stack, self.capacity = layout, layout.stacks[stack], capacity
    self.axes = layout.axes if layout.num_shards > 1 else ()
    self.mean = sharded_mean(layout.column_axis) if layout.column_axis else full_mean

  def init(self, key: PRNGKeyArray) -> Arrays:
    """Returns initial rows, and zeros in the slots."""
    column, num_columns = self._column()
    rows = self.layout.initial_rows(self.stack.name, key, self._shard(), column)
    slots = {
      slot: jnp.zeros((rows.shape[0], *[size // num_columns for size in shape]), dtype)
      for slot, (shape, dtype) in self.stack.kind.slots.items()
    }
    return {"rows": rows, **slots}

  def lookup(self, arrays: Arrays, ids: dict[str, Any]) -> Lookup:
    """Fetches the rows of this device's ids (by table of this stack), and serves what other devices request."""
    rows = {t: jax.tree.map(functools.partial(self.layout.global_rows, t), tree) for t, tree in ids.items()}
    leaves, structure = jax.tree.flatten(rows)
    flat = jnp.concatenate([jnp.zeros(0, jnp.uint32), *(x.reshape(-1) for x in leaves)])  # [T]
    found = self._find_replicated(arrays, flat) if self.stack.is_replicated else self._find(arrays, flat)
    ends = np.cumsum([x.size for x in leaves], dtype=np.int32)[:-1]
    parts = jnp.split(found.index, ends) if leaves else []
    parts = [part.reshape(x.shape) for part, x in zip(parts, leaves, strict=True)]
    counts = found.counts | {"out_of_range": self._num_out_of_range(ids, rows)}
    counts = {name: self._sum(count) for name, count in counts.items()}
    return found._replace(index=jax.tree.unflatten(structure, parts), counts=counts)

  def _find(self, arrays, flat: UInt32[Array, " T"]) -> Lookup:
    """Requests rows from their owners, and answers the requests of the others."""
    capacity = self.capacity or exchange.default_capacity(flat.size, self.layout.num_shards)
    requests = exchange.make_requests(flat, self.layout.num_shards, self.stack.num_rows, capacity)
    wanted = exchange.swap(requests.wanted, self.axes).reshape(-1)  # [S * K], by sender
    occurrences = exchange.swap(requests.occurrences, self.axes).reshape(-1)
    own = wanted - self._shard().astype(jnp.uint32) * jnp.uint32(self.stack.num_rows)
    row = jnp.where(wanted == NO_ROW, self.stack.num_rows, own).astype(jnp.int32)
    found = self._admitted(arrays, row, exchange.take(arrays["rows"], row))  # [S * K, D]
    back = exchange.swap(found.reshape(*requests.wanted.shape, found.shape[-1]), self.axes)
    rows = back.reshape(found.shape).astype(jnp.float32)
    counts = {"overflow": requests.overflow, "rows": jnp.sum(requests.wanted != NO_ROW, dtype=jnp.int32)}
    return Lookup(rows, requests.index, row, occurrences, counts)

  def _find_replicated(self, arrays, flat: UInt32[Array, " T"]) -> Lookup:
    """Returns the whole replicated table, and the number of ids of each row over all devices."""
    index = jnp.where(flat == NO_ROW, self.stack.num_rows, flat).astype(jnp.int32)
    here = jnp.zeros(self.stack.num_rows, jnp.int32).at[index].add(1, mode="drop")
    row = jnp.arange(self.stack.num_rows)
    rows = self._admitted(arrays, row, arrays["rows"]).astype(jnp.float32)
    counts = {"overflow": 0, "rows": jnp.sum(here > 0, dtype=jnp.int32)}
    return Lookup(rows, index, row, self._sum(here), counts)

  def _num_out_of_range(self, ids, rows):
    def count(table, ids, rows):
      return jnp.sum((rows == NO_ROW) & ~self.layout.is_padding(table, ids), dtype=jnp.int32)

    trees = [jax.tree.map(functools.partial(count, table), ids[table], rows[table]) for table in ids]
    return sum(jax.tree.leaves(trees))

  def collect(self, arrays: Arrays, row: Array, occurrences: Array, gradient: Array) -> RowGradient:
    """Sends gradients to the owners of their rows and sums those of the same row.

    Args:
      arrays: arrays of the stack.
      row: `requested` of the plan.
      occurrences: `occurrences` of the plan.
      gradient: gradient with respect to the fetched rows.
    """
    value = gradient.astype(jnp.float32)
    if self.axes and not self.stack.is_replicated:
      value = exchange.swap(value.reshape(self.layout.num_shards, -1, value.shape[-1]), self.axes).reshape(value.shape)
      row, value, occurrences = self._summed(row, value, occurrences)
    else:
      row = self._beyond_unless(row < self.stack.num_rows, row)
    value = jnp.where(occurrences[:, None] > 0, value, 0)
    return RowGradient(row, self._admitted(arrays, row, value), occurrences)

  def add(self, parts: tuple[RowGradient, ...]) -> RowGradient:
    """Sums gradients of several lookups."""
    if self.stack.is_replicated:
      return RowGradient(parts[0].row, sum(p.value for p in parts), sum(p.occurrences for p in parts))
    return self._summed(*(jnp.concatenate(arrays) for arrays in zip(*parts, strict=True)))

  def catalogue(self, table: str, rows: Array) -> Float[Array, "R D"]:
    """Returns the float32 rows of one table of the stack."""
    return rows[self._span(table)].astype(jnp.float32)

  def add_catalogue(
    self, table: str, num_items: int, collected: RowGradient, gradient: Float[Array, "R D"]
  ) -> RowGradient:
    """Adds the gradient of a catalogue to that of the looked-up rows; the result has every row of the stack."""
    num_rows, span = self.stack.num_rows, self._span(table)
    ids = self.layout.ids(table, self._shard())
    is_candidate = (ids > 0) & (ids <= num_items)  # [R]
    value = jnp.zeros((num_rows, gradient.shape[-1]), jnp.float32)
    value = value.at[collected.row].set(collected.value, **_DISTINCT_AND_SORTED)
    value = value.at[span].add(jnp.where(is_candidate[:, None], gradient, 0))
    occurrences = jnp.zeros(num_rows, jnp.int32)
    occurrences = occurrences.at[collected.row].set(collected.occurrences, **_DISTINCT_AND_SORTED)
    occurrences = occurrences.at[span].add(is_candidate.astype(jnp.int32))
    return RowGradient(jnp.arange(num_rows, dtype=jnp.int32), value, occurrences)

  def apply(self, step: Int[Array, ""], arrays: Arrays, gradient: RowGradient) -> Arrays:
    """Returns the arrays after an update of the gradient's rows, which are distinct and ascending."""
    if self.stack.is_replicated:
      return self._updated(step, arrays, gradient)
    old = {name: array.at[gradient.row].get(mode="fill", fill_value=0) for name, array in arrays.items()}
    new = self._updated(step, old, gradient)
    return {name: array.at[gradient.row].set(new[name], **_DISTINCT_AND_SORTED) for name, array in arrays.items()}

  def _updated(self, step, old, gradient):
    """Returns the new values of the gradient's rows and their slots, from the old ones."""
    kind = self.stack.kind
    is_due = gradient.occurrences > 0
    if kind.admit_after:
      is_due &= old["requests"] >= kind.admit_after
    row = rounding.join(old["rows"], old["remainder"]) if kind.rounding == "float32" else old["rows"]
    wide = {name: old[name].astype(jnp.float32) for name in kind.optimizer.slots(kind.width)}
    row, slots = kind.optimizer.update(step, row.astype(jnp.float32), wide, gradient.value, self.mean)
    new = {**slots, **self._rounded(step, gradient.row, row)}
    new = {
      name: jnp.where(_like(is_due, old[name]), value.astype(old[name].dtype), old[name]) for name, value in new.items()
    }
    return new | ({"requests": old["requests"] + gradient.occurrences} if kind.admit_after else {})

  def _rounded(self, step, index, row):
    """Returns updated rows in the dtype of the table, with the remainder where one is kept."""
    if self.stack.kind.rounding == "float32":
      high, remainder = rounding.split(row)
      return {"rows": high, "remainder": remainder}
    if self.stack.kind.rounding == "stochastic":
      shard = jnp.zeros((), jnp.int32) if self.stack.is_replicated else self._shard()
      seeds = self.layout.rounding_seeds(self.stack.name, index, shard)
      bits = rounding.row_bits(seeds, row.shape[-1], step, first_column=self._column()[0] * row.shape[-1])
      return {"rows": rounding.stochastic(row, bits)}
    return {"rows": row}

  def _admitted(self, arrays, row, values):
    """Returns the values, with zeros for rows that were not yet looked up `admit_after` times."""
    if not self.stack.kind.admit_after:
      return values
    requests = arrays["requests"].at[row].get(mode="fill", fill_value=0)
    return jnp.where(requests[:, None] >= self.stack.kind.admit_after, values, 0)

  def _summed(self, row, value, occurrences):
    """Returns the gradient of rows that may occur several times as one of distinct rows."""
    key = jnp.where(row < self.stack.num_rows, row.astype(jnp.uint32), NO_ROW)
    key, is_real, sums = exchange.sum_by_row(key, (value, occurrences))
    return RowGradient(self._beyond_unless(is_real, jnp.where(is_real, key, 0).astype(jnp.int32)), *sums)

  def _beyond_unless(self, is_real, row):
    """Replaces rows that are not real by distinct, ascending indices beyond the table."""
    return jnp.where(is_real, row, self.stack.num_rows + jnp.arange(row.size, dtype=jnp.int32))

  def _span(self, table):
    """Returns the slice of a table's rows among those of the stack."""
    placement = self.layout.placements[table]
    return slice(placement.first_row, placement.first_row + placement.rows_per_device)

  def _shard(self):
    """Returns the index of this device's row shard."""
    return jax.lax.axis_index(self.axes) if self.axes else jnp.zeros((), jnp.int32)

  def _column(self):
    """Returns the index of this device's column shard, and the number of column shards."""
    if self.layout.column_axis and not self.stack.is_replicated:
      return jax.lax.axis_index(self.layout.column_axis), self.layout.num_columns
    return jnp.int32(0), 1

  def _sum(self, count):
    return jax.lax.psum(count, self.layout.axes) if self.layout.axes else jnp.asarray(count)


def _like(mask, array):
  """Reshapes a mask of rows to broadcast against an array with one entry per row."""
  return mask.reshape(-1, *[1] * (array.ndim - 1))
