"""Joining the processes of one run, waiting for them, and aborting."""

from __future__ import annotations

import os
import sys
from typing import Any

import jax
import numpy as np
from absl import logging


def initialize(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  distributed: bool = False,
  heartbeat_timeout_seconds: int = 100,
) -> bool:
  """Joins the other processes of this run; returns whether there are any. A second call does nothing.

  Call it before anything touches a device. On TPU pods and under Slurm, Open MPI and Kubernetes, `distributed=True` is
  enough: JAX reads addresses and process ids from the cluster. On plain hosts pass the first three arguments. CPUs
  communicate over gloo, JAX's default.

  Process 0 listens on the coordinator's address, for anyone who can reach it: it asks for no password. Where the
  address is not one of its own interfaces, as behind a Kubernetes service, $JAX_COORDINATOR_BIND_ADDRESS names the
  one to listen on. An address that comes from a cluster manager is left to JAX, which then listens on every
  interface.

  Args:
    coordinator_address: host:port of process 0; None takes $JAX_COORDINATOR_ADDRESS, or the cluster's.
    num_processes: total number of processes.
    process_id: id of this process, from 0.
    distributed: True for one of several processes whose cluster is known to JAX. Without it and without an address, the
      process runs alone.
    heartbeat_timeout_seconds: if a process sends no heartbeat for this long, the others exit.

  Raises:
    ValueError: arguments that contradict each other, or some of them missing.

  >>> initialize()
  False
  >>> initialize(num_processes=2, process_id=0)
  Traceback (most recent call last):
  ValueError: num_processes=2 and process_id=0 need coordinator_address, host:port of process 0
  """
  address = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS")
  _check(address, num_processes, process_id, distributed)
  if not (distributed or address):
    return False
  if jax.distributed.is_initialized():
    return True
  if heartbeat_timeout_seconds < 1:
    raise ValueError(f"{heartbeat_timeout_seconds=} must be at least 1")
  jax.distributed.initialize(
    address,
    num_processes,
    process_id,
    # JAX would listen on every interface.
    coordinator_bind_address=os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or address,
    heartbeat_timeout_seconds=heartbeat_timeout_seconds,
  )
  logging.info("process %d of %d", jax.process_index(), jax.process_count())
  return True


def wait_for_all_hosts(name: str) -> None:
  """Blocks until every host has reached the barrier of this name; returns immediately on a single host."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def max_over_hosts(tree: Any) -> Any:
  """Returns the elementwise maximum over all hosts of the arrays of a pytree, as NumPy arrays of their types.

  Every host calls it, with arrays of the same shapes; integers fit into 32 bits. A single host gets its own back.

  >>> max_over_hosts(np.array([3, 1])).tolist()
  [3, 1]
  """
  if not jax.distributed.is_initialized() or jax.process_count() == 1:  # The latter alone would look for devices.
    return tree
  from jax.experimental import multihost_utils

  gathered = multihost_utils.process_allgather(tree)
  return jax.tree.map(lambda x, parts: np.asarray(parts).max(axis=0).astype(x.dtype), tree, gathered)


def abort(error: str) -> None:
  """Exits with code 1 and a message; immediately if there are other processes.

  A regular exit would wait for the others, which wait for this process in the middle of a step. After an immediate exit
  its heartbeats stop, and JAX ends the others too, after at most `heartbeat_timeout_seconds`.

  Args:
    error: message for standard error.
  """
  if jax.distributed.is_initialized():
    print(error, file=sys.stderr, flush=True)
    logging.flush()
    os._exit(1)
  sys.exit(error)


def _check(address, num_processes, process_id, distributed):
  given = {"num_processes": num_processes, "process_id": process_id}
  named = " and ".join(f"{name}={value}" for name, value in given.items() if value is not None)
  missing = [name for name, value in given.items() if value is None]
  if named and not (address or distributed):
    raise ValueError(f"{named} need coordinator_address, host:port of process 0")
  if address and missing and not distributed:
    raise ValueError(
      f"coordinator_address={address!r} needs {' and '.join(missing)} too; or distributed=True, if a cluster manager"
      " (Slurm, Open MPI, Kubernetes, a TPU pod) provides them"
    )
  if address and ":" not in address:
    raise ValueError(f"coordinator_address={address!r} must be host:port")
  if not missing and not 0 <= process_id < num_processes:
    raise ValueError(f"{process_id=} must be between 0 and {num_processes=} - 1")
