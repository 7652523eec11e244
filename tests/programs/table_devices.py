"""A program for 8 simulated devices: prints one JSON line with results of tables on several meshes.

Started by `test_embedding_devices.py` because the number of devices is set when a process starts.
"""

import json

import dense_tables
import jax
import numpy as np
from jax.sharding import Mesh

from jaxrec.embedding import RowSGD, Table, Tables

ZEROS = jax.nn.initializers.zeros


def mesh(*shape, names=("rows", "columns")):
  """Returns a mesh of the first devices."""
  return Mesh(np.array(jax.devices()[: np.prod(shape)]).reshape(shape), names[: len(shape)])


def differences():
  """Returns, by mesh and placement, the largest difference from dense tables, and the counts of errors."""
  found, counted = {}, {}
  kinds = {
    "8 devices": (mesh(8), {}, "sharded", ("item", "user", "word", "shop")),
    "8 devices, replicated": (mesh(8), {}, "replicated", ("item",)),
    "4 x 2, columns sharded": (mesh(4, 2), {"column_axis": "columns"}, "sharded", ("item", "word")),
  }
  for kind, (devices, options, placement, names) in kinds.items():
    described = dense_tables.problem_tables(placement, names, ZEROS)
    tables = Tables(described, devices, capacity=40, **options)
    made = dense_tables.batches(4, described, leave_out=False)
    expected = dense_tables.from_zeros(described).train(made)
    state, counts = dense_tables.train(tables, made)
    found[kind] = dense_tables.largest_difference(dense_tables.logical(tables, state), expected)
    counted[kind] = [count["overflow"] + count["out_of_range"] for count in counts]
  return found, counted


def initial_rows():
  """Returns the initial rows 0..36 on 1 and 8 devices, and replicated."""
  every = [Tables({"item": Table(37, 3, placement="sharded")}, mesh(n)) for n in (1, 8)]
  every.append(Tables({"item": Table(37, 3, placement="replicated")}, mesh(8)))
  return [dense_tables.logical(t, t.init(jax.random.key(1)))["item", "rows"].tolist() for t in every]


def stochastic():
  """Returns bfloat16 rows after steps of stochastic rounding, by mesh and placement."""
  rows = {}
  kinds = {
    "1": ((1,), "sharded"),
    "8": ((8,), "sharded"),
    "replicated": ((8,), "replicated"),
    "columns": ((4, 2), "sharded"),
  }
  for kind, (shape, placement) in kinds.items():
    table = Table(19, 8, "bfloat16", RowSGD(0.01), rounding="stochastic", initializer=ZEROS, placement=placement)
    tables = Tables({"item": table}, mesh(*shape), column_axis="columns" if len(shape) == 2 else None)
    made = [({"item": np.arange(24) % 19}, {"item": np.full((24, 8), 0.7, np.float32)})] * 3
    state, _ = dense_tables.train(tables, made)
    rows[kind] = dense_tables.logical(tables, state)["item", "rows"].astype(float).tolist()
  return rows


def overflow():
  """Requests three rows from device 1 with a capacity of two; the other rows are right."""
  table = Table(40, 2, optimizer=RowSGD(8.0), placement="sharded", initializer=ZEROS)
  tables = Tables({"item": table}, mesh(8), capacity=2)
  ids = np.tile([1, 9, 17, 2, 2], (8, 1))
  state, counts = dense_tables.train(tables, [({"item": ids}, {"item": np.ones((*ids.shape, 2), np.float32)})])
  rows = dense_tables.logical(tables, state)["item", "rows"][:, 0]
  return {"counts": counts[0], "rows": {int(row): float(rows[row]) for row in np.flatnonzero(rows)}}


def moved():
  """Returns the largest difference after a state moved from 8 to 4 to 1 to 8 devices, cut or padded each time."""
  described = dense_tables.problem_tables(names=("item", "user"))
  every = [Tables(described, mesh(n)) for n in (8, 4, 1, 8)]
  state = every[0].init(jax.random.key(0))
  first = dense_tables.logical(every[0], state)
  for before, now in zip(every, every[1:], strict=False):
    saved = jax.device_get(jax.jit(before.to_logical)(state))
    shapes = jax.eval_shape(now.to_logical, now.abstract_state())
    state = jax.device_put(jax.jit(now.from_logical)(jax.tree.map(fitted, saved, shapes)), now.shardings())
  return dense_tables.largest_difference(dense_tables.logical(every[-1], state), first), int(state.step)


def fitted(array, wanted):
  """Cuts or zero-pads an array to the wanted number of rows."""
  if array.ndim == 0:
    return array
  filled = np.zeros(wanted.shape, array.dtype)
  filled[: len(array)] = array[: len(filled)]
  return filled


def program():
  """Returns a step on 8 devices as StableHLO and optimized HLO, and the rows per device."""
  tables = Tables({"item": Table(8 * 1237, 4, placement="sharded")}, mesh(8))
  made = {"item": np.zeros((8, 3), np.int32)}, {"item": np.zeros((8, 3, 4), np.float32)}
  step = jax.jit(lambda state, *batch: dense_tables.step(tables, state, *batch), donate_argnums=0)
  lowered = step.lower(tables.abstract_state(), *made)
  return {"lowered": lowered.as_text(), "compiled": lowered.compile().as_text(), "rows": 1237}


def main():
  """Prints all results."""
  assert jax.device_count() == 8
  found, counted = differences()
  results = {"differences": found, "counted": counted, "initial": initial_rows(), "stochastic": stochastic()}
  results |= {"overflow": overflow(), "moved": moved(), "program": program()}
  print(json.dumps(results))


if __name__ == "__main__":
  main()
