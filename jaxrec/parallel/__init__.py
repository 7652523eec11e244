"""Several devices and hosts: joining the processes of a run, the mesh of their devices, and shardings of arrays."""

from jaxrec.parallel.cluster import abort, initialize, max_over_hosts, wait_for_all_hosts
from jaxrec.parallel.machine import cpu_cores, machine
from jaxrec.parallel.mesh import (
  AXES,
  ROW_AXES,
  HostShard,
  host_shard,
  make_mesh,
  num_row_shards,
  put_global,
  replicate,
  row_sharding,
  shard_batch,
  shard_replicated_batch,
  with_mesh,
)
from jaxrec.parallel.rules import MESH_AXES, PARAMETER_AXES, log_shardings, parameter_shardings, whole_along_fsdp

__all__ = [
  "AXES", "MESH_AXES", "PARAMETER_AXES", "ROW_AXES", "HostShard", "abort", "cpu_cores", "host_shard", "initialize",
  "log_shardings", "machine", "make_mesh", "max_over_hosts", "num_row_shards", "parameter_shardings", "put_global",
  "replicate", "row_sharding", "shard_batch", "shard_replicated_batch", "wait_for_all_hosts",
  "whole_along_fsdp", "with_mesh",
]  # fmt: skip
