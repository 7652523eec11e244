"""Tables outside `params`: lookup, gradients of the looked-up rows, and in-place updates of those rows.

A step looks up the rows of its ids, differentiates with respect to them, and updates only them: nothing as large as a
table is a gradient, is communicated, or is rewritten. Row r of a table is stored on device r mod S (MOD layout), so
that ids sorted by popularity are balanced over the devices.

Source: MOD sharding of TPU embedding tables and row-wise sharding of TorchRec, with explicit gradients.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxrec.embedding.exchange import NO_ROW, take
from jaxrec.embedding.layout import Layout
from jaxrec.embedding.placement import MAX_REPLICATED_BYTES, describe, place_tables
from jaxrec.embedding.shard import Lookup, Plan, RowGradient, StackShard
from jaxrec.embedding.table import Table
from pallas_kernels.integers import as_integers

_REPLICATED = PartitionSpec()


@flax.struct.dataclass
class TableState:
  """Rows and optimizer state of all tables, as one pytree.

  step: updates made so far.
  stacks: by name of a stack, "rows" and each slot, sharded over the devices; `Tables.to_logical` returns them in the
    order of ids.
  """

  step: Int[Array, ""]
  stacks: dict[str, dict[str, Array]]


class Tables:
  """A set of embedding tables by name, sharded over the devices of a mesh.

  Methods are pure functions of a `TableState`, for use inside `jax.jit`; donate the state, so that rows are updated in
  place. Tables of the same kind (width, dtype, optimizer, rounding, admission) share one array and one exchange.

  Args:
    tables: tables by name.
    mesh: mesh of the devices; None for a single device.
    axes: mesh axes over which rows, and the first axis of ids, are sharded; None takes all except `column_axis`.
    column_axis: mesh axis over which the columns of each row are sharded, for very wide rows.
    max_replicated_bytes: placement "auto" replicates a table up to this size, optimizer state included.
    capacity: distinct rows that a device may request from each other device, per stack; None takes
      `jaxrec.embedding.exchange.default_capacity`. Rows beyond it are counted in `Plan.counts["overflow"]`.

  Raises:
    ValueError: an axis that the mesh doesn't have, or tables that `place_tables` refuses.

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
    self.num_shards = _num_devices(mesh, axes)
    num_columns = _num_devices(mesh, (column_axis,)) if column_axis else 1
    self.placements = place_tables(self.tables, self.num_shards, num_columns, max_replicated_bytes)
    self.layout = Layout(self.tables, self.placements, self.num_shards, axes, column_axis, num_columns)
    self._shards = {stack: StackShard(self.layout, stack, capacity) for stack in self.layout.stacks}

  def describe(self) -> str:
    """Formats the placement of the tables as text, one line per table, with the bytes that each device stores."""
    return describe(self.tables, self.placements, self.num_shards)

  def init(self, key: PRNGKeyArray) -> TableState:
    """Returns initial rows and zeroed optimizer state. The values of a row don't depend on the mesh."""
    return jax.jit(self._init, out_shardings=self.shardings())(key)

  def _init(self, key):
    stacks = {
      stack: self._shard_map(shard.init, _REPLICATED, self.layout.specs[stack])(key)
      for stack, shard in self._shards.items()
    }
    return TableState(jnp.zeros((), jnp.int32), stacks)

  def abstract_state(self) -> TableState:
    """Returns shapes, dtypes and shardings of the state, to compile a step without allocating the tables."""
    return self._with_shardings(jax.eval_shape(self._init, jax.random.key(0)), self.shardings())

  def shardings(self) -> TableState | None:
    """Returns the shardings of the state; None without a mesh."""
    return self._named(TableState(_REPLICATED, self.layout.specs))

  def lookup(self, state: TableState, ids: Mapping[str, Any]) -> tuple[dict[str, Array], Plan]:
    """Fetches the rows of ids.

    Args:
      state: state of the tables.
      ids: for each table a pytree of integer arrays; the first axis of each is sharded over the devices. `padding_id`
        and negative ids read zeros and are never updated.

    Returns:
      Float32 rows by stack, `[P, D]` each, to differentiate with respect to and to read with `vectors`; and the plan of
      the exchange.

    Raises:
      ValueError: a table that doesn't exist, ids that are no integers, or ids that JAX would truncate to 32 bits.
    """
    if unknown := sorted(ids.keys() - self.tables.keys()):
      raise ValueError(f"there is no table {unknown}; there are {sorted(self.tables)}")
    ids = {name: jax.tree.map(functools.partial(_integers, name), tree) for name, tree in ids.items()}
    found = {
      stack: self._lookup(stack, state.stacks[stack], jax.tree.map(self._padded, trees))
      for stack, trees in self._by_stack(ids).items()
    }
    index = {name: found[self.placements[name].stack].index[name] for name in ids}
    index = jax.tree.map(lambda padded, x: padded[: x.shape[0]], index, ids)
    requested, occurrences = ({s: getattr(x, f) for s, x in found.items()} for f in ("requested", "occurrences"))
    counts = {name: sum(x.counts[name] for x in found.values()) for name in ("overflow", "out_of_range", "rows")}
    return {stack: x.rows for stack, x in found.items()}, Plan(index, requested, occurrences, counts)

  def _lookup(self, stack, arrays, ids):
    row_spec = self._row_spec(stack)
    specs = Lookup(self.layout.specs[stack]["rows"], self.batch_spec, row_spec, row_spec, _REPLICATED)
    return self._shard_map(self._shards[stack].lookup, (self.layout.specs[stack], self.batch_spec), specs)(arrays, ids)

  def vectors(self, rows: dict[str, Array], plan: Plan) -> dict[str, Any]:
    """Returns the float32 vectors of the ids that were looked up: the structure of `ids`, with an axis of the width.

    An array of ids `[B, N]` gives vectors `[B, N, D]`. Differentiable in `rows`; zeros for padding, ids out of range
    and rows that overflowed.
    """
    found = {}
    for stack, trees in self._by_stack(jax.tree.map(self._padded, plan.index)).items():
      specs = jax.tree.map(functools.partial(self._vectors_spec, stack), trees)
      read = self._shard_map(_take_tree, (self.layout.specs[stack]["rows"], self.batch_spec), specs)
      found |= read(rows[stack], trees)
    return jax.tree.map(lambda index, x: x[: index.shape[0]], plan.index, {name: found[name] for name in plan.index})

  def collect(self, state: TableState, plan: Plan, gradient: dict[str, Array]) -> dict[str, RowGradient]:
    """Sends gradients to the owners of their rows and sums those of the same row.

    The `value`s of the result are the nonzero rows of the dense gradient of the tables: norms, inner products, clipping
    and weighted sums (of results of the same plan) equal those of that dense gradient.

    Args:
      state: state before the update.
      plan: plan of the lookup.
      gradient: gradient with respect to the `rows` of the lookup, `[P, D]` by stack.
    """

    def collected(stack, value):
      arrays, row = self.layout.specs[stack], self._row_spec(stack)
      specs = (arrays, row, row, arrays["rows"]), self._gradient_spec(stack)
      send = self._shard_map(self._shards[stack].collect, *specs)
      return send(state.stacks[stack], plan.requested[stack], plan.occurrences[stack], value)

    return {stack: collected(stack, value) for stack, value in gradient.items()}

  def add(self, gradients: Sequence[dict[str, RowGradient]]) -> dict[str, RowGradient]:
    """Sums the results of `collect` of several lookups, for example of the microbatches of a batch.

    Args:
      gradients: gradients of the same tables, collected from the same state.
    """

    def added(stack):
      spec = self._gradient_spec(stack)
      add = self._shard_map(self._shards[stack].add, ((spec,) * len(gradients),), spec)
      return add(tuple(gradient[stack] for gradient in gradients))

    return {stack: added(stack) for stack in gradients[0]}

  def apply(self, state: TableState, gradients: dict[str, RowGradient]) -> TableState:
    """Updates the rows of the gradients, each with its table's optimizer, and no others."""

    def applied(stack, gradient):
      arrays = self.layout.specs[stack]
      update = self._shard_map(self._shards[stack].apply, (_REPLICATED, arrays, self._gradient_spec(stack)), arrays)
      return update(state.step, state.stacks[stack], gradient)

    new = {stack: applied(stack, gradient) for stack, gradient in gradients.items()}
    return TableState(state.step + 1, state.stacks | new)

  def update(self, state: TableState, plan: Plan, gradient: dict[str, Array]) -> TableState:
    """Collects a gradient, `[P, D]` by stack as the rows, and applies it: one step of all tables."""
    return self.apply(state, self.collect(state, plan, gradient))

  def catalogue(self, state: TableState, table: str) -> Float[Array, "R D"]:
    """Returns all rows of a table in float32, for full softmax and full ranking.

    Rows stay on their devices: they are in the order of the devices, those of device 0 first, and include rows that pad
    the table to a multiple of the devices. Functions of each row alone, like `l2_normalize(catalogue)`, need no
    communication. Memory and the gradient are as large as the device's shard of the table.

    Raises:
      NotImplementedError: sharded columns, or a table with `admit_after`.
    """
    if self.column_axis and not self.placements[table].is_replicated:
      raise NotImplementedError(f"table {table!r} has columns sharded over {self.column_axis=}; shard its rows only")
    if self.tables[table].admit_after:
      raise NotImplementedError(f"table {table!r} has admit_after, but a catalogue contains every row; set it to 0")
    stack = self.placements[table].stack
    read = functools.partial(self._shards[stack].catalogue, table)
    specs = (self.layout.specs[stack]["rows"],), self._row_spec(stack)
    return self._shard_map(read, *specs)(state.stacks[stack]["rows"])

  def add_catalogue(
    self, gradients: dict[str, RowGradient], table: str, gradient: Float[Array, "R D"], num_items: int
  ) -> dict[str, RowGradient]:
    """Adds the gradient of a catalogue to the gradients of the looked-up rows, for one `apply` of both.

    Rows 1..num_items count one more occurrence, so that `apply` updates all of them. Choice: the result has a row for
    each row of the stack, which may include other tables of the same kind.

    Args:
      gradients: result of `collect`.
      table: name of the table.
      gradient: gradient with respect to `catalogue`.
      num_items: size of the catalogue; rows beyond it get no gradient from it.
    """
    stack = self.placements[table].stack
    spec = self._gradient_spec(stack)
    add = functools.partial(self._shards[stack].add_catalogue, table, num_items)
    added = self._shard_map(add, (spec, self._row_spec(stack)), spec)(gradients[stack], gradient)
    return gradients | {stack: added}

  def to_logical(self, state: TableState) -> dict[str, Any]:
    """Returns the state for a checkpoint: by table, arrays in the order of ids, padded to a multiple of the devices."""
    if self.num_shards == 1:
      return self._to_logical(state)  # Unmodified, without a copy.
    return jax.jit(self._to_logical, out_shardings=self._logical_shardings())(state)

  def from_logical(self, saved: Mapping[str, Any]) -> TableState:
    """Inverts `to_logical`; arrays from another number of devices must first be cut or padded to `abstract_logical`."""
    if self.num_shards == 1:
      return self._from_logical(saved)
    return jax.jit(self._from_logical, out_shardings=self.shardings())(saved)

  def abstract_logical(self) -> dict[str, Any]:
    """Returns shapes, dtypes and shardings of `to_logical`."""
    return self._with_shardings(jax.eval_shape(self._to_logical, self.abstract_state()), self._logical_shardings())

  def _to_logical(self, state):
    return {"step": state.step, "tables": self.layout.to_logical(state.stacks)}

  def _from_logical(self, saved):
    return TableState(saved["step"], self.layout.from_logical(saved["tables"]))

  def _logical_shardings(self):
    specs = {name: self.layout.specs[placement.stack] for name, placement in self.placements.items()}
    return self._named({"step": _REPLICATED, "tables": specs})

  @property
  def batch_spec(self) -> PartitionSpec:
    """PartitionSpec of per-example arrays."""
    return PartitionSpec(self.axes)

  def axes_of(self, table: str) -> tuple[str, ...]:
    """Returns the mesh axes over which the rows of a table are sharded; () for one device or a replicated table."""
    return () if self.num_shards == 1 or self.placements[table].is_replicated else self.axes

  def _shard_map(self, function, in_specs, out_specs):
    """Returns the function under `jax.shard_map`; the function itself without a mesh."""
    if self.mesh is None:
      return function
    return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs)

  def _by_stack(self, trees):
    """Groups a dict by table into {stack: {table: tree}}."""
    grouped = {}
    for name, tree in trees.items():
      grouped.setdefault(self.placements[name].stack, {})[name] = tree
    return grouped

  def _row_spec(self, stack):
    """Returns the PartitionSpec of arrays with one number per fetched row."""
    return _REPLICATED if self.layout.stacks[stack].is_replicated else self.batch_spec

  def _gradient_spec(self, stack):
    return RowGradient(self._row_spec(stack), self.layout.specs[stack]["rows"], self._row_spec(stack))

  def _vectors_spec(self, stack, ids):
    column_axis = None if self.layout.stacks[stack].is_replicated else self.column_axis
    return PartitionSpec(self.axes, *[None] * (ids.ndim - 1), column_axis)

  def _padded(self, ids):
    """Pads the first axis to a multiple of the devices."""
    missing = -ids.shape[0] % self.num_shards
    return jnp.pad(ids, [(0, missing)] + [(0, 0)] * (ids.ndim - 1), constant_values=-1) if missing else ids

  def _named(self, specs):
    """Returns the shardings of a pytree of PartitionSpecs; None without a mesh."""
    if self.mesh is None:
      return None
    is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
    return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), specs, is_leaf=is_spec)

  def _with_shardings(self, shapes, shardings):
    if shardings is None:
      return shapes
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _num_devices(mesh, axes):
  return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in axes)


def _take_tree(rows, index):
  return jax.tree.map(functools.partial(take, rows), index)


def _integers(name, ids):
  """Returns ids as int32, or in uint32 or 64 bits where they need it; raises where that would lose bits."""
  ids = ids if isinstance(ids, jax.Array) else np.asarray(ids)
  if ids.ndim == 0 or not jnp.issubdtype(ids.dtype, jnp.integer):
    raise ValueError(f"ids of table {name!r} must be an array of integers, not {ids.dtype} of shape {ids.shape}")
  if isinstance(ids, np.ndarray) and ids.size and ids.min() >= 0 and 2**31 <= ids.max() < NO_ROW:
    return jnp.asarray(ids.astype(np.uint32))
  if ids.dtype == jnp.uint32:
    return jnp.asarray(ids)
  try:
    return as_integers(f"ids of table {name!r}", ids)
  except ValueError as error:
    raise ValueError(f"{error}; or split them with jaxrec.embedding.fold_id") from None
