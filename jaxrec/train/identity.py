"""What a run is of: its config and its data. Both are saved with the run and each checkpoint, and compared later."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxrec.data.fingerprint import Fingerprint, differences
from jaxrec.train import writers
from jaxrec.train.saved_config import saved_config

CONFIG_FILE, DATA_FILE, CHANGES_FILE = "config.json", "data.json", "changes.json"
_GROUPS = ("data", "model", "optimizer", "train", "parallel", "eval")
_RUN_FILES = ("metrics.jsonl", "summary.json", "select/checkpoints", "select/result.json", "final/checkpoints")

MAY_CHANGE = (
  "config.name", "config.train.boards", "config.train.checkpoint_every_steps",
  "config.data.raw", "config.data.prepared",
  "config.data.rows_per_batch",  # Checked where a checkpoint is restored.
  "config.parallel.data", "config.parallel.fsdp", "config.parallel.model",
)  # fmt: skip
"""Settings that may change when a run is resumed: they don't touch what has been done. The data may lie elsewhere, as
its content is compared."""


@dataclasses.dataclass(frozen=True)
class RunIdentity:
  """Config and data of a run.

  workdir: of the run.
  config: of the run.
  data: fingerprint of its data; None for a task that has none, whose data are not compared.
  """

  workdir: str
  config: ConfigDict
  data: Fingerprint | None

  def as_json(self) -> dict[str, Any]:
    """Returns what is saved with a checkpoint."""
    return {"config": _as_json(self.config.to_dict()), "data": self.data}

  def check(self, saved: Mapping[str, Any] | None, where: str) -> None:
    """Raises unless a checkpoint was saved by this run.

    Args:
      saved: what `as_json` returned when it was saved; None in checkpoints of older versions, which are not compared.
      where: the checkpoint, for the error.

    Raises:
      ValueError: it is of another config or of other data; says what differs.
    """
    if saved is None:
      return
    if lines := self.changed_settings(saved["config"]):
      raise ValueError(f"{where} is of another config: {'; '.join(lines)}. Use that one, or another --workdir")
    self._check_data(saved["data"], where)

  def check_data(self) -> None:
    """Compares the data with those that the run began with, as <workdir>/data.json says.

    Raises:
      ValueError: they are other data, or the file is damaged.
    """
    path = os.path.join(self.workdir, DATA_FILE)
    if not os.path.exists(path) or not has_begun(self.workdir):
      return
    saved = writers.read_json(path, dict)
    if saved.keys() != {"counts", "hashes"}:
      raise ValueError(f"{path}: not what a run wrote: {str(saved)[:80]!r}; put it back from a copy, or remove it")
    self._check_data(saved, f"{self.workdir} holds a run that")

  def save_data(self) -> None:
    """Writes <workdir>/data.json where it is not there yet, or the run has not begun."""
    path = os.path.join(self.workdir, DATA_FILE)
    if self.data is not None and not (os.path.exists(path) and has_begun(self.workdir)):
      writers.write_json(path, self.data)

  def changed_settings(self, config: dict[str, Any]) -> list[str]:
    """Returns a line for each setting of an earlier config that is another one now and may not change.

    Settings that were changed on request, as <workdir>/changes.json says, may be.
    """
    allowed = _changed_on_request(self.workdir)
    return [line for line in different_settings(config, self.config) if line.split()[0] not in allowed]

  def _check_data(self, saved, where):
    if saved is None or self.data is None:
      return
    if what := differences(saved, self.data):
      raise ValueError(
        f"{where} is of other data: {what}. Use the data that it was trained on (its folder may be another one), or"
        " another --workdir"
      )


def different_settings(saved: dict[str, Any], config: ConfigDict) -> list[str]:
  """Returns a line for each setting of a saved config that is another one in `config`, those of MAY_CHANGE left out."""
  before = _as_json(saved_config(saved, config).to_dict())
  lines = config_differences(before, _as_json(config.to_dict()))
  return [line for line in lines if line.split()[0] not in MAY_CHANGE]


def check_has_config(workdir: str) -> None:
  """Raises where a folder holds a run whose config.json is missing: another config would resume its checkpoints.

  Raises:
    ValueError: names what is there.
  """
  if os.path.exists(os.path.join(workdir, CONFIG_FILE)):
    return
  if found := _run_files(workdir):
    raise ValueError(
      f"{os.path.join(workdir, CONFIG_FILE)} is missing, though {', '.join(found)} of a run are there. Put it back from"
      " a copy, or give another --workdir"
    )


def has_begun(workdir: str) -> bool:
  """Returns whether a run has left anything but its config and data, as one that fails at its start has not."""
  return bool(_run_files(workdir))


def read_config(path: str) -> dict[str, Any]:
  """Returns what a run wrote to config.json.

  Raises:
    ValueError: the file is damaged.
  """
  saved = writers.read_json(path, dict)
  if not all(isinstance(saved.get(group, {}), dict) for group in _GROUPS):
    raise ValueError(f"{path}: not the config of a run: {str(saved)[:80]!r}; put it back from a copy")
  return saved


def _run_files(workdir):
  return [name for name in _RUN_FILES if _holds_something(os.path.join(workdir, name))]


def _holds_something(path):
  return bool(os.listdir(path)) if os.path.isdir(path) else os.path.exists(path)


def _changed_on_request(workdir):
  path = os.path.join(workdir, CHANGES_FILE)
  entries = writers.read_json(path) if os.path.exists(path) else []
  return [line.split()[0] for entry in entries for line in entry["changes"]]


def _as_json(value):
  return json.loads(json.dumps(value))


def config_differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "config") -> list[str]:
  """Returns a line for each setting that differs between two configs given as dicts.

  >>> config_differences({"seed": 1, "a": {"b": 2}}, {"seed": 1, "a": {"b": 3}})
  ['config.a.b was 2, is 3']
  """
  lines = []
  for key in sorted(old.keys() | new.keys()):
    before, after = old.get(key, "not set"), new.get(key, "not set")
    if isinstance(before, dict) and isinstance(after, dict):
      lines += config_differences(before, after, f"{prefix}.{key}")
    elif before != after:
      lines.append(f"{prefix}.{key} was {before!r}, is {after!r}")
  return lines
