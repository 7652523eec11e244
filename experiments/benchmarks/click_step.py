"""Times training steps of click-through models: a history for each candidate, or rows of several targets of one user.

    python -m experiments.benchmarks.click_step --config=experiments/configs/ctr_ml1m.py:dare --targets_per_row=0,1,5,19
    python -m experiments.benchmarks.click_step --config=experiments/configs/ctr_ml1m.py:dare --variants=dare,twin,din
    python -m experiments.benchmarks.click_step --config=experiments/configs/ctr_styles.py:dare-4 --smoke

Prints one JSON line for each variant and number of targets in a row (0: each candidate has a row of its own), and a
table. "batch" is the making of a batch on the host, which training does in a thread beside the step. The cases take
turns. The size of a batch is the multiple of the candidates in a row that is nearest to that of the config.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
from absl import app, flags
from ml_collections import ConfigDict

from experiments.benchmarks.records import publish
from jaxrec import parallel
from jaxrec.cli.config_argument import define_config
from jaxrec.cli.text_table import text_table
from jaxrec.data.load import load_data
from jaxrec.data.prepared import PreparedData
from jaxrec.train.click_task import ClickTask, make_task

FLAGS = flags.FLAGS
SMALL = {"num_users": 40, "num_categories": 6, "items_per_category": 8, "num_styles": 2, "mean_events": 60.0}


def main(argv: list[str]) -> None:
  """Runs the benchmark and prints its records and a table."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  config, steps = FLAGS.config, FLAGS.steps
  if FLAGS.smoke:
    config, steps = smallest(config), 2
  records = []
  variants = FLAGS.variants or [config.model.name]
  for record in measure(config, variants, [int(text) for text in FLAGS.targets_per_row], steps):
    records.append(record)
    publish(record, FLAGS.out)
  print(table(records))


def smallest(config: ConfigDict) -> ConfigDict:
  """Returns the config with small planted data and small batches."""
  config = ConfigDict(config.to_dict())
  config.data.update({"source": "planted_styles", "options": SMALL, "min_events": 30, "history_length": 20})
  config.data.update({"target_stride": 1, "targets_per_user": 19})
  config.train.batch_size = 64
  return config


def measure(
  config: ConfigDict, variants: list[str], targets_per_row: list[int], steps: int
) -> Iterator[dict[str, Any]]:
  """Yields a record for each variant and number of targets in a row."""
  data, about = load_data(config.data), parallel.machine()
  cases = {
    (variant, targets): _Case(config, data, variant, targets)
    for variant, targets in itertools.product(variants, targets_per_row)
  }
  seconds: dict[tuple[str, int], list[tuple[float, float, float]]] = {case: [] for case in cases}
  for repetition in range(steps + 1):  # The first compiles.
    for name, case in cases.items():
      taken = case.step()
      if repetition:
        seconds[name].append(taken)
  for (variant, targets), case in cases.items():
    batch, step, processor = (statistics.median(column) for column in zip(*seconds[variant, targets], strict=True))
    size = case.config.train.batch_size
    record = {"benchmark": "click_step", "config": config.name, "variant": variant, "targets_per_row": targets}
    record |= {"batch_size": size, "history": config.data.history_length, "items": case.task.examples.num_items}
    record |= {"batch_ms": round(1e3 * batch, 3), "step_ms": round(1e3 * step, 3)}
    record |= {"processor_ms": round(1e3 * processor, 3), "examples_per_second": round(size / step)}
    yield record | {"steps": steps} | about


class _Case:
  """A training step and its batches."""

  def __init__(self, config: ConfigDict, data: PreparedData, variant: str, targets: int):
    self.config = ConfigDict(config.to_dict())
    keep = ("width", "evaluation_norm", "top_k", "init_scale")
    self.config.model = {"name": variant} | {key: x for key, x in config.model.to_dict().items() if key in keep}
    self.config.data.targets_per_row = targets
    per_row = max(targets, 1) * (1 + config.data.negatives) if targets else 1
    self.config.train.batch_size = max(1, round(config.train.batch_size / per_row)) * per_row
    self.task: ClickTask = make_task(self.config, data)
    self._mesh = parallel.make_mesh({"data": 1, "fsdp": 1, "model": 1}, jax.devices()[:1])
    self._batches = self.task.plan("select", 1, self._mesh).batches
    self._state = self.task.init_state(self._mesh, 1000)
    self._step, self._index = self.task.train_step(self._mesh, self._state, 1000), 0

  def step(self) -> tuple[float, float, float]:
    """Makes the next step; returns the seconds of its batch, of itself, and of itself on all processors."""
    start = time.perf_counter()
    batch = self._batches[self._index % len(self._batches)]
    made = time.perf_counter()
    batch = jax.block_until_ready(parallel.shard_batch(batch, self._mesh))
    begun, processor = time.perf_counter(), time.process_time()
    self._state, _ = jax.block_until_ready(self._step(self._state, batch))
    self._index += 1
    return made - start, time.perf_counter() - begun, time.process_time() - processor


def table(records: list[dict[str, Any]]) -> str:
  """Formats the records as a Markdown table; "ratio" is to the examples a second of the variant's first row."""
  rows = [["variant", "targets in a row", "batch size", "batch, ms", "step, ms", "examples a second", "ratio"]]
  first: dict[str, float] = {}
  for r in records:
    base = first.setdefault(r["variant"], r["examples_per_second"])
    case = [r["variant"], str(r["targets_per_row"]), str(r["batch_size"])]
    times = [f"{r['batch_ms']:.1f}", f"{r['step_ms']:.1f}", f"{r['examples_per_second']:,}"]
    rows.append([*case, *times, f"{r['examples_per_second'] / max(base, 1e-9):.2f}"])
  return text_table(rows, "l", markdown=True)


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  config_help = "Experiment config, a Python file that is executed; --config.group.key=value changes a setting."
  define_config(values, config_help)
  flags.DEFINE_list("variants", [], "Models; empty: that of the config.", flag_values=values)
  flags.DEFINE_list("targets_per_row", ["0", "1", "5", "19"], "Targets of one user in a row.", flag_values=values)
  flags.DEFINE_integer("steps", 20, "Timed steps of each case.", lower_bound=1, flag_values=values)
  flags.DEFINE_bool("smoke", False, "Small data and batches, to check that everything runs.", flag_values=values)
  flags.DEFINE_string("out", None, "File to append the JSON lines to.", flag_values=values)
  flags.mark_flag_as_required("config", flag_values=values)


if __name__ == "__main__":
  define_flags()
  app.run(main)
