"""One process of several that open their own shards: prints what its batches are, to be put together by a test.

    python tests/programs/shard_batches.py FOLDER ADDRESS NUM_PROCESSES PROCESS_ID

Started by `tests/parallel/test_shard_processes.py`.
"""

import hashlib
import json
import sys

import jax
import numpy as np

from jaxrec import parallel
from jaxrec.data.batches.evaluation import evaluation_batches
from jaxrec.data.batches.sharded_training import make_training_batches, num_shards
from jaxrec.data.batches.training import TrainingOptions
from jaxrec.data.prepared import PreparedData


def digest(arrays):
  """A hash of the leaves of a pytree."""
  found = hashlib.sha256()
  for leaf in jax.tree.leaves(arrays):
    found.update(f"{leaf.dtype}{leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes())
  return found.hexdigest()[:16]


def main(folder, address, count, index):
  """Prints the hashes of each shard's rows in some batches, and of all rows of the batches of an evaluation."""
  if count > 1:
    parallel.initialize(address, count, index)
  data = PreparedData.load(folder, (index, count))
  data.check_content()
  own = num_shards(data) // count
  options = TrainingOptions(
    max_length=12, row_length=16, rows_per_batch=16, seed=3, shard_index=index, shard_count=count
  )
  batches = make_training_batches(data, options)
  rows = [
    [digest(jax.tree.map(lambda x, s=shard: np.split(x, own)[s], batches[step])) for shard in range(own)]
    for step in (0, 1, batches.batches_per_epoch + 2)
  ]
  evaluated = [digest(batch) for batch in evaluation_batches(data, 2, 32, 12)]
  sizes = [batches.batches_per_epoch, batches.users_per_epoch, batches.users_left_out]
  print(json.dumps({"sizes": sizes, "rows": rows, "evaluated": evaluated, "events": data.num_events}))


if __name__ == "__main__":
  main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
