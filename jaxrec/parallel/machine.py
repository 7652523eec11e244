"""What a program runs on, for the records of results."""

from __future__ import annotations

import os
import platform
from typing import Any

import jax


def machine() -> dict[str, Any]:
  """Returns the device and how many there are, of all hosts, this host's CPU cores, the versions of JAX and Python."""
  return {
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
    "cpu_cores": cpu_cores(),
    "jax": jax.__version__,
    "python": platform.python_version(),
  }


def cpu_cores() -> int:
  """Returns the number of cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
