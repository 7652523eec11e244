"""The results of a sweep on disk: a line for each finished run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from absl import logging

from jaxrec.train import writers
from jaxrec.train.identity import DATA_FILE


def read_results(out: str) -> dict[str, dict[str, Any]]:
  """Returns the results in a folder by key; an incomplete last line, left by a crash, is dropped with a warning.

  Raises:
    ValueError: another line is not a result; the text names it.
  """
  path = os.path.join(out, "results.jsonl")
  if not os.path.exists(path):
    return {}
  with open(path, encoding="utf-8") as file:
    lines = file.readlines()
  results = {}
  for line_number, line in enumerate(lines, start=1):
    try:
      record = json.loads(line)
      results[record["key"]] = record
    except (json.JSONDecodeError, KeyError, TypeError) as error:
      if line_number == len(lines) and not line.endswith("\n"):
        logging.warning("%s:%d is incomplete; that run is resumed", path, line_number)
        break
      raise ValueError(f"{path}:{line_number}: not a result: {line[:80]!r}; remove the line") from error
  return results


def read_summary(workdir: str) -> dict[str, Any]:
  """Returns the summary of a run.

  Raises:
    RuntimeError: the run has written none.
  """
  path = os.path.join(workdir, "summary.json")
  if not os.path.exists(path):
    raise RuntimeError(f"the run ended without writing {path}")
  return writers.read_json(path)


def _trained_on(workdir):
  path = os.path.join(workdir, DATA_FILE)
  return writers.read_json(path) if os.path.exists(path) else None


def append_result(out: str, workdir: str, record: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
  """Appends a line to the results, after removing an incomplete last line.

  Args:
    out: folder of the results.
    workdir: of the run, whose fingerprint of the data is added.
    record: "key" and what describes the run.
    summary: of the run.
  """
  path = os.path.join(out, "results.jsonl")
  more = {"data": _trained_on(workdir), "workdir": workdir, "summary": summary}
  line = json.dumps({**record, **more}) + "\n"
  with open(path, "a+b") as file:
    file.seek(0)
    text = file.read()
    file.truncate(text.rfind(b"\n") + 1)
    file.write(line.encode())
    file.flush()
    os.fsync(file.fileno())
