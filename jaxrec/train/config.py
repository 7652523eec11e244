"""The tree of settings that an experiment is made of, its defaults, and the check that a config fits it.

A config file starts from `default_config()` and changes what it wants. `config.model` and `config.objective` take
further keys, which the model and the objective check themselves; `config.data.options` goes to the data source.
"""

from __future__ import annotations

import difflib
import math
from typing import Any

from ml_collections import ConfigDict

from jaxrec.embedding.rounding import ROUNDINGS
from jaxrec.evaluation.protocols import REPORTED, SAMPLED, WITHIN_DOMAIN
from jaxrec.objectives.autocdsr import OWN

SCHEDULES = ("constant", "linear", "cosine", "warmup_cosine")
DTYPES = ("float32", "bfloat16")
TRAIN_USERS = ("all", "without_held_out")
OBJECTIVES = ("cross_domain_attention",)
_AT_LEAST_ONE = (
  "data.max_length", "train.batch_size", "train.num_epochs", "train.accumulate", "train.evaluate_every_epochs",
  "train.log_every_steps", "eval.batch_size", "multi_objective.solve_every",
)  # fmt: skip
_NOT_NEGATIVE = (
  "data.row_length", "data.rows_per_batch", "optimizer.learning_rate", "optimizer.weight_decay",
  "optimizer.warmup_steps", "optimizer.clip_norm", "train.patience", "train.checkpoint_every_steps",
  "eval.sampled_negatives", "tables.max_parameter_bytes", "tables.num_items", "tables.capacity",
)  # fmt: skip
_FRACTIONS = ("optimizer.b1", "optimizer.b2", "train.average")
_OPEN = ("data.options", "model", "objective", "multi_objective.weighting")  # Checked by whoever reads them.


def default_config() -> ConfigDict:
  """Returns the settings that every experiment starts from: MovieLens-1M and a small HSTU, as published.

  Zero or the empty string mean "off" or "derive it" where the comment says so.
  """
  return ConfigDict({
    "name": "",  # For tables of results.
    "seed": 42,  # Of parameters, order of users, dropout, negatives.
    "data": {
      "source": "",  # A data source, for example movielens-1m; not read where `prepared` exists.
      "raw": "",  # Raw files; "" downloads them, or takes $JAXREC_DATA/<source>.
      "prepared": "",  # Folder of prepared columns; "" keeps them in a cache.
      "options": {},  # Of the source: filters, split.
      "only_domain": "",  # Name of a domain: train and evaluate on its events alone; see jaxrec.data.single_domain.
      "train_users": "all",  # without_held_out: only users none of whose events is held out from this phase.
      "task": "next_item",  # or masked_item.
      "max_length": 200,
      "row_length": 0,  # 0: max_length.
      "rows_per_batch": 0,  # 0: as many as hold train.batch_size users.
      "packing": True,
      "request_time": "target",
      "mask_probability": 0.15,  # The masks: masked_item only.
      "mask_last_probability": 0.0,
      "reveal_domain": False,
    },
    "model": {"name": "hstu"}, "objective": {"name": "sampled_softmax"},
    "multi_objective": {
      "objectives": (),  # Beside config.objective: ("cross_domain_attention",) is AutoCDSR.
      "own_domain": "query",  # Which attention should not leave: of the event that asks, or of the "target".
      "solve_every": 1,  # Steps from one solution for the weights to the next; more is faster.
      "weighting": {"name": "pareto"},  # Of their gradients; see jaxrec.multi_objective.weighting.
    },
    "optimizer": {
      "learning_rate": 1e-3,
      "b1": 0.9,
      "b2": 0.98,
      "weight_decay": 0.0,
      "schedule": "constant",
      "warmup_steps": 0,
      "clip_norm": 0.0,  # Of the whole gradient; 0: none.
    },
    "train": {
      "batch_size": 128,  # Users in a step, all hosts together.
      "num_epochs": 101,
      "accumulate": 1,  # Parts into which a step's rows are cut to need less memory; results stay the same.
      "dtype": "float32",  # Of activations; parameters and optimizer stay float32.
      "evaluate_every_epochs": 1,
      "patience": 0,  # Validations without a new best before stopping; 0: never stop early.
      "checkpoint_every_steps": 0,  # In addition to each validation.
      "log_every_steps": 20,
      "retrain": False,  # Afterwards train anew on training and validation events for the chosen number of epochs.
      "average": 0.0,  # Decay of a moving average of the parameters, to be evaluated in their place; 0: off.
    },
    **_devices(),
    "eval": {
      "ks": (1, 10, 50, 200),
      "metric": "NDCG@10",  # Chooses the epoch.
      "exclude_seen": True,
      "batch_size": 256,
      "protocol": "full",  # Candidates: all items, or full_per_domain: those of the target's domain; or both.
      "sampled_negatives": 0,  # Adds sampled/...: ranks among so many random items. 0: none.
    },
  })  # fmt: skip


def _devices():
  """Settings of what is spread over devices, and how."""
  return {
    "tables": {  # Where the item table lies; see jaxrec.embedding.
      "placement": "auto",  # parameter: on each device; sharded: by row, and only rows that were looked up change.
      "max_parameter_bytes": 2**30,  # auto: up to this size, with its optimizer state, it is a parameter.
      "num_items": 0,  # Room for items that the data don't have yet; 0: none.
      "optimizer": "adamw",  # Of a sharded table: adamw, adagrad, sgd; its settings are those of config.optimizer.
      "second_moment": "row",  # Of adamw: one a row, or one an element.
      "moment_dtype": "float32",
      "dtype": "float32",  # Of the rows.
      "rounding": "nearest",  # Of updates of bfloat16 rows: nearest, stochastic, or float32, which loses nothing.
      "capacity": 0,  # Distinct rows that a device may ask of each other one in a step; 0: derived.
    },
    "parallel": {"data": -1, "fsdp": 1, "model": 1},  # Devices along each axis of the mesh; -1: all that are left.
  }


def check_config(config: ConfigDict) -> None:
  """Raises unless the config has exactly the keys of `default_config()`, with values of their types that fit together.

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
  check_keys(config.to_dict(), default_config().to_dict(), "config")
  _check_choices(config)
  _check_ranges(config)
  if not config.data.source and not config.data.prepared:
    raise ValueError(
      "config.data.source is empty; name a data source (movielens-1m, ...) or a prepared folder in config.data.prepared"
    )
  if config.data.row_length and config.data.row_length < config.data.max_length:
    raise ValueError(f"config.data.row_length={config.data.row_length} must be 0 or at least {config.data.max_length=}")
  if config.eval.metric not in _metric_names(config.eval):
    raise ValueError(
      f"{config.eval.metric=} is not computed; use one of {_metric_names(config.eval)} or extend {config.eval.ks=}"
    )


def saved_config(saved: dict[str, Any]) -> ConfigDict:
  """Returns the config of a saved run, with the defaults of settings that came later.

  >>> saved_config({"seed": 7}).train.batch_size
  128
  """
  return ConfigDict(_with_defaults(saved, default_config().to_dict(), ""))


def _with_defaults(saved, defaults, name):
  """Open groups are taken as they were saved: their defaults belong to another model or objective."""
  if name in _OPEN or not isinstance(saved, dict):
    return saved
  prefix = name and f"{name}."
  return defaults | {key: _with_defaults(value, defaults.get(key, {}), prefix + key) for key, value in saved.items()}


def config_differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "config") -> list[str]:
  """Returns a line for each setting that differs between two configs given as dicts.

  >>> config_differences({"seed": 1, "a": {"b": 2}}, {"seed": 1, "a": {"b": 3}})
  ['config.a.b was 2, is 3']
  """
  lines = []
  for key in sorted(old.keys() | new.keys()):
    before, after = old.get(key, "not set"), new.get(key, "not set")
    if isinstance(before, dict) and isinstance(after, dict):
      lines += config_differences(before, after, f"{prefix}.{key}")
    elif before != after:
      lines.append(f"{prefix}.{key} was {before!r}, is {after!r}")
  return lines


def check_keys(given: dict[str, Any], expected: dict[str, Any], prefix: str = "config") -> None:
  """Raises unless `given` has the keys of `expected`, with values of their types; open groups may hold anything.

  Raises:
    ValueError: names the key.
  """
  for key in given.keys() - expected.keys():
    near = difflib.get_close_matches(key, list(expected), n=1, cutoff=0.5)
    hint = f"did you mean {prefix}.{near[0]}?" if near else f"there are {', '.join(sorted(expected))}"
    raise ValueError(f"{prefix}.{key} is unknown; {hint}")
  for key, default in expected.items():
    name = f"{prefix}.{key}"
    if key not in given:
      raise ValueError(f"{name} is missing; start from jaxrec.train.config.default_config()")
    _check_type(name, given[key], default)


def _check_type(name, value, default):
  if isinstance(default, dict):
    if not isinstance(value, dict):
      raise ValueError(f"{name}={value!r} must be a group of settings")
    if name.removeprefix("config.") not in _OPEN:
      check_keys(value, default, name)
    return
  wanted = {float: (int, float), tuple: (tuple, list)}.get(type(default), type(default))
  if not isinstance(value, wanted) or (isinstance(value, bool) and not isinstance(default, bool)):
    raise ValueError(f"{name}={value!r} must be of type {type(default).__name__}, for example {default!r}")
  if isinstance(value, float) and not math.isfinite(value):
    raise ValueError(f"{name}={value} must be a finite number")


def _check_choices(config):
  choices = {
    "optimizer.schedule": SCHEDULES,
    "train.dtype": DTYPES,
    "eval.protocol": REPORTED,
    "data.task": ("next_item", "masked_item"),
    "data.train_users": TRAIN_USERS,
    "multi_objective.own_domain": OWN,
    "tables.placement": ("auto", "parameter", "sharded"),
    "tables.optimizer": ("adamw", "adagrad", "sgd"),
    "tables.second_moment": ("row", "element"),
    "tables.moment_dtype": DTYPES,
    "tables.dtype": DTYPES,
    "tables.rounding": ROUNDINGS,
  }
  for name, allowed in choices.items():
    value = _value(config, name)
    if value not in allowed:
      raise ValueError(f"config.{name}={value!r} is unknown; use one of {allowed}")
  if unknown := sorted(set(config.multi_objective.objectives) - set(OBJECTIVES)):
    raise ValueError(f"config.multi_objective.objectives={unknown} are unknown; use some of {OBJECTIVES}, or none")
  solve_every = config.multi_objective.solve_every
  if solve_every > 1 and (not config.multi_objective.objectives or config.train.accumulate > 1):
    raise ValueError(
      f"config.multi_objective.{solve_every=} needs config.multi_objective.objectives and config.train.accumulate=1"
    )
  if config.data.only_domain and config.multi_objective.objectives:
    raise ValueError(
      f"{config.data.only_domain=} leaves no attention across domains to weigh; empty config.multi_objective.objectives"
    )
  for name in ("model.name", "objective.name"):
    if not isinstance(config.get(name.split(".")[0]).get("name"), str):
      raise ValueError(f"config.{name} is missing")


def _check_ranges(config):
  for name in _AT_LEAST_ONE:
    if _value(config, name) < 1:
      raise ValueError(f"config.{name}={_value(config, name)} must be at least 1")
  for name in _NOT_NEGATIVE:
    if _value(config, name) < 0:
      raise ValueError(f"config.{name}={_value(config, name)} must not be negative")
  for name in _FRACTIONS:
    if not 0 <= _value(config, name) < 1:
      raise ValueError(f"config.{name}={_value(config, name)} must be at least 0 and below 1")
  sizes = config.parallel.to_dict()
  if any(size < 1 and size != -1 for size in sizes.values()) or list(sizes.values()).count(-1) > 1:
    raise ValueError(f"config.parallel={sizes}: sizes must be at least 1, and one of them may be -1 for the rest")
  if not config.eval.ks or min(config.eval.ks) < 1:
    raise ValueError(f"{config.eval.ks=} must be list lengths of at least 1")


def _value(config, name):
  group, key = name.split(".")
  return config[group][key]


def _metric_names(settings):
  names = (*(f"{name}@{k}" for name in ("HR", "NDCG") for k in settings.ks), "MRR")
  within = tuple(WITHIN_DOMAIN + name for name in names if settings.protocol == "both")
  return names + within + tuple(SAMPLED + name for name in names if settings.sampled_negatives)
