"""Tables outside of the parameters: lookup, gradients of the looked-up rows, and updates of those rows in place.

A step looks up the rows of its ids, differentiates with respect to these, and changes only them: nothing of the size of
a table is ever a gradient, is sent anywhere, or is touched. Row r of a table lies on device r mod S (MOD layout), so
that ids in the order of popularity are spread evenly.

Source: MOD sharding of TPU embedding tables and row-wise sharding of TorchRec, with gradients that stay visible.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from jaxrec.embedding.layout import Layout
from jaxrec.embedding.shard import Plan, RowGradient, Shard
from jaxrec.embedding.table import MAX_REPLICATED_BYTES, SHARDED, Table, describe, num_shards_of, place_tables

_WHOLE = PartitionSpec()


@flax.struct.dataclass
class TableState:
  """Rows and optimizer state of all tables, as one pytree.

  step: updates made so far.
  stacks: by name, "rows" and each slot of the optimizer, spread over the devices; `Tables.to_logical` puts them in the
    order of ids.
  """

  step: Int[Array, ""]
  stacks: dict[str, dict[str, Array]]


class Tables:
  """Embedding tables by name, spread over the devices of a mesh.

  Methods are pure functions of a `TableState`, for use inside `jax.jit`; donate the state, so that rows change in
  place. A table shares its array and its exchange with others of its kind (width, dtype, optimizer).

  Args:
    tables: by name.
    mesh: None: one device.
    axes: mesh axes over which rows, and the first axis of ids, are spread; None takes all but `column_axis`.
    column_axis: mesh axis over which the columns of each row are spread, for very wide rows.
    max_replicated_bytes: up to this size, optimizer state included, a table is copied to each device instead.
    capacity: distinct rows that a device may ask of each other one, for each stack; None takes
      `jaxrec.embedding.exchange.default_capacity`. Rows beyond are counted in `Plan.counts["overflow"]`.

  Raises:
    ValueError: an axis that the mesh doesn't have, or what `place_tables` raises.

  >>> tables = Tables({"item": Table(5, 2, initializer=jax.nn.initializers.ones)})
  >>> state = tables.init(jax.random.key(0))
  >>> rows, plan = tables.lookup(state, {"item": jnp.array([[3, 0, 3]])})
  >>> tables.vectors(rows, plan)["item"].tolist()
  [[[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]]
  """

  def __init__(
    self,
    tables: Mapping[str, Table],
    mesh: Mesh | None = None,
    *,
    axes: tuple[str, ...] | None = None,
    column_axis: str | None = None,
    max_replicated_bytes: int = MAX_REPLICATED_BYTES,
    capacity: int | None = None,
  ):
    known = () if mesh is None else tuple(mesh.axis_names)
    axes = tuple(axis for axis in known if axis != column_axis) if axes is None else tuple(axes)
    if unknown := [axis for axis in (*axes, column_axis) if axis is not None and axis not in known]:
      raise ValueError(f"{unknown} are not axes of the mesh, which has {known}")
    self.tables, self.mesh, self.axes, self.column_axis = dict(tables), mesh, axes, column_axis
    self.num_shards = num_shards_of(mesh, axes)
    num_columns = num_shards_of(mesh, (column_axis,)) if column_axis else 1
    self.places = place_tables(self.tables, self.num_shards, num_columns, max_replicated_bytes)
    self.layout = Layout(self.tables, self.places, self.num_shards, axes, column_axis)
    self._shard = Shard(self.layout, capacity, num_columns)

  def describe(self) -> str:
    """The plan, a line for each table with its bytes on each device, to be printed."""
    return describe(self.tables, self.places, self.num_shards)

  def init(self, key: PRNGKeyArray) -> TableState:
    """Rows of the tables' initializers, zeros for the optimizers. A row's values don't depend on the mesh."""
    return jax.jit(self._init, out_shardings=self.shardings())(key)

  def _init(self, key):
    return TableState(jnp.zeros((), jnp.int32), self.mapped(self._shard.init, _WHOLE, self.layout.specs)(key))

  def abstract_state(self) -> TableState:
    """Shapes, dtypes and shardings of the state, to compile a step without making the tables."""
    shapes = jax.eval_shape(self._init, jax.random.key(0))
    if self.mesh is None:
      return shapes
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, self.shardings())

  def shardings(self) -> TableState | None:
    """Of the state; None without a mesh."""
    if self.mesh is None:
      return None
    specs = TableState(_WHOLE, self.layout.specs)
    return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), specs, is_leaf=_is_spec)

  def lookup(self, state: TableState, ids: Mapping[str, Any]) -> tuple[dict[str, Array], Plan]:
    """Fetches the rows of ids.

    Args:
      state: of the tables.
      ids: for each table a pytree of integer arrays; the first axis of each is spread over the devices. `padding_id`
        and negative ids stand for nothing.

    Returns:
      Float32 rows by stack, to be differentiated with respect to and read by `vectors`; and the plan of the exchange.

    Raises:
      ValueError: a table that doesn't exist, ids that are no integers, or that JAX would cut to 32 bits.
    """
    if unknown := sorted(ids.keys() - self.tables.keys()):
      raise ValueError(f"there is no table {unknown}; there are {sorted(self.tables)}")
    ids = {name: jax.tree.map(functools.partial(_integers, name), tree) for name, tree in ids.items()}
    used = {self.places[name].stack for name in ids}
    by_stack = {name: self._spec_of_rows(name) for name in used}
    specs = {name: self.layout.specs[name]["rows"] for name in used}, Plan(self.spread, by_stack, by_stack, _WHOLE)
    find = self.mapped(self._shard.lookup, (self.layout.specs, self.spread), specs)
    rows, plan = find(state.stacks, jax.tree.map(self._filled_up, ids))
    return rows, plan.replace(place=jax.tree.map(lambda place, x: place[: x.shape[0]], plan.place, ids))

  def vectors(self, rows: dict[str, Array], plan: Plan) -> dict[str, Any]:
    """The float32 vectors of the ids that were looked up: like `ids`, with an axis of the width.

    Differentiable in `rows`; zero for ids that stand for nothing.
    """
    place = jax.tree.map(self._filled_up, plan.place)
    specs = {
      name: jax.tree.map(lambda x, n=name: self._spec_of_vectors(n, x.ndim), tree) for name, tree in place.items()
    }
    read = self.mapped(self._shard.vectors, (self._spec_of_buffers(rows), self.spread), specs)
    return jax.tree.map(lambda x, place: x[: place.shape[0]], read(rows, place), plan.place)

  def collect(self, state: TableState, plan: Plan, gradient: dict[str, Array]) -> dict[str, RowGradient]:
    """Sends gradients to the owners of the rows and adds up those of the same row.

    The `value`s of the result are the rows of the dense gradient of the whole tables that aren't zero: norms, inner
    products, clipping and weighted sums (of results of the same plan) are those of that gradient.

    Args:
      state: before the update.
      plan: of the lookup.
      gradient: like `rows` of the lookup.
    """
    by_stack = {name: self._spec_of_rows(name) for name in gradient}
    specs = (self.layout.specs, by_stack, by_stack, self._spec_of_buffers(gradient))
    send = self.mapped(self._shard.collect, specs, self._spec_of_gradients(gradient))
    asked, occurrences = ({name: x[name] for name in gradient} for x in (plan.asked, plan.occurrences))
    return send(state.stacks, asked, occurrences, gradient)

  def add(self, gradients: Sequence[dict[str, RowGradient]]) -> dict[str, RowGradient]:
    """Sums what `collect` returned for several lookups, as for the parts of a batch that is too large for one.

    Args:
      gradients: of the same tables, made from the same state.
    """
    specs = self._spec_of_gradients(gradients[0])
    return self.mapped(self._shard.add, (tuple(specs for _ in gradients),), specs)(tuple(gradients))

  def apply(self, state: TableState, gradients: dict[str, RowGradient]) -> TableState:
    """Updates the rows of the gradients, each by its table's optimizer, and no others."""
    specs = (_WHOLE, self.layout.specs, self._spec_of_gradients(gradients))
    stacks = self.mapped(self._shard.apply, specs, self.layout.specs)(state.step, state.stacks, gradients)
    return TableState(state.step + 1, stacks)

  def catalogue(self, state: TableState, table: str) -> Float[Array, "R D"]:
    """All rows of a table in float32, for what sees every item: full softmax and full ranking.

    Each device keeps its own: they are in the order of the devices, those of device 0 first, with some more
    rows to fill up the devices. What is made of each row alone, like `l2_normalize(catalogue)`, stays where it is.
    Memory and the gradient are as large as the device's part of the table.

    Raises:
      NotImplementedError: columns that are spread, or rows that must be admitted.
    """
    if self.column_axis and self.places[table].placement == SHARDED:
      raise NotImplementedError(f"table {table!r}: its columns are spread over {self.column_axis=}; spread rows only")
    if self.tables[table].admit_after:
      raise NotImplementedError(f"table {table!r}: a catalogue holds all rows, and admit_after keeps some out")
    read = functools.partial(self._shard.catalogue, table)
    return self.mapped(read, (self.layout.specs,), self.spec_of_catalogue(table))(state.stacks)

  def add_catalogue(
    self, gradients: dict[str, RowGradient], table: str, gradient: Float[Array, "R D"], num_items: int
  ) -> dict[str, RowGradient]:
    """Adds the gradient of a whole catalogue to those of the rows that were looked up, for one `apply` of both.

    The rows 1..num_items then count as one occurrence more, so that `apply` updates all of them. Choice: the result
    has a row for each row of the stack, other tables of the same kind included.

    Args:
      gradients: of `collect`.
      table: the table.
      gradient: with respect to `catalogue`.
      num_items: the items of the catalogue; other rows take no gradient from it.
    """
    stack = self.places[table].stack
    specs = self._spec_of_gradients({stack: None})[stack]
    add = functools.partial(self._shard.add_catalogue, table, num_items)
    added = self.mapped(add, (specs, self.spec_of_catalogue(table)), specs)(gradients[stack], gradient)
    return gradients | {stack: added}

  def update(self, state: TableState, plan: Plan, gradient: dict[str, Array]) -> TableState:
    """`apply` of `collect`: one step of all tables."""
    return self.apply(state, self.collect(state, plan, gradient))

  def to_logical(self, state: TableState) -> dict[str, Any]:
    """The state for a checkpoint: by table, arrays in the order of ids, rounded up to fill the devices."""
    if self.num_shards == 1:
      return self._to_logical(state)  # As it is, without a copy.
    return jax.jit(self._to_logical, out_shardings=self._logical_shardings())(state)

  def from_logical(self, saved: Mapping[str, Any]) -> TableState:
    """Undoes `to_logical`; arrays of another number of devices must first be cut or filled up to our shapes."""
    if self.num_shards == 1:
      return self._from_logical(saved)
    return jax.jit(self._from_logical, out_shardings=self.shardings())(saved)

  def abstract_logical(self) -> dict[str, Any]:
    """Shapes, dtypes and shardings of `to_logical`."""
    shapes = jax.eval_shape(self._to_logical, self.abstract_state())
    if self.mesh is None:
      return shapes
    shardings = self._logical_shardings()
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)

  def _to_logical(self, state):
    return {"step": state.step, "tables": self.layout.to_logical(state.stacks)}

  def _from_logical(self, saved):
    return TableState(saved["step"], self.layout.from_logical(saved["tables"]))

  def _logical_shardings(self):
    specs = {name: self.layout.specs[place.stack] for name, place in self.places.items()}
    specs = {"step": _WHOLE, "tables": specs}
    return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), specs, is_leaf=_is_spec)

  @property
  def spread(self):
    """How what has a row for each row of a batch lies on the mesh."""
    return PartitionSpec(self.axes)

  def mapped(self, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """The function, run on each device; as it is where there is no mesh."""
    if self.mesh is None:
      return function
    return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs)

  def spec_of_catalogue(self, table: str) -> PartitionSpec:
    """How `catalogue` lies on the mesh."""
    return self._spec_of_rows(self.places[table].stack)

  def axes_of(self, table: str) -> tuple[str, ...]:
    """The mesh axes over which the rows of a table are spread; none on one device and of a replicated table."""
    return () if self.num_shards == 1 or self.places[table].placement != SHARDED else self.axes

  def ids_here(self, table: str) -> UInt32[Array, " R"]:
    """Inside of `mapped`: the ids of the rows of `catalogue` on this device."""
    axes = self.axes_of(table)
    return self.layout.ids(table, jax.lax.axis_index(axes) if axes else jnp.zeros((), jnp.int32))

  def _spec_of_rows(self, stack):
    """Of what there is one of for each row of the buffers of a stack."""
    return _WHOLE if self.layout.stacks[stack].is_replicated else self.spread

  def _spec_of_buffers(self, rows):
    return {name: self.layout.specs[name]["rows"] for name in rows}

  def _spec_of_gradients(self, gradients):
    by_stack = {name: self._spec_of_rows(name) for name in gradients}
    return {name: RowGradient(spec, self.layout.specs[name]["rows"], spec) for name, spec in by_stack.items()}

  def _spec_of_vectors(self, table, ndim):
    is_replicated = self.layout.stacks[self.places[table].stack].is_replicated
    return PartitionSpec(self.axes, *[None] * (ndim - 1), None if is_replicated else self.column_axis)

  def _filled_up(self, ids):
    """Integers whose first axis the devices divide."""
    missing = -ids.shape[0] % self.num_shards
    return jnp.pad(ids, [(0, missing)] + [(0, 0)] * (ids.ndim - 1), constant_values=-1) if missing else ids


def _integers(name, ids):
  """Ids as an array, all of their bits."""
  kept = jnp.asarray(ids)
  if kept.ndim == 0 or not jnp.issubdtype(kept.dtype, jnp.integer):
    raise ValueError(f"ids of table {name!r} must be an array of integers, not {kept.dtype} of shape {kept.shape}")
  if isinstance(ids, np.ndarray) and kept.dtype != ids.dtype and not np.array_equal(np.asarray(kept), ids):
    raise ValueError(f"ids of table {name!r} don't fit {kept.dtype}: see jaxrec.embedding.fold_id")
  return kept


def _is_spec(x):
  return isinstance(x, PartitionSpec)
