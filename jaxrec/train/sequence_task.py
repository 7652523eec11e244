"""Sequential recommendation as a task: next-item and masked-item training, evaluated by full ranking."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxrec import models, multi_objective, parallel
from jaxrec.batches import SequenceBatch
from jaxrec.data import item_features, load, single_domain
from jaxrec.data.action_columns import ACTION, first_number
from jaxrec.data.batches.evaluation import evaluation_batches
from jaxrec.data.batches.sharded_training import make_training_batches, num_shards, rows_of_batches
from jaxrec.data.batches.training import TrainingBatches, TrainingOptions
from jaxrec.data.prepared import PreparedData
from jaxrec.evaluation import baselines
from jaxrec.evaluation.model import evaluate_ranker, list_report, unusual_requests
from jaxrec.models.batch_check import check_batch
from jaxrec.objectives import item
from jaxrec.objectives.autocdsr import CrossDomainObjective, shared_parameters
from jaxrec.objectives.objective import Objective
from jaxrec.train import config as config_lib
from jaxrec.train.item_feature_data import trained_only, with_item_features
from jaxrec.train.item_table import make_item_table
from jaxrec.train.optimizer import warn_of_idle_weighting
from jaxrec.train.state import TrainState, create_state, state_shapes
from jaxrec.train.step import TrainStep, make_train_step
from jaxrec.train.task import FINAL, BaseTask, Plan
from jaxrec.train.timetable import Timetable


@dataclasses.dataclass
class SequenceTask(BaseTask):
  """What a config of sequential recommendation describes; data, model and objective can be replaced in Python.

  data: prepared columns.
  model: a `jaxrec.models.SequentialModel`.
  objective: K >= 1 losses.
  """

  data: PreparedData = dataclasses.field(kw_only=True)
  model: nn.Module = dataclasses.field(kw_only=True)
  objective: Objective = dataclasses.field(kw_only=True)

  default_config = staticmethod(config_lib.default_config)
  check_config = staticmethod(config_lib.check_config)
  check_model = staticmethod(models.check_options)
  groups = config_lib.GROUPS

  @classmethod
  def from_config(cls, config: ConfigDict) -> SequenceTask:
    """Returns the task of a config, preparing or downloading the data where needed.

    Raises:
      ValueError: the config doesn't fit `jaxrec.train.config.default_config`.
    """
    config_lib.check_config(config)
    return cls.from_data(config, load.load_data(config.data, _part_of_shards(config)))

  @classmethod
  def from_data(cls, config: ConfigDict, data: PreparedData) -> SequenceTask:
    """Returns the task of a config and data that are in memory; `config.data` says how histories become sequences."""
    sizes = {"num_items": _num_items(config, data), "num_domains": data.num_domains}
    if config.data.features:
      features = item_features.feature_matrix(data, config.data.features)
      sizes |= {"num_features": features.shape[1], "id_dropout": config.data.id_dropout}
    model = models.build(config.model.to_dict(), **sizes, dtype=jnp.dtype(config.train.dtype))
    _check_actions(model, data)
    objective = item.build(config.objective.to_dict())
    if config.multi_objective.objectives:
      settings = config.multi_objective
      options = settings.own_domain, settings.score, settings.margin, settings.gate
      objective = CrossDomainObjective(objective, *options)
    return cls(config, data=data, model=model, objective=objective)

  def plan(self, phase: str, num_epochs: int, mesh: Mesh) -> Plan:
    """See `Task`; in "final" the validation events are trained on too."""
    options = training_options(self.config, self.data, int(phase == FINAL), mesh)
    batches = make_training_batches(self.data, options)
    check_batch(batches[0], self.model)
    description = (
      f"{batches.users_per_epoch} users; steps of {options.rows_per_batch} rows x {options.row_length} positions"
    )
    return Plan(
      Timetable.from_config(self.config.train, batches.batches_per_epoch, num_epochs),
      batches,
      count=count_users_and_tokens,
      users=lambda step: batches.users(step - 1),
      identity={"rows_per_batch": options.rows_per_batch, "shards": num_shards(self.data)},
      description=description,
    )

  def init_state(self, mesh: Mesh | None, total_steps: int) -> TrainState:
    """See `Task`; sharded over the mesh as `jaxrec.parallel.PARAMETER_AXES` says. None: the default device."""
    self.item_table = make_item_table(self.config, self.model, total_steps, mesh)
    shardings_of = None if mesh is None else functools.partial(parallel.parameter_shardings, mesh=mesh)
    seed, start = self.config.seed, self.config.train.uniform_start
    state = create_state(**self._ingredients(total_steps), seed=seed, uniform_start=start, shardings_of=shardings_of)
    if names := self.config.data.features:
      features = item_features.feature_matrix(self.data, names)
      has_id = item_features.has_training_events(self.data, self.config.data.min_id_events)
      state = with_item_features(state, features, has_id)
    tables = self.item_table.init(jax.random.key(seed))
    if start and tables is not None:
      raise ValueError(f"config.train.uniform_start={start} is for an item table in the parameters, not a sharded one")
    return state.replace(tables=tables)

  def abstract_state(self, mesh: Mesh, total_steps: int) -> TrainState:
    """Returns shapes, dtypes and shardings of `init_state`, to compile a step for devices that are not here."""
    self.item_table = make_item_table(self.config, self.model, total_steps, mesh)
    shapes = state_shapes(**self._ingredients(total_steps))
    shardings = parallel.parameter_shardings(shapes, mesh)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    return state.replace(tables=self.item_table.abstract_rows())

  def _ingredients(self, total_steps):
    """Returns the arguments that `create_state` and `state_shapes` share."""
    length = {"max_length": self.config.data.max_length, "row_length": row_length(self.config)}
    return {
      "model": self.model,
      "optimizer": self._optimizer(total_steps),
      "batch": TrainingBatches(self.data, TrainingOptions(**length, rows_per_batch=1, packing=False))[0],
      "keep_average": self.config.train.average > 0,
      "init_arguments": functools.partial(self.item_table.init_arguments, self.model),
    }

  def train_step(self, mesh: Mesh, like: TrainState | None, total_steps: int) -> TrainStep:
    """See `Task`; `init_state` comes first."""
    config, settings = self.config, self.config.multi_objective
    if len(self.objective.names) > 1:
      warn_of_idle_weighting(settings.weighting, total_steps, settings.reweight_every)
    return make_train_step(
      self.model,
      self.objective,
      self._optimizer(total_steps),
      seed=config.seed + 1,  # Dropout and negatives don't share a key with the parameters.
      item_table=self.item_table,
      accumulate=config.train.accumulate,
      average=config.train.average,
      mesh=mesh,
      like=like,
      reweight_every=settings.reweight_every,
      compiler_options=config.train.compiler_options.to_dict(),
    )

  def evaluate(self, state: TrainState, split: int, mesh: Mesh) -> dict[str, float | int]:
    """See `Task`: full ranking, as `config.eval` says."""
    ranker = self.item_table.ranker(self.model, state, self.data.num_items, mesh)
    return evaluate_ranker(ranker, self.data, self.config, split, mesh)

  def _optimizer(self, total_steps: int) -> optax.GradientTransformation:
    inner = self.item_table.make_optimizer(self.config.optimizer, total_steps)
    if self.config.data.features:
      inner = trained_only(inner)
    if len(self.objective.names) == 1:
      return inner
    settings = self.config.multi_objective
    weighting = multi_objective.build(settings.weighting.to_dict())
    path = 1 if settings.inner_products == "attention_path" else None
    return multi_objective.multi_objective(weighting, inner, select=shared_parameters, path=path)


def _part_of_shards(config: ConfigDict) -> tuple[int, int]:
  """Returns which part of prepared shards this host opens: its own, or all where only the events of all users tell."""
  settings = config.data
  selects = settings.only_domain or settings.domains_apart or settings.time_cuts
  if selects or settings.features or settings.train_users != "all" or config.eval.beyond_accuracy:
    return 0, 1
  shard = parallel.host_shard(parallel.make_mesh(config.parallel.to_dict()))
  return shard.index, shard.count


def count_users_and_tokens(batch: SequenceBatch) -> dict[str, int]:
  """Returns the numbers of users and of tokens (positions that are not padding) of a batch."""
  return {"users": int(batch.sequence_id.max(axis=1).sum()), "tokens": int(np.count_nonzero(batch.sequence_id))}


def training_options(config: ConfigDict, data: PreparedData, last_split: int, mesh: Mesh) -> TrainingOptions:
  """Returns how this host's batches are made; rows are derived from `config.train.batch_size` users unless given.

  Raises:
    ValueError: the rows can't be divided into microbatches on every device, or no user is left to train on.
  """
  settings = config.data
  shard = parallel.host_shard(mesh)
  options = TrainingOptions(
    max_length=settings.max_length,
    row_length=row_length(config),
    rows_per_batch=settings.rows_per_batch or 1,
    task=settings.task,
    packing=settings.packing,
    order=settings.order,
    last_split=last_split,
    request_time=settings.request_time,
    mask_probability=settings.mask_probability,
    mask_last_probability=settings.mask_last_probability,
    reveal_domain=settings.reveal_domain,
    seed=config.seed,
    only_users=train_users(config, data, last_split),
    action_weights=action_weights(config, data),
    shard_index=shard.index,
    shard_count=shard.count,
  )
  devices, microbatches = parallel.num_row_shards(mesh), config.train.accumulate
  unit = devices * microbatches
  rows = settings.rows_per_batch or _rows(data, options, config.train.batch_size, unit)
  if rows % unit:
    raise ValueError(
      f"data.rows_per_batch={rows} must be divisible by {devices} devices along data and fsdp x"
      f" {config.train.accumulate=} = {unit}"
    )
  return dataclasses.replace(options, rows_per_batch=rows)


def _rows(data, options, batch_size, unit):
  """Returns the rows that hold `batch_size` users, rounded up to a multiple of the devices; says where that is more."""
  rows = rows_of_batches(data, options, batch_size, multiple_of=unit)
  needed = rows if unit == 1 else rows_of_batches(data, options, batch_size)
  if rows > needed:
    logging.warning(
      "a step holds about %d users, not %d: its %d rows are rounded up to %d, a multiple of %d (devices x accumulate)",
      round(batch_size * rows / needed), batch_size, needed, rows, unit,
    )  # fmt: skip
  return rows


def action_weights(config: ConfigDict, data: PreparedData) -> tuple[tuple[int, float], ...] | None:
  """Returns the weights of targets by their action that `config.data.action_weights` gives; None: all weigh 1.

  Raises:
    ValueError: an action that is neither a whole number nor a name of the data, or a weight that is negative or not
      finite.
  """
  names = data.action_names.get(ACTION, ())
  numbers = {name: number for number, name in enumerate(names, first_number(ACTION))}
  pairs = []
  for action, weight in config.data.action_weights.items():
    is_known = str(action) in numbers or str(action).isdigit()
    if not is_known or not math.isfinite(weight) or weight < 0:
      known = f"whole numbers or {', '.join(map(repr, names))}" if names else "whole numbers"
      raise ValueError(
        f"config.data.action_weights[{action!r}]={weight}: actions are {known}, weights finite and not negative"
      )
    pairs.append((numbers[str(action)] if str(action) in numbers else int(action), float(weight)))
  return tuple(pairs) or None


def evaluate_baselines(
  config: ConfigDict, data: PreparedData, split: int, names: Sequence[str] | None = None
) -> dict[str, dict[str, float | int]]:
  """Returns the metrics of baselines by name, from the code and with the settings that rank models.

  Args:
    config: `config.eval` says what is computed, `config.data` how histories are cropped and who is trained on.
    data: prepared columns.
    split: 1 validation, 2 test. Popularity counts the events available for training before it.
    names: "popularity", "random", "popularity_7d" and so on; None: all there are.

  Raises:
    ValueError: no user has an event in this split.
  """
  asked = {name: config.eval[name] for name in ("targets", "targets_per_user")}
  batches = evaluation_batches(data, split, 1024, config.data.max_length, **asked)
  options = {name: config.eval[name] for name in ("ks", "exclude_seen", "protocol", "sampled_negatives")}
  options["report"] = list_report(data, config, split)
  users = train_users(config, data, split - 1)
  makers = {
    "popularity": lambda: baselines.popularity(data, split - 1, users),
    "random": lambda: baselines.random_order(data),
  }
  for days in recent_days(config, data):
    since = split_time(data, split) - days * 86_400
    makers[f"popularity_{days}d"] = functools.partial(baselines.popularity, data, split - 1, users, since=since)
  scores = {name: baselines.evaluate_baseline(makers[name](), data, batches, **options) for name in names or makers}
  return {name: values | unusual_requests(batches, config) for name, values in scores.items()}


def recent_days(config: ConfigDict, data: PreparedData) -> tuple[int, ...]:
  """Returns the days of `config.eval.recent_days` where all users are split at the same time, else none."""
  return tuple(config.eval.recent_days) if data.meta["split"]["kind"] == "by_time" else ()


def split_time(data: PreparedData, split: int) -> int:
  """Returns when the validation events (1) or the test events (2) begin, in seconds."""
  return data.meta["split"]["validation_time" if split == 1 else "test_time"]


def train_users(config: ConfigDict, data: PreparedData, last_split: int) -> tuple[int, ...] | None:
  """Returns the users whose events are trained on, as `config.data.train_users` and `train_share` ask; None: all.

  "without_held_out" is for data that hold out whole users, as AutoCDSR's shards do: users with an event after
  `last_split` are not trained on at all, while "all" trains on their earlier events.

  Raises:
    ValueError: no user is left, as in leave-one-out data, which hold out events of every user.
  """
  which, share = config.data.train_users, config.data.train_share
  if which == "all" and share == 1:
    return None
  has_events = np.diff(data.offsets) > 0
  if share < 1:  # Drawn with a seed of its own, so that runs with other seeds have the same data.
    has_events &= np.random.default_rng(0).permutation(data.num_users) < share * data.num_users
  users = np.flatnonzero(has_events)
  if which != "all":
    users = np.setdiff1d(users, single_domain.held_out_users(data, last_split))
  if not len(users):
    raise ValueError(
      f"config.data.train_users={which!r} leaves no user to train on, with config.data.train_share={share}: all of them"
      " have events that are held out, or the share is too small; set them to 'all' and 1"
    )
  return tuple(users.tolist())


def row_length(config: ConfigDict) -> int:
  """Returns the positions in a row: `config.data.row_length`, or the longest history."""
  return config.data.row_length or config.data.max_length


def _check_actions(model, data):
  """Raises where a model reads actions that the data does not have, or has no vectors for some."""
  most = int(np.max(data.action, initial=0)) if model.num_actions else 0
  if model.num_actions and not data.meta.get("has_actions", most > 0):
    raise ValueError(
      f"config.model.num_actions={model.num_actions}, but the data has no actions; see --action of prepare"
    )
  if most > model.num_actions:
    raise ValueError(
      f"config.model.num_actions={model.num_actions} is less than {most}, the largest action of the data"
    )


def _num_items(config, data):
  """Returns the items of the model: those of the data, and of those to come."""
  room = config.tables.num_items
  if 0 < room < data.num_items:
    raise ValueError(f"config.tables.num_items={room} is less than the {data.num_items} items of the data")
  return room or data.num_items
