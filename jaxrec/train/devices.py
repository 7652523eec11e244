"""One mesh axis, "data": rows of a batch are spread over all devices of all hosts, the state is on each of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def data_mesh() -> Mesh:
  """Returns the mesh of all devices of all hosts."""
  return Mesh(np.asarray(jax.devices()), (AXIS,))


def knows_mesh(function: Callable, mesh: Mesh | None) -> Callable:
  """Returns the function such that what it traces knows the mesh: kernels then run on the rows of each device."""
  if mesh is None or mesh.size == 1:
    return function

  @functools.wraps(function)
  def with_mesh(*args):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return function(*args)

  return with_mesh


def spread_rows(batch: Any, mesh: Mesh) -> Any:
  """Returns the global batch whose rows lie on the devices of the mesh.

  Args:
    batch: pytree of numpy arrays: this host's rows of the global batch, in the order of the hosts.
    mesh: see `data_mesh`; its size must divide the global number of rows.
  """
  sharding = NamedSharding(mesh, PartitionSpec(AXIS))
  if jax.process_count() == 1:
    return jax.device_put(batch, sharding)  # One call for all fields: the other way takes ten times as long.
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def spread_same_rows(batch: Any, mesh: Mesh) -> Any:
  """As `spread_rows`, of a batch that every host holds in full; each host takes its rows of it."""
  sharding = NamedSharding(mesh, PartitionSpec(AXIS))
  return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), batch)


def on_every_device(tree: Any, mesh: Mesh) -> Any:
  """Returns the pytree with each array copied to all devices; every host must give the same values."""
  sharding = NamedSharding(mesh, PartitionSpec())
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: np.asarray(x)[index]), tree
  )


def wait_for_all_hosts(name: str) -> None:
  """Returns once every host has come to the point of this name; at once on a single host."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)
