"""Trains a model from a config; the same command goes on where an interrupted run stopped.

    python -m experiments.train --config=experiments/configs/ml1m_hstu.py --workdir=runs/ml1m_hstu
    --config.train.batch_size=256

Phase "select" trains on the training events and chooses the epoch on the validation events. With `config.train.retrain`
phase "final" then trains a new model, same seed, on training and validation events for the chosen number of epochs, and
scores the test events once. Its
learning rate at each epoch is that of the first phase: schedules run over `config.train.num_epochs` even where training
  stops earlier.

Files in the workdir: config.json, metrics.jsonl (the same, value for value, however often the run was killed),
timing.jsonl, summary.json, curves.png, <phase>/checkpoints, tensorboard/<phase>, profile.

Exit codes: 0 done; 1 error; 143 stopped by SIGTERM and 130 by Ctrl-C, after saving a checkpoint: run the same command
again to go on.

On GPUs two runs are the same value for value only under XLA_FLAGS=--xla_gpu_deterministic_ops=true.

On a cluster start the same command on every host, with --distributed (TPU pods, Slurm and others that JAX knows), or
with --coordinator_address, --num_processes and --process_id; the workdir must be a file system that all hosts share.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from jaxrec import parallel
from jaxrec.data.batches import training
from jaxrec.evaluation.model import evaluate_state
from jaxrec.train import curves, sequence_task, writers
from jaxrec.train.checkpoint import Checkpoints
from jaxrec.train.config import check_config, config_differences, saved_config
from jaxrec.train.log import HideOrbaxDetails, RunLog
from jaxrec.train.monitor import EarlyStopping, Interrupted, NonFiniteLossError, StopSignal, TableError
from jaxrec.train.sequence_task import Experiment
from jaxrec.train.timetable import Timetable

FLAGS = flags.FLAGS

# Settings that may change when a run goes on: they don't touch what has been done.
_MAY_CHANGE = (
  "config.name", "config.train.checkpoint_every_steps", "config.data.raw", "config.data.prepared",
  "config.data.rows_per_batch",  # Checked where a checkpoint is restored.
  "config.parallel.data", "config.parallel.fsdp", "config.parallel.model",
)  # fmt: skip


def main(argv: list[str]) -> None:
  """Runs what the flags say."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; settings are given as --config.group.key=value")
  logging.get_absl_handler().addFilter(HideOrbaxDetails())
  try:
    parallel.initialize(
      FLAGS.coordinator_address,
      FLAGS.num_processes,
      FLAGS.process_id,
      distributed=FLAGS.distributed,
      heartbeat_timeout_seconds=FLAGS.heartbeat_timeout_seconds,
    )
    summary = run(FLAGS.config, FLAGS.workdir, profile=FLAGS.profile)
  except Interrupted as stop:
    logging.warning("%s", stop)
    sys.exit(stop.exit_code)
  except (ValueError, NonFiniteLossError, TableError) as error:
    parallel.abort(f"{type(error).__name__}: {error}")
  except Exception:
    if not jax.distributed.is_initialized():
      raise
    parallel.abort(traceback.format_exc())
  print(json.dumps(summary, indent=2))


def run(
  config: ConfigDict,
  workdir: str,
  *,
  profile: bool = False,
  make_experiment: Callable[..., Experiment] = Experiment.from_config,
) -> dict[str, Any]:
  """Trains as the config says and returns the summary; does nothing but that where the workdir holds a finished run.

  Args:
    config: see `jaxrec.train.config`.
    workdir: see the module.
    profile: whether to trace a few steps.
    make_experiment: config to data, model and objective; another one to train your own.

  Raises:
    ValueError: the config is wrong, or the workdir holds a run of another config.
    NonFiniteLossError: a loss was NaN; the last checkpoint is kept.
    TableError: rows of the item table found no room in a step; the last checkpoint is kept.
    Interrupted: a signal asked to stop; a checkpoint is saved.
  """
  check_config(config)
  os.makedirs(workdir, exist_ok=True)
  _check_same_run(config, workdir)
  pieces = make_experiment(config)
  writers.write_json(os.path.join(workdir, "config.json"), config.to_dict())
  summary = {"name": config.name, "seed": config.seed}
  for phase in ("select", "final") if config.train.retrain else ("select",):
    num_epochs = config.train.num_epochs if phase == "select" else summary["select"]["best_epoch"]
    summary[phase] = _once(workdir, phase, functools.partial(run_phase, pieces, workdir, phase, num_epochs, profile))
  summary["seconds"] = sum(record["seconds"] for record in writers.read_records(os.path.join(workdir, "timing.jsonl")))
  writers.write_json(os.path.join(workdir, "summary.json"), summary)
  curves.plot(workdir, config.eval.metric)
  return summary


def run_phase(pieces: Experiment, workdir: str, phase: str, num_epochs: int, profile: bool = False) -> dict[str, Any]:
  """Trains one model, or goes on with it, and returns its result: the loop, from top to bottom.

  Args:
    pieces: config, data, model and objective.
    workdir: of the run.
    phase: "select" validates, stops early and keeps the best epoch; "final" trains on the validation events too.
    num_epochs: at most so many.
    profile: whether to trace a few steps.
  """
  # Data.
  config, data = pieces.config, pieces.data
  mesh = parallel.make_mesh(config.parallel.to_dict())
  options = sequence_task.training_options(config, data, last_split=int(phase == "final"), mesh=mesh)
  plan = training.TrainingBatches(data, options)
  batches = iter(training.training_batches(data, options))
  times = Timetable.from_config(config.train, plan.batches_per_epoch, num_epochs)

  # Model and optimizer. The learning rate falls over config.train.num_epochs, whether or not this phase is as long.
  schedule_steps = config.train.num_epochs * times.steps_per_epoch
  tables = sequence_task.item_tables(pieces, schedule_steps, mesh)
  state = sequence_task.initial_state(pieces, schedule_steps, mesh, tables)
  train_step = sequence_task.train_step(pieces, schedule_steps, mesh, state, tables)
  score = functools.partial(evaluate_state, pieces.model, tables=tables, data=data, config=config, mesh=mesh)
  log = RunLog(workdir, phase, times, config, users_of_step=lambda step: plan.users(step - 1), profile=profile)
  log.describe(state, plan.users_per_epoch, options, mesh)

  with Checkpoints(os.path.join(workdir, phase, "checkpoints"), tables) as checkpoints, log, StopSignal() as stop:
    # Where the run stopped, if it did.
    stopping = EarlyStopping(config.eval.metric, config.train.patience)
    state, position = checkpoints.restore(state) or (state, None)
    first_step = int(state.step) + 1
    log.start(first_step, position and position["log"])
    if position is not None:
      sequence_task.check_rows(position["rows_per_batch"], options)
      batches.set_state(position["batches"])
      stopping.set_state(position["stopping"])

    for step in range(first_step, times.num_steps + 1):
      if stopping.should_stop:
        break
      batch = next(batches)
      log.before_step()
      state, scalars = train_step(state, parallel.shard_batch(batch, mesh))
      log.after_step(step, batch, scalars)

      if times.evaluates(step) and phase == "select":
        log.drain(step)
        values = log.evaluation("validation", step, score(state, split=1))
        stopping.update(times.epoch(step), step, values)
      must_stop = stop.requested(step)
      if times.saves(step) or must_stop:
        log.drain(step)  # A loss that is not finite raises here, before the state is saved.
        position = {"batches": batches.get_state(), "log": log.get_state(), "stopping": stopping.get_state()}
        position["rows_per_batch"] = options.rows_per_batch
        checkpoints.save(state, position, stopping.best_step)
      if must_stop:
        raise Interrupted(stop.number, f"stopped after step {step} of {times.num_steps}; the same command goes on")

    # The test events are scored once: by the best parameters of "select", by the last ones of "final".
    step = int(state.step)
    result = {"epochs": times.epoch(step), "steps": step}
    if phase == "final":
      return result | {"test": log.evaluation("test", step, score(state, split=2))}
    best = checkpoints.state_of(stopping.best_step, state)
    test = log.evaluation("test", stopping.best_step, score(best, split=2))
    return result | stopping.best() | {"test_of_selected": test}


def _once(workdir, phase, train):
  """Returns the result of a phase: that of an earlier start of this run if the phase was finished, else of training."""
  path = os.path.join(workdir, phase, "result.json")
  if os.path.exists(path):
    logging.info("phase %s is done: %s", phase, path)
    return writers.read_json(path)
  result = train()
  writers.write_json(path, result)
  return result


def _check_same_run(config, workdir):
  """Raises where the workdir holds a run of another config: its checkpoints and metrics must not be mixed with ours."""
  path = os.path.join(workdir, "config.json")
  if os.path.exists(path):
    before = json.loads(json.dumps(saved_config(writers.read_json(path)).to_dict()))
    lines = config_differences(before, json.loads(json.dumps(config.to_dict())))
    wrong = [line for line in lines if line.split()[0] not in _MAY_CHANGE]
    if wrong:
      raise ValueError(
        f"{workdir} holds a run of another config: {'; '.join(wrong)}. Give another --workdir, or delete that one."
      )


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program; not on import, as other programs have flags of the same names."""
  config_help = "Experiment config; --config.group.key=value changes a setting."
  config_flags.DEFINE_config_file("config", None, config_help, flag_values=values)
  texts = {
    "workdir": "Folder of the run; an unfinished run in it goes on.",
    "coordinator_address": "host:port of the first of several hosts, where no cluster manager tells.",
  }
  for name, text in texts.items():
    flags.DEFINE_string(name, None, text, flag_values=values)
  flags.DEFINE_integer("num_processes", None, "With --coordinator_address: processes in all.", flag_values=values)
  flags.DEFINE_integer(
    "process_id", None, "With --coordinator_address: number of this one, from 0.", flag_values=values
  )
  flags.DEFINE_bool(
    "distributed", False, "This is one host of several; the cluster tells JAX which.", flag_values=values
  )
  flags.DEFINE_integer(
    "heartbeat_timeout_seconds", 100, "How long a host may be silent before the others end themselves.",
    lower_bound=1, flag_values=values,
  )  # fmt: skip
  flags.DEFINE_bool("profile", False, "Write a trace of a few steps to <workdir>/profile.", flag_values=values)
  flags.mark_flags_as_required(["config", "workdir"], flag_values=values)


def parse_flags(argv: list[str]) -> list[str]:
  """Parses as absl does, but with a sentence instead of a traceback for an override that the config doesn't have."""
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError) as error:
    text = " ".join(str(error).replace("\\n", " ").replace("\\'", "'").split())
    sys.exit(f"FATAL Flags parsing error: --config has no such setting: {text}")


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=parse_flags)
