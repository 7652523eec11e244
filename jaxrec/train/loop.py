"""The training loop: phases, validation, checkpoints, resume and logs of any task. It reads from top to bottom.

Phase "select" trains on the training events and chooses the epoch on the validation events. With `config.train.retrain`
phase "final" then trains a new model, same seed, on training and validation events for the chosen number of epochs, and
evaluates the test events once. Its learning rate at each epoch is that of the first phase: schedules run over
`config.train.num_epochs` even where training stops earlier.

Files in the workdir: config.json, data.json (the fingerprint of the data), metrics.jsonl (the same, value for value,
however often the run was killed), timing.jsonl, summary.json, changes.json, curves.png, <phase>/checkpoints,
<phase>/result.json, <phase>/started_from.json, model_card.md, tensorboard/<phase>, profile, and .lock: one process at a
time trains in a workdir.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from jaxrec import parallel
from jaxrec.train import changes, curves, writers
from jaxrec.train.boards import check_boards
from jaxrec.train.checkpoint import Checkpoints, check_path
from jaxrec.train.config import check_groups_read
from jaxrec.train.earlier_run import first_state, started_from
from jaxrec.train.finite_state import FiniteCheck
from jaxrec.train.identity import CONFIG_FILE, RunIdentity, check_has_config, different_settings, has_begun, read_config
from jaxrec.train.lock import FolderLock
from jaxrec.train.log import RunLog
from jaxrec.train.model_card import write_model_card
from jaxrec.train.monitor import EarlyStopping, Interrupted, StopSignal
from jaxrec.train.step import check_compiler_options
from jaxrec.train.task import FINAL, SELECT, Plan, Task, build_task, task_class

VALIDATION, TEST = 1, 2


def run(
  config: ConfigDict,
  workdir: str,
  *,
  profile: bool = False,
  resume_with_changes: bool = False,
  make_task: Callable[[ConfigDict], Task] = build_task,
) -> dict[str, Any]:
  """Trains as the config says and returns the summary; only returns it where the workdir holds a finished run.

  Args:
    config: settings of the task; see `jaxrec.train.config` and `jaxrec.train.click_task`.
    workdir: folder of the run; an unfinished run in it is resumed and ends at the same numbers.
    profile: whether to trace a few steps.
    resume_with_changes: whether an unfinished run may resume with other settings of optimizer and training, and without
      records of metrics.jsonl that were lost. Both are recorded, in changes.json and in the summary.
    make_task: config to task; another one trains a task of your own.

  Raises:
    ValueError: the config is wrong, has a setting that nothing reads, or a board whose package is not installed; the
      workdir is in use by another process, or holds a run of another config or of other data.
    OSError: a file cannot be written.
    LostRecordsError: records of metrics.jsonl that the last checkpoint depends on are missing.
    NonFiniteLossError: a loss was NaN; the last checkpoint is kept.
    NonFiniteStateError: parameters or optimizer state became NaN or infinite; the last checkpoint is kept.
    TableError: a step exceeded the exchange buffer of the item table; the last checkpoint is kept.
    Interrupted: a signal asked to stop; what was trained is saved.
  """
  if make_task is build_task:
    _check_config(config, workdir)
  check_boards(config.train.boards)
  check_compiler_options(config.train.compiler_options.to_dict())
  check_path("workdir", workdir)
  os.makedirs(workdir, exist_ok=True)
  with FolderLock(workdir), StopSignal() as stop:
    path = os.path.join(workdir, "summary.json")
    is_finished = os.path.exists(path) and _is_finished(config, workdir)
    changed = check_same_run(config, workdir, resume_with_changes and not is_finished)
    task = make_task(config)
    stop.check()
    identity = RunIdentity(workdir, config, task.fingerprint())
    identity.check_data()
    if is_finished:
      return writers.read_json(path, dict)
    if changed:
      changes.announce(workdir, changed)
    writers.write_json(os.path.join(workdir, CONFIG_FILE), config.to_dict())
    identity.save_data()
    summary = {"name": config.name, "seed": config.seed}
    for phase in _phases(config):
      num_epochs = config.train.num_epochs if phase == SELECT else summary[SELECT]["best_epoch"]
      train = functools.partial(run_phase, task, workdir, phase, num_epochs, stop, profile, resume_with_changes)
      summary[phase] = _once(workdir, phase, train)
    summary |= {"changes": changes.read(workdir)} if changes.read(workdir) else {}
    timing = writers.read_records(os.path.join(workdir, "timing.jsonl"))
    summary |= {"seconds": sum(record["seconds"] for record in timing), "machine": parallel.machine()}
    writers.write_json(path, summary)
    curves.plot(workdir, config.eval.metric)
    write_model_card(workdir)
    return summary


def _check_config(config, workdir):
  task = task_class(config.task)
  task.check_config(config)
  if not has_begun(workdir):  # Runs that have begun go on.
    check_groups_read(config, getattr(task, "groups", {}))


def run_phase(
  task: Task,
  workdir: str,
  phase: str,
  num_epochs: int,
  stop: StopSignal,
  profile: bool = False,
  accept_losses: bool = False,
) -> dict[str, Any]:
  """Trains one model, or resumes it, and returns its result.

  Args:
    task: what is trained.
    workdir: of the run.
    phase: "select" validates, stops early and keeps the best step; "final" trains on the validation events too.
    num_epochs: at most so many.
    stop: requests to stop.
    profile: whether to trace a few steps.
    accept_losses: whether to resume where records of metrics.jsonl were lost.
  """
  config, mesh = task.config, parallel.make_mesh(task.config.parallel.to_dict())
  identity = RunIdentity(workdir, config, task.fingerprint())
  plan = task.plan(phase, num_epochs, mesh)
  times, batches = plan.timetable, plan.iterator()
  total_steps = config.train.num_epochs * times.steps_per_epoch  # Of the schedule, also where this phase is shorter.
  state = task.init_state(mesh, total_steps)
  train_step = task.train_step(mesh, state, total_steps)
  log = RunLog(workdir, phase, plan, config, profile=profile)
  log.describe(state, mesh)

  with Checkpoints(os.path.join(workdir, phase, "checkpoints"), task.item_table, identity) as checkpoints, log:
    # Resume.
    stopping = EarlyStopping(config.eval.metric, config.train.patience)
    state, position = checkpoints.restore(state) or (first_state(task, workdir, phase, state), None)
    first_step = int(state.step) + 1
    _set_position(position, plan, first_step - 1, batches, stopping)
    log.start(first_step, position and position["log"], accept_losses)
    finite = FiniteCheck(first_step - 1)

    # Train.
    with stop.deferred():
      for step in range(first_step, times.num_steps + 1):
        if stopping.should_stop:
          break
        batch = next(batches)
        log.before_step()
        state, scalars = train_step(state, parallel.shard_batch(batch, mesh))
        log.after_step(step, batch, scalars)
        if times.evaluates(step):
          log.drain(step)  # A loss that is not finite raises here, before the state is evaluated or saved.
          state = task.before_evaluation(state, plan, step, mesh)
          finite.check(step, state)
          if phase == SELECT:
            values = log.evaluation("validation", step, task.evaluate(state, VALIDATION, mesh))
            stopping.update(times.epoch(step), step, values)
        must_stop = stop.requested(step)
        if times.saves(step) or must_stop:
          log.drain(step)
          finite.check(step, state)
          position = {"batches": batches.get_state(), "log": log.get_state(), "stopping": stopping.get_state()}
          checkpoints.save(state, position | dict(plan.identity), stopping.best_step)
        if must_stop:
          raise Interrupted(stop.number, f"stopped after step {step} of {times.num_steps}; the same command resumes")

    step = int(state.step)
    result = {"epochs": times.epoch(step), "steps": step}
    result |= _test(task, phase, state, stopping, checkpoints, log, mesh)
    return result | started_from(workdir, phase) | {"records": log.saved_records()}


def _test(task, phase, state, stopping, checkpoints, log, mesh):
  """Evaluates the test events once: with the best parameters of "select", with the last ones of "final"."""
  if phase == FINAL:
    return {"test": log.evaluation("test", int(state.step), task.evaluate(state, TEST, mesh))}
  best = checkpoints.state_of(stopping.best_step, state)
  test = log.evaluation("test", stopping.best_step, task.evaluate(best, TEST, mesh))
  return stopping.best() | {"test_of_selected": test}


def check_same_run(config: ConfigDict, workdir: str, resume_with_changes: bool = False) -> list[str]:
  """Raises where the workdir holds a run of another config: its checkpoints and metrics must not be mixed with ours.

  A run that failed before its first record has none: its config may be mended.

  Args:
    config: of this start.
    workdir: of the run.
    resume_with_changes: whether settings of optimizer and training may differ.

  Returns:
    A line for each of those that do.

  Raises:
    ValueError: names the settings that differ.
  """
  check_has_config(workdir)
  path = os.path.join(workdir, CONFIG_FILE)
  if not os.path.exists(path) or not has_begun(workdir):
    return []
  lines = different_settings(read_config(path), config)
  changed = [line for line in lines if line.split()[0] in changes.ON_REQUEST]
  wrong = [line for line in lines if line not in changed]
  if wrong or (changed and not resume_with_changes):
    names = [line.split()[0] for line in changed]
    hint = f" {', '.join(names)} may change in an unfinished run: --resume_with_changes." if names and not wrong else ""
    raise ValueError(
      f"{workdir} holds a run of another config: {'; '.join([*wrong, *changed])}. Give another --workdir, or delete"
      f" that one.{hint}"
    )
  return changed


def _phases(config):
  return (SELECT, FINAL) if config.train.retrain else (SELECT,)


def _is_finished(config, workdir):
  return all(os.path.exists(os.path.join(workdir, phase, "result.json")) for phase in _phases(config))


def _once(workdir, phase, train):
  """Returns the result of a phase: that of an earlier start of this run if the phase was finished, else of training."""
  path = os.path.join(workdir, phase, "result.json")
  if os.path.exists(path):
    logging.info("phase %s is done: %s", phase, path)
    result = writers.read_json(path, dict)
  else:
    result = train()
    writers.write_json(path, result)
  return {name: value for name, value in result.items() if name != "records"}


def _set_position(position, plan: Plan, step, batches, stopping):
  """Goes to a position in the data; none at the start of a phase.

  Raises where a run resumes with batches of another size: its position in the data would mean something else.
  """
  if position is None:
    return
  if step > plan.timetable.num_steps:
    raise ValueError(
      f"the run has made {step} steps, and config.train.num_epochs={plan.timetable.num_epochs} ends after"
      f" {plan.timetable.num_steps}; set it to {plan.timetable.epoch(step)} or more"
    )
  for name, value in plan.identity.items():
    before = position.get(name, value)
    if before != value:
      hint = f"(another number of devices?); set config.data.{name}={before} to resume it"
      if name == "shards":
        hint = "prepared shards of the data; resume it with data in as many shards"
      raise ValueError(f"the run began with {name}={before}, now it is {value} {hint}")
  batches.set_state(position["batches"])
  stopping.set_state(position["stopping"])
