"""Runs on disk: a workdir back to its task, parameters and step."""

from __future__ import annotations

import dataclasses
import os

from ml_collections import ConfigDict

from jaxrec.train import checkpoint
from jaxrec.train.config import CLICK_THROUGH, SEQUENTIAL
from jaxrec.train.identity import CONFIG_FILE, RunIdentity, check_has_config, read_config
from jaxrec.train.saved_config import saved_config
from jaxrec.train.state import Params, TrainState
from jaxrec.train.task import Task, build_task, task_class

_ANY_NUMBER_OF_STEPS = 10**9  # A restored state is not trained: its schedule may have any length.


@dataclasses.dataclass(frozen=True)
class LoadedRun:
  """A finished or running training, to evaluate or to use.

  task: data, model and config.
  state: of the checkpoint.
  step: of the checkpoint.
  params: the evaluated parameters, the whole item table among them.
  """

  task: Task
  state: TrainState
  step: int
  params: Params


def load_run(workdir: str, which: str = "best", phase: str | None = None, task: str | None = None) -> LoadedRun:
  """Returns a run of `jaxrec.train.loop`.

  Args:
    workdir: of the run; holds config.json.
    which: "best" on validation, or "latest".
    phase: "select" or "final"; None takes the final one if it has begun.
    task: the task that the run must be of, such as "sequential"; None: any.

  Raises:
    FileNotFoundError: no run or no checkpoint there.
    DamagedCheckpointError: the checkpoint is damaged.
    ValueError: the checkpoint is of another model, config or data, or the run of another task.
  """
  checkpoint.check_path("workdir", workdir)
  config = load_config(workdir)
  if task is not None and config.task != task:
    raise ValueError(f"{workdir} holds a run of task {config.task!r}; this needs one of task {task!r}")
  loaded = build_task(config)
  identity = RunIdentity(workdir, config, loaded.fingerprint())
  identity.check_data()
  finals = os.path.join(workdir, "final", "checkpoints")
  phase = phase or ("final" if os.path.isdir(finals) and os.listdir(finals) else "select")
  like = loaded.init_state(None, _ANY_NUMBER_OF_STEPS)
  folder = os.path.join(workdir, phase, "checkpoints")
  state, step = checkpoint.load_state(folder, like, which, loaded.item_table, identity)
  return LoadedRun(loaded, state, step, loaded.item_table.whole_params(getattr(loaded, "model", None), state))


def load_config(workdir: str) -> ConfigDict:
  """Returns the config of a run, with the defaults of settings that were added since.

  Raises:
    FileNotFoundError: the folder is not the workdir of a run.
    ValueError: config.json is damaged.
  """
  path = os.path.join(workdir, CONFIG_FILE)
  check_has_config(workdir)
  if not os.path.exists(path):
    raise FileNotFoundError(f"{path} is not there; {workdir=} must be the --workdir of a training run")
  saved = read_config(path)
  before_tasks = CLICK_THROUGH if "history_length" in saved.get("data", {}) else SEQUENTIAL  # Runs of older versions.
  return saved_config(saved, task_class(saved.get("task", before_tasks)).default_config())
