"""The settings of an experiment: groups that every task has, those of sequential recommendation, and their checks.

A config file starts from `default_config()` of its task and changes what it wants. Each setting is declared once, with
its default, range and help, in the dataclass of its group. `config.model` and `config.objective` take further keys,
which the model and the objective check; `config.data.options` goes to the data source.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from jaxrec.data.batches.evaluation import TARGETS
from jaxrec.data.batches.rows import REQUEST_TIMES, TASKS
from jaxrec.data.batches.training import ORDERS
from jaxrec.data.seeds import check_seed
from jaxrec.data.time_window import check_cuts
from jaxrec.embedding.rounding import ROUNDINGS
from jaxrec.evaluation.protocols import REPORTED, SAMPLED, WITHIN_DOMAIN
from jaxrec.layers.intra_domain import OWN
from jaxrec.objectives.attention_score import SCORES
from jaxrec.train.settings import check_all_read, check_group, check_names, defaults, setting

SCHEDULES = ("constant", "linear", "cosine", "warmup_cosine")
DTYPES = ("float32", "bfloat16")
OBJECTIVES = ("cross_domain_attention",)
INNER_PRODUCTS = ("shared", "attention_path")
SEQUENTIAL, CLICK_THROUGH, RANKING = "sequential", "click_through", "ranking"
_MASKED = "task", ("masked_item",)  # Where settings are read.
_FEATURES = "features", ()
_OBJECTIVES = "objectives", ()
_TABLES = "placement", ("auto", "sharded")


@dataclasses.dataclass(frozen=True)
class SourceSettings:
  """Where the data comes from."""

  source: str = setting("", "Name of a data source, such as movielens-1m; only compared where `prepared` exists.")
  raw: str = setting("", "Raw files; '' downloads them, or takes $JAXREC_DATA/<source>.")
  prepared: str = setting("", "Folder of prepared data, or its URL in an object store; '' keeps it in a cache.")
  options: dict = setting({}, "Options of the source: filters, split.", is_open=True)
  only_domain: str = setting("", "Name of a domain: train and evaluate on its events alone.")
  domains_apart: bool = setting(False, "A user's events of each domain are a history of their own.")
  time_cuts: tuple = setting(
    (), "Three times in seconds, at which validation, test, and what is left out begin, for all users; (): the split of"
    " the prepared data.",
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SequenceSettings(SourceSettings):
  """How histories become training sequences."""

  train_users: str = setting(
    "all", "without_held_out: only users none of whose events is held out from this phase.",
    choices=("all", "without_held_out"),
  )  # fmt: skip
  task: str = setting("next_item", "What the model is trained to predict.", choices=TASKS)
  train_share: float = setting(
    1.0, "Share of the users that are trained on, above 0 and up to 1. A smaller share is part of a larger one,"
    " whatever the seed.",
  )  # fmt: skip
  order: str = setting(
    "shuffled", "Order of the users in an epoch: drawn anew in each, or as in the data, for a stream seen once.",
    choices=ORDERS,
  )  # fmt: skip
  max_length: int = setting(200, "Events of a history; older ones are cropped.", at_least=1)
  row_length: int = setting(0, "Positions of a row; 0: max_length.", at_least=0)
  rows_per_batch: int = setting(0, "0: as many as hold train.batch_size users.", at_least=0)
  packing: bool = setting(True, "Whether several histories share a row.")
  action_weights: dict = setting(
    {}, "Action (number, or name in the raw data) to weight of its events as targets, such as {'4': 1.0, '5': 2.0};"
    " other events are read, but are no targets. {}: all are.", is_open=True,
  )  # fmt: skip
  features: tuple = setting(
    (), "Columns of the items, such as genres, that give an item a vector in addition to that of its id; see"
    " jaxrec.data.item_features. (): ids only.",
  )  # fmt: skip
  min_id_events: int = setting(
    1, "features only: items of fewer training events have no vector of their id.", at_least=0, read_if=_FEATURES
  )
  id_dropout: float = setting(
    0.2,
    "features only: share of the items whose id vector is left out in a step.",
    at_least=0,
    below=1,
    read_if=_FEATURES,
  )
  request_time: str = setting(
    "target", "Time of the request: that of the target, or of the last_event.", choices=REQUEST_TIMES
  )
  mask_probability: float = setting(
    0.15, "masked_item only: share of masked events.", at_least=0, below=1, read_if=_MASKED
  )
  mask_last_probability: float = setting(
    0.0, "masked_item only: probability that only the last event is masked.", at_least=0, below=1, read_if=_MASKED
  )
  reveal_domain: bool = setting(False, "masked_item only: whether a masked event keeps its domain.", read_if=_MASKED)


@dataclasses.dataclass(frozen=True)
class MultiObjectiveSettings:
  """Objectives in addition to `config.objective`, and the weights of their gradients."""

  objectives: tuple = setting((), "('cross_domain_attention',) is AutoCDSR.")
  own_domain: str = setting(
    "query", "The domain that attention should stay in: that of the event that attends, or of the target.", choices=OWN,
    read_if=_OBJECTIVES,
  )  # fmt: skip
  score: str = setting(
    "visible", "What is made small: the share of other domains among visible keys, what it exceeds their share of the"
    " events by, or the published share among all keys; see jaxrec.objectives.attention_score.", choices=SCORES,
    read_if=_OBJECTIVES,
  )  # fmt: skip
  margin: float = setting(0.0, "score=excess only: log-odds that are free of charge.")
  gate: bool = setting(
    False, "Whether only queries count whose target the own domain alone predicts better: one more forward pass.",
    read_if=_OBJECTIVES,
  )  # fmt: skip
  inner_products: str = setting(
    "shared", "Of gradients over all parameters but the item table, or over those of attention_path, which the second"
    " objective can move.", choices=INNER_PRODUCTS, read_if=_OBJECTIVES,
  )  # fmt: skip
  reweight_every: int = setting(1, "Steps between two solutions for the weights; more is faster.", at_least=1)
  weighting: dict = setting(
    {"name": "pareto"}, "See jaxrec.multi_objective.weighting.", is_open=True, read_if=_OBJECTIVES
  )


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
  """AdamW, its schedule and clipping."""

  learning_rate: float = setting(1e-3, "Peak of the schedule.", at_least=0)
  b1: float = setting(0.9, "Decay of the first moment.", at_least=0, below=1)
  b2: float = setting(0.98, "Decay of the second moment.", at_least=0, below=1)
  weight_decay: float = setting(0.0, "Decoupled, on all parameters.", at_least=0)
  schedule: str = setting("constant", "Of the learning rate, over train.num_epochs.", choices=SCHEDULES)
  warmup_steps: int = setting(0, "Steps of a linear warm-up from 0.", at_least=0)
  clip_norm: float = setting(0.0, "Largest norm of the whole gradient; 0: no clipping.", at_least=0)


@dataclasses.dataclass(frozen=True)
class TrainSettings:
  """Settings that the loop reads."""

  batch_size: int = setting(128, "Users (or examples) in a step, all hosts together.", at_least=1)
  num_epochs: int = setting(101, "Passes over the training data, at most.", at_least=1)
  accumulate: int = setting(1, "Microbatches of a step, to need less memory; results stay the same.", at_least=1)
  evaluate_every_epochs: int = setting(1, "Epochs between validations.", at_least=1)
  patience: int = setting(0, "Validations without a new best before stopping; 0: never stop early.", at_least=0)
  checkpoint_every_steps: int = setting(0, "In addition to each validation; 0: none.", at_least=0)
  log_every_steps: int = setting(20, "Steps whose means make one record of metrics.jsonl.", at_least=1)
  start_from: str = setting(
    "", "Workdir of an earlier run of the same model, with whose best parameters this one begins; its data may have"
    " been extended since. {seed} stands for config.seed. '': from random ones.",
  )  # fmt: skip
  start_optimizer: str = setting(
    "keep", "The optimizer state that such a run begins with: that of the earlier run, or a new one, as other"
    " objectives need.", choices=("keep", "new"),
  )  # fmt: skip
  compiler_options: dict = setting(
    {}, "XLA's options of the training step, by name; the device's compiler says which there are. {}: none.",
    is_open=True,
  )  # fmt: skip
  boards: tuple = setting(
    ("tensorboard",), "Where metrics are shown beside metrics.jsonl: some of tensorboard, wandb, mlflow; see"
    " jaxrec.train.boards.",
  )  # fmt: skip
  retrain: bool = setting(False, "Train anew on training and validation events for the chosen number of epochs.")


@dataclasses.dataclass(frozen=True)
class SequenceTrainSettings(TrainSettings):
  """Training of sequence models."""

  dtype: str = setting("float32", "Dtype of activations; parameters and optimizer stay float32.", choices=DTYPES)
  average: float = setting(
    0.0, "Decay of a moving average of the parameters, which is evaluated in their place; 0: off.", at_least=0, below=1
  )


@dataclasses.dataclass(frozen=True)
class RetrievalTrainSettings(SequenceTrainSettings):
  """Training of sequence models that rank a catalogue."""

  uniform_start: float = setting(
    0.0, "All parameters, scales of norms too, start uniform in +- this, in AutoCDSR's released code 0.05; 0: as the"
    " layers define.", at_least=0,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TableSettings:
  """Where the item table lives: in `params`, or row-sharded outside them; see jaxrec.embedding."""

  placement: str = setting(
    "auto", "parameter: in params; sharded: row-sharded, and a step changes only the rows it looked up.",
    choices=("auto", "parameter", "sharded"),
  )  # fmt: skip
  max_parameter_bytes: int = setting(
    2**30, "auto: up to this size, with optimizer state, in params.", at_least=0, read_if=("placement", ("auto",))
  )
  num_items: int = setting(0, "Room for items that the data does not have yet; 0: none.", at_least=0, below=2**31 - 2)
  optimizer: str = setting(
    "adamw", "Of a sharded table; reads config.optimizer.", choices=("adamw", "adagrad", "sgd"), read_if=_TABLES
  )
  second_moment: str = setting(
    "row", "Of adamw: one for each row or each element.", choices=("row", "element"), read_if=("optimizer", ("adamw",))
  )
  moment_dtype: str = setting("float32", "Of adamw's moments.", choices=DTYPES, read_if=("optimizer", ("adamw",)))
  dtype: str = setting("float32", "Of the rows.", choices=DTYPES, read_if=_TABLES)
  rounding: str = setting(
    "nearest", "How updates are rounded to bfloat16 rows.", choices=ROUNDINGS, read_if=("dtype", ("bfloat16",))
  )
  capacity: int = setting(
    0, "Distinct rows that a device may request from each other one in a step; 0: derived.", at_least=0, read_if=_TABLES
  )


@dataclasses.dataclass(frozen=True)
class ParallelSettings:
  """Devices along each axis of the mesh; -1 for one of them: all that are left."""

  data: int = setting(-1, "Rows of a batch.")
  fsdp: int = setting(1, "Rows of a batch, and parameters.")
  model: int = setting(1, "Columns of parameters.")


@dataclasses.dataclass(frozen=True)
class RankingEvalSettings:
  """Evaluation by full ranking."""

  ks: tuple = setting((1, 10, 50, 200), "List lengths of HR and NDCG.")
  metric: str = setting("NDCG@10", "Chooses the epoch.")
  exclude_seen: bool = setting(True, "Whether the user's earlier items are removed from the candidates.")
  batch_size: int = setting(256, "Users evaluated at a time.", at_least=1)
  protocol: str = setting(
    "full", "Candidates: all items, or full_per_domain: those of the target's domain; or both.", choices=REPORTED
  )
  sampled_negatives: int = setting(0, "Adds sampled/...: ranks among so many random items; 0: none.", at_least=0)
  targets: str = setting(
    "first", "Events of a split to predict: the first of each user, or all, each with everything before it as history.",
    choices=TARGETS,
  )  # fmt: skip
  targets_per_user: int = setting(0, "targets=all: at most so many of a user, evenly spaced; 0: no limit.", at_least=0)
  recent_days: tuple = setting(
    (1, 7, 30), "Under split=by_time, popularity in so many days before the split is a baseline too."
  )
  beyond_accuracy: int = setting(
    0, "Length of the lists whose coverage, novelty, popularity, diversity and serendipity are reported, and warm and"
    " cold targets apart; 0: none.", at_least=0,
  )  # fmt: skip


GROUPS = {
  "data": SequenceSettings, "multi_objective": MultiObjectiveSettings, "optimizer": OptimizerSettings,
  "train": RetrievalTrainSettings, "tables": TableSettings, "parallel": ParallelSettings, "eval": RankingEvalSettings,
}  # fmt: skip


def default_config() -> ConfigDict:
  """Returns the default settings of sequential recommendation: MovieLens-1M and a small HSTU, as published. Zero or ""
  mean "off" or "derived" where the help of the setting says so.

  >>> default_config().eval.metric
  'NDCG@10'
  """
  groups = defaults(GROUPS)
  start = {"name": "", "task": SEQUENTIAL, "seed": 42, "data": groups.pop("data")}
  return ConfigDict(start | {"model": {"name": "hstu"}, "objective": {"name": "sampled_softmax"}} | groups)


def check_config(config: ConfigDict) -> None:
  """Raises unless the config has exactly the keys of `default_config()`, with accepted values that fit together.

  Args:
    config: what a config file returned, overrides applied.

  Raises:
    ValueError: an unknown or missing key, a value of another type or outside its range; names the key.

  >>> config = default_config()
  >>> config.train.batchsize = 3
  >>> check_config(config)
  Traceback (most recent call last):
  ValueError: config.train.batchsize is unknown; did you mean config.train.batch_size?
  """
  check_groups(config, default_config(), GROUPS)
  for name in ("model", "objective"):
    if not isinstance(config[name].get("name"), str):
      raise ValueError(f"config.{name}.name is missing")
  _check_sequences(config)
  _check_objectives(config)
  if not config.eval.ks or min(config.eval.ks) < 1:
    raise ValueError(f"{config.eval.ks=} must be list lengths of at least 1")
  days = config.eval.recent_days
  if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in days) or len(set(days)) < len(days):
    raise ValueError(f"config.eval.recent_days={days} must be different whole numbers of days, each at least 1")
  if config.eval.metric not in _metric_names(config.eval):
    raise ValueError(
      f"{config.eval.metric=} is not computed; use one of {_metric_names(config.eval)} or extend {config.eval.ks=}"
    )


def check_groups(config: ConfigDict, default: ConfigDict, groups: Mapping[str, type]) -> None:
  """Raises unless a config of any task has the groups of its default config, each with the fields of its dataclass.

  Raises:
    ValueError: names the setting.
  """
  values = config.to_dict()
  check_names("config", values, default.to_dict())
  for name, expected in (("name", str), ("task", str)):
    if not isinstance(values[name], expected):
      raise ValueError(f"config.{name}={values[name]!r} must be of type {expected.__name__}")
  check_seed("config.seed", values["seed"])
  if values["task"] != default.task:
    raise ValueError(f"config.task={values['task']!r} must be {default.task!r} here")
  for name, group in groups.items():
    check_group(f"config.{name}", values[name], group)
  check_source(config)
  if config.data.time_cuts:
    check_cuts(config.data.time_cuts)
  check_mesh(config)


def check_groups_read(config: ConfigDict, groups: Mapping[str, type]) -> None:
  """Raises where a setting was changed that nothing reads, as another one says; see `setting`.

  Raises:
    ValueError: names both settings.
  """
  for name, group in groups.items():
    check_all_read(f"config.{name}", config[name].to_dict(), group)


def check_source(config: ConfigDict) -> None:
  """Raises unless a data source or a prepared folder is named.

  Raises:
    ValueError: neither is.
  """
  if not config.data.source and not config.data.prepared:
    raise ValueError(
      "config.data.source is empty; name a data source (movielens-1m, ...) or a prepared folder in config.data.prepared"
    )


def check_mesh(config: ConfigDict) -> None:
  """Raises ValueError unless the sizes of the mesh are positive, one of them perhaps -1."""
  sizes = config.parallel.to_dict()
  if any(size < 1 and size != -1 for size in sizes.values()) or list(sizes.values()).count(-1) > 1:
    raise ValueError(f"config.parallel={sizes}: sizes must be at least 1, and one of them may be -1 for the rest")


def _check_sequences(config):
  if not 0 < config.data.train_share <= 1:
    raise ValueError(f"{config.data.train_share=} must be above 0 and at most 1")
  if config.data.row_length and config.data.row_length < config.data.max_length:
    raise ValueError(f"config.data.row_length={config.data.row_length} must be 0 or at least {config.data.max_length=}")
  if config.data.only_domain and config.data.domains_apart:
    raise ValueError(f"{config.data.only_domain=} leaves one domain: set config.data.domains_apart=False")
  alone = [name for name in ("only_domain", "domains_apart") if config.data[name]]
  if alone and config.multi_objective.objectives:
    raise ValueError(
      f"config.data.{alone[0]}={config.data[alone[0]]!r} leaves no attention across domains to weigh; empty"
      " config.multi_objective.objectives"
    )


def _check_objectives(config):
  if unknown := sorted(set(config.multi_objective.objectives) - set(OBJECTIVES)):
    raise ValueError(f"config.multi_objective.objectives={unknown} are unknown; use some of {OBJECTIVES}, or none")
  margin, score = config.multi_objective.margin, config.multi_objective.score
  if margin and score != "excess":
    raise ValueError(f"config.multi_objective.{margin=} has no meaning for {score=}; set score=excess or margin=0")
  reweight_every = config.multi_objective.reweight_every
  if reweight_every > 1 and (not config.multi_objective.objectives or config.train.accumulate > 1):
    raise ValueError(
      f"config.multi_objective.{reweight_every=} needs config.multi_objective.objectives and config.train.accumulate=1"
    )


def _metric_names(settings):
  names = (*(f"{name}@{k}" for name in ("HR", "NDCG") for k in settings.ks), "MRR")
  within = tuple(WITHIN_DOMAIN + name for name in names if settings.protocol == "both")
  return names + within + tuple(SAMPLED + name for name in names if settings.sampled_negatives)
