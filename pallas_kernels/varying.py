"""Under `jax.shard_map`: along which axes of the mesh values differ. Loops and kernels want all of theirs to agree."""

from __future__ import annotations

from typing import Any

import jax


def axes_of(tree: Any) -> tuple[str, ...]:
  """The mesh axes along which any array of the tree differs from device to device; outside of `shard_map`, none."""
  axes = [jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(tree)]
  return tuple(sorted(frozenset().union(*axes)))


def vary(tree: Any, axes: tuple[str, ...]) -> Any:
  """The same arrays, as ones that differ along `axes`; a gradient is then summed along those that are new."""

  def cast(x):
    missing = tuple(axis for axis in axes if axis not in jax.typeof(x).manual_axis_type.varying)
    return jax.lax.pcast(x, missing, to="varying") if missing else x

  return jax.tree.map(cast, tree)
