"""How fast are whole training steps and updates of large tables on this device?"""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxrec import parallel
from jaxrec.data.prepared import PreparedData
from jaxrec.embedding import RowAdamW, Table, Tables
from jaxrec.train.state import num_parameters
from jaxrec.train.task import SELECT, build_task

_SCHEDULE = 1000  # steps of the learning rate's schedule


def random_data(num_users: int = 6040, num_items: int = 3883, num_events: int = 1_000_209) -> PreparedData:
  """Returns random events in numbers like MovieLens-1M's: as many users, items and events, and as uneven histories."""
  rng = np.random.default_rng(0)
  lengths = np.maximum(20, rng.lognormal(4.56, 0.95, num_users)).astype(int)  # median 96, mean 166
  lengths = np.minimum(lengths * num_events // lengths.sum() + 5, 2314)
  user = np.repeat(np.arange(num_users), lengths)
  item = 1 + (num_items * rng.beta(0.5, 1.5, user.size)).astype(np.int32) % num_items
  timestamp = 956_703_932 + np.concatenate([np.sort(rng.integers(0, 10**6, n)) for n in lengths])
  return PreparedData.from_columns(user=user, item_id=item, timestamp=timestamp, num_items=num_items)


def time_step(config: ConfigDict, steps: int) -> dict[str, Any]:
  """Returns milliseconds of a training step of `config`, compilation left out, with the batches already made.

  The state of each step is the result of the one before; the loss is read once, at the end.
  """
  task, mesh = build_task(config), parallel.make_mesh(config.parallel.to_dict())
  plan = task.plan(SELECT, 1, mesh)
  start = time.perf_counter()
  batches = [plan.batches[i] for i in range(min(steps, plan.timetable.num_steps, 8))]
  batch_ms = 1e3 * (time.perf_counter() - start) / len(batches)
  rows, row_length = batches[0].item_id.shape
  tokens = round(statistics.mean(int((batch.sequence_id > 0).sum()) for batch in batches))
  batches = [parallel.shard_batch(batch, mesh) for batch in batches]
  state = task.init_state(mesh, _SCHEDULE)
  train_step = task.train_step(mesh, state, _SCHEDULE)
  start = time.perf_counter()
  state, _ = train_step(state, batches[0])
  jax.block_until_ready(state)
  compile_s = time.perf_counter() - start
  times = []
  for _ in range(3):
    start = time.perf_counter()
    for i in range(steps):
      state, scalars = train_step(state, batches[i % len(batches)])
    jax.block_until_ready(state)
    times.append(1e3 * (time.perf_counter() - start) / steps)
  step_ms = statistics.median(times)
  return {
    "config": config.name, "dtype": config.train.dtype, "parameters": num_parameters(state.params),
    "rows": rows, "row_length": row_length, "tokens": tokens,
    "median_ms": float(f"{step_ms:.4g}"), "least_ms": float(f"{min(times):.4g}"),
    "tokens_per_s": round(1e3 * tokens / step_ms), "batch_ms": float(f"{batch_ms:.4g}"),
    "steps_per_epoch": plan.timetable.num_steps, "compile_s": round(compile_s, 1),
    "loss": float(jax.tree.leaves(scalars)[0]),
  }  # fmt: skip


def time_table_update(num_ids: int, num_rows: int, width: int, steps: int) -> dict[str, Any]:
  """Returns milliseconds to look up `num_ids` ids, and to update their rows with Adam from a gradient for each id.

  The ids follow Zipf's law, so that about a third of them are distinct.
  """
  rng = np.random.default_rng(0)
  ranks = (rng.zipf(1.2, size=(4, num_ids)).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)
  uniform = rng.integers(0, num_rows - 1, size=(4, num_ids)).astype(np.uint64)
  ids = np.where(rng.random((4, num_ids)) < 0.6, ranks, uniform) % np.uint64(num_rows - 1)
  ids = (1 + ids).astype(np.int32)
  row = jnp.ones((1, width), jnp.float32) / width
  table = Table(
    num_rows, width, optimizer=RowAdamW(1e-3, second_moment="element"), placement="sharded",
    initializer=lambda key, shape: row,
  )  # fmt: skip
  tables = Tables({"item": table})
  state = tables.init(jax.random.key(0))

  @jax.jit
  def look_up(state, ids):
    rows, plan = tables.lookup(state, {"item": ids})
    return tables.vectors(rows, plan)["item"]

  def step(state, ids):
    rows, plan = tables.lookup(state, {"item": ids})
    loss = lambda rows: jnp.sum(jnp.square(tables.vectors(rows, plan)["item"]))  # noqa: E731
    return tables.update(state, plan, jax.grad(loss)(rows))

  step = jax.jit(step, donate_argnums=0)
  batches = [jnp.asarray(x) for x in ids]
  jax.block_until_ready(look_up(state, batches[0]))
  start = time.perf_counter()
  for i in range(steps):
    found = look_up(state, batches[i % 4])
  jax.block_until_ready(found)
  look_up_ms = 1e3 * (time.perf_counter() - start) / steps
  state = jax.block_until_ready(step(state, batches[0]))
  start = time.perf_counter()
  for i in range(steps):
    state = step(state, batches[i % 4])
  jax.block_until_ready(state)
  step_ms = 1e3 * (time.perf_counter() - start) / steps
  return {
    "ids": num_ids, "distinct": len(np.unique(ids[0])), "rows": num_rows, "width": width,
    "look_up_ms": float(f"{look_up_ms:.4g}"), "look_up_and_update_ms": float(f"{step_ms:.4g}"),
  }  # fmt: skip
