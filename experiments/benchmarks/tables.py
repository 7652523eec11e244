"""Times a training step and measures its peak memory, by the number of rows of its embedding table.

    taskset -c 1 python -m experiments.benchmarks.tables --torch_python=<python> --out=tables.jsonl
    python -m experiments.benchmarks.tables --smoke

The step: 128 sequences of 50 items, a Dense layer of width 64, sampled softmax with 128 shared negatives. Ids follow
Zipf's law and are scattered over the table, so that a step looks up equally many rows of large and small tables. All
rows have the same initial value, which makes initialization cheap. Each implementation and size runs in a separate
process with one thread, on the same batches. If the arrays exceed --max_gib, the case is skipped with the reason.

adagrad, adamw: `jaxrec.embedding.Tables` with RowAdagrad, and with RowAdamW and one second moment per element.
dense: the table as a parameter, optax.adam. torch: `nn.Embedding(sparse=True)` with SparseAdam, which equals adamw
except that epsilon is added before bias correction.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from experiments.benchmarks.records import publish
from jaxrec import parallel
from jaxrec.cli.text_table import text_table
from jaxrec.embedding import RowAdagrad, RowAdamW, Table, Tables

FLAGS = flags.FLAGS
WIDTH, RATE = 64, 1e-3
ARRAYS = {"adagrad": 1, "adamw": 3, "dense": 4, "torch": 3}  # Arrays of the table's size; dense has a gradient too.
WARM_UP = 3


def main(argv: list[str]) -> None:
  """Runs the benchmark, or with --case a single case in this process."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  if FLAGS.case:
    print(json.dumps(run(FLAGS.case, FLAGS.problem, int(FLAGS.rows[0]))))
    return
  sizes, shape, steps = [int(float(text)) for text in FLAGS.rows], (128, 50, 128), FLAGS.steps
  if FLAGS.smoke:
    sizes, shape, steps = [1000], (4, 6, 5), 2
  records = []
  for num_rows in sizes:
    for name in FLAGS.implementations:
      records.append(measure(name, num_rows, shape, steps, FLAGS.max_gib))
      publish(records[-1], FLAGS.out)
  print(table(records))


def measure(name: str, num_rows: int, shape: tuple[int, int, int], steps: int, max_gib: float) -> dict[str, Any]:
  """Returns the record of one implementation and size: milliseconds per step, or why it was skipped."""
  record = {"benchmark": "tables", "implementation": name, "rows": num_rows, "width": WIDTH, "batch": list(shape)}
  size = ARRAYS[name] * num_rows * WIDTH * 4
  record |= {"arrays_gib": round(size / 2**30, 2), **parallel.machine(), "cpu_cores": 1}
  if size > 2**30 * max_gib:
    return record | {"skipped": f"does not fit: {size / 2**30:.1f} GiB of arrays"}
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "problem.npz")
    np.savez(path, **problem(num_rows, shape, steps + WARM_UP))
    command = [sys.executable, "-m", __spec__.name, f"--case={name}", f"--problem={path}", f"--rows={num_rows}"]
    if name == "torch":
      command = [FLAGS.torch_python, "-m", "experiments.benchmarks.torch_tables", path, str(num_rows), str(RATE)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
  if done.returncode:
    return record | {"skipped": f"failed: {done.stderr.strip().splitlines()[-1]}"}
  return record | _summary(json.loads(done.stdout.splitlines()[-1]))


def _summary(found):
  wall, processor = (1e3 * np.array(found.pop(name)[WARM_UP:]) for name in ("wall", "processor"))
  losses = found.pop("losses")
  return found | {
    "median_ms": round(statistics.median(wall), 2),
    "least_ms": round(float(min(wall)), 2),
    "processor_ms": round(statistics.median(processor), 2),
    "steps": len(wall),
    "first_loss": round(losses[0], 6),
    "last_loss": round(losses[-1], 6),
  }


def problem(num_rows: int, shape: tuple[int, int, int], steps: int) -> dict[str, np.ndarray]:
  """Returns the ids of all steps, the initial value of every row, and the kernel of the Dense layer."""
  rng = np.random.default_rng(0)
  rows, positions, negatives = shape
  shapes = {"input": (rows, positions), "target": (rows, positions), "negative": (negatives,)}
  ranks = {name: rng.zipf(1.2, size=(steps, *each)).astype(np.uint64) for name, each in shapes.items()}
  scattered = {name: (x * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20) for name, x in ranks.items()}
  ids = {name: (1 + x % np.uint64(num_rows - 1)).astype(np.int32) for name, x in scattered.items()}
  kernel = rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5
  return ids | {"row": np.cos(np.arange(WIDTH)).astype(np.float32) / WIDTH**0.5, "kernel": kernel}


def run(name: str, path: str, num_rows: int) -> dict[str, Any]:
  """Trains on the batches of a problem and returns the times of all steps, the losses and the peak memory."""
  arrays = np.load(path)
  start = time.perf_counter()
  state, step = (_dense if name == "dense" else _tables)(name, num_rows, arrays)
  jax.block_until_ready(state)
  record = {"init_s": round(time.perf_counter() - start, 2)}
  batches = [{part: arrays[part][i] for part in ("input", "target", "negative")} for i in range(len(arrays["input"]))]
  wall, processor, losses = [], [], []
  for batch in batches:
    start = time.perf_counter(), time.process_time()
    state, loss = step(state, batch)
    losses.append(float(loss))
    jax.block_until_ready(state)
    wall.append(time.perf_counter() - start[0])
    processor.append(time.process_time() - start[1])
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  return record | {"wall": wall, "processor": processor, "losses": losses, "peak_gib": round(peak, 2)}


def _tables(name, num_rows, arrays):
  """Returns the initial state and the step, with the table outside the parameters."""
  optimizer = RowAdagrad(RATE) if name == "adagrad" else RowAdamW(RATE, second_moment="element")
  row = jnp.asarray(arrays["row"])
  item = Table(num_rows, WIDTH, optimizer=optimizer, placement="sharded", initializer=lambda key, shape: row[None])
  tables, adam = Tables({"item": item}), optax.adam(1e-3)
  params = _dense_params(arrays)

  def step(state, batch):
    params, moments, table = state
    rows, plan = tables.lookup(table, {"item": batch})

    def loss(params, rows):
      return sampled_softmax(params, tables.vectors(rows, plan)["item"])

    value, (gradient, row_gradient) = jax.value_and_grad(loss, argnums=(0, 1))(params, rows)
    updates, moments = adam.update(gradient, moments, params)
    return (optax.apply_updates(params, updates), moments, tables.update(table, plan, row_gradient)), value

  return (params, adam.init(params), tables.init(jax.random.key(0))), jax.jit(step, donate_argnums=0)


def _dense(name, num_rows, arrays):
  """Returns the initial state and the step, with the table as a parameter."""
  adam, params = optax.adam(RATE), _dense_params(arrays)

  def initial():
    with_table = {"dense": params, "table": jnp.broadcast_to(jnp.asarray(arrays["row"]), (num_rows, WIDTH))}
    return with_table, adam.init(with_table)

  def step(state, batch):
    params, moments = state

    def loss(params):
      return sampled_softmax(params["dense"], {part: params["table"][ids] for part, ids in batch.items()})

    value, gradient = jax.value_and_grad(loss)(params)
    updates, moments = adam.update(gradient, moments, params)
    return (optax.apply_updates(params, updates), moments), value

  return jax.jit(initial)(), jax.jit(step, donate_argnums=0)


def _dense_params(arrays):
  return {"params": {"kernel": jnp.asarray(arrays["kernel"]), "bias": jnp.zeros(WIDTH)}}


def sampled_softmax(params: Any, vectors: dict[str, jax.Array]) -> jax.Array:
  """Returns the mean sampled softmax loss of the targets, with shared negatives."""
  query = nn.relu(nn.Dense(WIDTH).apply(params, vectors["input"]))  # [B, N, D]
  negative = query @ vectors["negative"].T  # [B, N, R]
  positive = jnp.sum(query * vectors["target"], axis=-1, keepdims=True)  # [B, N, 1]
  return jnp.mean(jax.nn.logsumexp(jnp.concatenate([positive, negative], -1), axis=-1) - positive[..., 0])


def table(records: list[dict[str, Any]]) -> str:
  """Formats the records as a Markdown table."""
  rows = [["implementation", "rows", "ms (least)", "processor ms", "peak GiB", "last loss"]]
  for r in records:
    case = [r["implementation"], f"{r['rows']:,}"]
    if "skipped" in r:
      rows.append([*case, r["skipped"]])
      continue
    times = [f"{r['median_ms']:.1f} ({r['least_ms']:.1f})", f"{r['processor_ms']:.1f}"]
    rows.append([*case, *times, f"{r['peak_gib']:.2f}", f"{r['last_loss']:.5f}"])
  return text_table(rows, "-", markdown=True)


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  flags.DEFINE_list("rows", ["1e5", "1e6", "1e7", "3e7"], "Numbers of rows of the table.", flag_values=values)
  every = list(ARRAYS)
  flags.DEFINE_list("implementations", every, "Implementations: adagrad, adamw, dense, torch.", flag_values=values)
  flags.DEFINE_integer("steps", 40, "Timed steps, after 3 that are not timed.", lower_bound=1, flag_values=values)
  flags.DEFINE_float("max_gib", 12, "Skip cases whose arrays are larger.", flag_values=values)
  flags.DEFINE_string("torch_python", sys.executable, "Python interpreter with PyTorch.", flag_values=values)
  flags.DEFINE_string("case", None, "Internal: implementation to run in this process.", flag_values=values)
  flags.DEFINE_string("problem", None, "Internal: file with the batches of --case.", flag_values=values)
  flags.DEFINE_bool("smoke", False, "Small sizes, to check that everything runs.", flag_values=values)
  flags.DEFINE_string("out", None, "File to append the JSON lines to.", flag_values=values)


if __name__ == "__main__":
  define_flags()
  app.run(main)
