"""What the loop monitors: losses (read a step late), the best validation, and signals to stop."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import logging


class NonFiniteLossError(FloatingPointError):
  """The loss or the gradient of a step is NaN or infinite."""


class NonFiniteStateError(FloatingPointError):
  """Parameters, optimizer state or another part of the state became NaN or infinite."""


class TableError(RuntimeError):
  """A step exceeded the exchange buffer of a table, or ids have no row: part of the batch was not trained on."""


TRAINING_ERRORS = (NonFiniteLossError, NonFiniteStateError, TableError)
"""What stops a run although its settings are accepted; the text says where and what to do."""

LOWER_RATE = (
  "Try a lower optimizer.learning_rate, optimizer.clip_norm=1, optimizer.warmup_steps or train.dtype=float32; with"
  " --resume_with_changes the run resumes with them from that checkpoint."
)


class Interrupted(BaseException):  # As KeyboardInterrupt: it may be raised anywhere, and is not to be handled there.
  """A signal requested a stop. Nothing is lost: the run resumes from its last checkpoint."""

  def __init__(self, signal_number: int, message: str):
    super().__init__(message)
    self.exit_code = 128 + signal_number


class LossMonitor:
  """Means of the scalars over log intervals, and an error as soon as one is not finite.

  Scalars of a step are read when those of the next one are pushed, so that the device always has a step to do.
  """

  def __init__(
    self, every_steps: int, users_of_step: Callable[[int], Any], write: Callable[[int, dict[str, float]], None]
  ):
    """Starts an empty interval.

    Args:
      every_steps: length of a log interval.
      users_of_step: step -> the users in its batch, for the error message.
      write: gets (last step of the interval, mean scalars).
    """
    self._every_steps, self._users_of_step, self._write = every_steps, users_of_step, write
    self._waiting: deque[tuple[int, dict[str, Any]]] = deque()
    self._sums: dict[str, float] = {}
    self._count = 0
    self._has_warned = False
    self.last_loss = math.nan

  def push(self, step: int, scalars: dict[str, Any]) -> None:
    """Takes the scalars of a step, which may still be running, and reads those of the step before."""
    self._waiting.append((step, scalars))
    while len(self._waiting) > 1:
      self._read(*self._waiting.popleft())

  def drain(self) -> None:
    """Reads everything that was pushed."""
    while self._waiting:
      self._read(*self._waiting.popleft())

  def get_state(self) -> dict[str, Any]:
    """Returns the unfinished interval, for a checkpoint; drain first."""
    return {"sums": self._sums, "count": self._count}

  def set_state(self, state: dict[str, Any]) -> None:
    """Continues the interval of a checkpoint."""
    self._sums, self._count = dict(state["sums"]), state["count"]

  def _read(self, step, scalars):
    values = {name: float(value) for name, value in jax.device_get(scalars).items()}
    self._check_finite(step, values)
    _check_tables(step, values)
    self._warn_without_targets(step, values)
    self.last_loss = values["loss"]
    self._sums = {name: self._sums.get(name, 0.0) + value for name, value in values.items()}
    self._count += 1
    if step % self._every_steps == 0:
      self._write(step, {name: total / self._count for name, total in self._sums.items()})
      self._sums, self._count = {}, 0

  def _check_finite(self, step, values):
    wrong = {name: value for name, value in values.items() if not math.isfinite(value)}
    if wrong:
      users = self._users_of_step(step)
      shown = ", ".join(str(user) for user in users[:50]) + (f", ... ({len(users)} in all)" if len(users) > 50 else "")
      raise NonFiniteLossError(
        f"step {step}: {', '.join(f'{name} is {value}' for name, value in wrong.items())}. The batch held the users"
        f" {shown}. The last checkpoint is from before this step and is kept. {LOWER_RATE} Look at these users' times"
        " and ids; JAX_DEBUG_NANS=True shows the operation. Where it happens again right after resuming, the checkpoint"
        " is the cause: delete its folder, and the one before is resumed."
      )

  def _warn_without_targets(self, step, values):
    """The mean over no targets is 0, which looks like a perfect model."""
    if values["loss"] == 0 and not self._has_warned:
      self._has_warned = True
      logging.warning(
        "step %d: the loss is exactly 0: no target of the batch has weight, and nothing is learned from it (or the"
        " model is certain of all of them). Look at the splits of the data and at config.data. Said once",
        step,
      )


def _check_tables(step, values):
  if values.get("tables/overflow"):
    raise TableError(
      f"step {step}: {values['tables/overflow']:.0f} distinct rows exceeded the exchange buffer of the item table and"
      " were read as zeros; the last checkpoint is from before this step. Raise config.tables.capacity above the rows"
      " that a device requests from another one"
    )
  if values.get("tables/out_of_range"):
    raise TableError(f"step {step}: {values['tables/out_of_range']:.0f} ids are beyond the item table: check the data")


class EarlyStopping:
  """Remembers the best validation and says when it has not improved for too long.

  >>> stopping = EarlyStopping("MRR", patience=2)
  >>> [stopping.update(epoch, 10 * epoch, {"MRR": value}) for epoch, value in ((1, 0.1), (2, 0.3), (3, 0.3), (4, 0.2))]
  [True, True, False, False]
  >>> stopping.best_epoch, stopping.best_step, stopping.should_stop
  (2, 20, True)
  """

  def __init__(self, metric: str, patience: int):
    """Starts without a best one.

    Args:
      metric: name of the number that should be high.
      patience: validations in a row without a new best before stopping; 0 never stops.
    """
    self._metric, self._patience = metric, patience
    self.best_epoch: int | None = None
    self.best_step: int | None = None
    self.best_values: dict[str, float] = {}
    self._waited = 0

  @property
  def should_stop(self) -> bool:
    """Whether `patience` validations in a row brought no new best."""
    return 0 < self._patience <= self._waited

  def update(self, epoch: int, step: int, values: dict[str, float]) -> bool:
    """Takes a validation and returns whether it is the best so far; of equal ones the first counts."""
    is_best = values[self._metric] > self.best_values.get(self._metric, -math.inf)
    if is_best:
      self.best_epoch, self.best_step, self.best_values, self._waited = epoch, step, dict(values), 0
    else:
      self._waited += 1
    return is_best

  def best(self) -> dict[str, Any]:
    """Returns the best validation, for a summary."""
    return {"best_epoch": self.best_epoch, "best_step": self.best_step, "validation": self.best_values}

  def get_state(self) -> dict[str, Any]:
    """Returns what `set_state` takes, as JSON."""
    return {"epoch": self.best_epoch, "step": self.best_step, "values": self.best_values, "waited": self._waited}

  def set_state(self, state: dict[str, Any]) -> None:
    """Continues from a checkpoint."""
    self.best_epoch, self.best_step = state["epoch"], state["step"]
    self.best_values, self._waited = dict(state["values"]), state["waited"]


class StopSignal:
  """Turns SIGTERM and Ctrl-C into `Interrupted`: at once where nothing is lost by it, else where the loop asks.

  Data, compilation, restoring and test evaluations are interrupted at once, steps and validations (`deferred`) when the
  state after them is saved. A second Ctrl-C stops at once everywhere.

  With several hosts the request may reach one of them only, and JAX's handler takes it; `requested` and `check` then
  agree on a moment for all of them. Every host has to call them equally often.
  """

  def __enter__(self) -> StopSignal:
    self.number, self._is_deferred, self._is_raised, self._calls = 0, False, False, 0
    self._several = jax.process_count() > 1  # jax.distributed has its own SIGTERM handler then.
    is_ours = not self._several and threading.current_thread() is threading.main_thread()  # Others can have none.
    self._before = {s: signal.signal(s, self._take) for s in (signal.SIGTERM, signal.SIGINT)} if is_ours else {}
    return self

  def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
    if self._is_raised and isinstance(error, Exception):  # Another library turned our exception into its own.
      raise self._interrupted() from error

  @contextlib.contextmanager
  def deferred(self) -> Iterator[None]:
    """Inside, a signal only makes `requested` true; at the end it interrupts if nothing else did."""
    self.check()
    self._is_deferred = True
    try:
      yield
    finally:
      self._is_deferred = False
    self.check()

  def requested(self, step: int) -> bool:
    """Whether the run should save and stop after this step."""
    return self._is_asked()

  def check(self) -> None:
    """Raises where a stop was requested and nothing has to be saved first.

    Raises:
      Interrupted: it was.
    """
    if self._is_asked():
      raise self._interrupted()

  def _is_asked(self):
    if self._several:
      from jax.experimental import multihost_utils

      self._calls += 1  # Not the step: it starts again in each phase, and a request would wait for one that has passed.
      self.number = signal.SIGTERM if multihost_utils.reached_preemption_sync_point(self._calls) else 0
    return bool(self.number)

  def _take(self, number, frame):
    if self.number:  # Some cluster managers repeat it.
      return
    self.number = number
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if self._is_deferred:
      logging.warning("%s: saving a checkpoint after this step, then stopping", signal.Signals(number).name)
      return
    if _is_importing(frame):  # Extension modules crash if their import is interrupted; `check` follows soon.
      return
    self._is_raised = True
    raise self._interrupted()

  def _interrupted(self):
    return Interrupted(self.number, f"{signal.Signals(self.number).name}: stopped; the same command resumes")


def _is_importing(frame):
  while frame and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
    frame = frame.f_back
  return frame is not None
