"""Shardings of parameters by their names; modules carry no sharding annotations.

One table of rules maps regular expressions of parameter names to logical axis names, another maps logical names to mesh
axes. Arrays that are named like a parameter (moments of the optimizer, a moving average) are sharded like it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

# (regular expression searched in "params/layers_0/uvqk/kernel", logical names of the axes); the first match applies.
Rules = Sequence[tuple[str, tuple[str | None, ...]]]

PARAMETER_AXES: Rules = (
  (r"(^|/)(attention_)?items/table$", ("vocabulary", "embed")),
  (r"(^|/)items/(features|has_id)$", ("vocabulary", None)),
  (r"(^|/)uvqk(/|_)kernel$", ("embed", "heads")),
  (r"(^|/)(query|key|value)/kernel$", ("embed", "heads")),
  (r"(^|/)(layers_\d+|attention)/output(/|_)kernel$", ("heads", "embed")),
  (r"(^|/)layer_\d+/output_kernel$", ("heads", "embed")),
  (r"(^|/)feed_forward/hidden/kernel$", ("embed", "mlp")),
  (r"(^|/)feed_forward/output/kernel$", ("mlp", "embed")),
  (r"(^|/)(head|(\w+_)?gate)/kernel$", ("embed", "mlp")),
)
MESH_AXES: Mapping[str, str | tuple[str, ...] | None] = {
  "vocabulary": "model", "embed": "fsdp", "heads": "model", "mlp": "model",
}  # fmt: skip


def parameter_shardings(
  shapes: Any,
  mesh: Mesh | AbstractMesh,
  rules: Rules = PARAMETER_AXES,
  mesh_axes: Mapping[str, str | tuple[str, ...] | None] = MESH_AXES,
) -> Any:
  """Returns a `NamedSharding` for each array of a pytree: parameters, or a whole training state.

  An array that no rule matches is replicated. An axis whose size is not divisible by the mesh axis is not sharded,
  which is logged.

  Args:
    shapes: pytree of arrays or of their shapes (`jax.eval_shape`).
    mesh: see `jaxrec.parallel.make_mesh`.
    rules: logical names of the axes of parameters; extend `PARAMETER_AXES`, or replace it.
    mesh_axes: mesh axis (or several, or None) of each logical name.

  Raises:
    ValueError: a rule with an unknown logical name, a logical name with an unknown mesh axis, or an array that would be
      sharded over the same mesh axis twice.

  Choice: u, v, q and k of an HSTU layer are one matrix, whose column shards along "model" don't coincide with heads, so
    that compilers move activations between devices. The values are the same.
  """
  _check_tables(mesh, rules, mesh_axes)
  compiled = [(re.compile(pattern), names) for pattern, names in rules]

  def sharding(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    names = next((names for pattern, names in compiled if pattern.search(name)), None)
    return NamedSharding(mesh, _spec(name, x.shape, names, mesh, mesh_axes))

  return jax.tree_util.tree_map_with_path(sharding, shapes)


def whole_along_fsdp(tree: Any, mesh: Mesh | None) -> Any:
  """Returns parameters or gradients whole along "fsdp"; shards of other mesh axes, and other arrays, stay as they are.

  Without it the compiler may give each device the activations of all rows and some of their columns instead. Moments of
  the optimizer stay sharded (ZeRO, arXiv 1910.02054).

  Args:
    tree: arrays named like parameters and sharded by `parameter_shardings`, inside `jax.jit`.
    mesh: see `jaxrec.parallel.make_mesh`; None: nothing is sharded along "fsdp".
  """
  if mesh is None or mesh.shape.get("fsdp", 1) == 1:
    return tree

  def gather(x, sharding):
    axes = [_as_tuple(along) for along in sharding.spec]
    if not any("fsdp" in along for along in axes):
      return x
    rest = (tuple(axis for axis in along if axis != "fsdp") or None for along in axes)
    return jax.lax.with_sharding_constraint(x, NamedSharding(sharding.mesh, PartitionSpec(*rest)))

  return jax.tree.map(gather, tree, parameter_shardings(tree, mesh))


def log_shardings(shapes: Any, shardings: Any) -> None:
  """Logs how many arrays are sharded, and the bytes of the whole pytree and of each device's shards."""
  leaves, placed = jax.tree.leaves(shapes), jax.tree.leaves(shardings)
  share = sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in zip(leaves, placed, strict=True))
  logging.info(
    "state: %d of %d arrays are sharded; %.1f MiB in total, %.1f MiB per device",
    sum(not s.is_fully_replicated for s in placed), len(leaves),
    sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves) / 2**20, share / 2**20,
  )  # fmt: skip


def _spec(name, shape, names, mesh, mesh_axes):
  """Returns the PartitionSpec of one array, without mesh axes of size 1."""
  if names is None or len(names) != len(shape):
    if names is not None and math.prod(shape) > 1:
      logging.warning("%s %s is replicated: its rule has %d axes", name, shape, len(names))
    return PartitionSpec()
  axes = [_mesh_axes_of(mesh_axes.get(logical), mesh) for logical in names]
  flat = [axis for along in axes for axis in along]
  if len(set(flat)) < len(flat):
    raise ValueError(f"{name}: axes {names} of shape {shape} would be sharded over {flat}, one mesh axis twice")
  for i, along in enumerate(axes):
    parts = math.prod(mesh.shape[axis] for axis in along)
    if shape[i] % parts:
      logging.info("%s %s is not sharded along %s: %d shards do not divide it", name, shape, names[i], parts)
      axes[i] = ()
  while axes and not axes[-1]:
    axes.pop()
  return PartitionSpec(*((along if len(along) > 1 else along[0]) if along else None for along in axes))


def _mesh_axes_of(given, mesh):
  return tuple(axis for axis in _as_tuple(given) if mesh.shape[axis] > 1)


def _as_tuple(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
  return () if axes is None else (axes,) if isinstance(axes, str) else axes


def _check_tables(mesh, rules, mesh_axes):
  for logical, given in mesh_axes.items():
    for axis in _as_tuple(given):
      if axis not in mesh.axis_names:
        raise ValueError(f"mesh_axes[{logical!r}] names {axis!r}, which is not an axis of the mesh {mesh.axis_names}")
  for pattern, names in rules:
    if unknown := [name for name in names if name is not None and name not in mesh_axes]:
      raise ValueError(f"the rule {pattern!r} has logical names {unknown}; mesh_axes has {sorted(mesh_axes)}")
