"""A program for one of several processes with one device each; process 0 prints the difference from dense tables.

Started by `test_embedding_devices.py`: table_process.py <address> <number of processes> <process id>.
"""

import sys

import dense_tables
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrec.embedding import Tables


def main(address, num_processes, process_id):
  """Trains on batches whose rows are sharded over the processes."""
  jax.distributed.initialize(address, num_processes, process_id, heartbeat_timeout_seconds=10)
  assert jax.device_count() == num_processes and jax.local_device_count() == 1
  mesh = Mesh(np.array(jax.devices()), ("rows",))
  described = dense_tables.problem_tables(names=("item",), initializer=jax.nn.initializers.zeros)
  made = dense_tables.batches(3, described, leave_out=False, num_rows=8)
  expected = dense_tables.from_zeros(described).train(made)

  def shard(x):
    return jax.make_array_from_callback(x.shape, NamedSharding(mesh, PartitionSpec("rows")), lambda index: x[index])

  tables = Tables(described, mesh)
  state, counts = dense_tables.train(tables, jax.tree.map(shard, made))
  saved = multihost_utils.process_allgather(jax.jit(tables.to_logical)(state)["tables"], tiled=True)
  difference = max(
    float(np.abs(array[: described[name].num_rows] - expected[name, slot]).max())
    for name, slots in saved.items()
    for slot, array in slots.items()
  )
  if process_id == 0:
    print(difference, sum(count["overflow"] for count in counts))


if __name__ == "__main__":
  main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
