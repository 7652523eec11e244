"""Click-through prediction as a task: candidates with long histories, evaluated by AUC."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from jaxrec import parallel
from jaxrec.batches import CandidateBatch, PackedCandidates
from jaxrec.data import load
from jaxrec.data.batches.candidates import (
  NEGATIVES_FROM,
  CandidateData,
  CandidateExamples,
  CandidateOptions,
  TrainingCandidates,
  held_out_candidates,
)  # fmt: skip
from jaxrec.data.batches.labelled_events import LabelledEvents
from jaxrec.data.batches.packed_training import PackedTraining
from jaxrec.data.prepared import TRAIN, VALIDATION, PreparedData
from jaxrec.evaluation.metrics import auc, grouped_auc, log_loss
from jaxrec.layers.ctr.batch_norm import CURRENT_BATCH_STATS
from jaxrec.models import ctr
from jaxrec.objectives.click import ClickObjective
from jaxrec.train.config import (
  CLICK_THROUGH,
  OptimizerSettings,
  ParallelSettings,
  SourceSettings,
  TrainSettings,
  check_groups,
)
from jaxrec.train.optimizer import make_optimizer
from jaxrec.train.settings import defaults, setting
from jaxrec.train.state import TrainState, create_state
from jaxrec.train.step import TrainStep, make_train_step
from jaxrec.train.task import FINAL, BaseTask, Plan
from jaxrec.train.timetable import Timetable

_OF_DRAWN = ("min_events", "held_out_targets", "first_target", "target_stride", "targets_per_user", "negatives")
FOLLOW = -1  # held_out_seed of runs from before there was the setting.
METRICS = ("AUC", "GAUC", "GAUC_category", "log_loss")


@dataclasses.dataclass(frozen=True)
class ClickDataSettings(SourceSettings):
  """Which events are candidates, and their histories; see `CandidateOptions`."""

  history_length: int = setting(CandidateOptions.history_length, "Latest events before a candidate.", at_least=1)
  min_events: int = setting(
    CandidateOptions.min_events, "Users with fewer are left out; 0: those without a target.", at_least=0
  )
  min_history: int = setting(CandidateOptions.min_history, "Events that must precede a target.", at_least=1)
  held_out_targets: int = setting(
    CandidateOptions.held_out_targets, "Latest events of a user that are targets of test; as many before them are of"
    " validation.", at_least=1,
  )  # fmt: skip
  first_target: int = setting(CandidateOptions.first_target, "Latest training target, from the user's end.", at_least=3)
  target_stride: int = setting(CandidateOptions.target_stride, "Events from one target to the next.", at_least=1)
  targets_per_user: int = setting(CandidateOptions.targets_per_user, "Training targets, at most.", at_least=1)
  negatives: int = setting(CandidateOptions.negatives, "For each target.", at_least=1)
  exclude_clicked: bool = setting(
    CandidateOptions.exclude_clicked, "Whether negatives that the user clicked at any time are drawn again."
  )
  negatives_from: str = setting(
    CandidateOptions.negatives_from, "Whose items are drawn: those of all events, as published, or of the targets of"
    " the same split, which are as popular and as often new as those that were clicked.", choices=NEGATIVES_FROM,
  )  # fmt: skip
  category: str = setting(CandidateOptions.category, "Column of the items that holds their category.")
  held_out_seed: int = setting(
    CandidateOptions.held_out_seed, "Of the negatives of validation and test; -1: config.seed, as of training.",
    at_least=-1,
  )  # fmt: skip
  targets_per_row: int = setting(
    0, "Targets of one user in a row of a training batch, which share their events: faster, with fewer users in a"
    " batch. 0: each candidate has a row and a history of its own.", at_least=0,
  )  # fmt: skip
  label: str = setting(
    "", "A binary action: each event is a candidate with this label, in the splits of the data, and none is drawn."
  )


@dataclasses.dataclass(frozen=True)
class ClickOptimizerSettings(OptimizerSettings):
  """Adam at a constant rate, as published."""

  learning_rate: float = setting(1e-2, "Peak of the schedule.", at_least=0)
  b2: float = setting(0.999, "Decay of the second moment.", at_least=0, below=1)
  l2: float = setting(1e-6, "Penalty on all weights but tables and biases; part of the loss.", at_least=0)


@dataclasses.dataclass(frozen=True)
class ClickTrainSettings(TrainSettings):
  """Training by steps instead of epochs."""

  batch_size: int = setting(2048, "Candidates in a step, all hosts together.", at_least=1)
  num_epochs: int = setting(2, "Passes over the training candidates, at most.", at_least=1)
  evaluate_every_steps: int = setting(150, "Steps between validations.", at_least=1)
  statistics_batches: int = setting(
    10, "Latest batches whose mean statistics batch norm is evaluated with; 0: the running ones.", at_least=0
  )


@dataclasses.dataclass(frozen=True)
class ClickEvalSettings:
  """Evaluation of candidates."""

  metric: str = setting("AUC", "Chooses the parameters.")
  batch_size: int = setting(2048, "Candidates evaluated at a time.", at_least=1)


GROUPS = {
  "data": ClickDataSettings, "optimizer": ClickOptimizerSettings, "train": ClickTrainSettings,
  "parallel": ParallelSettings, "eval": ClickEvalSettings,
}  # fmt: skip


def default_config() -> ConfigDict:
  """Returns the default settings of click-through prediction: those of the scripts of arXiv 2410.02604."""
  groups = defaults(GROUPS)
  start = {"name": "", "task": CLICK_THROUGH, "seed": 1, "data": groups.pop("data"), "model": {"name": "dare"}}
  return ConfigDict(start | groups)


def check_config(config: ConfigDict) -> None:
  """Raises unless the config has exactly the keys of `default_config()`, with values that are accepted.

  Raises:
    ValueError: names the key.

  >>> config = default_config()
  >>> config.data.source, config.eval.metric = "planted_interest", "HR@10"
  >>> check_config(config)
  Traceback (most recent call last):
  ValueError: config.eval.metric='HR@10' must be one of ('AUC', 'GAUC', 'GAUC_category')
  """
  check_groups(config, default_config(), GROUPS)
  if config.eval.metric not in METRICS[:-1]:
    raise ValueError(f"{config.eval.metric=} must be one of {METRICS[:-1]}")
  if config.data.label and config.data.targets_per_row:
    raise ValueError(f"{config.data.targets_per_row=} must be 0 with config.data.label, whose candidates are events")
  changed = [name for name in _OF_DRAWN if config.data[name] not in (0, getattr(CandidateOptions, name))]
  if config.data.label and changed:
    raise ValueError(f"config.data.{changed[0]} is for candidates that are drawn; {config.data.label=} draws none")
  if config.data.time_cuts and not config.data.label:
    raise ValueError(
      f"{config.data.time_cuts=} split the events, but candidates that are drawn are split by their place in the"
      " history of a user; give config.data.label, or no cuts"
    )


class Predictions(NamedTuple):
  """Log-odds of candidates, and what metrics compare them with."""

  logit: Float[np.ndarray, " B"]
  label: Float[np.ndarray, " B"]
  user: Int[np.ndarray, " B"]
  category: Int[np.ndarray, " B"]


@dataclasses.dataclass
class ClickTask(BaseTask):
  """What a config of click-through prediction describes; data, examples and model can be replaced in Python.

  data: prepared columns.
  examples: candidates of all splits.
  model: a `jaxrec.models.ctr.ClickThroughRanker`.
  """

  data: PreparedData = dataclasses.field(kw_only=True)
  examples: CandidateExamples = dataclasses.field(kw_only=True)
  model: nn.Module = dataclasses.field(kw_only=True)

  default_config = staticmethod(default_config)
  check_config = staticmethod(check_config)
  check_model = staticmethod(ctr.check_options)
  groups = GROUPS

  def __post_init__(self):
    self._compiled: dict[Any, Any] = {}

  @classmethod
  def from_config(cls, config: ConfigDict) -> ClickTask:
    """Returns the task of a config, preparing the data where needed.

    Raises:
      ValueError: the config doesn't fit `default_config`.
    """
    check_config(config)
    return make_task(config, load.load_data(config.data), cls)

  def plan(self, phase: str, num_epochs: int, mesh: Mesh) -> Plan:
    """See `Task`; in "final" the validation candidates are trained on too."""
    settings, shard, targets = self.config.train, parallel.host_shard(mesh), self.config.data.targets_per_row
    unit = parallel.num_row_shards(mesh) * settings.accumulate
    per_row = targets * (1 + self.config.data.negatives) if targets else 1
    if settings.batch_size % (unit * per_row):
      raise ValueError(
        f"train.batch_size={settings.batch_size} must be divisible by devices x train.accumulate x candidates of a row"
        f" = {unit * per_row}"
      )
    splits = (TRAIN, VALIDATION) if phase == FINAL else (TRAIN,)
    order = {"seed": self.config.seed, "splits": splits, "shard_index": shard.index, "shard_count": shard.count}
    size = (self.examples, settings.batch_size, num_epochs)
    batches = PackedTraining(*size, targets_per_row=targets, **order) if targets else TrainingCandidates(*size, **order)
    description = (
      f"steps of {settings.batch_size} candidates; {batches.examples_left_out} examples left out of each epoch"
    )
    return Plan(
      Timetable.from_config(settings, batches.batches_per_epoch, num_epochs),
      batches,
      count=lambda batch: {"examples": batch.label.size},
      users=lambda step: np.unique(batches.whole(step - 1).user_id),
      identity={"batch_size": settings.batch_size},
      description=description,
    )

  def init_state(self, mesh: Mesh | None, total_steps: int) -> TrainState:
    """See `Task`; `model_state` holds the batch statistics."""
    return create_state(
      self.model,
      make_optimizer(self.config.optimizer, total_steps),
      self.examples.batch(TRAIN, np.arange(2)),
      self.config.seed,
      shardings_of=None if mesh is None else lambda shapes: parallel.parameter_shardings(shapes, mesh),
    )

  def train_step(self, mesh: Mesh, like: TrainState | None, total_steps: int) -> TrainStep:
    """See `Task`."""
    return make_train_step(
      self.model,
      ClickObjective(self.config.optimizer.l2),
      make_optimizer(self.config.optimizer, total_steps),
      seed=self.config.seed + 1,
      accumulate=self.config.train.accumulate,
      mesh=mesh,
      like=like,
      compiler_options=self.config.train.compiler_options.to_dict(),
    )

  def before_evaluation(self, state: TrainState, plan: Plan, step: int, mesh: Mesh) -> TrainState:
    """Returns the state with the mean batch statistics of the latest batches; see `renewed_statistics`."""
    first = max(step - self.config.train.statistics_batches, 0)
    latest = (parallel.shard_batch(plan.batches[i], mesh) for i in range(first, step))
    return self.renewed_statistics(state, latest)

  def renewed_statistics(self, state: TrainState, batches: Iterable[CandidateBatch | PackedCandidates]) -> TrainState:
    """Returns the state with the mean statistics of these batches instead of the running ones.

    Running statistics of training are those of parameters some steps ago. Where tables grow fast that makes a model far
    too sure of itself: an evaluated row is divided by a standard deviation of the past. Training does not read them. A
    model without `jaxrec.layers.ctr.batch_norm.BatchNorm` keeps its state.

    Source: Wu & Johnson 2021, arXiv 2105.07576 ("precise" batch normalisation).
    """
    found = [self._jitted("statistics", self._statistics)(state.params, state.model_state, b) for b in batches]
    if not found or found[0] is None:
      return state
    mean = jax.tree.map(lambda *values: sum(values) / len(values), *found)
    return state.replace(model_state={**state.model_state, "batch_stats": mean})

  def evaluate(self, state: TrainState, split: int, mesh: Mesh) -> dict[str, float | int]:
    """See `Task`: AUC, GAUC and log loss of all candidates of a split."""
    return click_metrics(*self.predictions(state, split, mesh))

  def predictions(self, state: TrainState, split: int, mesh: Mesh) -> Predictions:
    """Returns the log-odds of all candidates of a split, in the order of `held_out_candidates`."""
    logits = self._jitted(mesh, self._logits, out_shardings=NamedSharding(mesh, PartitionSpec()))
    columns = []
    for batch in held_out_candidates(self.examples, split, self.config.eval.batch_size):
      size = len(batch.label)
      sharded = parallel.shard_replicated_batch(_padded(batch, mesh.size), mesh)
      logit = np.asarray(logits(state.evaluated, state.model_state, sharded).addressable_data(0))[:size]
      columns.append((logit, batch.label, batch.user_id, batch.category))
    return Predictions(*(np.concatenate(column) for column in zip(*columns, strict=True)))

  def _statistics(self, params, model_state, batch):
    variables, mutable = {"params": params, **model_state}, ["batch_stats", CURRENT_BATCH_STATS]
    _, updated = self.model.apply(variables, batch, deterministic=False, mutable=mutable)
    return updated.get(CURRENT_BATCH_STATS)

  def _logits(self, params, model_state, batch):
    return self.model.apply({"params": params, **model_state}, batch, deterministic=True).logit

  def _jitted(self, key: Any, function: Callable, **options: Any) -> Callable:
    """Returns the jitted function, the same for the same key."""
    if key not in self._compiled:
      self._compiled[key] = jax.jit(function, **options)
    return self._compiled[key]


def make_task(config: ConfigDict, data: PreparedData, cls: type[ClickTask] = ClickTask) -> ClickTask:
  """Returns the task of a checked config on data that are loaded already."""
  examples = _examples(config, data)
  sizes = {"num_items": examples.num_items, "num_categories": examples.num_categories}
  return cls(config, data=data, examples=examples, model=ctr.build(model_settings(config), **sizes))


def _examples(config, data) -> CandidateExamples:
  settings = config.data
  if settings.label:
    options = (settings.label, settings.history_length, settings.min_history, settings.category)
    return LabelledEvents(data, *options)
  fields = {field.name for field in dataclasses.fields(CandidateOptions)} - {"seed", "held_out_seed"}
  held_out_seed = config.seed if settings.held_out_seed == FOLLOW else settings.held_out_seed
  seeds = {"seed": config.seed, "held_out_seed": held_out_seed}
  return CandidateData(data, CandidateOptions(**{name: settings[name] for name in fields}, **seeds))


def model_settings(config: ConfigDict) -> dict[str, Any]:
  """Returns `config.model` for `jaxrec.models.ctr.build`; sequences that JSON made lists are tuples again."""
  return {name: tuple(value) if isinstance(value, list) else value for name, value in config.model.to_dict().items()}


def _padded(batch: CandidateBatch, multiple: int) -> CandidateBatch:
  """Returns the batch with its last row repeated until the devices divide the rows."""
  missing = -len(batch.label) % multiple
  return jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]), batch)


def click_metrics(
  logit: Float[np.ndarray, " B"],
  label: Float[np.ndarray, " B"],
  user: Int[np.ndarray, " B"],
  category: Int[np.ndarray, " B"],
) -> dict[str, float | int]:
  """Returns AUC, GAUC by user and by the candidate's category, log loss, and the number of candidates.

  Choice: the published code calls GAUC what is `GAUC_category` here, and adds the auxiliary loss to the log loss.

  >>> values = click_metrics(np.zeros(2), np.array([1.0, 0.0]), np.array([7, 7]), np.array([1, 2]))
  >>> values["AUC"], values["GAUC"], round(values["log_loss"], 4)
  (0.5, 0.5, 0.6931)
  """
  return {
    "AUC": auc(logit, label),
    "GAUC": grouped_auc(logit, label, user).value,
    "GAUC_category": grouped_auc(logit, label, category).value,
    "log_loss": log_loss(1 / (1 + np.exp(-logit.astype(np.float64))), label),
    "count": len(label),
  }
