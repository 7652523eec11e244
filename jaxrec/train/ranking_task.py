"""Generative ranking as a task: what a user will do with each item of a history, from what was done before."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxrec import multi_objective, parallel
from jaxrec.batches import REGRESSION, ActionType, RankingBatch
from jaxrec.data import load
from jaxrec.data.batches.ranking_batches import (
  UNITS,
  RankingBatches,
  RankingOptions,
  held_out_examples,
  training_examples,
)
from jaxrec.data.batches.ranking_rows import LAYOUTS, RankingColumns
from jaxrec.data.batches.stochastic_length import RULES, StochasticLength
from jaxrec.data.prepared import TRAIN, PreparedData
from jaxrec.evaluation.action_metrics import OVERALL, action_metrics, metric_names
from jaxrec.models import ranking
from jaxrec.objectives.action_prediction import FULL, SHARED, ActionObjective
from jaxrec.train.config import (
  RANKING,
  OptimizerSettings,
  ParallelSettings,
  SequenceTrainSettings,
  SourceSettings,
  check_groups,
)
from jaxrec.train.optimizer import make_optimizer, warn_of_idle_weighting
from jaxrec.train.settings import defaults, setting
from jaxrec.train.state import TrainState, create_state
from jaxrec.train.step import TrainStep, make_train_step
from jaxrec.train.task import FINAL, BaseTask, Plan
from jaxrec.train.timetable import Timetable


@dataclasses.dataclass(frozen=True)
class RankingDataSettings(SourceSettings):
  """How histories with actions become tokens; see `RankingOptions`."""

  actions: tuple = setting((), "Typed actions that the model reads; (): all.")
  heads: tuple = setting((), "Typed actions that it predicts; (): all.")
  features: tuple = setting((), "Columns of the items, such as category, that the model reads in addition to the id.")
  context: tuple = setting(
    (), "Columns of the users that begin a history; 'user': the user itself. New users then get no predictions."
  )
  request: tuple = setting(
    (), "Features of an event's request that the model reads: 'hour', 'weekday', or columns that are no heads."
  )
  max_length: int = setting(RankingOptions.max_length, "Events of a history; older ones are cropped.", at_least=2)
  layout: str = setting(RankingOptions.layout, "Tokens of an event: its item and its actions, or one.", choices=LAYOUTS)
  unit: str = setting(RankingOptions.unit, "What one training example predicts.", choices=UNITS)
  session_gap: int = setting(
    RankingOptions.session_gap, "unit=session: seconds that end one.", at_least=0, read_if=("unit", ("session",))
  )
  row_length: int = setting(0, "Tokens of a row; 0: those of the longest example.", at_least=0)
  packing: bool = setting(True, "Whether several examples share a row.")
  stochastic_length: float = setting(
    0.0, "Alpha of Stochastic Length, above 1 and at most 2; 0: whole histories.", at_least=0
  )
  stochastic_rule: str = setting(
    StochasticLength.rule, "Which events of a long history are kept.", choices=RULES, read_if=("stochastic_length", ())
  )


@dataclasses.dataclass(frozen=True)
class HeadWeightSettings:
  """The weights of the heads."""

  gradients_at: str = setting(
    SHARED, "Gradients that a rule compares: at shared activations, or full ones.", choices=(SHARED, FULL)
  )
  weighting: dict = setting(
    {"name": "fixed"}, "See jaxrec.multi_objective.weighting; fixed without weights: all 1.", is_open=True
  )


@dataclasses.dataclass(frozen=True)
class ActionEvalSettings:
  """Evaluation of predicted actions."""

  metric: str = setting(OVERALL, "Chooses the epoch; higher is better.")
  batch_size: int = setting(256, "Histories evaluated at a time.", at_least=1)


GROUPS = {
  "data": RankingDataSettings, "multi_objective": HeadWeightSettings, "optimizer": OptimizerSettings,
  "train": SequenceTrainSettings, "parallel": ParallelSettings, "eval": ActionEvalSettings,
}  # fmt: skip


def default_config() -> ConfigDict:
  """Returns the default settings of generative ranking; `model` takes the fields of `RankingModel`."""
  groups = defaults(GROUPS)
  start = {
    "name": "",
    "task": RANKING,
    "seed": 1,
    "data": groups.pop("data"),
    "model": {"name": "ranking", "width": 64},
  }
  return ConfigDict(start | groups)


def check_config(config: ConfigDict) -> None:
  """Raises unless the config has exactly the keys of `default_config()`, with values that fit together.

  Raises:
    ValueError: names the key.

  >>> config = default_config()
  >>> config.data.source, config.train.accumulate = "planted_actions", 2
  >>> check_config(config)
  Traceback (most recent call last):
  ValueError: config.train.accumulate=2 needs config.multi_objective.gradients_at='full'
  """
  check_groups(config, default_config(), GROUPS)
  StochasticLength(config.data.stochastic_length, config.data.stochastic_rule)
  if config.train.accumulate > 1 and config.multi_objective.gradients_at == SHARED:
    raise ValueError(f"{config.train.accumulate=} needs config.multi_objective.gradients_at={FULL!r}")


@dataclasses.dataclass
class RankingTask(BaseTask):
  """What a config of generative ranking describes; data and model can be replaced in Python.

  data: prepared columns with typed actions.
  columns: what tokens are filled with.
  model: a `jaxrec.models.ranking.RankingModel`.
  """

  data: PreparedData = dataclasses.field(kw_only=True)
  columns: RankingColumns = dataclasses.field(kw_only=True)
  model: ranking.RankingModel = dataclasses.field(kw_only=True)

  default_config = staticmethod(default_config)
  check_config = staticmethod(check_config)
  check_model = staticmethod(ranking.check_options)
  groups = GROUPS

  def __post_init__(self):
    self._compiled: dict[Mesh, Any] = {}

  @classmethod
  def from_config(cls, config: ConfigDict) -> RankingTask:
    """Returns the task of a config, preparing or downloading the data where needed.

    Raises:
      ValueError: the config doesn't fit `default_config`, or asks for what the data do not have.
    """
    check_config(config)
    return cls.from_data(config, load.load_data(config.data))

  @classmethod
  def from_data(cls, config: ConfigDict, data: PreparedData) -> RankingTask:
    """Returns the task of a config and data that are in memory."""
    types = action_types(data)
    settings = config.data
    columns = RankingColumns(data, tuple(settings.features), tuple(settings.context), tuple(settings.request))
    length = config.data.max_length
    sizes = {
      "num_items": data.num_items, "num_context_ids": columns.num_context_ids, "dtype": jnp.dtype(config.train.dtype),
      "actions": _chosen(types, config.data.actions, "actions"), "heads": _chosen(types, config.data.heads, "heads"),
      "features": tuple(columns.feature_sizes.items()),
    }  # fmt: skip
    model = ranking.build({"max_positions": length, "attention_length": length, **config.model.to_dict()}, **sizes)
    if predicted := sorted({head.name for head in model.heads} & set(settings.request)):
      raise ValueError(
        f"config.data.request has {predicted}, which are predicted; config.data.heads must not have them"
      )
    if config.eval.metric not in metric_names(model.heads):
      raise ValueError(f"{config.eval.metric=} must be one of {metric_names(model.heads)}")
    return cls(config, data=data, columns=columns, model=model)

  @property
  def objective(self) -> ActionObjective:
    """The losses of the heads."""
    return ActionObjective(self.model.heads, self.config.multi_objective.gradients_at)

  def plan(self, phase: str, num_epochs: int, mesh: Mesh) -> Plan:
    """See `Task`; in "final" the validation events are trained on too."""
    settings, shard = self.config.train, parallel.host_shard(mesh)
    options = dataclasses.replace(self._options(), shard_index=shard.index, shard_count=shard.count)
    examples = training_examples(self.data, int(phase == FINAL), options)
    unit = parallel.num_row_shards(mesh) * settings.accumulate
    batches = RankingBatches(self.columns, examples, options, settings.batch_size, multiple_of=unit)
    description = (
      f"{len(examples)} examples; steps of {batches.rows_per_batch} rows x {batches.row_length} tokens;"
      f" {batches.events_kept:.1%} of the events kept"
    )
    return Plan(
      Timetable.from_config(settings, batches.batches_per_epoch, num_epochs),
      batches,
      count=count_users_and_tokens,
      users=lambda step: np.unique(batches.whole(step - 1).user_id),
      identity={"rows_per_batch": batches.rows_per_batch},
      description=description,
    )

  def init_state(self, mesh: Mesh | None, total_steps: int) -> TrainState:
    """See `Task`."""
    examples = training_examples(self.data, TRAIN, self._options())
    first = examples[np.argsort(examples.first - examples.end, kind="stable")[:1]]
    return create_state(
      self.model,
      self._optimizer(total_steps),
      RankingBatches(self.columns, first, self._options(), 1)[0],
      self.config.seed,
      keep_average=self.config.train.average > 0,
      shardings_of=None if mesh is None else functools.partial(parallel.parameter_shardings, mesh=mesh),
    )

  def train_step(self, mesh: Mesh, like: TrainState | None, total_steps: int) -> TrainStep:
    """See `Task`."""
    if len(self.model.heads) > 1:
      warn_of_idle_weighting(self.config.multi_objective.weighting, total_steps)
    return make_train_step(
      self.model,
      self.objective,
      self._optimizer(total_steps),
      seed=self.config.seed + 1,
      accumulate=self.config.train.accumulate,
      average=self.config.train.average,
      mesh=mesh,
      like=like,
      compiler_options=self.config.train.compiler_options.to_dict(),
    )

  def evaluate(self, state: TrainState, split: int, mesh: Mesh) -> dict[str, float | int]:
    """See `Task`: the metrics of `jaxrec.evaluation.action_metrics` over all events of a split."""
    return action_metrics(*self.predictions(state.evaluated, split, mesh), self.model.heads)

  def predictions(
    self, params: Any, split: int, mesh: Mesh
  ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Returns predictions and labels of every event of a split by action, and the users of the events."""
    examples = held_out_examples(self.data, split, self.config.data.max_length)
    options = dataclasses.replace(self._options(), stochastic=StochasticLength(), row_length=0)
    unit = parallel.num_row_shards(mesh)
    batches = RankingBatches(
      self.columns, examples, options, self.config.eval.batch_size, multiple_of=unit, shuffle=False
    )
    predict = self._predict(mesh)
    found, labels, users = [], [], []
    for i in range(len(batches)):
      batch = batches[i]
      chosen = batch.weight > 0
      outputs = predict(params, parallel.shard_replicated_batch(batch, mesh))
      found.append({name: np.asarray(x.addressable_data(0))[chosen] for name, x in outputs.items()})
      labels.append({head.name: batch.actions[head.name][chosen] for head in self.model.heads})
      users.append(batch.user_id[chosen])
    joined = (jax.tree.map(lambda *parts: np.concatenate(parts), *each) for each in (found, labels, users))
    return tuple(joined)

  def _predict(self, mesh):
    """Returns the compiled model, the same for the same mesh."""
    if mesh not in self._compiled:
      replicated = NamedSharding(mesh, PartitionSpec())
      run = parallel.with_mesh(lambda params, batch: self.model.apply({"params": params}, batch), mesh)
      self._compiled[mesh] = jax.jit(run, out_shardings=replicated)
    return self._compiled[mesh]

  def _options(self) -> RankingOptions:
    settings = self.config.data
    names = ("max_length", "layout", "unit", "session_gap", "row_length", "packing")
    stochastic = StochasticLength(settings.stochastic_length, settings.stochastic_rule)
    return RankingOptions(**{name: settings[name] for name in names}, stochastic=stochastic, seed=self.config.seed)

  def _optimizer(self, total_steps: int) -> optax.GradientTransformation:
    inner, count = make_optimizer(self.config.optimizer, total_steps), len(self.model.heads)
    if count == 1:
      return inner
    rule = self.config.multi_objective.weighting.to_dict()
    if rule == {"name": "fixed"}:
      rule["weights"] = [1.0] * count
    weighting = multi_objective.build(rule)
    return multi_objective.multi_objective(weighting, inner, num_objectives=count, select=self.objective.select)


def action_types(data: PreparedData) -> tuple[ActionType, ...]:
  """Returns the typed actions of the data; numbers with the mean and standard deviation of the training events.

  Raises:
    ValueError: the data have no typed actions.

  >>> actions = {"actions": {"seconds": [1, 3, 9, 9]}, "action_kinds": {"seconds": "regression"}}
  >>> action_types(PreparedData.from_columns(user=[0] * 4, item_id=[1] * 4, **actions))[0].mean
  2.0
  """
  if not data.actions:
    raise ValueError(
      f"the data of source {data.meta['source']!r} have no typed actions; prepare them again, from a source that has"
    )
  is_train = np.asarray(data.split) == TRAIN
  types = []
  for name, values in data.actions.items():
    kind, classes = data.action_meta[name]["kind"], data.action_meta[name]["classes"]
    spread = {}
    if kind == REGRESSION:
      known = np.asarray(values)[is_train].astype(np.float64)
      spread = {"mean": float(known.mean()), "scale": float(known.std()) or 1.0}
    types.append(ActionType(name, kind, classes, **spread))
  return tuple(types)


def _chosen(types, names, setting_name) -> tuple[ActionType, ...]:
  known = {action.name: action for action in types}
  if unknown := sorted(set(names) - set(known)):
    raise ValueError(f"config.data.{setting_name} has {unknown}; the data has the actions {sorted(known)}")
  return tuple(known[name] for name in names) if names else types


def count_users_and_tokens(batch: RankingBatch) -> dict[str, int]:
  """Returns the numbers of histories, of tokens, and of predicted events of a batch."""
  return {
    "users": int(batch.sequence_id.max(axis=1).sum()),
    "tokens": int(np.count_nonzero(batch.kind)),
    "targets": int(np.count_nonzero(batch.weight)),
  }
