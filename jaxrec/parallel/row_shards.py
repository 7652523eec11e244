"""The rows of one large array, sharded over mesh axes: which item each row belongs to, and functions of one shard."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, Int


@dataclasses.dataclass(frozen=True)
class RowShards:
  """How the rows of an array `[R, ...]` are sharded: row r of shard s holds id `r * num_shards + s` (MOD layout).

  Without axes there is one shard, and row r holds id r.

  mesh: devices, perhaps abstract ones; None: the default device.
  axes: mesh axes over which rows are sharded; empty: every device holds all rows.

  >>> RowShards().local_ids(3).tolist(), RowShards().local_rows(jnp.array([2, 0, -1])).tolist()
  ([0, 1, 2], [2, -1, -1])
  """

  mesh: Mesh | AbstractMesh | None = None
  axes: tuple[str, ...] = ()

  @property
  def num_shards(self) -> int:
    """Number of shards."""
    return math.prod(self.mesh.shape[axis] for axis in self.axes) if self.axes else 1

  @property
  def spec(self) -> PartitionSpec:
    """PartitionSpec of the sharded array; also that of any array with one leading entry for each shard."""
    return PartitionSpec(self.axes) if self.axes else PartitionSpec()

  def shard_map(self, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """Returns the function, run once for each shard; unmodified where there is one shard."""
    if not self.axes:
      return function
    return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs)

  def shard_index(self) -> Int[Array, ""]:
    """Returns the index of the current shard, inside `shard_map`."""
    return jax.lax.axis_index(self.axes) if self.axes else jnp.zeros((), jnp.int32)

  def local_ids(self, num_rows: int) -> Int[Array, " R"]:
    """Returns the ids of the rows of the current shard, inside `shard_map`.

    Args:
      num_rows: R, rows of one shard. Ids beyond the last one pad the shards to equal size.
    """
    return jnp.arange(num_rows, dtype=jnp.int32) * self.num_shards + self.shard_index()

  def local_rows(self, ids: Int[Array, "*T"]) -> Int[Array, "*T"]:
    """Returns the row of each id in the current shard, inside `shard_map`; -1 for ids of other shards and below 1."""
    is_here = (ids > 0) & (ids % self.num_shards == self.shard_index())
    return jnp.where(is_here, ids // self.num_shards, -1)

  def sum(self, x: Any) -> Any:
    """Returns the sum over the shards, inside `shard_map`."""
    return jax.lax.psum(x, self.axes) if self.axes else x
