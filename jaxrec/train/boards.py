"""Boards that show the numbers of runs beside `metrics.jsonl`: TensorBoard, Weights & Biases, MLflow.

A board is told what the file is told. What it shows never decides anything: runs resume from the file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from absl import logging
from ml_collections import ConfigDict


@runtime_checkable
class Board(Protocol):
  """Something that shows numbers.

  package: what has to be installed for it.
  """

  package: str

  def write(self, kind: str, step: int, values: Mapping[str, float | int]) -> None:
    """Shows numbers after a step; `kind` is "train", "validation" or "test"."""
    ...

  def close(self) -> None:
    """Ends the phase."""
    ...


def check_boards(names: Sequence[str]) -> None:
  """Raises unless all boards are known and their packages installed; TensorBoard may be missing, which is logged.

  Raises:
    ValueError: names the board, and the package and how to get it.
  """
  if unknown := [name for name in names if name not in BOARDS]:
    raise ValueError(
      f"config.train.boards={tuple(names)} has {unknown}, which are unknown; use some of {tuple(BOARDS)}"
    )
  for name in names:
    if not _is_installed(name):
      hint = f"{BOARDS[name].package} is not installed: pip install 'jaxrec[{name}]'"
      if name != "tensorboard":
        raise ValueError(f"config.train.boards has {name!r}, but {hint}")
      logging.info("no TensorBoard events: %s", hint)


def open_boards(config: ConfigDict, workdir: str, phase: str, restored_step: int) -> list[Board]:
  """Returns the boards of `config.train.boards` for a phase, those of missing packages left out.

  Args:
    config: of the run.
    workdir: its folder.
    phase: "select" or "final".
    restored_step: last step that is done; what a board has of later ones will be written again.
  """
  names = [name for name in config.train.boards if _is_installed(name)]
  return [BOARDS[name](config, workdir, phase, restored_step) for name in names]


def _is_installed(name: str) -> bool:
  return importlib.util.find_spec(BOARDS[name].package) is not None


def show(boards: Sequence[Board], kind: str, step: int, values: Mapping[str, float | int]) -> None:
  """Shows numbers on all boards; one that fails, such as a server that cannot be reached, is warned about.

  Args:
    boards: that are open.
    kind, step, values: of `Board.write`.
  """
  for board in boards:
    try:
      board.write(kind, step, values)
    except Exception as error:  # Packages raise what they like, and training goes on without them.
      name = type(board).__name__
      logging.warning("%s did not take step %d: %s; metrics.jsonl has it", name, step, " ".join(str(error).split()))


def metric_name(kind: str, name: str) -> str:
  """Returns the name of a number on a board; none of them allows all characters.

  >>> metric_name("test", "domain/books & more/HR@10")
  'test/domain/books _ more/HR_10'
  """
  return f"{kind}/" + "".join(c if c.isalnum() or c in "_-./ " else "_" for c in name)


class TensorBoard:
  """Events in <workdir>/tensorboard/<phase>."""

  package = "tensorboardX"

  def __init__(self, config: ConfigDict, workdir: str, phase: str, restored_step: int):
    """Opens the folder; events after the restored step are hidden."""
    import tensorboardX

    folder, purge = os.path.join(workdir, "tensorboard", phase), restored_step + 1 if restored_step else None
    self._writer = tensorboardX.SummaryWriter(folder, purge_step=purge, flush_secs=30)

  def write(self, kind: str, step: int, values: Mapping[str, float | int]) -> None:
    """See `Board`."""
    for name, value in values.items():
      self._writer.add_scalar(f"{kind}/{name}".replace("@", "_"), value, step)  # It allows no @.

  def close(self) -> None:
    """See `Board`."""
    self._writer.close()


class WeightsAndBiases:
  """A run of the project $WANDB_PROJECT or "jaxrec"; where and whether it is sent is for wandb's own variables to say.

  A resumed run goes on in the same one. Of steps that are made again wandb keeps what it has.
  """

  package = "wandb"

  def __init__(self, config: ConfigDict, workdir: str, phase: str, restored_step: int):
    """Begins the run, or resumes it."""
    import wandb

    self._run = wandb.init(
      project=os.environ.get("WANDB_PROJECT", "jaxrec"), dir=workdir, id=run_id(workdir, phase), resume="allow",
      name=f"{config.name or os.path.basename(os.path.abspath(workdir))} {phase}", config=config.to_dict(),
    )  # fmt: skip

  def write(self, kind: str, step: int, values: Mapping[str, float | int]) -> None:
    """See `Board`."""
    self._run.log({metric_name(kind, name): value for name, value in values.items()}, step=step)

  def close(self) -> None:
    """See `Board`."""
    self._run.finish()


class MLflow:
  """A run of the experiment $MLFLOW_EXPERIMENT_NAME or "jaxrec", at $MLFLOW_TRACKING_URI or in <workdir>/mlruns.

  A resumed run goes on in the same one. MLflow takes nothing back: of steps that are made again, it is told only what
  it does not have.
  """

  package = "mlflow"

  def __init__(self, config: ConfigDict, workdir: str, phase: str, restored_step: int):
    """Begins the run, or resumes it."""
    from mlflow import MlflowClient

    address = os.environ.get("MLFLOW_TRACKING_URI")
    if not address:
      address = f"file:{os.path.abspath(os.path.join(workdir, 'mlruns'))}"
      os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # Version 3 wants to be asked for its own files.
    self._client = MlflowClient(address)
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "jaxrec")
    found = self._client.get_experiment_by_name(experiment)
    where = found.experiment_id if found else self._client.create_experiment(experiment)
    tag = run_id(workdir, phase)
    runs = self._client.search_runs([where], f"tags.jaxrec_run = '{tag}'", max_results=1)
    if runs:
      self._id = runs[0].info.run_id
      self._client.update_run(self._id, status="RUNNING")
    else:
      tags = {"jaxrec_run": tag, "phase": phase, "mlflow.runName": f"{config.name or tag} {phase}"}
      self._id = self._client.create_run(where, tags=tags).info.run_id
      for name, value in _flat(config.to_dict()):
        self._client.log_param(self._id, name, str(value)[:500])
    self._last: dict[str, int] = {}  # Step of the latest value of each metric.

  def write(self, kind: str, step: int, values: Mapping[str, float | int]) -> None:
    """See `Board`."""
    for name, value in values.items():
      key = metric_name(kind, name)
      if key not in self._last:
        history = self._client.get_metric_history(self._id, key)
        self._last[key] = max((metric.step for metric in history), default=-1)
      if step > self._last[key]:
        self._client.log_metric(self._id, key, float(value), step=step)
        self._last[key] = step

  def close(self) -> None:
    """See `Board`."""
    self._client.set_terminated(self._id)


BOARDS: dict[str, type[Board]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}
"""Name in `config.train.boards` -> class, made from (config, workdir, phase, restored_step)."""


def run_id(workdir: str, phase: str) -> str:
  """Returns a name of a phase of a run that is the same whenever it is resumed."""
  return hashlib.sha256(f"{os.path.abspath(workdir)}|{phase}".encode()).hexdigest()[:16]


def _flat(settings: Mapping[str, Any], prefix: str = ""):
  """Yields "group.key" and value of each setting."""
  for name, value in settings.items():
    if isinstance(value, Mapping):
      yield from _flat(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", value
