"""Whether an experiment's item table is a parameter or spread over the devices, and what it looks like then."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxrec.embedding import RowAdagrad, RowAdamW, RowSGD, Table, Tables
from jaxrec.embedding.table import SHARDED
from jaxrec.models.sequential import SequentialModel
from jaxrec.objectives.item import TABLE
from jaxrec.train.optimizer import make_schedule
from jaxrec.train.state import Params, TrainState


def make_tables(
  config: ConfigDict, model: SequentialModel, total_steps: int, mesh: Mesh | None = None
) -> Tables | None:
  """Returns the tables outside of the parameters, or None where the item table is a parameter.

  Args:
    config: of the experiment; `config.tables` decides.
    model: whose items these are.
    total_steps: of the learning rate's schedule.
    mesh: devices over which the table is spread; None: one device.

  Raises:
    ValueError: a model or settings that need the item table among the parameters.
  """
  settings = config.tables
  as_parameter = 3 * 4 * model.num_rows * model.width  # With both moments of AdamW.
  if settings.placement == "parameter" or (
    settings.placement == "auto" and as_parameter <= settings.max_parameter_bytes
  ):
    return None
  needs = {
    "config.model.attention_width": model.attention_width, "config.train.average": config.train.average,
    "config.eval.sampled_negatives": config.eval.sampled_negatives,
    "config.multi_objective.solve_every > 1": config.multi_objective.solve_every > 1,
  }  # fmt: skip
  if wrong := [name for name, is_set in needs.items() if is_set]:
    raise ValueError(f"{', '.join(wrong)}: the item table must be a parameter; set config.tables.placement='parameter'")
  table = Table(
    model.num_rows, model.width, jnp.dtype(settings.dtype), _row_optimizer(config, total_steps), settings.rounding,
    placement=SHARDED,
  )  # fmt: skip
  tables = Tables({TABLE: table}, mesh, capacity=settings.capacity or None)
  logging.info("tables:\n%s", tables.describe())
  return tables


def _row_optimizer(config, total_steps):
  settings, kind = config.optimizer, config.tables
  rate = {"learning_rate": make_schedule(settings, total_steps), "weight_decay": settings.weight_decay}
  if kind.optimizer == "sgd":
    return RowSGD(**rate)
  if kind.optimizer == "adagrad":
    return RowAdagrad(**rate)
  moments = {"second_moment": kind.second_moment, "moment_dtype": jnp.dtype(kind.moment_dtype)}
  return RowAdamW(**rate, b1=settings.b1, b2=settings.b2, **moments)


def evaluated_params(state: TrainState, tables: Tables | None, model: SequentialModel) -> Params:
  """Returns the parameters to evaluate and to use, the item table among them and whole on each device.

  Args:
    state: of training.
    tables: of `make_tables`.
    model: whose items these are.
  """
  if tables is None:
    return state.evaluated

  def whole(table_state):
    return tables.layout.to_logical(table_state.stacks)[TABLE]["rows"][: model.num_rows].astype(jnp.float32)

  everywhere = None if tables.mesh is None else NamedSharding(tables.mesh, PartitionSpec())
  rows: Any = jax.jit(whole, out_shardings=everywhere)(state.tables)
  return {**state.evaluated, TABLE: {"table": rows}}
