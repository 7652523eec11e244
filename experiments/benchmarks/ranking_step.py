"""Times steps of generative ranking: examples a user or an impression, Stochastic Length, weights of actions, windows.

    python -m experiments.benchmarks.ranking_step --lengths=64,256,1024
    python -m experiments.benchmarks.ranking_step --lengths=4096 --units=user --alphas=0,1.6,1.7,1.8,1.9,2
    python -m experiments.benchmarks.ranking_step --lengths=256 --units=user \\
      --weightings=fixed,uncertainty,mgda,mgda-full
    python -m experiments.benchmarks.ranking_step --lengths=1024,4096 --units=user --windows=0,256
    python -m experiments.benchmarks.ranking_step --smoke

Prints one JSON line for each number of events a user and case, and a table. Times are for one pass over the events of
--users users: the median time of a step, times the steps of the pass. The cases of a length take turns.

A weighting weighs the three actions of the data: fixed, by learned variances, or by MGDA from gradients at the
activations that the heads share, or from full ones ("mgda-full"). A line of MGDA holds the weights that both kinds of
gradients give for the same parameters and batch, after the steps of the fixed weights.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from absl import app, flags

from experiments.benchmarks.records import publish
from jaxrec import parallel
from jaxrec.cli.text_table import text_table
from jaxrec.data.generators.planted_actions import planted_actions
from jaxrec.multi_objective import gram_matrix, min_norm_weights
from jaxrec.objectives.action_prediction import FULL, SHARED, ActionObjective
from jaxrec.parallel import make_mesh, shard_batch
from jaxrec.train.ranking_task import RankingTask, default_config

FLAGS = flags.FLAGS
GLOBAL_TOKENS = 8
WEIGHTINGS = {
  "fixed": {"weighting": {"name": "fixed"}, "gradients_at": SHARED},
  "uncertainty": {"weighting": {"name": "uncertainty", "learning_rate": 1e-2}, "gradients_at": SHARED},
  "mgda": {"weighting": {"name": "mgda"}, "gradients_at": SHARED},
  "mgda-full": {"weighting": {"name": "mgda"}, "gradients_at": FULL},
}


def main(argv: list[str]) -> None:
  """Runs the benchmark and prints its records and a table."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  if unknown := sorted(set(FLAGS.weightings) - set(WEIGHTINGS)):
    raise app.UsageError(f"--weightings has {unknown}; known are {', '.join(WEIGHTINGS)}")
  alphas, windows = [float(text) for text in FLAGS.alphas], [int(text) for text in FLAGS.windows]
  cases = [Case(*each) for each in itertools.product(FLAGS.units, alphas, FLAGS.weightings, windows)]
  sizes = ([int(text) for text in FLAGS.lengths], cases, FLAGS.users, FLAGS.width, FLAGS.layers, FLAGS.repetitions)
  if FLAGS.smoke:
    cases = [Case(unit, alpha) for unit in ("user", "impression") for alpha in (0.0, 1.5)]
    sizes = ([12], cases, 4, 8, 1, 1)
  records = []
  for record in measure(*sizes):
    records.append(record)
    publish(record, FLAGS.out)
  print(table(records))


class Case(NamedTuple):
  """What is timed: unit of the examples, alpha of Stochastic Length, weighting and window; 0 is none."""

  unit: str
  alpha: float = 0.0
  weighting: str = "fixed"
  window: int = 0


def measure(
  lengths: list[int], cases: list[Case], users: int, width: int, layers: int, repetitions: int
) -> Iterator[dict[str, Any]]:
  """Yields a record for each number of events a user and case."""
  for length in lengths:
    data = planted_actions(num_users=users, mean_events=float(length))
    runs = {case: _Run(data, case, length, width, layers) for case in cases}
    seconds = {case: [] for case in cases}
    for repetition in range(repetitions + 1):  # The first compiles.
      for case, run in runs.items():
        taken = run.step()
        if repetition:
          seconds[case].append(taken)
    about = {"benchmark": "ranking_step", "events": length, "users": users, "width": width, "layers": layers}
    for case, run in runs.items():
      step, batches = statistics.median(seconds[case]), run.batches
      record = about | case._asdict()
      record |= {"events_kept": round(batches.events_kept, 4), "steps": batches.batches_per_epoch}
      record |= {"shape": [batches.rows_per_batch, batches.row_length], "step_seconds": round(step, 5)}
      record |= {"pass_seconds": round(step * record["steps"], 4)}
      if case.weighting.startswith("mgda"):
        record["weights"] = runs.get(case._replace(weighting="fixed"), run).mgda_weights()
      yield record | {"repetitions": repetitions} | parallel.machine()


class _Run:
  """A training step and its batches."""

  def __init__(self, data, case, length, width, layers):
    config = default_config()
    config.data.source, config.data.unit, config.data.stochastic_length = "planted_actions", case.unit, case.alpha
    config.data.max_length = 3 * length // 2
    config.model = dict(
      name="ranking", width=width, num_layers=layers, num_heads=2, head_width=width // 2, value_width=width // 2,
      window=case.window, global_tokens=GLOBAL_TOKENS if case.window else 0,
    )  # fmt: skip
    config.train.batch_size = 4 if case.unit == "user" else 16
    config.multi_objective = WEIGHTINGS[case.weighting]
    task = RankingTask.from_data(config, data)
    self._mesh = make_mesh({"data": 1, "fsdp": 1, "model": 1}, jax.devices()[:1])
    self.batches = task.plan("select", 1, self._mesh).batches
    self._state = task.init_state(self._mesh, 1000)
    self._step, self._index, self._task = task.train_step(self._mesh, self._state, 1000), 0, task

  def step(self) -> float:
    """Makes the next step and returns its seconds, without the making of the batch."""
    batch = jax.block_until_ready(shard_batch(self.batches[self._index], self._mesh))
    start = time.perf_counter()
    self._state, _ = jax.block_until_ready(self._step(self._state, batch))
    self._index += 1
    return time.perf_counter() - start

  def mgda_weights(self) -> dict[str, list[float]]:
    """Returns the weights of MGDA for the present parameters and the next batch, by where gradients are compared."""
    batch, found = self.batches[self._index], {}
    for where in (SHARED, FULL):
      objective = ActionObjective(self._task.model.heads, where)

      def solve(params, objective=objective):
        grads = objective.gradients(self._task.model, params, batch, jax.random.key(0)).grads
        return min_norm_weights(gram_matrix([objective.select(grad) for grad in grads]))

      found[where] = [round(weight, 4) for weight in jax.jit(solve)(self._state.params).tolist()]
    return found


def table(records: list[dict[str, Any]]) -> str:
  """Formats the records as a Markdown table; "ratio" is to the first row with as many events a user."""
  first: dict[int, float] = {}
  rows = [["events", "unit", "alpha", "weights", "window", "events kept", "step, s", "pass, s", "ratio"]]
  for r in records:
    base = first.setdefault(r["events"], r["pass_seconds"])
    kept = f"{r['events_kept']:.1%}"
    cells = [f"{r['step_seconds']:.4f}", f"{r['pass_seconds']:.3f}", f"{r['pass_seconds'] / max(base, 1e-9):.2f}"]
    rows.append([str(r["events"]), r["unit"], str(r["alpha"]), r["weighting"], str(r["window"]), kept, *cells])
  return text_table(rows, "rlrlr", markdown=True)


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  number = flags.DEFINE_integer
  flags.DEFINE_list("lengths", ["64", "256", "1024"], "Mean numbers of events a user.", flag_values=values)
  flags.DEFINE_list("units", ["user", "impression"], "What an example predicts.", flag_values=values)
  flags.DEFINE_list("alphas", ["0"], "Of Stochastic Length; 0: none.", flag_values=values)
  flags.DEFINE_list("weightings", ["fixed"], f"Of the actions: {', '.join(WEIGHTINGS)}.", flag_values=values)
  flags.DEFINE_list(
    "windows",
    ["0"],
    f"Tokens before a token that it reads, besides the first {GLOBAL_TOKENS}; 0: all.",
    flag_values=values,
  )
  number("users", 8, "Users of the data.", lower_bound=1, flag_values=values)
  number("width", 32, "Width of the model.", lower_bound=2, flag_values=values)
  number("layers", 2, "Layers of the model.", lower_bound=0, flag_values=values)
  number("repetitions", 3, "Timed steps.", lower_bound=1, flag_values=values)
  flags.DEFINE_bool("smoke", False, "Small sizes, to check that everything runs.", flag_values=values)
  flags.DEFINE_string("out", None, "File to append the JSON lines to.", flag_values=values)


if __name__ == "__main__":
  define_flags()
  app.run(main)
