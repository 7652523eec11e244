"""Everything that is written or shown while a phase runs, behind one object."""

from __future__ import annotations

import functools
import os
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from jaxrec.train import changes, writers
from jaxrec.train.boards import open_boards
from jaxrec.train.monitor import LossMonitor
from jaxrec.train.optimizer import make_schedule
from jaxrec.train.progress import Speed, Trace
from jaxrec.train.state import TrainState, num_parameters
from jaxrec.train.task import SELECT, Plan
from jaxrec.train.writers import MetricsWriter


class RunLog:
  """Losses and metrics to files, progress to the terminal; `with` closes it."""

  def __init__(self, workdir: str, phase: str, plan: Plan, config: ConfigDict, *, profile: bool = False):
    """Nothing is written before `start`.

    Args:
      workdir: of the run.
      phase: "select" or "final".
      plan: of the phase.
      config: of the experiment.
      profile: whether to trace a few steps.
    """
    self._workdir, self._phase, self._plan, self._metric = workdir, phase, plan, config.eval.metric
    self._config = config
    self._times = plan.timetable
    self._schedule = make_schedule(config.optimizer, config.train.num_epochs * self._times.steps_per_epoch)
    self._losses = LossMonitor(config.train.log_every_steps, plan.users, self._write_losses)
    self._trace = Trace(os.path.join(workdir, "profile") if profile else None)
    self._writer: MetricsWriter | None = None
    self._speed: Speed | None = None
    self._is_first = True

  def describe(self, state: TrainState, mesh: Mesh) -> None:
    """Logs how large everything is."""
    logging.info(
      "phase %s: %d parameters; %s; at most %d epochs of %d steps; %d %s device(s) %s on %d host(s)",
      self._phase, num_parameters(state.params), self._plan.description, self._times.num_epochs,
      self._times.steps_per_epoch, mesh.size, mesh.devices.flat[0].platform, dict(mesh.shape), jax.process_count(),
    )  # fmt: skip

  def start(self, first_step: int, position: dict[str, Any] | None, accept_losses: bool = False) -> None:
    """Opens the files and drops records of steps that will be done again.

    Args:
      first_step: the one that comes next.
      position: what `get_state` returned, from a checkpoint; None at the beginning.
      accept_losses: whether to resume where earlier records were lost, which is noted in changes.json.

    Raises:
      LostRecordsError: metrics.jsonl is not what it was when the checkpoint was saved.
    """
    step = first_step - 1
    if position is not None:
      logging.info("phase %s resumes after step %d of %d", self._phase, step, self._times.num_steps)
      self._losses.set_state(position)
    changes.record_step(self._workdir, self._phase, step)
    records = _records_at_start(self._workdir, self._phase) if position is None else position.get("records")
    self._writer = self._open_files(step, records, accept_losses)
    self._speed = Speed(self._phase, self._plan, first_step)

  def _open_files(self, step, records, accept_losses):
    boards = functools.partial(open_boards, self._config, self._workdir, self._phase, step)
    try:
      return MetricsWriter(self._workdir, self._phase, step, records, boards)
    except writers.LostRecordsError as error:
      if not accept_losses:
        raise
      logging.warning("%s", error)
      changes.announce(self._workdir, [str(error)])
      changes.record_step(self._workdir, self._phase, step)
      return MetricsWriter(self._workdir, self._phase, step, open_boards=boards)

  def before_step(self) -> None:
    """Call it when the batch has arrived."""
    self._trace.before_step()

  def after_step(self, step: int, batch: Any, scalars: dict[str, Array]) -> None:
    """Counts a step; the scalars of the step before are read, those of this one may still be computed.

    Raises:
      NonFiniteLossError: the step before had a loss or a gradient that is not finite.
    """
    self._losses.push(step, scalars)
    self._trace.after_step(scalars)
    self._speed.add(batch, self._losses.last_loss)
    if self._is_first:  # It was compiled, which would spoil the speeds.
      self._losses.drain()
      self._speed.write(self._writer, "first_step", step)
      self._is_first = False

  def drain(self, step: int) -> None:
    """Waits for this step and reads its scalars.

    Raises:
      NonFiniteLossError: the loss or the gradient is not finite.
    """
    self._losses.drain()
    self._speed.write(self._writer, "train", step)

  def evaluation(self, kind: str, step: int, values: dict[str, float | int]) -> dict[str, float | int]:
    """Writes the metrics of "validation" or "test" after a step, and returns them."""
    self._writer.write(kind, step, self._times.epoch(step), values)
    self._speed.write_evaluation(self._writer, kind, step, values, self._metric)
    return values

  def get_state(self) -> dict[str, Any]:
    """Returns the unfinished log interval and the records on disk, for a checkpoint."""
    return self._losses.get_state() | {"records": self.saved_records()}

  def saved_records(self) -> dict[str, Any] | None:
    """Returns length and hash of metrics.jsonl, which is on disk then."""
    return self._writer.saved_records()

  def __enter__(self) -> RunLog:
    return self

  def __exit__(self, *_: object) -> None:
    self._trace.close()
    if self._speed:
      self._speed.close()
    if self._writer:
      self._writer.close()

  def _write_losses(self, step, means):
    values = means | {"learning_rate": float(self._schedule(step - 1))}
    self._writer.write("train", step, self._times.epoch(step), values)


def _records_at_start(workdir, phase):
  """Returns what metrics.jsonl holds before a phase begins: nothing, or the records of the phase before."""
  if phase == SELECT:
    return writers.NO_RECORDS
  before = os.path.join(workdir, SELECT, "result.json")
  return writers.read_json(before).get("records") if os.path.exists(before) else None
