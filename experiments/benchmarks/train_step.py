"""Times the training step of a config, and its stages.

    python -m experiments.benchmarks.train_step --config=experiments/configs/ml1m_hstu.py --steps=20

Prints one JSON line per stage, with `median_ms` over the steps. "batch" is host work only. The other stages are
cumulative and timed separately: "gradient" includes "forward", and "step" includes both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags

from experiments.benchmarks.records import publish
from experiments.benchmarks.training import Training
from jaxrec.cli.config_argument import define_config

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
  """Runs the benchmark and prints its records."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  for record in measure(FLAGS.config, FLAGS.steps):
    publish(record, FLAGS.out)


def measure(config, steps: int) -> list[dict[str, Any]]:
  """Returns one record per stage of the training step of `config`: batch, forward, gradient, step."""
  training = Training.from_config(config, steps)
  task, batches, plan = training.task, training.batches, training.plan
  about = {"benchmark": "train_step", "config": config.name, "users_per_batch": config.train.batch_size}
  about |= training.describe()

  def loss(params, batch):
    return task.objective(task.model, params, batch, jax.random.key(0))[0]

  forward, gradient = jax.jit(loss), jax.jit(jax.grad(loss))
  stages = {
    "batch": lambda i: plan.batches[i % plan.timetable.num_steps],
    "forward": lambda i: forward(training.state.params, batches[i % len(batches)]),
    "gradient": lambda i: gradient(training.state.params, batches[i % len(batches)]),
    "step": training.step,
  }
  return [about | {"stage": name} | _time(stage, steps) for name, stage in stages.items()]


def _time(stage: Callable[[int], Any], steps: int) -> dict[str, float]:
  jax.block_until_ready(stage(0))
  times = []
  for i in range(steps):
    start = time.perf_counter()
    jax.block_until_ready(stage(i))
    times.append(1e3 * (time.perf_counter() - start))
  return {"median_ms": round(statistics.median(times), 2), "least_ms": round(min(times), 2), "steps": steps}


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  config_help = "Experiment config, a Python file that is executed; --config.group.key=value changes a setting."
  define_config(values, config_help)
  steps_help = "Timed repetitions of each stage, after one that compiles."
  flags.DEFINE_integer("steps", 20, steps_help, lower_bound=1, flag_values=values)
  flags.DEFINE_string("out", None, "File to append the JSON lines to.", flag_values=values)
  flags.mark_flag_as_required("config", flag_values=values)


if __name__ == "__main__":
  define_flags()
  app.run(main)
