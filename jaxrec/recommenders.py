"""From a workdir, or from events, to a `Recommender` in one call."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from ml_collections import ConfigDict

from jaxrec.data.fingerprint import differences
from jaxrec.data.prepared import PreparedData
from jaxrec.serving.recommender import Recommender
from jaxrec.train import checkpoint
from jaxrec.train.config import RANKING, SEQUENTIAL
from jaxrec.train.loop import run
from jaxrec.train.named_configs import named_config
from jaxrec.train.runs import load_config, load_run


def load(workdir: str | os.PathLike, which: str = "best", phase: str | None = None) -> Recommender:
  """Returns the recommender of a training run.

  Args:
    workdir: of the run.
    which: checkpoint, "best" on validation or "latest".
    phase: "select" or "final"; None takes the final one if it has begun.

  Raises:
    FileNotFoundError: no run or no checkpoint there.
    ValueError: a run of another task than sequential recommendation.

  >>> load("runs/no_such_run")
  Traceback (most recent call last):
  ...
  FileNotFoundError: ...
  """
  checkpoint.check_path("workdir", os.fspath(workdir))
  if load_config(os.fspath(workdir)).task == RANKING:
    raise ValueError(
      f"{workdir} holds a run of task {RANKING!r}, whose model has no user vectors: rank with"
      " jaxrec.serving.ActionRanker, `jaxrec recommend --workdir` or `jaxrec serve --workdir`"
    )
  loaded = load_run(os.fspath(workdir), which, phase, task=SEQUENTIAL)
  return Recommender(loaded.task.model, loaded.params, loaded.task.data, loaded.task.config)


def fit(
  data: PreparedData,
  config: str | ConfigDict = "hstu",
  *,
  epochs: int | None = None,
  workdir: str | os.PathLike | None = None,
  **settings: Any,
) -> Recommender:
  """Trains a model on prepared data and returns its recommender.

  Args:
    data: of `jaxrec.from_events`, `jaxrec.prepare` or `PreparedData.load`.
    config: name of a config, see `jaxrec.train.named_configs`, or a config.
    epochs: passes over the training data, at most; None: as the config says.
    workdir: folder of the run, which resumes what it holds; None: a new temporary folder.
    **settings: further settings by their path, such as `**{"train.batch_size": 256}`.

  Raises:
    ValueError: an unknown config or setting, one of another task than sequential recommendation, or a workdir with a
      run of other data.

  >>> import jaxrec
  >>> data = jaxrec.synthetic_data(num_users=40, num_items=24)
  >>> recommender = fit(data, "sasrec", epochs=1)  # doctest: +SKIP
  >>> recommender.recommend(users=["3"], k=2)  # doctest: +SKIP
  """
  config = named_config(config, data) if isinstance(config, str) else config.copy_and_resolve_references()
  if config.task != SEQUENTIAL:
    raise ValueError(
      f"config {config.name!r} is of task {config.task!r}, and a recommender needs one of task {SEQUENTIAL!r}; train it"
      " with jaxrec.train.loop.run"
    )
  workdir = os.fspath(workdir) if workdir is not None else tempfile.mkdtemp(prefix="jaxrec-")
  if data.path is None:
    data = _saved(data, os.path.join(workdir, "data"))
  config.data.prepared = str(data.path)
  changes = settings | ({} if epochs is None else {"train.num_epochs": epochs})
  for name, value in changes.items():
    config.update_from_flattened_dict({name: value})
  run(config, workdir)
  return load(workdir)


def _saved(data, folder) -> PreparedData:
  """Returns data in memory as a folder; one that is there already must hold the same."""
  if not os.path.exists(folder):
    return data.save(folder)
  before = PreparedData.load(folder)
  if what := differences(before.fingerprint, data.fingerprint):
    raise ValueError(f"{folder} holds other data: {what}. Give another workdir")
  return before
