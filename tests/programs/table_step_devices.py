"""A program for 8 simulated devices: training steps with an item table, and its checkpoints, on several meshes.

Started by `test_table_step.py` because the number of devices is set when a process starts. Prints one JSON line: by
mesh, the difference of parameters and rows from one device, and of a restored state from the saved one.
"""

import functools
import json
import sys

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sequences import NUM_ITEMS, batch_of

from jaxrec.embedding import RowAdamW, Table, Tables
from jaxrec.models import build
from jaxrec.objectives.item import TABLE, ItemObjective
from jaxrec.train.checkpoint import Checkpoints, load_state
from jaxrec.train.item_table import Sharded, optimize_dense_only
from jaxrec.train.state import create_state
from jaxrec.train.step import make_train_step

MESHES = {"1": (1, ("data",)), "8": (8, ("data",)), "4x2": ((4, 2), ("data", "fsdp")), "4": (4, ("data",))}
BATCH = batch_of([[[3, 1, 4, 1, 5, 9]], [[2, 6], [5, 3, 5]], [[8, 9, 7]], [[3, 2, 3, 8]]] * 2, length=7)
MODEL = build(
  {"name": "hstu", "width": 8, "num_layers": 1, "max_positions": 9, "num_heads": 2, "head_width": 4, "value_width": 4,
   "attention_length": 7},
  num_items=NUM_ITEMS,
)  # fmt: skip


def run(name, folder, loss="sampled_softmax", steps=3):
  """Returns tables, the state after some steps, and the last loss on a mesh; saves the state in `folder`, if any."""
  shape, axes = MESHES[name]
  devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
  mesh = Mesh(devices, axes)
  tables = Tables({TABLE: Table(NUM_ITEMS + 1, 8, optimizer=RowAdamW(0.1), placement="sharded")}, mesh)
  item_table, optimizer = Sharded(tables), optimize_dense_only(optax.adam(0.1), 1.0)
  everywhere = NamedSharding(mesh, PartitionSpec())
  start = create_state(
    MODEL, optimizer, BATCH, seed=0, init_arguments=functools.partial(item_table.init_arguments, MODEL)
  )
  start = jax.device_put(start, everywhere).replace(tables=tables.init(jax.random.key(3)))
  objective = ItemObjective(loss, num_negatives=4, sharing="row", chunk_size=4)
  step = make_train_step(MODEL, objective, optimizer, seed=1, mesh=mesh, item_table=item_table)
  state, scalars, batch = start, {"loss": np.nan}, jax.device_put(BATCH, NamedSharding(mesh, PartitionSpec(axes)))
  for _ in range(steps):
    state, scalars = step(state, batch)
  if folder:
    with Checkpoints(f"{folder}/{name}", item_table) as checkpoints:
      checkpoints.save(state, {}, best_step=None)
  return tables, state, float(scalars["loss"])


def numbers(tables, state):
  """Returns parameters, item rows and their optimizer state, in the order of ids."""
  saved = jax.device_get(tables.to_logical(state.tables))["tables"][TABLE]
  return jax.device_get(state.params), {name: x[: NUM_ITEMS + 1] for name, x in saved.items()}


def furthest(one, other):
  """Returns the largest difference between two trees."""
  return max(float(np.abs(x - y).max()) for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def main(folder):
  """Runs all meshes but the last; then restores each checkpoint on another mesh."""
  runs = {name: run(name, folder) for name in ("1", "8", "4x2")}
  found = {name: numbers(tables, state) for name, (tables, state, _) in runs.items()}
  result = {"loss": {name: loss for name, (_, _, loss) in runs.items()}}
  result["from one device"] = {name: furthest(found["1"], values) for name, values in found.items()}
  one, eight = (run(name, None, "full_softmax") for name in ("1", "8"))
  result["full softmax"] = {"state": furthest(numbers(*one[:2]), numbers(*eight[:2])), "loss": abs(one[2] - eight[2])}
  result["restored"] = {}
  runs["4"] = run("4", None, steps=0)
  for name, other in (("8", "4"), ("1", "8"), ("8", "4x2"), ("4x2", "1")):
    tables, like, _ = runs[other]
    state, step = load_state(f"{folder}/{name}", like, "latest", Sharded(tables))
    assert step == 3
    result["restored"][f"{name} to {other}"] = furthest(found[name], numbers(tables, state))
  print(json.dumps(result))


if __name__ == "__main__":
  main(sys.argv[1])
