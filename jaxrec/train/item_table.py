"""Where the item table lives: in `params` (`InParams`), or row-sharded outside them (`Sharded`); one interface.

A step gathers what it differentiates: the parameters alone, or the parameters and the looked-up rows under "items".
Clipping, accumulation and several objectives treat these rows as they treat parameters.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array
from ml_collections import ConfigDict

from jaxrec import parallel
from jaxrec.embedding import Plan, RowAdagrad, RowAdamW, RowSGD, Table, Tables, TableState
from jaxrec.embedding.table import SHARDED
from jaxrec.evaluation.catalogue import Catalogue
from jaxrec.evaluation.model import ModelRanker, last_queries, model_ranker
from jaxrec.models.sequential import SequentialModel
from jaxrec.objectives.item import TABLE, ParameterItems
from jaxrec.parallel.row_shards import RowShards
from jaxrec.train.looked_up_items import CATALOGUE, INPUT, LookedUpItems, without_rows
from jaxrec.train.optimizer import make_optimizer, make_schedule
from jaxrec.train.state import Params, TrainState


@runtime_checkable
class Gathered(Protocol):
  """What a step differentiates, and how its gradient updates the table.

  params: pytree to differentiate with respect to.
  lookups: pytree of arrays `[A, ...]`, one entry for each of A microbatches.
  scalars: numbers to log.
  """

  params: Params
  lookups: Any
  scalars: dict[str, Array]

  def items(self, batch: Any, lookup: Any) -> Any:
    """Returns the item vectors of a microbatch; see `jaxrec.objectives.item.Items`."""
    ...

  def collect(self, grad: Params) -> Params:
    """Returns the gradient with rows summed over the devices that looked them up; once for each step."""
    ...

  def apply(self, updates: Params) -> tuple[Params, TableState | None]:
    """Returns the updates of the parameters, and the table after the update of its rows."""
    ...


@runtime_checkable
class ItemTable(Protocol):
  """Where the item table lives."""

  def init(self, key: Array) -> TableState | None:
    """Returns the rows outside `params` before the first step."""
    ...

  def abstract_rows(self) -> Any:
    """Returns shapes, dtypes and shardings of `init`."""
    ...

  def init_arguments(self, model: Any, batch: Any) -> dict[str, Any]:
    """Returns further arguments of `model.init`, so that the item table is made in `params` or is not."""
    ...

  def make_optimizer(self, settings: ConfigDict, total_steps: int) -> optax.GradientTransformation:
    """Returns the optimizer of what `gather` differentiates."""
    ...

  def gather(self, model: Any, state: TrainState, batches: Any, ids: Mapping[str, Any]) -> Gathered:
    """Returns what a step needs of the table for A microbatches whose objectives score `ids`."""
    ...

  def ranker(self, model: Any, state: TrainState, num_items: int, mesh: Mesh) -> ModelRanker:
    """Returns queries and catalogue of the evaluated parameters, for full ranking."""
    ...

  def whole_params(self, model: Any, state: TrainState) -> Params:
    """Returns the evaluated parameters with the whole item table on every device."""
    ...

  def to_checkpoint(self, rows: TableState | None) -> Any:
    """Returns the rows in the order of ids, for any number of devices; None where they are in `params`."""
    ...

  def from_checkpoint(self, saved: Any) -> TableState | None:
    """Undoes `to_checkpoint`."""
    ...

  def abstract_checkpoint(self) -> Any:
    """Returns shapes, dtypes and shardings of `to_checkpoint`."""
    ...


@dataclasses.dataclass(frozen=True)
class InParams:
  """The item table is a parameter of the model, or the model has none: nothing lives outside `params`."""

  def init(self, key: Array) -> None:
    """See `ItemTable`."""

  def abstract_rows(self) -> None:
    """See `ItemTable`."""

  def init_arguments(self, model: Any, batch: Any) -> dict[str, Any]:
    """See `ItemTable`."""
    return {}

  def make_optimizer(self, settings: ConfigDict, total_steps: int) -> optax.GradientTransformation:
    """See `ItemTable`."""
    return make_optimizer(settings, total_steps)

  def gather(self, model: Any, state: TrainState, batches: Any, ids: Mapping[str, Any]) -> _InParamsGathered:
    """See `ItemTable`."""
    return _InParamsGathered(model, state.params, dict(ids), {})

  def ranker(self, model: SequentialModel, state: TrainState, num_items: int, mesh: Mesh) -> ModelRanker:
    """See `ItemTable`."""
    return model_ranker(model, state.evaluated, num_items, mesh)

  def whole_params(self, model: Any, state: TrainState) -> Params:
    """See `ItemTable`."""
    return state.evaluated

  def to_checkpoint(self, rows: None) -> None:
    """See `ItemTable`."""

  def from_checkpoint(self, saved: None) -> None:
    """See `ItemTable`."""

  def abstract_checkpoint(self) -> None:
    """See `ItemTable`."""


IN_PARAMS = InParams()


@dataclasses.dataclass(frozen=True)
class _InParamsGathered:
  """See `Gathered`; the lookups are what `ItemObjective.scored_ids` returned."""

  model: Any
  params: Params
  lookups: dict[str, Array]
  scalars: dict[str, Array]

  def items(self, batch, lookup):
    return ParameterItems(self.model, batch, lookup) if lookup else None

  def collect(self, grad):
    return grad

  def apply(self, updates):
    return updates, None


@dataclasses.dataclass(frozen=True)
class Sharded:
  """The item table is row-sharded outside `params`, with a row-wise optimizer.

  Differentiated are the parameters and the looked-up rows; with full softmax all rows as well, each shard's on its own
  device.

  tables: with a table "items".
  """

  tables: Tables

  def init(self, key: Array) -> TableState:
    """See `ItemTable`."""
    return self.tables.init(key)

  def abstract_rows(self) -> Any:
    """See `ItemTable`."""
    return self.tables.abstract_state()

  def init_arguments(self, model: SequentialModel, batch: Any) -> dict[str, Any]:
    """See `ItemTable`."""
    return {"item": jnp.zeros((*batch.item_id.shape, model.width), model.dtype)}

  def make_optimizer(self, settings: ConfigDict, total_steps: int) -> optax.GradientTransformation:
    """See `ItemTable`; rows are only clipped, as their table has an optimizer of its own."""
    unclipped = ConfigDict({**settings, "clip_norm": 0.0})
    return optimize_dense_only(make_optimizer(unclipped, total_steps), settings.clip_norm)

  def gather(self, model: SequentialModel, state: TrainState, batches: Any, ids: Mapping[str, Any]) -> _ShardedGathered:
    """See `ItemTable`: one exchange for the items of all microbatches."""
    requested = {INPUT: batches.item_id, **ids}
    rows, plan = self.tables.lookup(state.tables, {TABLE: jax.tree.map(_swap, requested)})  # [B, A, ...]
    if "negative" not in ids:  # Full softmax scores every row.
      rows = rows | {CATALOGUE: self.tables.catalogue(state.tables, TABLE)}
    scalars = {f"tables/{name}": count for name, count in plan.counts.items()}
    lookups = jax.tree.map(_swap, plan.index), dict(ids)
    return _ShardedGathered(model, self.tables, state.tables, plan, {**state.params, TABLE: rows}, lookups, scalars)

  def ranker(self, model: SequentialModel, state: TrainState, num_items: int, mesh: Mesh) -> ModelRanker:
    """See `ItemTable`; each device ranks against its own rows."""
    queries_of, item_vectors_of = _compiled(model, mesh, self.tables)
    shards = RowShards(self.tables.mesh, self.tables.axes_of(TABLE))
    catalogue = Catalogue(item_vectors_of(state.tables), num_items, shards)

    def queries(batch):
      queries = queries_of(state.evaluated, state.tables, parallel.shard_replicated_batch(batch.batch, mesh))
      return jax.device_get(queries.addressable_data(0))  # NumPy, which several hosts may give to one program.

    return ModelRanker(queries, catalogue)

  def whole_params(self, model: SequentialModel, state: TrainState) -> Params:
    """See `ItemTable`."""

    def whole(table_state):
      rows = self.tables.layout.to_logical(table_state.stacks)[TABLE]["rows"]
      return rows[: model.num_rows].astype(jnp.float32)

    replicated = None if self.tables.mesh is None else NamedSharding(self.tables.mesh, PartitionSpec())
    return {**state.evaluated, TABLE: {"table": jax.jit(whole, out_shardings=replicated)(state.tables)}}

  def to_checkpoint(self, rows: TableState) -> Any:
    """See `ItemTable`."""
    return self.tables.to_logical(rows)

  def from_checkpoint(self, saved: Any) -> TableState:
    """See `ItemTable`."""
    return self.tables.from_logical(saved)

  def abstract_checkpoint(self) -> Any:
    """See `ItemTable`."""
    return self.tables.abstract_logical()


@dataclasses.dataclass
class _ShardedGathered:
  """See `Gathered`; `collect` keeps for `apply` which rows it has summed."""

  model: SequentialModel
  tables: Tables
  rows: TableState
  plan: Plan
  params: Params
  lookups: Any
  scalars: dict[str, Array]
  row_gradients: dict[str, Any] | None = None

  def items(self, batch, lookup):
    slots, ids = lookup
    return LookedUpItems(self.model, self.tables, self.plan.replace(index=slots), ids)

  def collect(self, grad):
    of_rows = dict(grad[TABLE])
    of_catalogue = of_rows.pop(CATALOGUE, None)
    summed = self.tables.collect(self.rows, self.plan, of_rows)
    if of_catalogue is not None:
      summed |= self.tables.add_catalogue(summed, TABLE, of_catalogue, self.model.num_items)
    self.row_gradients = summed
    return {**grad, TABLE: {name: gradient.value for name, gradient in summed.items()}}

  def apply(self, updates):
    values = updates[TABLE]
    gradients = {name: x._replace(value=values[name]) for name, x in self.row_gradients.items()}
    return without_rows(updates), self.tables.apply(self.rows, gradients)


def make_item_table(
  config: ConfigDict, model: SequentialModel, total_steps: int, mesh: Mesh | None = None
) -> ItemTable:
  """Returns where the item table of an experiment lives, as `config.tables` says.

  Args:
    config: of the experiment.
    model: whose items these are.
    total_steps: steps of the learning rate's schedule.
    mesh: devices over which a sharded table is sharded; None: one device.

  Raises:
    ValueError: a sharded table with a model or settings that need the item table in `params`.
  """
  settings = config.tables
  bytes_in_params = 3 * 4 * model.num_rows * model.width  # With both moments of AdamW.
  if settings.placement == "parameter" or (
    settings.placement == "auto" and bytes_in_params <= settings.max_parameter_bytes
  ):
    return InParams()
  needs_params = {
    "config.model.attention_width": model.attention_width, "config.train.average": config.train.average,
    "config.multi_objective.reweight_every > 1": config.multi_objective.reweight_every > 1,
    "config.data.features": getattr(model, "num_features", 0),
  }  # fmt: skip
  if wrong := [name for name, is_set in needs_params.items() if is_set]:
    raise ValueError(f"{', '.join(wrong)}: the item table must be a parameter; set config.tables.placement='parameter'")
  dtype, optimizer = jnp.dtype(settings.dtype), _row_optimizer(config, total_steps)
  table = Table(model.num_rows, model.width, dtype, optimizer, settings.rounding, placement=SHARDED)
  tables = Tables({TABLE: table}, mesh, capacity=settings.capacity or None)
  logging.info("tables:\n%s", tables.describe())
  return Sharded(tables)


def optimize_dense_only(inner: optax.GradientTransformation, clip_norm: float) -> optax.GradientTransformation:
  """Returns an optimizer of the parameters that only clips the gradients of looked-up rows.

  Args:
    inner: optimizer of the parameters, without clipping.
    clip_norm: largest norm of the whole gradient, rows included; 0: no clipping.
  """
  clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()

  def update(grads, state, params):
    grads, _ = clip.update(grads, optax.EmptyState())
    updates, state = inner.update(without_rows(grads), state, without_rows(params))
    return {**updates, TABLE: grads[TABLE]}, state

  return optax.GradientTransformation(inner.init, update)


def _row_optimizer(config, total_steps):
  settings, tables = config.optimizer, config.tables
  rate = {"learning_rate": make_schedule(settings, total_steps), "weight_decay": settings.weight_decay}
  if tables.optimizer == "sgd":
    return RowSGD(**rate)
  if tables.optimizer == "adagrad":
    return RowAdagrad(**rate)
  moments = {"second_moment": tables.second_moment, "moment_dtype": jnp.dtype(tables.moment_dtype)}
  return RowAdamW(**rate, b1=settings.b1, b2=settings.b2, **moments)


@functools.lru_cache(maxsize=8)
def _compiled(model: SequentialModel, mesh: Mesh, tables: Tables) -> tuple[Callable, Callable]:
  """Jitted queries, replicated so that every host can read them, and item vectors, sharded as their rows are."""
  replicated = NamedSharding(mesh, PartitionSpec())

  def queries(params, state, batch):
    rows, plan = tables.lookup(state, {TABLE: batch.item_id})
    item = tables.vectors(rows, plan)[TABLE].astype(model.dtype)
    return last_queries(model, params, batch, item)

  def item_vectors(state):
    return model.scoring(tables.catalogue(state, TABLE))  # [R, M]

  return jax.jit(parallel.with_mesh(queries, mesh), out_shardings=replicated), jax.jit(item_vectors)


def _swap(x):
  return x.swapaxes(0, 1)
