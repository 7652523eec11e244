"""Compares item vectors with features and without on items that never occur in training.

    python -m experiments.benchmarks.cold_items --workdir=runs/cold --seeds=1,2,3 --epochs=20 --out=cold.jsonl

Takes a share of the items of MovieLens-1M at random, drops their training and validation events, and ranks all items
for the test event of each user: its target is cold where it is one of them. Features are the genres of a movie and the
decade of its year. Each seed chooses other cold items and trains with features and without; both see the same events.
The validation event chooses the epoch. Prints one JSON line per run and a table at the end: mean ± std over seeds.

The same command resumes: finished runs are only evaluated.
"""

from __future__ import annotations

import pathlib
import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from experiments.benchmarks.records import publish
from experiments.configs import ml1m_hstu
from jaxrec import parallel
from jaxrec.cli.text_table import text_table
from jaxrec.data.event_selection import selected_events
from jaxrec.data.item_features import with_item_columns
from jaxrec.data.preparation.prepare import prepare
from jaxrec.data.prepared import TEST, PreparedData
from jaxrec.train import loop
from jaxrec.train.runs import load_run
from jaxrec.train.sequence_task import evaluate_baselines

FLAGS = flags.FLAGS
FEATURES = "genres", "decade"
METRICS = "warm/HR@10", "warm/NDCG@10", "cold/HR@10", "cold/NDCG@10"


def main(argv: list[str]) -> None:
  """Trains and evaluates the runs, and prints records and a table."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  try:
    seeds = [int(text) for text in FLAGS.seeds]
  except ValueError:
    sys.exit(f"--seeds={','.join(FLAGS.seeds)} must be whole numbers")
  data, records = with_decades(prepare("movielens-1m")), []
  for record in measure(data, config_of(FLAGS.epochs, FLAGS.max_length), seeds, FLAGS.cold, FLAGS.workdir):
    records.append(record)
    publish(record, FLAGS.out)
  print(table(records))


def config_of(epochs: int, max_length: int) -> ConfigDict:
  """Returns the settings of both runs: those of the small HSTU, with shorter histories."""
  config = ml1m_hstu.get_config(ml1m_hstu.SHORT)
  config.data.max_length, config.data.row_length = max_length, 5 * max_length
  config.train.num_epochs, config.train.evaluate_every_epochs = epochs, max(1, epochs // 5)
  config.train.retrain = False
  return config


def with_decades(data: PreparedData) -> PreparedData:
  """Returns data with the decade of the year at the end of each title, "Toy Story (1995)" -> "199"."""
  return with_item_columns(data, {"decade": data.items["title"].str.extract(r"\((\d{3})\d\)\s*$")})


def measure(
  data: PreparedData, config: ConfigDict, seeds: Sequence[int], share: float, workdir: str
) -> Iterator[dict[str, Any]]:
  """Yields one record per seed with features, without, and of popularity.

  Args:
    data: whose items have the columns `FEATURES`.
    config: of both runs.
    seeds: of cold items and training.
    share: of the items that are cold.
    workdir: for prepared data and runs.
  """
  for seed in seeds:
    folder = pathlib.Path(workdir) / f"seed{seed}"
    if not (folder / "data").exists():
      without_cold_items(data, share, seed).save(folder / "data")
    for name, features in (("features", FEATURES), ("ids", ())):
      one = config.copy_and_resolve_references()
      one.seed, one.data.prepared, one.data.features = seed, str(folder / "data"), features
      one.eval.beyond_accuracy = 10
      loop.run(one, str(folder / name))
      run = load_run(str(folder / name))
      sizes = {"items": data.num_items, "cold_share": share, "max_length": one.data.max_length}
      trained = {"epochs": one.train.num_epochs, "best_step": run.step}
      yield _record(name, seed, sizes | trained, run.task.evaluate(run.state, TEST, parallel.make_mesh()))
    yield _record("popularity", seed, sizes, evaluate_baselines(one, run.task.data, TEST)["popularity"])


def _record(name, seed, sizes, found) -> dict[str, Any]:
  counts = {key: found[key] for key in ("warm/count", "cold/count")}
  metrics = {key: round(found.get(key, 0.0), 5) for key in METRICS}
  record = {"benchmark": "cold_items", "variant": name, "seed": seed, **sizes, **counts, **metrics}
  return record | parallel.machine()


def without_cold_items(data: PreparedData, share: float, seed: int) -> PreparedData:
  """Returns data without the training and validation events of a share of the items, drawn at random."""
  cold = np.random.default_rng(seed).choice(np.arange(1, data.num_items + 1), round(share * data.num_items), False)
  kept = ~(np.isin(data.item_id, cold) & (np.asarray(data.split) < TEST))
  meta = {"options": {**data.meta["options"], "cold": share, "seed": seed}}
  return selected_events(data, kept, meta, ("dropped_as_cold", {"of cold items": int((~kept).sum())}))


def table(records: list[dict[str, Any]]) -> str:
  """Formats means and standard deviations over seeds as a Markdown table."""
  rows = [["item vectors", "seeds", "warm targets", "cold targets", *METRICS]]
  for name in dict.fromkeys(record["variant"] for record in records):
    own = [record for record in records if record["variant"] == name]
    counts = [f"{statistics.mean(r[key] for r in own):,.0f}" for key in ("warm/count", "cold/count")]
    rows.append([name, str(len(own)), *counts, *(_mean_and_std([r[key] for r in own]) for key in METRICS)])
  return text_table(rows, "-", markdown=True)


def _mean_and_std(values):
  return f"{statistics.mean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  flags.DEFINE_string("workdir", None, "Folder for data and runs.", required=True, flag_values=values)
  flags.DEFINE_list("seeds", ["1"], "Seeds of cold items and training.", flag_values=values)
  flags.DEFINE_float("cold", 0.1, "Share of the items that are cold.", 0, 1, flag_values=values)
  flags.DEFINE_integer("epochs", 20, "Passes over the training data.", lower_bound=1, flag_values=values)
  flags.DEFINE_integer("max_length", 50, "Events of a history.", lower_bound=2, flag_values=values)
  flags.DEFINE_string("out", None, "File to append the JSON lines to.", flag_values=values)


if __name__ == "__main__":
  define_flags()
  app.run(main)
