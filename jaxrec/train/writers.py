"""Writers of a run's numbers: JSON lines, the same whether or not the run was interrupted, and TensorBoard events.

`metrics.jsonl` holds what is determined by config and data; `timing.jsonl` holds wall-clock times. Only the first host
writes.
"""

from __future__ import annotations

import json
import os
from typing import Any

import jax
from absl import logging


class MetricsWriter:
  """Appends records of one phase to metrics.jsonl, timing.jsonl and TensorBoard."""

  def __init__(self, workdir: str, phase: str, restored_step: int):
    """Opens the files and drops what an interrupted run wrote after the step that was restored.

    Args:
      workdir: existing folder.
      phase: "select" or "final"; records of other phases are left alone.
      restored_step: last step that is done; 0 at the start of the phase.
    """
    self._phase, self._files, self._board = phase, {}, None
    if jax.process_index() == 0:
      for name in ("metrics", "timing"):
        path = os.path.join(workdir, f"{name}.jsonl")
        _truncate(path, phase, restored_step)
        self._files[name] = open(path, "a", encoding="utf-8")
      self._board = _tensorboard(os.path.join(workdir, "tensorboard", phase), restored_step)

  def write(self, kind: str, step: int, epoch: int, values: dict[str, float | int]) -> None:
    """Appends a record; it survives the death of the process when this returns.

    Args:
      kind: "train", "validation" or "test".
      step: updates made.
      epoch: the epoch, from 1, that this step belongs to.
      values: name to number.
    """
    self._append("metrics", {"phase": self._phase, "step": step, "epoch": epoch, "kind": kind, **values})
    if self._board:
      for name, value in values.items():
        self._board.add_scalar(f"{kind}/{name}".replace("@", "_"), value, step)  # It allows no @.

  def write_timing(self, kind: str, step: int, values: dict[str, float]) -> None:
    """Appends a record of wall-clock times."""
    self._append(
      "timing", {"phase": self._phase, "step": step, "kind": kind, **{k: round(v, 4) for k, v in values.items()}}
    )

  def close(self) -> None:
    """Closes the files."""
    for file in self._files.values():
      file.close()
    if self._board:
      self._board.close()

  def __enter__(self) -> MetricsWriter:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def _append(self, name, record):
    if name in self._files:
      self._files[name].write(json.dumps(record) + "\n")
      self._files[name].flush()


def read_records(path: str) -> list[dict[str, Any]]:
  """Returns the records of a JSON lines file, [] where there is none; a last line cut short by a crash is dropped."""
  if not os.path.exists(path):
    return []
  with open(path, encoding="utf-8") as file:
    lines = file.read().split("\n")
  complete, rest = lines[:-1], lines[-1]
  if rest:
    logging.warning("%s: last line is incomplete, dropped: %r", path, rest)
  return [json.loads(line) for line in complete]


def read_json(path: str) -> Any:
  """Returns what `write_json` wrote."""
  with open(path, encoding="utf-8") as file:
    return json.load(file)


def write_json(path: str, value: Any) -> None:
  """Writes a JSON file that is either complete or not there (first host only)."""
  if jax.process_index() == 0:
    with open(f"{path}.tmp", "w", encoding="utf-8") as file:
      file.write(json.dumps(value, indent=2) + "\n")
    os.replace(f"{path}.tmp", path)


def _truncate(path, phase, restored_step):
  """Test records come last, after the last checkpoint: an unfinished phase writes them again."""
  records = read_records(path)
  kept = [r for r in records if r["phase"] != phase or (r["step"] <= restored_step and r["kind"] != "test")]
  with open(f"{path}.tmp", "w", encoding="utf-8") as file:
    file.writelines(json.dumps(record) + "\n" for record in kept)
  os.replace(f"{path}.tmp", path)
  if len(kept) < len(records):
    logging.info("%s: dropped %d records after the restored step %d", path, len(records) - len(kept), restored_step)


def _tensorboard(folder, restored_step):
  try:
    import tensorboardX
  except ImportError:
    logging.info("tensorboardX is not installed: no TensorBoard events (pip install 'jaxrec[tensorboard]')")
    return None
  return tensorboardX.SummaryWriter(folder, purge_step=restored_step + 1 if restored_step else None, flush_secs=30)
