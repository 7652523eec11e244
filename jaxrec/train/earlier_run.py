"""Beginning a run with what an earlier one learned, on the same data or on data that extend those of the earlier one.

`config.train.start_from` names its workdir. Parameters and, with `start_optimizer="keep"`, optimizer state are taken
over; rows of new items are initialised as the model initialises them, with an optimizer state of zero. Steps, epochs
and the schedule of the learning rate begin anew. A "new" optimizer is for branches of one run that have other
objectives or optimizers.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from ml_collections import ConfigDict

from jaxrec.data.fingerprint import Fingerprint, missing_from
from jaxrec.data.prepared import PreparedData
from jaxrec.train import checkpoint, saved_step, writers
from jaxrec.train.identity import DATA_FILE, RunIdentity, different_settings
from jaxrec.train.item_feature_data import with_features_of
from jaxrec.train.item_growth import ItemGrowth
from jaxrec.train.item_table import InParams
from jaxrec.train.runs import load_config, load_run
from jaxrec.train.state import TrainState
from jaxrec.train.task import SELECT, Task

STARTED_FILE = "started_from.json"
_OF_MODEL = "config.task ", "config.model.", "config.data.features "


def first_state(task: Task, workdir: str, phase: str, fresh: TrainState) -> TrainState:
  """Returns the state that a phase begins with: `fresh`, or that of the run in `config.train.start_from`.

  Phase "final" begins with the parameters of the earlier "final" where there is one, otherwise a phase begins with the
  best ones of "select": parameters that were trained on validation events of before choose no epoch. What was taken is
  written to <workdir>/<phase>/started_from.json.

  Args:
    task: what is trained.
    workdir: of this run.
    phase: "select" or "final".
    fresh: before the first step.

  Raises:
    FileNotFoundError: there is no run, or it has no checkpoint.
    DamagedCheckpointError: its checkpoint is damaged.
    ValueError: it is of another task or model, or of data that these ones do not extend.
  """
  source = task.config.train.get("start_from", "").replace("{seed}", str(task.config.seed))
  if not source:
    return fresh
  checkpoint.check_path("config.train.start_from", source)
  before, data = load_config(source), writers.read_json(os.path.join(source, DATA_FILE), dict)
  _check_settings(before, task, source)
  _check_data(data, task, source)
  growth = ItemGrowth(_num_items(before, data), _num_items(task.config, task.fingerprint()))
  if growth.now < growth.before:
    raise ValueError(f"{source} has a model of {growth.before:,} items; this one has fewer, {growth.now:,}")
  folder = _folder(source, phase)
  if task.config.train.start_optimizer == "new":
    state, step = _with_parameters(source, os.path.basename(os.path.dirname(folder)), fresh, growth)
    return _started(state, step, folder, growth, workdir, phase)
  identity = RunIdentity(source, before, data)
  state, step = checkpoint.load_state(folder, fresh, "best", task.item_table, identity, growth)
  state = with_features_of(state, fresh)
  return _at_step_zero(_started(state, step, folder, growth, workdir, phase))


def _started(state: TrainState, step: int, folder: str, growth: ItemGrowth, workdir: str, phase: str) -> TrainState:
  """Says and writes what was taken."""
  added = growth.now - growth.before
  logging.info("starting from step %d of %s: %d items are known, %d new", step, folder, growth.before, added)
  started = {"checkpoint": f"{folder}/{step}", "known_items": growth.before, "new_items": added}
  writers.write_json(os.path.join(workdir, phase, STARTED_FILE), started)
  return state


def _with_parameters(source: str, phase: str, fresh: TrainState, growth: ItemGrowth) -> tuple[TrainState, int]:
  """Returns `fresh` with the best parameters of a run, as parameters and as their average, and the step of these."""
  if fresh.tables is not None:
    raise ValueError(
      "config.train.start_optimizer='new' needs the item table in params: set config.tables.placement='parameter'"
    )
  if growth.now > growth.before:
    raise ValueError(
      f"config.train.start_optimizer='new' needs the items of {source}; the data have {growth.now - growth.before:,}"
      " more: use 'keep'"
    )
  run = load_run(source, phase=phase)
  params = jax.tree.map(lambda new, old: jax.device_put(np.asarray(new), old.sharding), run.params, fresh.params)
  average = None if fresh.average is None else jax.tree.map(jnp.copy, params)
  return with_features_of(fresh.replace(params=params, average=average), fresh), run.step


def started_from(workdir: str, phase: str) -> dict[str, Any]:
  """Returns {"started_from": what `first_state` wrote} for the result of a phase; {} where it began from nothing."""
  path = os.path.join(workdir, phase, STARTED_FILE)
  return {"started_from": writers.read_json(path, dict)} if os.path.exists(path) else {}


def _check_settings(before: ConfigDict, task: Task, source: str) -> None:
  config = task.config
  lines = different_settings(before.to_dict(), config)
  if lines := [line for line in lines if line.startswith(_OF_MODEL)]:
    raise ValueError(
      f"config.train.start_from={source!r} is a run of another model: {'; '.join(lines)}. Set them as they were"
    )
  scheduled = config.optimizer.schedule != "constant" or config.optimizer.warmup_steps
  if scheduled and not isinstance(task.item_table, InParams):
    raise ValueError(
      "config.train.start_from: the optimizer of a sharded item table counts the steps of both runs, so its schedule"
      " cannot begin anew; set config.optimizer.schedule='constant' and config.optimizer.warmup_steps=0, or"
      " config.tables.placement='parameter'"
    )


def _check_data(before: Fingerprint, task: Task, source: str) -> None:
  data = getattr(task, "data", None)
  if not isinstance(data, PreparedData):
    raise ValueError("config.train.start_from needs a task with prepared data, whose items can be compared")
  if missing := missing_from(data, before):
    raise ValueError(
      f"config.train.start_from={source!r} was trained on data that these ones do not extend: their first"
      f" {' and '.join(missing)} are others. Prepare the new events with --extends=FOLDER_OF_THE_EARLIER_DATA"
    )


def _num_items(config: ConfigDict, data: Fingerprint) -> int:
  """Returns the items of a model: those of the data, and those to come."""
  return config.get("tables", {}).get("num_items", 0) or data["counts"]["items"]


def _folder(source: str, phase: str) -> str:
  folder = os.path.join(source, phase, "checkpoints")
  if phase != SELECT and not (os.path.isdir(folder) and saved_step.steps_in(folder)):
    folder = os.path.join(source, SELECT, "checkpoints")
  return folder


def _at_step_zero(state: TrainState) -> TrainState:
  """Returns the state before the first step of a run, whose schedules begin; moments keep their count."""

  def is_schedule(x):
    return isinstance(x, optax.ScaleByScheduleState)

  def anew(x):
    return x._replace(count=x.count - x.count) if is_schedule(x) else x

  opt_state = jax.tree.map(anew, state.opt_state, is_leaf=is_schedule)
  return state.replace(step=state.step - state.step, opt_state=opt_state)
