"""Writers of a run's numbers: JSON lines, the same whether or not the run was interrupted, and boards.

`metrics.jsonl` holds what is determined by config and data; `timing.jsonl` holds wall-clock times. Only the first host
writes. A checkpoint knows the length and the hash of the `metrics.jsonl` that it was saved after: records that were
lost or changed since are noticed when the run resumes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from absl import logging

from jaxrec.train import boards

NO_RECORDS = {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}
"""Length and hash of `metrics.jsonl` before the first record; see `MetricsWriter.saved_records`."""


class LostRecordsError(ValueError):
  """`metrics.jsonl` lacks records that were there when a checkpoint was saved, or they were changed."""


class MetricsWriter:
  """Appends records of one phase to metrics.jsonl and timing.jsonl, and shows them on boards."""

  def __init__(
    self,
    workdir: str,
    phase: str,
    restored_step: int,
    records: dict[str, Any] | None = None,
    open_boards: Callable[[], Sequence[boards.Board]] = tuple,
  ):
    """Opens the files and drops what an interrupted run wrote after the step that was restored.

    Args:
      workdir: existing folder.
      phase: "select" or "final"; records of other phases are left alone.
      restored_step: last step that is done; 0 at the start of the phase.
      records: what `saved_records` returned when that step was saved; what follows is cut off. None, as in checkpoints
        of older versions: records are dropped by their step, and lost ones are not noticed.
      open_boards: opens what the metrics are shown on; called on the first host only, after the files.

    Raises:
      LostRecordsError: the beginning of metrics.jsonl is not that of `records`.
    """
    self._phase, self._files, self._boards, self._hash = phase, {}, (), hashlib.sha256()
    if jax.process_index() == 0:
      metrics, timing = (os.path.join(workdir, f"{name}.jsonl") for name in ("metrics", "timing"))
      if records is None:
        _drop_after(metrics, phase, restored_step)
      else:
        _cut(metrics, records)
      _drop_after(timing, phase, restored_step)
      self._files = {"metrics": open(metrics, "a+b"), "timing": open(timing, "a+b")}
      self._files["metrics"].seek(0)
      self._hash.update(self._files["metrics"].read())
      self._boards = open_boards()

  def write(self, kind: str, step: int, epoch: int, values: dict[str, float | int]) -> None:
    """Appends a record; it survives the death of the process when this returns.

    Args:
      kind: "train", "validation" or "test".
      step: updates made.
      epoch: the epoch, from 1, that this step belongs to.
      values: name to number.
    """
    self._append("metrics", {"phase": self._phase, "step": step, "epoch": epoch, "kind": kind, **values})
    boards.show(self._boards, kind, step, values)

  def write_timing(self, kind: str, step: int, values: dict[str, float]) -> None:
    """Appends a record of wall-clock times."""
    self._append(
      "timing", {"phase": self._phase, "step": step, "kind": kind, **{k: round(v, 4) for k, v in values.items()}}
    )

  def saved_records(self) -> dict[str, Any] | None:
    """Returns length and hash of metrics.jsonl once it is on disk, as JSON; None on other hosts than the first.

    What is saved afterwards never refers to records that a power cut can lose.
    """
    if "metrics" not in self._files:
      return None
    file = self._files["metrics"]
    os.fsync(file.fileno())
    return {"bytes": file.tell(), "sha256": self._hash.hexdigest()}

  def close(self) -> None:
    """Closes the files."""
    for file in self._files.values():
      file.close()
    for board in self._boards:
      board.close()

  def __enter__(self) -> MetricsWriter:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def _append(self, name, record):
    if name in self._files:
      line = (json.dumps(record) + "\n").encode()
      with naming(self._files[name].name):
        self._files[name].write(line)
        self._files[name].flush()
      if name == "metrics":
        self._hash.update(line)


def read_records(path: str) -> list[dict[str, Any]]:
  """Returns the records of a JSON lines file, [] where there is none; a last line cut short by a crash is dropped.

  Raises:
    ValueError: another line is not JSON; the text names it.
  """
  if not os.path.exists(path):
    return []
  with open(path, encoding="utf-8", errors="replace") as file:
    lines = file.read().split("\n")
  complete, rest = lines[:-1], lines[-1]
  if rest:
    logging.warning("%s: last line is incomplete, dropped: %r", path, rest)
  return [_record(path, number, line) for number, line in enumerate(complete, 1)]


def read_json(path: str, expected: type = object) -> Any:
  """Returns what `write_json` wrote.

  Args:
    path: of the file.
    expected: type of the value.

  Raises:
    ValueError: the file is no JSON, such as one that was cut short, or holds another type; names it.
  """
  advice = "put it back from a copy; result.json and summary.json may also be removed, the run writes them again"
  try:
    with open(path, encoding="utf-8") as file:
      value = json.load(file)
  except ValueError as error:
    raise ValueError(f"{path} is damaged, it is no JSON ({error}): {advice}") from error
  if not isinstance(value, expected):
    raise ValueError(f"{path} is damaged, it holds {str(value)[:80]!r} and not a {expected.__name__}: {advice}")
  return value


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
  """Names the file in errors of the system that name none, such as those of writing to a full disk."""
  try:
    yield
  except OSError as error:
    error.filename = error.filename or path
    raise


def write_json(path: str, value: Any) -> None:
  """Writes a JSON file that is either complete, also after a power cut, or not there (first host only)."""
  write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: str, text: str) -> None:
  """Writes a text file that is either complete, also after a power cut, or not there (first host only)."""
  if jax.process_index() == 0:
    with naming(path):
      _replace(path, text)


def _record(path, number, line):
  try:
    return json.loads(line)
  except json.JSONDecodeError as error:
    raise ValueError(f"{path}:{number} is not a record: {line[:80]!r}; delete that line") from error


def _replace(path, text):
  with open(f"{path}.tmp", "w", encoding="utf-8") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(f"{path}.tmp", path)
  folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
  os.fsync(folder)  # The new name, and those of files that were made before.
  os.close(folder)


def _cut(path, records):
  """Cuts the file to the length that it had, unless that part of it is missing or has changed."""
  with open(path, "a+b") as file:
    file.seek(0)
    text = file.read()
    kept = text[: records["bytes"]]
    if hashlib.sha256(kept).hexdigest() != records["sha256"]:
      raise LostRecordsError(_loss(path, text, records["bytes"]))
    file.truncate(len(kept))
  if len(text) > len(kept):
    lines = text[len(kept) :].count(b"\n")
    logging.info("%s: dropped %d records of steps that will be done again", path, lines)


def _loss(path, text, length):
  if len(text) < length:
    what = f"{path} holds {len(text)} of the {length} bytes that it had when the checkpoint was saved"
  else:
    what = f"the first {length} bytes of {path} are not those that it had when the checkpoint was saved"
  last = "".join(text.decode(errors="replace").split("\n")[-2:-1])
  return (
    f"records were lost: {what}; its last line is {last[:120]!r}. Put back the file from a copy, or resume the run"
    " without these records: --resume_with_changes"
  )


def _drop_after(path, phase, restored_step):
  """Test records come last, after the last checkpoint: an unfinished phase writes them again."""
  records = read_records(path)
  kept = [r for r in records if r["phase"] != phase or (r["step"] <= restored_step and r["kind"] != "test")]
  _replace(path, "".join(json.dumps(record) + "\n" for record in kept))
  if len(kept) < len(records):
    logging.info("%s: dropped %d records after the restored step %d", path, len(records) - len(kept), restored_step)
