"""Trains a model at several cuts in time and compares it with popularity on all events from each cut to the next.

    jaxrec rolling --config=hstu --data=prepared/log --out=runs/rolling --cuts=4
    python -m experiments.rolling --config=experiments/configs/beauty_hstu.py --out=runs/rolling --cuts=4 --seeds=1,2

Each window is what was known at its cut: a model of the events before, whose epoch is chosen on the last of them (as
many as the test events) and which is then trained anew on all of them (--noretrain leaves that out). Every event from
the cut to the next is a target; the user's earlier events are its history. The baselines are popularity of all time and
of the last days before the cut (config.eval.recent_days): a model that is not above the best of them has not learnt
more than what is popular at the time.

--first is the share of the events before the first validation part; the rest is divided into --cuts + 1 parts of about
as many events. --times gives the edges instead, in seconds: validation of the first window, its test, the next tests,
and the end.

The same command resumes. Several of them, with other --seeds, may train at a time with one --out; then give the command
with all of them. Writes <out>/rolling.json and <out>/runs/<cut>-<seed>.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict

from jaxrec.cli.config_argument import DATA_HELP, define_config, with_config_file
from jaxrec.cli.process import describe
from jaxrec.cli.sweep import parse_seeds
from jaxrec.cli.text_table import text_table
from jaxrec.data import load
from jaxrec.data.prepared import TEST, PreparedData
from jaxrec.data.time_window import check_cuts, rolling_cuts
from jaxrec.train import loop
from jaxrec.train.checkpoint import check_path
from jaxrec.train.config import SEQUENTIAL
from jaxrec.train.monitor import TRAINING_ERRORS, Interrupted
from jaxrec.train.sequence_task import evaluate_baselines
from jaxrec.train.writers import write_json

FLAGS = flags.FLAGS
rewrite_arguments = with_config_file

Cuts = tuple[int, int, int]
Scores = Mapping[str, Mapping[str, float | int]]


@dataclasses.dataclass(frozen=True)
class Window:
  """A cut: its number from 1, its three times, and the config of each seed by the name of its folder."""

  number: int
  cuts: Cuts
  configs: Mapping[str, ConfigDict]


def main(argv: list[str]) -> None:
  """Runs the program with the parsed flags."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; settings are given as --config.group.key=value")
  try:
    check_path("--out", FLAGS.out)
    config, seeds = checked_config(FLAGS.config, FLAGS.k, FLAGS.retrain), parse_seeds(FLAGS.seeds)
    windows = windows_of(config, cuts_of(config), seeds)
    if FLAGS.dry_run:
      print(
        "\n".join(f"{FLAGS.out}/runs/{name}  {_dates(window.cuts)}" for window in windows for name in window.configs)
      )
      return
    os.makedirs(os.path.join(FLAGS.out, "runs"), exist_ok=True)
    records = [record_of(window, FLAGS.out) for window in windows]
    summary = summarized(records, FLAGS.k)
    settings = {"config": config.name, "seeds": seeds, "k": FLAGS.k, "retrain": FLAGS.retrain}
    write_json(os.path.join(FLAGS.out, "rolling.json"), {**settings, "windows": records, "all": summary})
  except Interrupted as stop:
    logging.warning("%s", stop)
    sys.exit(stop.exit_code)
  except (OSError, ValueError, *TRAINING_ERRORS) as error:
    sys.exit(describe(error))
  print("\n".join([table(records, summary, FLAGS.k), "", verdict(records, summary, FLAGS.k)]))
  print(f"written to {FLAGS.out}/rolling.json")


def checked_config(config: ConfigDict, k: int, retrain: bool) -> ConfigDict:
  """Returns a copy of the config in which every event of a split is a target.

  Raises:
    ValueError: a config of another task, or with time cuts of its own.
  """
  config = ConfigDict(config.to_dict())
  if config.task != SEQUENTIAL:
    raise ValueError(f"{config.task=} ranks no catalogue; give a config of task {SEQUENTIAL!r}")
  if config.data.time_cuts:
    raise ValueError(f"{config.data.time_cuts=} is set by this program; give a config without")
  config.eval.targets, config.train.retrain = "all", retrain
  config.eval.ks = tuple(sorted({*config.eval.ks, k}))
  return config


def cuts_of(config: ConfigDict) -> list[Cuts]:
  """Returns the three times of each window: those of --times, or of --cuts and --first.

  Raises:
    ValueError: fewer than three times, or times that do not grow.
  """
  if FLAGS.times:
    if len(FLAGS.times) < 3 or not all(time.lstrip("-").isdigit() for time in FLAGS.times):
      raise ValueError(f"--times={','.join(FLAGS.times)} must be three times in seconds or more: validation, test, end")
    times = [int(time) for time in FLAGS.times]
    return [check_cuts(times[i : i + 3]) for i in range(len(times) - 2)]
  data = load.load_data(config.data)
  if not data.has_timestamps:
    raise ValueError("the data has no times; there is nothing to cut at")
  return rolling_cuts(np.asarray(data.timestamp), FLAGS.cuts, FLAGS.first)


def windows_of(config: ConfigDict, cuts: Sequence[Cuts], seeds: Sequence[int]) -> list[Window]:
  """Returns the windows with the configs of their trainings.

  Args:
    config: from `checked_config`.
    cuts: three times of each window.
    seeds: of each window.
  """
  windows = []
  for number, times in enumerate(cuts, start=1):
    configs = {}
    for seed in seeds:
      one = ConfigDict(config.to_dict())
      one.seed, one.data.time_cuts, one.name = seed, times, f"{config.name}_cut{number}"
      configs[f"cut{number}-{seed}"] = one
    windows.append(Window(number, times, configs))
  return windows


def record_of(window: Window, out: str) -> dict[str, Any]:
  """Trains what is not trained yet, and returns times, sizes, and metrics by ranker and seed of a window.

  Raises:
    ValueError: a folder holds a run of another config, or no event of the window has a history.
  """
  metrics: dict[str, list] = {}
  for name, config in window.configs.items():
    summary = loop.run(config, os.path.join(out, "runs", name))
    found = summary["final"]["test"] if config.train.retrain else summary["select"]["test_of_selected"]
    metrics.setdefault(config.model.name, []).append(found)
  config = next(iter(window.configs.values()))
  data = load.load_data(config.data)
  metrics |= {name: [values] for name, values in evaluate_baselines(config, data, TEST).items()}
  return {"cut": window.number, "times": window.cuts, **_sizes(data), "metrics": metrics}


def _sizes(data: PreparedData) -> dict[str, int]:
  events = np.bincount(np.asarray(data.split), minlength=3).tolist()
  return dict(zip(("training", "validation", "test"), events, strict=True))


def summarized(records: Sequence[Mapping[str, Any]], k: int) -> dict[str, dict[str, list[float]]]:
  """Returns HR@k and NDCG@k over the targets of all windows, by ranker and seed.

  >>> one = lambda hr, count: {"metrics": {"hstu": [{"HR@1": hr, "NDCG@1": hr, "count": count}]}}
  >>> summarized([one(0.5, 10), one(0.2, 30)], 1)["hstu"]["HR@1"]
  [0.275]
  """
  found: dict[str, dict[str, list[float]]] = {}
  for ranker, by_seed in records[0]["metrics"].items():
    found[ranker] = {name: [_mean_over(records, ranker, i, name) for i in range(len(by_seed))]
                     for name in (f"HR@{k}", f"NDCG@{k}")}  # fmt: skip
  return found


def _mean_over(records, ranker, seed, name):
  """Returns the mean of a metric over the targets of all windows."""
  of_windows = [one["metrics"][ranker][seed] for one in records]
  return float(np.average([one[name] for one in of_windows], weights=[one["count"] for one in of_windows]))


def table(records: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], k: int) -> str:
  """Returns the metrics as text: a row for each window and ranker, then those of all windows together."""
  names = f"HR@{k}", f"NDCG@{k}"
  rows = [("from", "to", "targets", "of new users", "left out", "ranker", *names)]
  for one in records:
    _, start, end = one["times"]
    for ranker, by_seed in one["metrics"].items():
      counts = (f"{by_seed[0][name]:,}" for name in ("count", "new_users", "without_history"))
      rows.append((_date(start), _date(end), *counts, ranker, *(_mean(by_seed, name) for name in names)))
  total = f"{sum(next(iter(one['metrics'].values()))[0]['count'] for one in records):,}"
  for ranker, values in summary.items():
    rows.append(("all", "", total, "", "", ranker, *(f"{np.mean(values[name]):.4f}" for name in names)))
  return text_table(rows, "llrrrlr")


def verdict(records: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], k: int) -> str:
  """Returns whether the model, the first ranker, is above the best popularity, over all targets and by window.

  >>> one = {name: [{"HR@5": x, "NDCG@5": x, "count": 9}] for name, x in (("hstu", 0.2), ("popularity", 0.1))}
  >>> verdict([{"metrics": one}], summarized([{"metrics": one}], 5), 5)
  'hstu: NDCG@5 0.2000 over all targets, above the best popularity (popularity, 0.1000), and at 1 of 1 cuts.'
  """
  model, *others = records[0]["metrics"]
  others = [name for name in others if name != "random"]
  name = f"NDCG@{k}"
  mean = {ranker: float(np.mean(summary[ranker][name])) for ranker in (model, *others)}
  best = max(others, key=mean.get)
  ahead = sum(
    np.mean([one[name] for one in record["metrics"][model]])
    > max(np.mean([one[name] for one in record["metrics"][ranker]]) for ranker in others)
    for record in records
  )
  how = "above" if mean[model] > mean[best] else "not above"
  return (
    f"{model}: {name} {mean[model]:.4f} over all targets, {how} the best popularity ({best}, {mean[best]:.4f}), and at"
    f" {ahead} of {len(records)} cuts."
  )


def _mean(by_seed: Sequence[Mapping[str, float]], name: str) -> str:
  return f"{np.mean([one[name] for one in by_seed]):.4f}"


def _dates(cuts: Cuts) -> str:
  return f"validation {_date(cuts[0])}, test {_date(cuts[1])} to {_date(cuts[2])}"


def _date(seconds: int) -> str:
  when = datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC)
  return when.strftime("%Y-%m-%d" if not seconds % 86_400 else "%Y-%m-%d %H:%M")


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  define_config(values)
  flags.DEFINE_string("data", None, DATA_HELP, flag_values=values)
  flags.DEFINE_string("out", None, "Folder of the runs and of rolling.json.", flag_values=values)
  flags.DEFINE_list("seeds", ["42"], "Seeds of each window.", flag_values=values)
  flags.DEFINE_integer("cuts", 3, "Windows.", lower_bound=1, flag_values=values)
  flags.DEFINE_float("first", 0.8, "Share of the events before the first validation part.", flag_values=values)
  flags.DEFINE_list("times", [], "Edges in seconds, in place of --cuts and --first.", flag_values=values)
  flags.DEFINE_integer("k", 10, "Length of the lists that are printed.", lower_bound=1, flag_values=values)
  flags.DEFINE_bool("retrain", True, "Train anew on the validation events before the test.", flag_values=values)
  flags.DEFINE_bool("dry_run", False, "List the runs without training.", flag_values=values)
  flags.mark_flags_as_required(["config", "out"], flag_values=values)
