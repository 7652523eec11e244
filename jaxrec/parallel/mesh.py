"""A mesh of all devices of all hosts with the axes "data", "fsdp" and "model", and functions that shard arrays on it.

The rows of a batch are sharded over "data" and "fsdp" together. Parameters are sharded over "fsdp" (rows or columns, to
save memory) and "model" (heads, hidden units, items); see `jaxrec.parallel.rules`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from pallas_kernels.integers import as_integers

AXES = ("data", "fsdp", "model")
ROW_AXES = ("data", "fsdp")


def make_mesh(axes: Mapping[str, int] | None = None, devices: Sequence[Any] | None = None) -> Mesh:
  """Returns the mesh of all devices of all hosts, with physical neighbours on TPUs as neighbours in the mesh.

  Several TPU slices are ordered along "data", because the network between them is the slowest.

  Args:
    axes: sizes of "data", "fsdp" and "model"; one of them may be -1, for all remaining devices. Axes that are not given
      have size 1. None: all devices along "data".
    devices: devices to use; None takes `jax.devices()`.

  Raises:
    ValueError: an unknown axis, or sizes that don't multiply to the number of devices.

  >>> make_mesh({"data": 1}).shape_tuple
  (('data', 1), ('fsdp', 1), ('model', 1))
  """
  devices = jax.devices() if devices is None else list(devices)
  shape = _mesh_shape({"data": -1} if axes is None else axes, len(devices))
  slices = len({getattr(device, "slice_index", 0) for device in devices}) if devices[0].platform == "tpu" else 1
  if slices > 1:
    return Mesh(_hybrid(shape, devices, slices), AXES)
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def _mesh_shape(axes: Mapping[str, int], num_devices: int) -> tuple[int, ...]:
  """Returns the sizes of all axes, with -1 replaced.

  >>> _mesh_shape({"data": -1, "model": 2}, 8)
  (4, 1, 2)
  """
  if unknown := sorted(axes.keys() - set(AXES)):
    raise ValueError(f"{unknown=} are not axes of the mesh, which has {AXES}")
  sizes = {name: int(axes.get(name, 1)) for name in AXES}
  if any(size < 1 and size != -1 for size in sizes.values()) or list(sizes.values()).count(-1) > 1:
    raise ValueError(f"mesh axes {sizes}: sizes must be at least 1; one of them may be -1, for the rest")
  known = math.prod(size for size in sizes.values() if size != -1)
  if num_devices % known:
    raise ValueError(f"mesh axes {sizes}: {known} does not divide the {num_devices} devices")
  shape = tuple(num_devices // known if size == -1 else size for size in sizes.values())
  if math.prod(shape) != num_devices:
    raise ValueError(f"mesh axes {sizes} use {known} of the {num_devices} devices; set one of them to -1")
  return shape


def _hybrid(shape, devices, slices):
  """Returns the devices of several slices as an array of this shape, with the slices along the first axis."""
  from jax.experimental import mesh_utils

  if shape[0] % slices:
    raise ValueError(f"mesh axis data={shape[0]} must be divisible by the {slices} TPU slices")
  inside = (shape[0] // slices, *shape[1:])
  return mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1), devices)


def with_mesh(function: Callable, mesh: Mesh | None) -> Callable:
  """Returns the function, traced with the mesh in context, so that kernels run on the rows of each device.

  Args:
    function: a function of positional arguments, to be jitted.
    mesh: see `make_mesh`; None or a mesh of one device returns the function unmodified.
  """
  if mesh is None or mesh.size == 1:
    return function

  @functools.wraps(function)
  def with_mesh(*args):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return function(*args)

  return with_mesh


def row_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of per-example arrays: their first axis over "data" and "fsdp"."""
  return NamedSharding(mesh, PartitionSpec(tuple(name for name in mesh.axis_names if name in ROW_AXES)))


def num_row_shards(mesh: Mesh) -> int:
  """Returns the number of shards of the rows of a batch; devices along "model" hold the same shard."""
  return math.prod(mesh.shape[name] for name in mesh.axis_names if name in ROW_AXES)


@dataclasses.dataclass(frozen=True)
class HostShard:
  """The rows that this host makes of each batch: part `index` of `count` equal parts."""

  index: int
  count: int


@functools.lru_cache(maxsize=8)
def host_shard(mesh: Mesh) -> HostShard:
  """Returns which rows this host makes; hosts whose devices hold the same rows (along "model") make the same rows.

  Raises:
    ValueError: two hosts would share some of their rows but not all.
  """
  hosts = np.vectorize(lambda device: device.process_index)(mesh.devices)
  return HostShard(*_host_shard(hosts.reshape(num_row_shards(mesh), -1), jax.process_index()))  # [shards, model]


def _host_shard(hosts: Int[np.ndarray, "P D"], host: int) -> tuple[int, int]:
  """Returns index and count of the shard of `host`, from the hosts of the D devices that hold each of P row shards.

  >>> _host_shard(np.array([[0], [0], [1], [1]]), host=1)  # two devices each
  (1, 2)
  >>> _host_shard(np.array([[0, 1]]), host=1)  # both hold all rows
  (0, 1)
  >>> _host_shard(np.array([[0, 1], [2, 3]]), host=3)
  (1, 2)
  """
  parts_of = {h: tuple(np.flatnonzero((hosts == h).any(axis=1)).tolist()) for h in np.unique(hosts).tolist()}
  shards = sorted(set(parts_of.values()))
  if len({len(shard) for shard in shards}) > 1 or sum(map(len, shards)) != len(hosts):
    raise ValueError(
      f"hosts share rows unevenly: row shards by host are {parts_of}; choose config.parallel.model such that it divides"
      " the number of devices per host, or is a multiple of it"
    )
  if host not in parts_of:
    raise ValueError(f"{host=} has no device in the mesh")
  return shards.index(parts_of[host]), len(shards)


def shard_batch(batch: Any, mesh: Mesh) -> Any:
  """Returns the global batch, its rows sharded over the mesh, from the rows of each host.

  Args:
    batch: pytree of numpy arrays: this host's rows of the global batch, see `host_shard`.
    mesh: see `make_mesh`; `num_row_shards` must divide the global number of rows.
  """
  sharding, batch = row_sharding(mesh), jax.tree.map(_whole_integers, batch)
  if jax.process_count() == 1:
    return jax.device_put(batch, sharding)  # One call for all fields: ten times faster than the code below.
  count = host_shard(mesh).count
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x, (x.shape[0] * count, *x.shape[1:])), batch
  )


def shard_replicated_batch(batch: Any, mesh: Mesh) -> Any:
  """Returns the global batch, its rows sharded over the mesh, from the whole batch on every host.

  Args:
    batch: pytree of numpy arrays, the same on every host.
    mesh: see `make_mesh`; `num_row_shards` must divide the number of rows.
  """
  return jax.tree.map(lambda x: _from_whole(_whole_integers(x), row_sharding(mesh)), batch)


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Returns the pytree with each array replicated on all devices; values must be the same on every host."""
  return jax.tree.map(lambda x: _from_whole(np.asarray(x), NamedSharding(mesh, PartitionSpec())), tree)


def put_global(tree: Any, shardings: Any) -> Any:
  """Returns the pytree as global arrays.

  Args:
    tree: pytree of whole arrays, the same on every host.
    shardings: pytree of their shardings; see `jaxrec.parallel.parameter_shardings`.
  """
  return jax.tree.map(lambda x, sharding: _from_whole(np.asarray(x), sharding), tree, shardings)


def _whole_integers(x):
  """Returns an array of a batch; integers that JAX would cut to 32 bits raise ValueError."""
  is_wide = isinstance(x, np.ndarray) and np.issubdtype(x.dtype, np.integer) and x.dtype.itemsize > 4
  return np.asarray(as_integers("batch", x)) if is_wide else x


def _from_whole(array, sharding):
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
