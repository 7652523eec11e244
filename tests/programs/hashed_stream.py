"""A stream of distinct 64-bit ids through `fold_id` and `two_rows` into a small table that is trained meanwhile.

    PYTHONPATH=. python tests/programs/hashed_stream.py --ids=3000000000 --chunk=4194304 --trained=16384

Every id of the stream occurs once. In each chunk come 256 regular ids, which differ in their high 32 bits only and have
a label of +1 or -1 to be learned; the labels of the stream are random. Prints as JSON how even the rows are loaded
(standard deviations from what even hashing gives), how many regular ids have the right sign at the end, the ids that
share both rows with another one, and seconds. Needs memory for one chunk and the table, however long the stream is.
"""

import argparse
import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.data.batches.splitmix import GOLDEN_GAMMA, mix_bits
from jaxrec.embedding import RowSGD, Table, Tables, fold_id, two_rows

REGULAR = 5 + np.arange(256, dtype=np.int64) * 2**32
LABELS = np.where(np.random.default_rng(0).permutation(256) % 2, 1.0, -1.0).astype(np.float32)


def stream(first, count):
  """Returns `count` ids of the stream, int64: SplitMix64 maps different counters to different ids."""
  with np.errstate(over="ignore"):
    return mix_bits((np.arange(first, first + count, dtype=np.uint64) + np.uint64(1)) * GOLDEN_GAMMA).view(np.int64)


@functools.partial(jax.jit, static_argnums=0)
def step(tables, state, rows, label):
  """Returns the table after a step that moves the sum of the two rows of each id towards its label."""
  looked_up, plan = tables.lookup(state, {"id": rows})

  def loss(looked_up):
    found = tables.vectors(looked_up, plan)["id"].sum(axis=(1, 2))
    return jnp.sum((found - label) ** 2)

  return tables.update(state, plan, jax.grad(loss)(looked_up))


@functools.partial(jax.jit, static_argnums=0)
def scores(tables, state, rows):
  """Returns the sum of the two rows of each id."""
  looked_up, plan = tables.lookup(state, {"id": rows})
  return tables.vectors(looked_up, plan)["id"].sum(axis=(1, 2))


def run(num_ids, chunk, num_rows, trained, report=lambda seen: None):
  """Returns what the module says, for a stream of `num_ids`; `trained` ids of each chunk are trained on."""
  started = time.monotonic()
  tables = Tables({"id": Table(num_rows, 1, optimizer=RowSGD(0.1), initializer=jax.nn.initializers.zeros)})
  state, loads, rng = tables.init(jax.random.key(0)), np.zeros((2, num_rows), np.int64), np.random.default_rng(1)
  hashed = jax.jit(functools.partial(two_rows, num_rows=num_rows))
  regular = np.asarray(hashed(fold_id(REGULAR)))
  for first in range(0, num_ids, chunk):
    rows = np.asarray(hashed(fold_id(stream(first, min(chunk, num_ids - first)))))
    for which in range(2):
      loads[which] += np.bincount(rows[:, which], minlength=num_rows)
    some = np.concatenate([rows[:trained], regular])
    label = np.concatenate([rng.choice(np.float32([-1, 1]), len(some) - len(regular)), LABELS])
    state = step(tables, state, some, label)
    report(first + len(rows))
  mean = num_ids / (num_rows - 1)
  variance = loads[:, 1:].var(axis=1) / mean  # 1 for even hashing, up to sqrt(2 / rows).
  return {
    "ids": num_ids, "padding": int(loads[:, 0].sum()),
    "uneven": [round(float((v - 1) / np.sqrt(2 / num_rows)), 2) for v in variance],
    "right": int((np.sign(scores(tables, state, regular)) == LABELS).sum()),
    "sharing_both_rows": len(regular) - len(np.unique(regular, axis=0)),
    "seconds": round(time.monotonic() - started, 1),
  }  # fmt: skip


def main():
  """Runs the stream of the flags."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--ids", type=int, default=10_000_000)
  parser.add_argument("--chunk", type=int, default=1 << 20)
  parser.add_argument("--rows", type=int, default=1 << 16)
  parser.add_argument("--trained", type=int, default=4096)
  arguments = parser.parse_args()
  print(json.dumps(run(arguments.ids, arguments.chunk, arguments.rows, arguments.trained)))


if __name__ == "__main__":
  main()
