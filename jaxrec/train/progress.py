"""Progress bar, speeds, and an optional profiler trace."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import jax
from absl import logging
from tqdm import tqdm

from jaxrec.train.task import Plan
from jaxrec.train.writers import MetricsWriter

_TRACED_STEPS = (10, 20)  # Of this process: compilation is over by then.


def progress_bar(**options: Any) -> tqdm:
  """Returns a progress bar on standard error: on a terminal one that moves, in a file a line every 30 seconds.

  Args:
    **options: those of `tqdm`, such as `total`, `desc` and `unit`.
  """
  is_terminal = sys.stderr.isatty()
  return tqdm(
    **options,
    file=sys.stderr if is_terminal else _Lines(),
    dynamic_ncols=is_terminal,
    mininterval=0.5 if is_terminal else 30,
    disable=jax.process_index() != 0,
  )


class _Lines:
  """A file for `tqdm` that writes each state of the bar as a line of its own to standard error."""

  def write(self, text: str) -> None:
    if line := text.strip("\r\n "):
      sys.stderr.write(f"{line}\n")

  def flush(self) -> None:
    sys.stderr.flush()


class Speed:
  """Counts what was trained on, such as users and tokens, in a progress bar and in timing.jsonl."""

  def __init__(self, phase: str, plan: Plan, first_step: int):
    """Starts the clock and, on the first host, the bar.

    Args:
      phase: title of the bar.
      plan: of the phase.
      first_step: the one that comes next.
    """
    self._times, self._count = plan.timetable, plan.count
    self._bar = progress_bar(total=self._times.num_steps, initial=first_step - 1, desc=phase, unit="step")
    self._is_first = True
    self._hosts = jax.process_count()
    self._unit = "examples"
    self._restart()

  def add(self, batch: Any, loss: float) -> None:
    """Counts a step.

    Args:
      batch: this host's rows; the other hosts are taken to have as many.
      loss: latest known.
    """
    counts = self._count(batch)
    self._unit = next(iter(counts))
    self._totals = {unit: self._totals.get(unit, 0) + number * self._hosts for unit, number in counts.items()}
    shown = {"epoch": self._times.epoch(self._bar.n + 1), "loss": "?" if math.isnan(loss) else f"{loss:.4f}"}
    shown |= {name.replace("_per_second", "/s"): f"{speed:.0f}" for name, speed in self._speeds().items()}
    self._bar.set_postfix(shown, refresh=False)
    self._bar.update()
    if self._is_first:  # It compiled: time left is estimated from the steps that follow.
      self._bar.initial, self._bar.start_t, self._is_first = self._bar.n, time.time(), False

  def write(self, writer: MetricsWriter, kind: str, step: int) -> None:
    """Writes the speed since the last writing, if there was any step; the device must be idle."""
    if self._totals:
      writer.write_timing(kind, step, {"seconds": self._seconds()} | self._speeds())
      self._restart()

  def write_evaluation(
    self, writer: MetricsWriter, kind: str, step: int, values: dict[str, float], metric: str
  ) -> None:
    """Writes how long an evaluation took, and shows its result above the bar."""
    seconds = self._seconds()
    writer.write_timing(kind, step, {"seconds": seconds, f"{self._unit}_per_second": values["count"] / seconds})
    if jax.process_index() == 0:
      when = f"step {step}" if self._times.evaluate_every_steps else f"epoch {self._times.epoch(step)}"
      tqdm.write(f"{kind} after {when}: {metric} {values[metric]:.4f}", file=sys.stderr)
    self._restart()

  def close(self) -> None:
    """Ends the bar."""
    self._bar.close()

  def _restart(self):
    self._start, self._totals = time.perf_counter(), {}

  def _seconds(self):
    return max(time.perf_counter() - self._start, 1e-9)

  def _speeds(self):
    seconds = self._seconds()
    return {f"{unit}_per_second": total / seconds for unit, total in self._totals.items()}


class Trace:
  """Records a few steps with the JAX profiler."""

  def __init__(self, folder: str | None):
    """Records into the folder; None records nothing."""
    self._folder, self._steps = folder, 0

  def before_step(self) -> None:
    """Starts recording when it is time."""
    self._steps += 1
    if self._folder and self._steps == _TRACED_STEPS[0]:
      jax.profiler.start_trace(self._folder)

  def after_step(self, result: Any) -> None:
    """Stops recording when it is time, once the device has the result."""
    if self._folder and self._steps == _TRACED_STEPS[1]:
      self._stop(result)

  def close(self) -> None:
    """Stops a recording that is still running because the run ended before."""
    if self._folder and _TRACED_STEPS[0] <= self._steps < _TRACED_STEPS[1]:
      self._stop(None)
    elif self._folder and self._steps:
      logging.warning("no trace: it would have begun at step %d of this process", _TRACED_STEPS[0])

  def _stop(self, result):
    jax.block_until_ready(result)
    jax.profiler.stop_trace()
    logging.info("trace of steps %d to %d: %s (tensorboard --logdir, or ui.perfetto.dev)", *_TRACED_STEPS, self._folder)
    self._folder = None
