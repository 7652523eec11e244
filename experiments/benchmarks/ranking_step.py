"""Times training steps of generative ranking: one example a user against one an impression, and Stochastic Length.

    python -m experiments.benchmarks.ranking_step --lengths=64,256,1024
    python -m experiments.benchmarks.ranking_step --lengths=4096 --units=user --alphas=0,1.6,1.7,1.8,1.9,2
    python -m experiments.benchmarks.ranking_step --smoke

Prints one JSON line for each number of events a user, unit and alpha, and a table. Times are for one pass over the
events of --users users: the median time of a step, times the steps of the pass. The cases of a length take turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
from absl import app, flags

from experiments.benchmarks.records import publish
from jaxrec import parallel
from jaxrec.cli.text_table import text_table
from jaxrec.data.generators.planted_actions import planted_actions
from jaxrec.parallel import make_mesh, shard_batch
from jaxrec.train.ranking_task import RankingTask, default_config

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
  """Runs the benchmark and prints its records and a table."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  lengths, alphas = [int(text) for text in FLAGS.lengths], [float(text) for text in FLAGS.alphas]
  sizes = (lengths, FLAGS.units, alphas, FLAGS.users, FLAGS.width, FLAGS.layers, FLAGS.repetitions)
  if FLAGS.smoke:
    sizes = ([12], ["user", "impression"], [0.0, 1.5], 4, 8, 1, 1)
  records = []
  for record in measure(*sizes):
    records.append(record)
    publish(record, FLAGS.out)
  print(table(records))


def measure(
  lengths: list[int], units: list[str], alphas: list[float], users: int, width: int, layers: int, repetitions: int
) -> Iterator[dict[str, Any]]:
  """Yields a record for each number of events a user, unit and alpha; alpha 0 is no Stochastic Length."""
  for length in lengths:
    data = planted_actions(num_users=users, mean_events=float(length))
    cases = {(unit, alpha): _Case(data, unit, alpha, length, width, layers) for unit in units for alpha in alphas}
    seconds = {name: [] for name in cases}
    for repetition in range(repetitions + 1):  # The first compiles.
      for name, case in cases.items():
        taken = case.step()
        if repetition:
          seconds[name].append(taken)
    for (unit, alpha), case in cases.items():
      step = statistics.median(seconds[unit, alpha])
      record = {
        "benchmark": "ranking_step",
        "events": length,
        "users": users,
        "unit": unit,
        "alpha": alpha,
        "width": width,
        "layers": layers,
      }
      record |= {"events_kept": round(case.batches.events_kept, 4), "steps": case.batches.batches_per_epoch}
      shape = [case.batches.rows_per_batch, case.batches.row_length]
      record |= {"shape": shape, "step_seconds": round(step, 5), "pass_seconds": round(step * record["steps"], 4)}
      yield record | {"repetitions": repetitions} | parallel.machine()


class _Case:
  """A training step and its batches."""

  def __init__(self, data, unit, alpha, length, width, layers):
    config = default_config()
    config.data.source, config.data.unit, config.data.stochastic_length = "planted_actions", unit, alpha
    config.data.max_length = 3 * length // 2
    config.model = dict(
      name="ranking", width=width, num_layers=layers, num_heads=2, head_width=width // 2, value_width=width // 2
    )
    config.train.batch_size = 4 if unit == "user" else 16
    task = RankingTask.from_data(config, data)
    self._mesh = make_mesh({"data": 1, "fsdp": 1, "model": 1}, jax.devices()[:1])
    self.batches = task.plan("select", 1, self._mesh).batches
    self._state = task.init_state(self._mesh, 1000)
    self._step, self._index = task.train_step(self._mesh, self._state, 1000), 0

  def step(self) -> float:
    """Makes the next step and returns its seconds, without the making of the batch."""
    batch = jax.block_until_ready(shard_batch(self.batches[self._index], self._mesh))
    start = time.perf_counter()
    self._state, _ = jax.block_until_ready(self._step(self._state, batch))
    self._index += 1
    return time.perf_counter() - start


def table(records: list[dict[str, Any]]) -> str:
  """Formats the records as a Markdown table; "ratio" is to the first row with as many events a user."""
  first: dict[int, float] = {}
  rows = [["events", "unit", "alpha", "events kept", "step, s", "pass, s", "ratio"]]
  for r in records:
    base = first.setdefault(r["events"], r["pass_seconds"])
    kept = f"{r['events_kept']:.1%}"
    cells = [f"{r['step_seconds']:.4f}", f"{r['pass_seconds']:.3f}", f"{r['pass_seconds'] / max(base, 1e-9):.2f}"]
    rows.append([str(r["events"]), r["unit"], str(r["alpha"]), kept, *cells])
  return text_table(rows, "rlr", markdown=True)


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  number = flags.DEFINE_integer
  flags.DEFINE_list("lengths", ["64", "256", "1024"], "Mean numbers of events a user.", flag_values=values)
  flags.DEFINE_list("units", ["user", "impression"], "What an example predicts.", flag_values=values)
  flags.DEFINE_list("alphas", ["0"], "Of Stochastic Length; 0: none.", flag_values=values)
  number("users", 8, "Users of the data.", lower_bound=1, flag_values=values)
  number("width", 32, "Width of the model.", lower_bound=2, flag_values=values)
  number("layers", 2, "Layers of the model.", lower_bound=0, flag_values=values)
  number("repetitions", 3, "Timed steps.", lower_bound=1, flag_values=values)
  flags.DEFINE_bool("smoke", False, "Small sizes, to check that everything runs.", flag_values=values)
  flags.DEFINE_string("out", None, "File to append the JSON lines to.", flag_values=values)


if __name__ == "__main__":
  define_flags()
  app.run(main)
