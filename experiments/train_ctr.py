"""Trains a click-through model from a config; the same command goes on where an interrupted run stopped.

    python -m experiments.train_ctr --config=experiments/configs/ctr_planted.py:dare --workdir=runs/ctr_dare

Trains on the training candidates, keeps the parameters with the best validation, and scores the test candidates once
with them. Files in the workdir: config.json, metrics.jsonl (the same, value for value, however often the run was
killed), timing.jsonl, summary.json, checkpoints. Exit codes as of `experiments.train`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from experiments.train import parse_flags
from jaxrec.data.batches.candidates import TrainingCandidates, training_candidates
from jaxrec.data.prepared import TEST, VALIDATION
from jaxrec.train import click_task, writers
from jaxrec.train.checkpoint import Checkpoints
from jaxrec.train.click_task import ClickThrough
from jaxrec.train.config import config_differences
from jaxrec.train.log import HideOrbaxDetails
from jaxrec.train.monitor import EarlyStopping, Interrupted, LossMonitor, NonFiniteLossError, StopSignal
from jaxrec.train.state import num_parameters
from jaxrec.train.writers import MetricsWriter

FLAGS = flags.FLAGS
PHASE = "train"


def main(argv: list[str]) -> None:
  """Runs what the flags say."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; settings are given as --config.group.key=value")
  logging.get_absl_handler().addFilter(HideOrbaxDetails())
  try:
    summary = run(FLAGS.config, FLAGS.workdir)
  except Interrupted as stop:
    logging.warning("%s", stop)
    sys.exit(stop.exit_code)
  except (ValueError, NonFiniteLossError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
  print(json.dumps(summary, indent=2))


def run(
  config: ConfigDict, workdir: str, *, make_pieces: Callable[..., ClickThrough] = ClickThrough.from_config
) -> dict[str, Any]:
  """Trains as the config says and returns the summary; does nothing but that where the workdir holds a finished run.

  Args:
    config: see `jaxrec.train.click_task`.
    workdir: see the module.
    make_pieces: config to data, examples and model; another one to train your own.

  Raises:
    ValueError: the config is wrong, or the workdir holds a run of another config.
    NonFiniteLossError: a loss was NaN; the last checkpoint is kept.
    Interrupted: a signal asked to stop; a checkpoint is saved.
  """
  click_task.check_config(config)
  os.makedirs(workdir, exist_ok=True)
  _check_same_run(config, workdir)
  path = os.path.join(workdir, "summary.json")
  if not os.path.exists(path):
    pieces = make_pieces(config)
    writers.write_json(os.path.join(workdir, "config.json"), config.to_dict())
    result = train(pieces, workdir)
    seconds = sum(record["seconds"] for record in writers.read_records(os.path.join(workdir, "timing.jsonl")))
    candidates = pieces.examples.counts
    writers.write_json(
      path, {"name": config.name, "seed": config.seed, **result, "seconds": seconds, "candidates": candidates}
    )
  return writers.read_json(path)


def train(pieces: ClickThrough, workdir: str) -> dict[str, Any]:
  """Trains one model, or goes on with it, and returns its result: the loop, from top to bottom."""
  settings = pieces.config.train
  plan = TrainingCandidates(pieces.examples, settings.batch_size, settings.num_epochs, pieces.config.seed)
  batches, num_steps = iter(training_candidates(plan)), len(plan)
  state = click_task.initial_state(pieces)
  train_step, score = click_task.make_train_step(pieces), click_task.make_scorer(pieces)
  renew = click_task.make_statistics(pieces)
  logging.info(
    "%d parameters; %d steps of %d candidates, %d an epoch; %d examples left out of each epoch",
    num_parameters(state.params["params"]), num_steps, settings.batch_size, plan.batches_per_epoch,
    plan.examples_left_out,
  )  # fmt: skip

  with Checkpoints(os.path.join(workdir, "checkpoints")) as checkpoints, StopSignal() as stop:
    stopping = EarlyStopping(pieces.config.eval.metric, settings.patience)
    state, position = checkpoints.restore(state) or (state, None)
    first_step = int(state.step) + 1
    with _Log(workdir, plan, settings.log_every_steps, first_step) as log:
      if position is not None:
        batches.set_state(position["batches"])
        stopping.set_state(position["stopping"])
        log.losses.set_state(position["losses"])

      for step in range(first_step, num_steps + 1):
        if stopping.should_stop:
          break
        state, scalars = train_step(state, next(batches))
        log.step(step, scalars)
        evaluates, must_stop = step % settings.evaluate_every_steps == 0 or step == num_steps, stop.requested(step)
        if evaluates:
          log.drain(step)
          latest = (plan[i] for i in range(max(step - settings.statistics_batches, 0), step))
          state = state.replace(params=renew(state.params, latest))
          stopping.update(plan.epoch(step), step, log.scores("validation", step, score(state.params, VALIDATION)))
        if evaluates or must_stop:
          log.drain(step)  # A loss that is not finite raises here, before the state is saved.
          position = {"batches": batches.get_state(), "losses": log.losses.get_state()}
          checkpoints.save(state, position | {"stopping": stopping.get_state()}, stopping.best_step)
        if must_stop:
          raise Interrupted(stop.number, f"stopped after step {step} of {num_steps}; the same command goes on")

      best = checkpoints.state_of(stopping.best_step, state).evaluated
      test = log.scores("test", stopping.best_step, score(best, TEST))
      return {"steps": int(state.step), **stopping.best(), "test": test}


class _Log:
  """Losses, scores and times to files, progress to the terminal."""

  def __init__(self, workdir, plan, every_steps, first_step):
    self._plan, self._writer = plan, MetricsWriter(workdir, PHASE, first_step - 1)
    self.losses = LossMonitor(every_steps, self._users, self._write_losses)
    quiet = 0.5 if sys.stderr.isatty() else 30  # A log file needs no animation.
    self._bar = tqdm(total=len(plan), initial=first_step - 1, unit="step", dynamic_ncols=True, mininterval=quiet)
    self._start, self._steps, self._is_first = time.perf_counter(), 0, True

  def step(self, step, scalars):
    """Counts a step, which may still be computed."""
    self.losses.push(step, scalars)
    self._steps += 1
    self._bar.set_postfix({"loss": f"{self.losses.last_loss:.4f}"}, refresh=False)
    self._bar.update()
    if self._is_first:  # It was compiled, which would spoil the speeds.
      self.drain(step, "first_step")
      self._is_first = False

  def drain(self, step, kind="train"):
    """Waits for the step and writes the time since the last drain."""
    self.losses.drain()
    if self._steps:
      seconds = self._seconds()
      speed = self._steps * self._plan.batch_size / seconds
      self._writer.write_timing(kind, step, {"seconds": seconds, "examples_per_second": speed})
      self._steps = 0

  def scores(self, kind, step, values):
    """Writes the metrics of a split, and returns them."""
    self._writer.write(kind, step, self._plan.epoch(step), values)
    self._writer.write_timing(kind, step, {"seconds": self._seconds()})
    tqdm.write(f"{kind} at step {step}: " + " ".join(f"{k} {v:.4f}" for k, v in values.items()), file=sys.stderr)
    return values

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._bar.close()
    self._writer.close()

  def _seconds(self):
    """Since the last call."""
    before, self._start = self._start, time.perf_counter()
    return self._start - before

  def _users(self, step):
    return np.unique(self._plan[step - 1].user_id)

  def _write_losses(self, step, means):
    self._writer.write("train", step, self._plan.epoch(step), means)


def _check_same_run(config, workdir):
  """Raises where the workdir holds a run of another config."""
  path = os.path.join(workdir, "config.json")
  if os.path.exists(path):
    now = json.loads(json.dumps(config.to_dict()))
    if lines := config_differences(writers.read_json(path), now):
      raise ValueError(f"{workdir} holds a run of another config: {'; '.join(lines)}. Give another --workdir")


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program; not on import, as other programs have flags of the same names."""
  config_help = "Experiment config; --config.group.key=value changes a setting."
  config_flags.DEFINE_config_file("config", None, config_help, flag_values=values)
  flags.DEFINE_string("workdir", None, "Folder of the run; an unfinished run in it goes on.", flag_values=values)
  flags.mark_flags_as_required(["config", "workdir"], flag_values=values)


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=parse_flags)
