"""Joining the processes of one run, and leaving them."""

from __future__ import annotations

import os
import sys

import jax
from absl import logging


def initialize(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  distributed: bool = False,
  heartbeat_timeout_seconds: int = 100,
) -> bool:
  """Joins the other processes of this run and returns whether there are any to join; a second call does nothing.

  To be called before anything touches a device. On TPU pods, under Slurm, Open MPI and Kubernetes `distributed=True` is
  enough: JAX asks the cluster for the rest. On plain hosts give all three arguments. CPUs talk over
  gloo, JAX's default.

  Args:
    coordinator_address: host:port of process 0; None takes $JAX_COORDINATOR_ADDRESS, or asks the cluster.
    num_processes: processes in all.
    process_id: number of this one, from 0.
    distributed: whether this is one process of several; without it and without any address there is nothing to join.
    heartbeat_timeout_seconds: how long a process may be silent before the others take it for dead and end themselves.

  Raises:
    ValueError: arguments that contradict each other, or of which some are missing.

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
  jax.distributed.initialize(address, num_processes, process_id, heartbeat_timeout_seconds=heartbeat_timeout_seconds)
  logging.info("process %d of %d", jax.process_index(), jax.process_count())
  return True


def wait_for_all_hosts(name: str) -> None:
  """Returns once every host has come to the point of this name; at once on a single host."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def abort(error: str) -> None:
  """Ends this process with exit code 1 and a message, at once where there are others.

  An orderly exit would wait for the others, which wait for this process in the middle of a step. Ended at once, it is
  missed: JAX then ends them too, after `heartbeat_timeout_seconds` at most.
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
      f"coordinator_address={address!r} needs {' and '.join(missing)} too; or distributed=True where a cluster manager"
      " (Slurm, Open MPI, Kubernetes, a TPU pod) tells JAX"
    )
  if address and ":" not in address:
    raise ValueError(f"coordinator_address={address!r} must be host:port")
  if not missing and not 0 <= process_id < num_processes:
    raise ValueError(f"{process_id=} must lie between 0 and {num_processes=} - 1")
