"""Times the training step of a config, and says where the time goes.

    python -m experiments.benchmarks.train_step --config=experiments/configs/ml1m_hstu.py --steps=20

Prints JSON lines: one a stage, `median_ms` over the steps, the forward pass and the gradient timed apart from the whole
step. Stages are cumulative: "gradient" contains "forward", "step" contains both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags
from ml_collections import config_flags

from experiments.benchmarks.records import publish
from experiments.benchmarks.training import Training

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
  """Measures and prints."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  for record in measure(FLAGS.config, FLAGS.steps):
    publish(record, FLAGS.out)


def measure(config, steps: int) -> list[dict[str, Any]]:
  """Returns a record for each stage of the training step of `config`: batch, forward, gradient, step."""
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
  """Defines the flags of this program; not on import, as other programs have flags of the same names."""
  config_help = "Experiment config; --config.group.key=value changes a setting."
  config_flags.DEFINE_config_file("config", None, config_help, flag_values=values)
  steps_help = "Repetitions of each stage, after one that compiles."
  flags.DEFINE_integer("steps", 20, steps_help, lower_bound=1, flag_values=values)
  flags.DEFINE_string("out", None, "File to which the lines are appended as well.", flag_values=values)
  flags.mark_flag_as_required("config", flag_values=values)


if __name__ == "__main__":
  define_flags()
  app.run(main)
