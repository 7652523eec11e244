"""Loops and kernels on several devices: each computes its rows, and its heads where they lie along a mesh axis.

The compiler can partition neither kernels nor loops over tiles, whose indices count the tiles of all rows: it would
give every device all of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, PartitionSpec

from pallas_kernels.sizes import is_known
from pallas_kernels.varying import axes_of, vary

HEADS_AXIS = "model"  # The mesh axis along which heads lie, where it divides them; rows lie along all others.


def on_each_device(attention: Callable[..., Any], q, k, v, mask, bias, *groups, check_vma: bool = True, **options):
  """Returns `attention(q, k, v, mask, bias, *groups, **options)`, computed on the rows and heads of each device.

  The mesh is that of `jax.set_mesh` or `jax.sharding.use_abstract_mesh`. Without one, inside `jax.shard_map`, and where
  it does not divide the rows, all of it is computed as it stands.

  Args:
    attention: of all its arguments' rows and heads.
    q, k, v, mask, bias: arguments of `segment_attention`, of all devices.
    *groups: `KeyGroups` or None, for an attention that takes them.
    check_vma: whether `jax.shard_map` checks along which axes values differ; False for kernels that do not say it.
    **options: passed on.
  """
  mesh = _mesh_for(q)
  if mesh is None:
    return attention(q, k, v, mask, bias, *groups, **options)
  along_heads, row_axes = HEADS_AXIS if _splits_heads(mesh, q) else None, _row_axes(mesh)
  rows, heads = PartitionSpec(row_axes), PartitionSpec(row_axes, None, along_heads)
  of_mask, of_bias, *of_groups = jax.tree.map(lambda _: rows, (mask, bias, *groups))
  if bias is not None:
    tables = {name: getattr(bias, name) for name in ("time_table", "position_table")}
    cut = {name: PartitionSpec(along_heads if x.ndim == 2 else None) for name, x in tables.items() if x is not None}
    of_bias = dataclasses.replace(of_bias, **cut)

  def run(*arguments):
    return attention(*(vary(arguments, axes_of(arguments)) if check_vma else arguments), **options)

  specs = heads, heads, heads, of_mask, of_bias, *of_groups
  split = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=heads, check_vma=check_vma)
  return split(q, k, v, mask, bias, *groups)


def rows_on_each_device(function: Callable[..., Any], shared: Any, *rows: Any) -> Any:
  """Returns `function(shared, *rows)`, computed on the rows of each device; see `on_each_device`.

  Args:
    function: of arrays that each device has whole, and of its own rows; returns rows.
    shared: pytree of arrays that each device gets whole; their gradient is summed over the devices once.
    *rows: arrays whose first axis is the same.
  """
  mesh = _mesh_for(rows[0])
  if mesh is None:
    return function(shared, *rows)
  along = PartitionSpec(_row_axes(mesh))

  def run(shared, *rows):
    return function(vary(shared, axes_of(rows)), *rows)

  specs = PartitionSpec(), *(along for _ in rows)
  return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=along)(shared, *rows)


def on_one_device(x: Any) -> Any:
  """Returns the shape of the rows and heads `[B, N, H, D]` that a device has in `on_each_device`; else x."""
  mesh = _mesh_for(x)
  if mesh is None:
    return x
  rows = x.shape[0] // math.prod(mesh.shape[name] for name in _row_axes(mesh))
  heads = x.shape[2] // (mesh.shape[HEADS_AXIS] if _splits_heads(mesh, x) else 1)
  return jax.ShapeDtypeStruct((rows, x.shape[1], heads, x.shape[3]), x.dtype)


def platform() -> str:
  """Returns for what a program is compiled ("cpu", "gpu", "tpu"): the devices of the mesh, else those of this process.

  They differ where a program for a TPU is compiled on another machine. Meshes: see `on_each_device`.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None or device.platform is None else device.platform


def _mesh_for(x) -> AbstractMesh | None:
  """The mesh over which rows are split, if they are."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1 or mesh.manual_axes or not is_known(x):
    return None
  return None if x.shape[0] % math.prod(mesh.shape[name] for name in _row_axes(mesh)) else mesh


def _row_axes(mesh) -> tuple[str, ...]:
  return tuple(name for name in mesh.axis_names if name != HEADS_AXIS)


def _splits_heads(mesh, x) -> bool:
  return x.shape[2] % mesh.shape.get(HEADS_AXIS, x.shape[2] + 1) == 0
