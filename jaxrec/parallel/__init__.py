"""Several devices and hosts: joining the processes of a run, a mesh of their devices, and what lies where on it."""

from jaxrec.parallel.cluster import initialize, leave, wait_for_all_hosts
from jaxrec.parallel.mesh import (
  AXES,
  ROW_AXES,
  HostShard,
  host_shard,
  knows_mesh,
  make_mesh,
  num_row_parts,
  on_every_device,
  row_sharding,
  spread,
  spread_rows,
  spread_same_rows,
)
from jaxrec.parallel.rules import MESH_AXES, PARAMETER_AXES, log_shardings, parameter_shardings

__all__ = [
  "AXES", "MESH_AXES", "PARAMETER_AXES", "ROW_AXES", "HostShard", "host_shard", "initialize", "knows_mesh", "leave",
  "log_shardings", "make_mesh", "num_row_parts", "on_every_device", "parameter_shardings", "row_sharding", "spread",
  "spread_rows", "spread_same_rows", "wait_for_all_hosts",
]  # fmt: skip
