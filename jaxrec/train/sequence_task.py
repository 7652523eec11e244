"""From a config to what a run is made of: data, model, objective, and how the events become batches."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxrec import models, multi_objective, parallel
from jaxrec.data import single_domain
from jaxrec.data.batches import training
from jaxrec.data.preparation.prepare import generate, prepare
from jaxrec.data.prepared import PreparedData
from jaxrec.data.sources import GENERATED
from jaxrec.embedding import Tables
from jaxrec.objectives import item
from jaxrec.objectives.autocdsr import CrossDomainObjective, shared_parameters
from jaxrec.train import checkpoint, item_table, optimizer, state, step, writers
from jaxrec.train.config import check_config, saved_config
from jaxrec.train.table_step import beside_rows

# Folders looked for in $JAXREC_DATA: the names under which the official archives unpack, and an excerpt of Taobao.
_RAW_FOLDERS = {
  "movielens-100k": "ml-100k", "movielens-1m": "ml-1m", "movielens-20m": "ml-20m", "movielens-25m": "ml-25m",
  "movielens-32m": "ml-32m", "kuairand-1k": "kuairand-1k", "amazon-5core": "amazon-5core", "abxi": "abxi-food-kitchen",
  "taobao": "taobao-sample",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Experiment:
  """What a config describes; the pieces can be replaced by others in Python."""

  config: ConfigDict
  data: PreparedData
  model: nn.Module
  objective: Callable[..., Any]

  @classmethod
  def from_config(cls, config: ConfigDict) -> Experiment:
    """Returns data, model and objective of a config, preparing or downloading the data where needed.

    Raises:
      ValueError: the config doesn't fit `jaxrec.train.config.default_config`.
    """
    check_config(config)
    data = load_data(config)
    sizes = {"num_items": _num_items(config, data), "num_domains": data.num_domains}
    model = models.build(config.model.to_dict(), **sizes, dtype=jnp.dtype(config.train.dtype))
    objective = item.build(config.objective.to_dict())
    if config.multi_objective.objectives:
      objective = CrossDomainObjective(objective, config.multi_objective.own_domain)
    return cls(config, data, model, objective)


def _num_items(config, data):
  """Those of the data, and of those that may come."""
  room = config.tables.num_items
  if 0 < room < data.num_items:
    raise ValueError(f"config.tables.num_items={room} is less than the {data.num_items} items of the data")
  return room or data.num_items


def load_run(workdir: str, which: str = "best", phase: str | None = None) -> tuple[Experiment, state.Params, int]:
  """Returns the experiment, parameters and step of a finished or running training, to evaluate or to use.

  Args:
    workdir: of the run; holds config.json.
    which: "best" on validation, or "latest".
    phase: "select" or "final"; None takes the final one if it has begun.

  Raises:
    FileNotFoundError: no run or no checkpoint there.
    ValueError: the checkpoint is of another model.
  """
  path = os.path.join(workdir, "config.json")
  if not os.path.exists(path):
    raise FileNotFoundError(f"{path} is not there; {workdir=} must be the --workdir of a training run")
  experiment = Experiment.from_config(saved_config(writers.read_json(path)))
  finals = os.path.join(workdir, "final", "checkpoints")
  phase = phase or ("final" if os.path.isdir(finals) and os.listdir(finals) else "select")
  tables = item_tables(experiment, total_steps=10**9)
  like = initial_state(experiment, total_steps=10**9, tables=tables)
  found, at_step = checkpoint.load_state(os.path.join(workdir, phase, "checkpoints"), like, which, tables)
  return experiment, item_table.evaluated_params(found, tables, experiment.model), at_step


def item_tables(experiment: Experiment, total_steps: int, mesh: Mesh | None = None) -> Tables | None:
  """Returns the tables outside of the parameters, if any; see `jaxrec.train.item_table.make_tables`."""
  return item_table.make_tables(experiment.config, experiment.model, total_steps, mesh)


def initial_state(
  experiment: Experiment, total_steps: int, mesh: Mesh | None = None, tables: Tables | None = None
) -> state.TrainState:
  """Returns the state before the first step, spread over a mesh as `jaxrec.parallel.PARAMETER_AXES` says.

  Args:
    experiment: model, optimizer and seed.
    total_steps: of the learning rate's schedule.
    mesh: see `jaxrec.parallel.make_mesh`; None: the default device.
    tables: of `item_tables`.
  """
  config = experiment.config
  tiny = training.TrainingOptions(
    max_length=config.data.max_length, row_length=row_length(config), rows_per_batch=1, packing=False
  )
  batch = training.TrainingBatches(experiment.data, tiny)[0]
  without_rows = state.create_state(
    experiment.model,
    _optimizer(config, total_steps, tables),
    batch,
    config.seed,
    keep_average=config.train.average > 0,
    with_items=tables is None,
    shardings_of=None if mesh is None else functools.partial(parallel.parameter_shardings, mesh=mesh),
  )
  return without_rows if tables is None else without_rows.replace(tables=tables.init(jax.random.key(config.seed)))


def train_step(
  experiment: Experiment,
  total_steps: int,
  mesh: Mesh,
  like: state.TrainState | None = None,
  tables: Tables | None = None,
) -> Callable[..., Any]:
  """Returns the jitted training step of an experiment; arguments as of `jaxrec.train.step.make_train_step`."""
  config = experiment.config
  return step.make_train_step(
    experiment.model,
    experiment.objective,
    _optimizer(config, total_steps, tables),
    seed=config.seed + 1,  # Dropout and negatives don't share a key with the parameters.
    accumulate=config.train.accumulate,
    average=config.train.average,
    mesh=mesh,
    like=like,
    solve_every=config.multi_objective.solve_every,
    tables=tables,
  )


def _optimizer(config, total_steps, tables):
  inner = optimizer.make_optimizer(config.optimizer, total_steps)
  if tables is not None:
    unclipped = ConfigDict({**config.optimizer, "clip_norm": 0.0})
    inner = beside_rows(optimizer.make_optimizer(unclipped, total_steps), config.optimizer.clip_norm)
  if not config.multi_objective.objectives:
    return inner
  weighting = multi_objective.build(config.multi_objective.weighting.to_dict())
  return multi_objective.multi_objective(weighting, inner, select=shared_parameters)


def training_options(config: ConfigDict, data: PreparedData, last_split: int, mesh: Mesh) -> training.TrainingOptions:
  """Returns how this host's batches are made; rows are derived from `config.train.batch_size` users unless given.

  Raises:
    ValueError: the rows can't be cut into the parts of `train.accumulate` on every device, or no user is left to train
      on.
  """
  options = training.TrainingOptions(
    max_length=config.data.max_length,
    row_length=row_length(config),
    rows_per_batch=config.data.rows_per_batch or 1,
    task=config.data.task,
    packing=config.data.packing,
    last_split=last_split,
    request_time=config.data.request_time,
    mask_probability=config.data.mask_probability,
    mask_last_probability=config.data.mask_last_probability,
    reveal_domain=config.data.reveal_domain,
    seed=config.seed,
    only_users=train_users(config, data, last_split),
  )
  parts = parallel.num_row_parts(mesh)
  unit = parts * config.train.accumulate
  rows = config.data.rows_per_batch or training.rows_for(data, options, config.train.batch_size, multiple_of=unit)
  if rows % unit:
    raise ValueError(
      f"data.rows_per_batch={rows} must be divisible by {parts} devices along data and fsdp x"
      f" {config.train.accumulate=} = {unit}"
    )
  shard = parallel.host_shard(mesh)
  return dataclasses.replace(options, rows_per_batch=rows, shard_index=shard.index, shard_count=shard.count)


def train_users(config: ConfigDict, data: PreparedData, last_split: int) -> tuple[int, ...] | None:
  """Returns the users whose events are trained on, as `config.data.train_users` asks; None stands for all.

  "without_held_out" is for data that hold out whole users, as AutoCDSR's shards do: users with an event after
  `last_split` are not trained on at all, while "all" trains on their earlier events.

  Raises:
    ValueError: no user is left, as in leave-one-out data, which hold out events of every user.
  """
  if config.data.train_users == "all":
    return None
  users = np.setdiff1d(np.flatnonzero(np.diff(data.offsets)), single_domain.held_out_users(data, last_split))
  if not len(users):
    raise ValueError(
      f"config.data.train_users={config.data.train_users!r} leaves no user to train on: all of them have events that"
      " are held out; set it to 'all'"
    )
  return tuple(users.tolist())


def check_rows(before: int, options: training.TrainingOptions) -> None:
  """Raises where a run goes on with batches of another size: its position in the data would mean something else.

  Raises:
    ValueError: tells what to set.
  """
  if before != options.rows_per_batch:
    raise ValueError(
      f"the run began with rows_per_batch={before}, now it is {options.rows_per_batch} (another number of devices?);"
      f" set config.data.rows_per_batch={before} to go on"
    )


def row_length(config: ConfigDict) -> int:
  """Returns the positions in a row: those asked for, else one longest history."""
  return config.data.row_length or config.data.max_length


def load_data(config: ConfigDict) -> PreparedData:
  """Returns the prepared data of a config, and prepares it first where that has not been done.

  `data.prepared` is loaded if it exists. Otherwise `data.source` is read from `data.raw`, or from its folder in
  $JAXREC_DATA, or downloaded, and written to `data.prepared`, or to a folder of $JAXREC_CACHE (default ~/.cache/jaxrec)
  named for source, raw files and options. With `data.only_domain` the events of other domains are then left out.
  """
  data = _whole_data(config.data)
  return single_domain.only_domain(data, config.data.only_domain) if config.data.only_domain else data


def _whole_data(settings):
  options = settings.options.to_dict()
  if settings.source in GENERATED and not settings.prepared:
    return generate(settings.source, options)
  raw = settings.raw or _raw_folder(settings.source)
  out = settings.prepared or _cache_folder(settings.source, raw, options)
  if not os.path.exists(out) and jax.process_index() == 0:
    prepare(settings.source, raw, out, report=logging.info, **options)
  parallel.wait_for_all_hosts("prepare data")  # Those as well that came when the data was there.
  logging.info("data: %s", out)
  return PreparedData.load(out)


def _raw_folder(source):
  root, folder = os.environ.get("JAXREC_DATA"), _RAW_FOLDERS.get(source)
  path = os.path.join(root, folder) if root and folder else None
  return path if path and os.path.exists(path) else None


def _cache_folder(source, raw, options):
  root = os.environ.get("JAXREC_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "jaxrec")
  key = json.dumps([raw and os.path.abspath(raw), options], sort_keys=True, default=str)
  return os.path.join(root, "prepared", f"{source}-{hashlib.sha256(key.encode()).hexdigest()[:12]}")
