"""Several devices and hosts: joining the processes of a run, a mesh of their devices, and what lies where on it."""

from jaxrec.parallel.cluster import abort, initialize, wait_for_all_hosts
from jaxrec.parallel.mesh import (
  AXES,
  ROW_AXES,
  HostShard,
  host_shard,
  make_mesh,
  num_row_parts,
  put_global,
  replicate,
  row_sharding,
  shard_batch,
  shard_replicated_batch,
  with_mesh,
)
from jaxrec.parallel.rules import MESH_AXES, PARAMETER_AXES, log_shardings, parameter_shardings

__all__ = [
  "AXES", "MESH_AXES", "PARAMETER_AXES", "ROW_AXES", "HostShard", "host_shard", "initialize", "with_mesh", "abort",
  "log_shardings", "make_mesh", "num_row_parts", "replicate", "parameter_shardings", "row_sharding", "put_global",
  "shard_batch", "shard_replicated_batch", "wait_for_all_hosts",
]  # fmt: skip
