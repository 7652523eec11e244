"""Checkpoints of a run: the two latest and the best, each with parameters, optimizer state and position in the data.

Orbax writes them in the background into a temporary folder that is renamed when complete, so that a run that is killed
at any moment leaves whole checkpoints only. Each has checksums of its arrays (`jaxrec.train.saved_step`), which are
compared at every restore; a run resumes from the latest checkpoint that is intact.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from jaxrec import parallel
from jaxrec.data.local_path import check_local
from jaxrec.train import saved_step
from jaxrec.train.identity import RunIdentity
from jaxrec.train.item_growth import ItemGrowth
from jaxrec.train.item_table import IN_PARAMS, ItemTable
from jaxrec.train.saved_step import DamagedCheckpointError, Saved
from jaxrec.train.state import TrainState

_SPECIAL = "*?[\\"  # Orbax and TensorStore take them for patterns or separators, and find or write other folders.


class Checkpoints:
  """The checkpoints in one folder. Close it (or use `with`) to wait for what is still being written."""

  def __init__(self, folder: str, item_table: ItemTable = IN_PARAMS, identity: RunIdentity | None = None):
    """Opens or creates the folder.

    Args:
      folder: of the checkpoints.
      item_table: where the item table lives; sharded rows are saved in the order of ids, for any number of devices.
      identity: of the run; saved with each checkpoint and compared at each restore. None: neither.

    Raises:
      ValueError: a path that checkpoints cannot have; see `check_path`.
    """
    check_path("folder", folder)
    self._folder, self._item_table, self._identity = os.path.abspath(folder), item_table, identity
    os.makedirs(self._folder, exist_ok=True)
    self._is_empty = not saved_step.steps_in(self._folder)
    self._keep, self._context = _LatestAndBest(), contextlib.ExitStack()
    self._context.enter_context(saved_step.without_late_failures())
    self._manager = _Manager(
      self._folder,
      item_handlers={"state": ocp.StandardCheckpointHandler(), "position": ocp.JsonCheckpointHandler()},
      options=ocp.CheckpointManagerOptions(
        preservation_policy=self._keep,
        step_name_format=_OnlyCheckpoints(),
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,  # Of killed processes.
        create=True,
      ),
    )

  def save(self, state: TrainState, position: dict[str, Any], best_step: int | None) -> None:
    """Starts to save the state; once it is complete, all are deleted but the latest two and those best at their steps.

    The first checkpoint in a folder is read back before this returns.

    Args:
      state: may be donated as soon as this returns.
      position: what else the loop needs to resume, such as the state of the data iterator after the batch of this step;
        any JSON.
      best_step: step of the best validation so far.

    Raises:
      OSError: this checkpoint or the one before cannot be written, or the first one cannot be read back.
    """
    step = int(state.step)
    self._keep.best_of[step] = best_step
    arrays = saved_step.to_dict(state, self._item_table)
    saved = Saved({"best_step": best_step, **position}, self._identity and self._identity.as_json())
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(arrays),
      position=ocp.args.JsonSave(saved_step.describe(saved, arrays, self._item_table)),
    )
    with self._writing():
      self._make_room(step)
      self._manager.save(step, args=args, force=True)
    if self._is_empty:
      self._read_back(step, state)
      self._is_empty = False

  def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
    """Returns (state, position) of the latest checkpoint that is intact, as its best one is; None where there is none.

    Later ones are renamed to `<step>.damaged`, and a warning says so: their steps are made again.

    Args:
      like: a state of the same model and optimizer, which gives shapes, dtypes and shardings.

    Raises:
      DamagedCheckpointError: there are checkpoints, but a run can resume from none of them.
      ValueError: the checkpoint is of another run, model or optimizer; lists what differs.
    """
    self.wait()
    steps, reasons = saved_step.steps_in(self._folder), []
    for step in steps:
      try:
        state, position = self._read_with_best(step, steps, like)
      except DamagedCheckpointError as error:
        reasons.append(str(error))
        continue
      self._set_aside([other for other in steps if other > step], reasons, step)
      self._keep.best_of = {other: self._best_of(other) for other in steps if other <= step}
      return state, position
    if reasons:
      raise DamagedCheckpointError(
        "no checkpoint is left to resume from: " + "; ".join(reasons) + f". Remove {os.path.dirname(self._folder)} to"
        " train this phase again; the latest intact parameters can be scored with `experiments.evaluate"
        " --checkpoint=latest`"
      )
    return None

  def state_of(self, step: int, like: TrainState) -> TrainState:
    """Returns the state after a step whose checkpoint is kept (the latest two or the best).

    Raises:
      DamagedCheckpointError: it is missing or damaged.
    """
    self.wait()
    return self._read(step, like)[0]

  def wait(self) -> None:
    """Returns when everything is on disk.

    Raises:
      OSError: a checkpoint cannot be written.
    """
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits and frees the threads."""
    with self._context, self._writing():
      self._manager.close()

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def _read(self, step, like):
    return _read(self._folder, step, like, self._item_table, self._identity)

  def _read_with_best(self, step, steps, like):
    """Returns state and position; the state of the best step is read too, as it is needed at the end of the phase."""
    state, position = self._read(step, like)
    best = position["best_step"]
    if best and best != step:
      if best not in steps:
        raise DamagedCheckpointError(f"checkpoint {self._folder}/{best} is missing, the best one at step {step}")
      self._read(best, like)
    return state, position

  def _best_of(self, step):
    try:
      return saved_step.read_saved(self._folder, step).position["best_step"]
    except DamagedCheckpointError:
      return None

  def _set_aside(self, steps, reasons, resumed):
    for reason in reasons:
      logging.warning("%s; going on from step %d", reason, resumed)
    if steps:
      for step in steps:
        self._rename(step, "damaged")
      parallel.wait_for_all_hosts("set damaged checkpoints aside")
      self._manager.reload()

  def _make_room(self, step):
    """Renames what has the name of a checkpoint but is none."""
    if os.path.exists(os.path.join(self._folder, str(step))) and step not in saved_step.steps_in(self._folder):
      self._rename(step, "other")

  def _rename(self, step, suffix):
    if jax.process_index() == 0:
      path = os.path.join(self._folder, str(step))
      shutil.rmtree(f"{path}.{suffix}", ignore_errors=True)
      os.rename(path, f"{path}.{suffix}")
      logging.warning("%s is kept as %s.%s; delete it if you don't need it", path, path, suffix)

  def _read_back(self, step, like):
    self.wait()
    try:
      self._read(step, like)
    except DamagedCheckpointError as error:
      raise OSError(
        f"the first checkpoint was written, but what is read is something else: {error}. Choose a workdir on another"
        " file system"
      ) from error

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:
      reason = " ".join(str(error).split())[:300]
      raise OSError(
        f"a checkpoint cannot be written to {self._folder} ({reason}); {shutil.disk_usage(self._folder).free:,} bytes"
        " are free there. The checkpoints before it are kept; the same command resumes"
      ) from error


def check_path(name: str, folder: str) -> None:
  """Raises where checkpoints cannot be written to a folder or below it.

  Args:
    name: of the argument.
    folder: a path.

  Raises:
    ValueError: it is a URL, or its absolute path has one of the characters * ? [ \\ or is not Unicode.

  >>> check_path("workdir", "runs/[1]")
  Traceback (most recent call last):
  ValueError: workdir='runs/[1]': Orbax cannot write below a path with '['; choose or rename a folder
  """
  check_local(name, folder)
  path = os.path.abspath(folder)
  wrong = [character for character in path if character in _SPECIAL or "\ud800" <= character <= "\udfff"]
  if wrong:
    raise ValueError(f"{name}={folder!r}: Orbax cannot write below a path with {wrong[0]!r}; choose or rename a folder")


def load_state(
  folder: str,
  like: TrainState,
  which: str = "best",
  item_table: ItemTable = IN_PARAMS,
  identity: RunIdentity | None = None,
  growth: ItemGrowth | None = None,
) -> tuple[TrainState, int]:
  """Returns the state of a checkpoint and its step.

  Args:
    folder: of the checkpoints.
    like: a state of the same model and optimizer.
    which: "best" on validation (the latest where nothing was validated) or "latest". Where the latest checkpoint is
      damaged, a warning says so, and the one before counts as the latest.
    item_table: where the item table lives.
    identity: of the run, to compare with; None compares nothing.
    growth: the items that `like` has in addition to those of the run; None: the same items.

  Raises:
    FileNotFoundError: no checkpoint there.
    DamagedCheckpointError: the best one is missing or damaged, or all are.
    ValueError: the checkpoint is of another run or model.
  """
  if which not in ("best", "latest"):
    raise ValueError(f"{which=} must be 'best' or 'latest'")
  check_path("folder", folder)
  if not os.path.isdir(folder):
    raise FileNotFoundError(f"no checkpoints in {folder}; was the run started with another --workdir?")
  folder = os.path.abspath(folder)  # Orbax takes no other.
  steps, reasons = saved_step.steps_in(folder), []
  for step in steps:
    try:
      best = saved_step.read_saved(folder, step).position["best_step"] if which == "best" else None
      if not best:
        return _read(folder, step, like, item_table, identity, growth)[0], step
    except DamagedCheckpointError as error:
      logging.warning("%s; taking the one before", error)
      reasons.append(str(error))
      continue
    return _read_best(folder, best, like, item_table, identity, growth), best
  if reasons:
    raise DamagedCheckpointError("no checkpoint is intact: " + "; ".join(reasons))
  raise FileNotFoundError(f"{folder} holds no complete checkpoint yet")


def _read(folder, step, like, item_table, identity, growth=None):
  """Returns state and position of a step."""
  saved = saved_step.read_saved(folder, step)
  if identity is not None:
    identity.check(saved.identity, f"checkpoint {folder}/{step}")
  return saved_step.read_state(folder, step, saved, like, item_table, growth), saved.position


def _read_best(folder, step, like, item_table, identity, growth):
  try:
    return _read(folder, step, like, item_table, identity, growth)[0]
  except DamagedCheckpointError as error:
    raise DamagedCheckpointError(f"{error}; it is the best one: take the latest with --checkpoint=latest") from error


class _LatestAndBest(checkpoint_managers.PreservationPolicy):
  """Keeps the two newest checkpoints, and for each of them the best one at its step: a run can resume from either.

  best_of: step -> step of the best validation until then.
  """

  def __init__(self):
    self.best_of: dict[int, int | None] = {}

  def should_preserve(self, checkpoints, *, context):
    newest = sorted(info.step for info in checkpoints)[-2:]
    kept = {*newest, *(self.best_of.get(step) for step in newest)}
    return [info.step in kept for info in checkpoints]


class _Manager(ocp.CheckpointManager):
  """Asks nobody whether the run has to stop: `StopSignal` does.

  Hosts agree on a later number than those that they asked with last. Orbax asks with steps, from threads too, which are
  smaller than those of `StopSignal`: the number agreed on might have passed, and SIGTERM would have no effect.
  """

  def reached_preemption(self, step: int) -> bool:
    return False


class _OnlyCheckpoints:
  """Orbax's names of steps, without folders that have such a name but are no checkpoint; an Orbax `NameFormat`."""

  def __init__(self):
    self._standard = ocp.path.step.standard_name_format()

  def build_name(self, step):
    return self._standard.build_name(step)

  def find_all(self, base_path):
    steps = saved_step.steps_in(base_path)
    return (found for found in self._standard.find_all(base_path) if found.step in steps)

  def find_step(self, base_path, step):
    return self._standard.find_step(base_path, step)
