"""What one device does with its rows of the tables: the bodies of `Tables`, which runs them on all devices at once."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxrec.embedding import exchange, rounding
from jaxrec.embedding.exchange import NOTHING
from jaxrec.embedding.layout import Layout
from jaxrec.embedding.row_optimizers import full_mean, spread_mean

Stacks = dict[str, dict[str, Array]]


@flax.struct.dataclass
class Plan:
  """Which rows a step looked up, and where they are in its buffers.

  place: of each id, its row in the buffer of its stack on its device; as `ids` of the lookup.
  asked: by stack, the rows that each device was asked for by the others, numbered on it.
  occurrences: by stack, how many ids stood for each of them; of a replicated table, for each of its rows.
  counts: "overflow", distinct rows that found no room in the exchange: they read zeros and are not trained, so raise
    `capacity`; "out_of_range", ids that no row belongs to; "rows", distinct rows asked for, summed over the devices.
  """

  place: Any
  asked: dict[str, Array]
  occurrences: dict[str, Array]
  counts: dict[str, Int[Array, ""]]


class RowGradient(NamedTuple):
  """The gradient of the distinct rows of a stack that a step looked up, on the devices that own them.

  row: number on its device, rising; those after the last real one lie outside of the table.
  value: float32, summed over all ids of all devices; zeros after the last one.
  occurrences: how many ids stood for the row.
  """

  row: Int[Array, " U"]
  value: Float[Array, "U D"]
  occurrences: Int[Array, " U"]


class Shard:
  """The rows of one device; under `shard_map` where there are several. Arguments as of `Tables`."""

  def __init__(self, layout: Layout, capacity: int | None, num_columns: int):
    self.layout, self.capacity, self.num_columns = layout, capacity, num_columns
    self.axes = layout.axes if layout.num_shards > 1 else ()
    self.mean = spread_mean(layout.column_axis) if layout.column_axis else full_mean

  def init(self, key: PRNGKeyArray) -> Stacks:
    """Rows as their initializers make them, zeros in the slots."""
    return {name: self._initial(stack, key) for name, stack in self.layout.stacks.items()}

  def _initial(self, stack, key):
    column = self._column(stack)
    rows = self.layout.initial_rows(stack.name, key, self._number(), *column)
    slots = {
      slot: jnp.zeros((rows.shape[0], *[size // column[1] for size in shape]), dtype)
      for slot, (shape, dtype) in stack.kind.slots.items()
    }
    return {"rows": rows, **slots}

  def lookup(self, stacks: Stacks, ids: dict[str, Any]) -> tuple[dict[str, Array], Plan]:
    """See `Tables.lookup`; ids of this device."""
    rows, plan = {}, Plan({}, {}, {}, dict.fromkeys(("overflow", "out_of_range", "rows"), 0))
    for name, stack in self.layout.stacks.items():
      asks = {table: ids[table] for table in stack.members if table in ids}
      if asks:
        rows[name] = self._lookup_stack(stack, stacks[name], asks, plan)
    return rows, plan.replace(counts={name: self._sum(count) for name, count in plan.counts.items()})

  def _lookup_stack(self, stack, arrays, ids, plan):
    """Fills in the plan for the tables of one stack; returns their rows."""
    numbers = {t: jax.tree.map(functools.partial(self.layout.number, t), tree) for t, tree in ids.items()}
    leaves, structure = jax.tree.flatten(numbers, is_leaf=lambda x: isinstance(x, tuple))
    flat = jnp.concatenate([number.reshape(-1) for number, _ in leaves])  # [T]
    find = self._find_copied if stack.is_replicated else self._find
    rows, plan.asked[stack.name], plan.occurrences[stack.name], place, counts = find(stack, arrays, flat)
    ends = np.cumsum([number.size for number, _ in leaves])[:-1]
    parts = [part.reshape(x.shape) for part, (x, _) in zip(jnp.split(place, ends), leaves, strict=True)]
    plan.place.update(jax.tree.unflatten(structure, parts))
    counts["out_of_range"] = sum(wrong for _, wrong in leaves)
    for name, count in counts.items():
      plan.counts[name] += count
    return rows

  def _find(self, stack, arrays, flat):
    """Asks each owner for its rows, and answers what the others ask."""
    capacity = self.capacity or exchange.default_capacity(flat.size, self.layout.num_shards)
    asks = exchange.requests(flat, self.layout.num_shards, stack.num_rows, capacity)
    wanted = exchange.swap(asks.wanted, self.axes).reshape(-1)  # [S * K], by sender
    occurrences = exchange.swap(asks.occurrences, self.axes).reshape(-1)
    own = wanted - self._number().astype(jnp.uint32) * jnp.uint32(stack.num_rows)
    row = jnp.where(wanted == NOTHING, stack.num_rows, own).astype(jnp.int32)
    found = self._admitted(stack, arrays, row, exchange.take(arrays["rows"], row))  # [S * K, D]
    back = exchange.swap(found.reshape(*asks.wanted.shape, -1), self.axes)
    rows = back.reshape(found.shape).astype(jnp.float32)
    counts = {"overflow": asks.overflow, "rows": jnp.sum(asks.wanted != NOTHING, dtype=jnp.int32)}
    return rows, row, occurrences, asks.place, counts

  def _find_copied(self, stack, arrays, flat):
    """Of a replicated table: the table itself, and how often each of its rows was asked for by any device."""
    place = jnp.where(flat == NOTHING, stack.num_rows, flat).astype(jnp.int32)
    here = jnp.zeros(stack.num_rows, jnp.int32).at[place].add(1, mode="drop")
    row = jnp.arange(stack.num_rows)
    rows = self._admitted(stack, arrays, row, arrays["rows"]).astype(jnp.float32)
    counts = {"overflow": 0, "rows": jnp.sum(here > 0, dtype=jnp.int32)}
    return rows, row, self._sum(here), place, counts

  def vectors(self, rows: dict[str, Array], place: dict[str, Any]) -> dict[str, Any]:
    """See `Tables.vectors`."""
    stack_of = {name: self.layout.places[name].stack for name in place}
    return {n: jax.tree.map(functools.partial(exchange.take, rows[stack_of[n]]), tree) for n, tree in place.items()}

  def collect(
    self, stacks: Stacks, asked: dict[str, Array], occurrences: dict[str, Array], gradient: dict[str, Array]
  ) -> dict[str, RowGradient]:
    """See `Tables.collect`."""
    return {
      name: self._collected(self.layout.stacks[name], stacks[name], asked[name], occurrences[name], value)
      for name, value in gradient.items()
    }

  def _collected(self, stack, arrays, row, occurrences, value):
    value = value.astype(jnp.float32)
    if self.axes and not stack.is_replicated:
      value = exchange.swap(value.reshape(self.layout.num_shards, -1, value.shape[-1]), self.axes).reshape(value.shape)
      row, value, occurrences = _summed(stack, row, value, occurrences)
    else:
      row = _outside_after(stack, row, row < stack.num_rows)
    value = jnp.where(occurrences[:, None] > 0, value, 0)
    return RowGradient(row, self._admitted(stack, arrays, row, value), occurrences)

  def catalogue(self, table: str, stacks: Stacks) -> Float[Array, "R D"]:
    """See `Tables.catalogue`."""
    place = self.layout.places[table]
    return stacks[place.stack]["rows"][_span(place)].astype(jnp.float32)

  def add_catalogue(
    self, table: str, num_items: int, collected: RowGradient, gradient: Float[Array, "R D"]
  ) -> RowGradient:
    """See `Tables.add_catalogue`."""
    place = self.layout.places[table]
    stack = self.layout.stacks[place.stack]
    ids = self.layout.ids(table, self._number())
    is_candidate = (ids > 0) & (ids <= num_items)  # [R]
    where = {"mode": "drop", "unique_indices": True, "indices_are_sorted": True}
    value = jnp.zeros((stack.num_rows, gradient.shape[-1]), jnp.float32)
    value = value.at[collected.row].set(collected.value, **where)
    value = value.at[_span(place)].add(jnp.where(is_candidate[:, None], gradient, 0))
    occurrences = jnp.zeros(stack.num_rows, jnp.int32).at[collected.row].set(collected.occurrences, **where)
    occurrences = occurrences.at[_span(place)].add(is_candidate.astype(jnp.int32))
    return RowGradient(jnp.arange(stack.num_rows, dtype=jnp.int32), value, occurrences)

  def add(self, gradients: tuple[dict[str, RowGradient], ...]) -> dict[str, RowGradient]:
    """See `Tables.add`."""
    return {name: self._added(self.layout.stacks[name], [g[name] for g in gradients]) for name in gradients[0]}

  def _added(self, stack, parts):
    if stack.is_replicated:
      return RowGradient(parts[0].row, sum(p.value for p in parts), sum(p.occurrences for p in parts))
    row, value, occurrences = (jnp.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _summed(stack, row, value, occurrences)

  def apply(self, step: Int[Array, ""], stacks: Stacks, gradients: dict[str, RowGradient]) -> Stacks:
    """See `Tables.apply`."""
    return stacks | {
      name: self._applied(self.layout.stacks[name], step, stacks[name], gradient)
      for name, gradient in gradients.items()
    }

  def _applied(self, stack, step, arrays, gradient):
    """The arrays of a stack after an update of the gradient's rows, which are distinct and rising."""
    if stack.is_replicated:
      old = arrays
    else:
      old = {name: array.at[gradient.row].get(mode="fill", fill_value=0) for name, array in arrays.items()}
    new = self._updated(stack, step, old, gradient)
    if stack.is_replicated:
      return new
    where = {"mode": "drop", "unique_indices": True, "indices_are_sorted": True}
    return {name: array.at[gradient.row].set(new[name], **where) for name, array in arrays.items()}

  def _updated(self, stack, step, old, gradient):
    kind = stack.kind
    is_due = gradient.occurrences > 0
    if kind.admit_after:
      is_due &= old["requests"] >= kind.admit_after
    row = rounding.join(old["rows"], old["remainder"]) if kind.rounding == "float32" else old["rows"]
    wide = {name: old[name].astype(jnp.float32) for name in kind.optimizer.slots(kind.width)}
    row, slots = kind.optimizer.update(step, row.astype(jnp.float32), wide, gradient.value, self.mean)
    new = {**slots, **self._rounded(stack, step, gradient.row, row)}
    new = {
      name: jnp.where(_like(is_due, old[name]), value.astype(old[name].dtype), old[name]) for name, value in new.items()
    }
    return new | ({"requests": old["requests"] + gradient.occurrences} if kind.admit_after else {})

  def _rounded(self, stack, step, number, row):
    """New rows in the dtype of the table, and what is kept beside them."""
    if stack.kind.rounding == "float32":
      high, remainder = rounding.split(row)
      return {"rows": high, "remainder": remainder}
    if stack.kind.rounding == "stochastic":
      shard = jnp.zeros((), jnp.int32) if stack.is_replicated else self._number()
      first_column = self._column(stack)[0] * row.shape[-1]
      number = self.layout.random_number(stack.name, number, shard)
      bits = rounding.row_bits(number, row.shape[-1], step, first_column)
      return {"rows": rounding.stochastic(row, bits)}
    return {"rows": row}

  def _admitted(self, stack, arrays, row, values):
    """The values, zeros in place of those of rows that were not asked for often enough."""
    if not stack.kind.admit_after:
      return values
    requests = arrays["requests"].at[row].get(mode="fill", fill_value=0)
    return jnp.where(requests[:, None] >= stack.kind.admit_after, values, 0)

  def _number(self):
    """Of this device among those that rows are spread over."""
    return jax.lax.axis_index(self.axes) if self.axes else jnp.zeros((), jnp.int32)

  def _column(self, stack):
    """Which part of the columns this device holds, and how many parts there are."""
    if self.layout.column_axis and not stack.is_replicated:
      return jax.lax.axis_index(self.layout.column_axis), self.num_columns
    return jnp.int32(0), 1

  def _sum(self, count):
    return jax.lax.psum(count, self.layout.axes) if self.layout.axes else jnp.asarray(count)


def _summed(stack, row, value, occurrences):
  """A `RowGradient` of rows of one device that may occur several times."""
  key = jnp.where(row < stack.num_rows, row.astype(jnp.uint32), NOTHING)
  key, is_real, sums = exchange.sum_by_row(key, (value, occurrences))
  return RowGradient(_outside_after(stack, jnp.where(is_real, key, 0).astype(jnp.int32), is_real), *sums)


def _outside_after(stack, row, is_real):
  """Rising rows; those that aren't real lie outside of the table, and all are distinct."""
  return jnp.where(is_real, row, stack.num_rows + jnp.arange(row.size, dtype=jnp.int32))


def _like(mask, array):
  """A mask of rows that broadcasts against the rows of an array."""
  return mask.reshape(-1, *[1] * (array.ndim - 1))


def _span(place):
  """Of a table's rows among those of its stack on a device."""
  return slice(place.first_row, place.first_row + place.rows_per_device)
