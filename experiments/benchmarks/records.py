"""Records of benchmarks: JSON lines that name the machine."""

from __future__ import annotations

import json
import os
import platform
from typing import Any

import jax


def machine() -> dict[str, Any]:
  """Returns the device, the number of CPU cores and the versions of JAX and Python, for a record."""
  return {
    "device": jax.devices()[0].device_kind,
    "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    "jax": jax.__version__,
    "python": platform.python_version(),
  }


def publish(record: dict[str, Any], out: str | None) -> None:
  """Prints a record as a JSON line and appends it to the file `out`, if given."""
  line = json.dumps(record)
  print(line, flush=True)
  if out:
    with open(out, "a", encoding="utf-8") as file:
      file.write(line + "\n")
