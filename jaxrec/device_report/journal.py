"""A log of measurements that survives crashes: what was finished is not measured again, what crashed is not retried."""

from __future__ import annotations

import faulthandler
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import parallel

OUT_OF_TIME = "not measured: out of time"


class DeviceLostError(Exception):
  """The device no longer computes; a new process may find it in order."""


@dataclass(frozen=True)
class Entry:
  """One line of the report.

  name: unique in a report, stable from run to run.
  section: heading under which it is shown.
  run: measures and returns what is to be recorded. It raises NotImplementedError, with the reason, for what this
    device cannot do.
  prepare: what can be done ahead, for several entries at a time: compilation. `run` must not need it.
  """

  name: str
  section: str
  run: Callable[[], dict[str, Any]]
  prepare: Callable[[], Any] | None = None


def read(path: str) -> list[dict[str, Any]]:
  """Returns the records of a journal, those of entries that began and did not end included; none if it is not there.

  A line cut short by a crash is left out.
  """
  if not os.path.exists(path):
    return []
  records, begun = {}, {}
  with open(path, encoding="utf-8") as file:
    for line in file:
      try:
        record = json.loads(line)
      except json.JSONDecodeError:
        continue
      key = record["name"]
      if record.pop("begun", False):
        begun[key] = record
      else:
        records[key] = record
  for key, record in begun.items():
    records.setdefault(key, record | {"failed": "the process ended, or was stopped, before this was finished"})
  return list(records.values())


def run_entries(
  entries: Sequence[Entry],
  path: str,
  about: dict[str, Any],
  say: Callable[[str], None],
  deadline: float | None = None,
  limit: float = 120.0,
) -> list[dict[str, Any]]:
  """Runs the entries that the journal at `path` does not hold yet, and returns all its records.

  Args:
    about: facts for every record, such as the device.
    say: is told each entry as it begins and as it ends.
    limit: seconds after which an entry that does not end takes the process with it: a kernel that waits forever can be
      stopped in no other way. The next run leaves it out.
    deadline: `time.monotonic()` after which no entry begins. Those left are returned as not measured; the journal does
      not hold them, so that the next run measures them.

  Raises:
    DeviceLostError: after a failure, when the device cannot even add two numbers; call again in a new process.
  """
  known = {record["name"] for record in read(path)}
  prepared: set[str] = set()
  for entry in entries:
    if entry.name in known or (deadline is not None and time.monotonic() > deadline):
      continue
    if entry.section not in prepared:
      prepared.add(entry.section)
      _prepare([e for e in entries if e.section == entry.section and e.name not in known], say, 4 * limit)
    record = {"name": entry.name, "section": entry.section} | about
    _append(path, record | {"begun": True})
    say(f"{entry.section}: {entry.name} ...")
    faulthandler.dump_traceback_later(limit, exit=True)
    record |= _outcome(entry)
    faulthandler.cancel_dump_traceback_later()
    _append(path, record)
    say(f"  {summary_of(record)}")
    if "failed" in record and not _device_works():
      raise DeviceLostError(f"after {entry.name} the device computes nothing more: {record['failed']}")
  found = {record["name"]: record for record in read(path)}
  left = [entry for entry in entries if entry.name not in found]
  return [*found.values(), *({"name": e.name, "section": e.section, "skipped": OUT_OF_TIME} for e in left)]


def _prepare(entries, say, limit) -> None:
  """What fails here fails again, and is recorded, when its entry runs."""
  tasks = [entry.prepare for entry in entries if entry.prepare is not None]
  cores = parallel.cpu_cores()
  if not tasks or cores < 4:
    return
  start = time.perf_counter()
  faulthandler.dump_traceback_later(limit, exit=True)
  with ThreadPoolExecutor(cores - 1) as pool:
    for future in [pool.submit(task) for task in tasks]:
      future.exception()
  faulthandler.cancel_dump_traceback_later()
  say(f"{entries[0].section}: compiled {len(tasks)} programs in {time.perf_counter() - start:.0f} s")


def summary_of(record: dict[str, Any]) -> str:
  """A record in a line, without what all records have."""
  hidden = ("name", "section", "device", "jax", "python", "platform", "cpu_cores")
  return ", ".join(f"{key} {value}" for key, value in record.items() if key not in hidden)


def _outcome(entry) -> dict[str, Any]:
  start = time.perf_counter()
  try:
    outcome = entry.run()
  except NotImplementedError as error:
    outcome = {"skipped": str(error)}
  except Exception as error:  # What fails is a finding; the rest is measured all the same.
    text = str(error).strip()
    outcome = {"failed": f"{type(error).__name__}: {text[:600]}" + (" ..." + text[-200:] if len(text) > 800 else "")}
  return outcome | {"seconds": round(time.perf_counter() - start, 1)}


def _device_works() -> bool:
  try:
    return float(jnp.ones(2).sum()) == 2
  except jax.errors.JaxRuntimeError:
    return False


def _append(path, record):
  with open(path, "a", encoding="utf-8") as file:
    file.write(json.dumps(record) + "\n")
    file.flush()
    os.fsync(file.fileno())
