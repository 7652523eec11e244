"""Analyzes cross-domain attention in finished runs: which users it helps, its weight over time, what it attends to.

    python -m experiments.analyze_cross_domain --runs=runs/abxi_hstu_base,runs/abxi_hstu_autocdsr \
      --single=runs/abxi_hstu_food,runs/abxi_hstu_kitchen --out=runs/analysis

--runs are runs on the same multi-domain data; the others are compared with the first. --single are runs of
config.data.only_domain, at most one per domain; they divide users into strata by whether the single-domain model and
the first run rank the target in the top k. Without them there is one stratum, "all". --sweep is the --out of an
experiments.sweep over config.multi_objective.weighting.

Writes <out>/analysis.json and, with matplotlib, strata.png, weights.png (runs with a second objective), usefulness.png
(data source "planted") and sweep.png.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags

from jaxrec import parallel
from jaxrec.analysis import autocdsr_analysis, autocdsr_plots
from jaxrec.cli.sweep import read_results
from jaxrec.cli.text_table import text_table
from jaxrec.data.generators.planted_transfer import planted_truth
from jaxrec.evaluation.model import evaluation_batches, user_ranks
from jaxrec.evaluation.protocols import PROTOCOLS, UserRanks
from jaxrec.train.config import SEQUENTIAL
from jaxrec.train.runs import load_run
from jaxrec.train.sequence_task import SequenceTask
from jaxrec.train.writers import read_json, read_records, write_json

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Run:
  """A run, the ranks of the evaluated users' targets, and the attention of its queries (cross-domain models only)."""

  workdir: str
  task: SequenceTask
  ranks: UserRanks
  attention: autocdsr_analysis.QueryAttention | None


def main(argv: list[str]) -> None:
  """Analyzes the runs named by the flags."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  try:
    runs = {name: load(workdir) for name, workdir in names_of(FLAGS.runs).items()}
    singles = [load(workdir, single=True) for workdir in FLAGS.single]
    check_same_events([*runs.values(), *singles])
    split = 1 if FLAGS.split == "validation" else 2
    numbers = analyze(runs, singles, split, FLAGS.k, FLAGS.own, FLAGS.score)
    numbers |= {"sweep": read_sweep(FLAGS.sweep, FLAGS.metric)} if FLAGS.sweep else {}
  except (FileNotFoundError, ValueError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
  os.makedirs(FLAGS.out, exist_ok=True)
  settings = {name: FLAGS[name].value for name in ("runs", "single", "split", "k", "own", "score", "protocol")}
  path = os.path.join(FLAGS.out, "analysis.json")
  write_json(path, {"settings": settings, **as_json(numbers)})
  draw(numbers, FLAGS.out, FLAGS.metric)
  print(table(numbers["strata"]))
  print(f"mean share of cross-domain attention ± standard error, {FLAGS.split} events; written to {path}")


def names_of(workdirs: Sequence[str]) -> dict[str, str]:
  """Returns {name: folder}; the name is the last part of the folder, or the whole folder if names would be equal.

  >>> names_of(["runs/a", "runs/b/"]), names_of(["x/a", "y/a"])
  ({'a': 'runs/a', 'b': 'runs/b/'}, {'x/a': 'x/a', 'y/a': 'y/a'})
  """
  short = {os.path.basename(os.path.normpath(workdir)): workdir for workdir in workdirs}
  return short if len(short) == len(workdirs) else {workdir: workdir for workdir in workdirs}


def load(workdir: str, single: bool = False) -> Run:
  """Returns a run with its ranks and, unless it is a single-domain run, its attention.

  Args:
    workdir: folder of the run.
    single: True for a run of config.data.only_domain.

  Raises:
    FileNotFoundError: no run in the folder.
    ValueError: a model without cross-domain attention, or a single-domain run in place of a multi-domain one (or the
      reverse).
  """
  loaded = load_run(workdir, FLAGS.checkpoint, FLAGS.phase, task=SEQUENTIAL)
  task, params = loaded.task, loaded.params
  model, data, config = task.model, task.data, task.config
  if single != bool(config.data.only_domain):
    raise ValueError(
      f"{workdir}: config.data.only_domain={config.data.only_domain!r}, but --runs are of several domains and --single"
      " of one of them"
    )
  if config.data.domains_apart:
    raise ValueError(f"{workdir}: {config.data.domains_apart=} leaves no attention across domains to analyze")
  if config.eval.targets != "first":
    raise ValueError(f"{workdir}: {config.eval.targets=}, but strata are of users with one target")
  try:
    autocdsr_analysis.check_model(model)
  except ValueError as error:
    raise ValueError(f"{workdir}: {error}") from error
  with config.unlocked():
    config.eval.protocol = FLAGS.protocol
  split = 1 if FLAGS.split == "validation" else 2
  ranks = user_ranks(model, params, data, config, split)
  if single:
    return Run(workdir, task, ranks, None)
  batches = evaluation_batches(data, config, split, parallel.make_mesh())
  return Run(workdir, task, ranks, autocdsr_analysis.query_attention(model, params, batches))


def check_same_events(runs: Sequence[Run]) -> None:
  """Raises ValueError unless all runs have the same catalogue, and the same targets for the users they share."""
  first = runs[0]
  for run in runs[1:]:
    if run.task.data.num_items != first.task.data.num_items:
      raise ValueError(f"{run.workdir} and {first.workdir} have different data: their catalogues differ")
    _, here, there = np.intersect1d(run.ranks.user, first.ranks.user, return_indices=True)
    if (run.ranks.target_item[here] != first.ranks.target_item[there]).any():
      raise ValueError(f"{run.workdir} and {first.workdir} have different targets for the same users")


def analyze(
  runs: Mapping[str, Run], singles: Sequence[Run], split: int, k: int, own: str, score: str = "all_keys"
) -> dict[str, Any]:
  """Returns "strata", "change", "weights" and "usefulness", each by name of a run; the last two where they apply.

  Args:
    runs: multi-domain runs; the first one defines the strata, together with `singles`.
    singles: single-domain runs.
    split: split of the targets, 1 validation or 2 test.
    k: length of the recommendation list.
    own, score: see `jaxrec.analysis.autocdsr_analysis.QueryAttention.cross_domain_share`.

  Raises:
    ValueError: a user in two of `singles`, or no user in all of the runs.
  """
  first = next(iter(runs.values()))
  users, single_ranks = _single_ranks(singles)
  for run in runs.values():
    users = run.ranks.user if users is None else np.intersect1d(users, run.ranks.user)
  if not len(users):
    raise ValueError("no user is evaluated in all of the runs")
  shares = {name: run.attention.select(users).cross_domain_share(own, score) for name, run in runs.items()}

  def strata(values):
    every = {"all": autocdsr_analysis.Mean.from_values(values)}
    if single_ranks is None:
      return every
    single, cross = (ranks.rank[np.isin(ranks.user, users)] for ranks in (single_ranks, first.ranks))
    return autocdsr_analysis.attention_by_strata(values, single, cross, k) | every

  start = shares[next(iter(runs))]
  change = {name: strata(values - start) for name, values in list(shares.items())[1:]}
  numbers = {"strata": {name: strata(values) for name, values in shares.items()}, "change": change}
  return numbers | {"weights": _weights(runs), "usefulness": _usefulness(runs, split)}


def read_sweep(folder: str, metric: str) -> tuple[dict, dict]:
  """Returns `weight_sweep` of the complete runs of an experiments.sweep.

  Args:
    folder: the --out of the sweep.
    metric: path of a number in the summaries.

  Raises:
    ValueError: no complete run, or one without the metric.
  """
  records = read_results(folder).values()
  if not records:
    raise ValueError(f"--sweep={folder} has no complete run; pass the --out of an experiments.sweep")
  runs = [(read_json(os.path.join(record["workdir"], "config.json")), record["summary"]) for record in records]
  return autocdsr_analysis.weight_sweep(runs, metric)


def draw(numbers: Mapping[str, Any], out: str, metric: str) -> None:
  """Writes the plots of the results that exist."""
  path = lambda name: os.path.join(out, f"{name}.png")  # noqa: E731
  autocdsr_plots.draw_strata(numbers["strata"], path("strata"))
  if numbers["weights"]:
    autocdsr_plots.draw_weights(numbers["weights"], path("weights"))
  if numbers["usefulness"]:
    autocdsr_plots.draw_usefulness(numbers["usefulness"], path("usefulness"))
  if "sweep" in numbers:
    autocdsr_plots.draw_sweep(*numbers["sweep"], metric, path("sweep"))


def as_json(value: Any) -> Any:
  """Returns a tree with named tuples as dicts, arrays as lists, and all keys as strings.

  >>> as_json({0.5: autocdsr_analysis.MeanStd(1, 0.25, None)})
  {'0.5': {'count': 1, 'mean': 0.25, 'std': None}}
  """
  if isinstance(value, Mapping):
    return {str(key): as_json(inner) for key, inner in value.items()}
  if hasattr(value, "_asdict"):
    return as_json(value._asdict())
  if isinstance(value, list | tuple):
    return [as_json(inner) for inner in value]
  return value.tolist() if isinstance(value, np.ndarray) else value


def table(strata: Mapping[str, Mapping[str, autocdsr_analysis.Mean]]) -> str:
  """Formats the strata as text, one row per run.

  >>> print(table({"a": {"all": autocdsr_analysis.Mean(7, 0.25, 0.125)}}))
  run  all (7 users)
  a    0.2500 ± 0.1250
  """
  first = next(iter(strata.values()))
  rows = [["run", *(f"{name} ({mean.count} users)" for name, mean in first.items())]]
  rows += [[name, *(_text(mean) for mean in means.values())] for name, means in strata.items()]
  return text_table(rows)


def _text(mean):
  if mean.mean is None:
    return "-"
  return f"{mean.mean:.4f}" if mean.error is None else f"{mean.mean:.4f} ± {mean.error:.4f}"


def _single_ranks(singles):
  """Returns users and ranks of all single-domain runs together; (None, None) if there are none."""
  if not singles:
    return None, None
  columns = [np.concatenate(parts) for parts in zip(*(run.ranks for run in singles), strict=True)]
  ranks = UserRanks(*(column[np.argsort(columns[0])] for column in columns))
  if len(np.unique(ranks.user)) < len(ranks.user):
    raise ValueError("--single has several runs of the same domain; pass one per domain")
  return ranks.user, ranks


def _weights(runs):
  """Returns the trajectories of the runs with a second objective."""
  found = {}
  for name, run in runs.items():
    if run.task.config.multi_objective.objectives:
      records = read_records(os.path.join(run.workdir, "metrics.jsonl"))
      found[name] = autocdsr_analysis.weight_trajectory(records)
  return found


def _usefulness(runs, split):
  found = {}
  for name, run in runs.items():
    data = run.task.data
    if data.meta["source"] == "planted":
      found[name] = autocdsr_analysis.attention_to_usefulness(run.attention, data, planted_truth(data), split)
  return found


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program; not on import, as other programs have flags of the same names."""
  runs_help = "Folders of multi-domain runs; the others are compared with the first."
  flags.DEFINE_list("runs", None, runs_help, flag_values=values)
  flags.DEFINE_list("single", [], "Folders of runs of config.data.only_domain.", flag_values=values)
  flags.DEFINE_string("sweep", None, "Folder of a sweep over weightings.", flag_values=values)
  metric_help = "Metric of the sweep: a path in the summary of a run."
  flags.DEFINE_string("metric", "select/test_of_selected/NDCG@10", metric_help, flag_values=values)
  flags.DEFINE_integer("k", 10, "A target in the top k is a hit.", lower_bound=1, flag_values=values)
  own_help = "Cross-domain attention goes to domains other than that of the query's event, or of the target."
  flags.DEFINE_enum("own", "query", autocdsr_analysis.OWN, own_help, flag_values=values)
  score_help = "Among all keys, as recorded, or among visible keys of other events, in absolute weights."
  flags.DEFINE_enum("score", "all_keys", autocdsr_analysis.SHARES, score_help, flag_values=values)
  flags.DEFINE_enum("split", "test", ["validation", "test"], "Split of the targets.", flag_values=values)
  protocol_help = "Candidates; single-domain models have the items of their domain only."
  flags.DEFINE_enum("protocol", "full_per_domain", PROTOCOLS, protocol_help, flag_values=values)
  flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Which checkpoint.", flag_values=values)
  flags.DEFINE_enum(
    "phase", None, ["select", "final"], "Which phase of the runs; the last one by default.", flag_values=values
  )
  flags.DEFINE_string("out", None, "Folder for analysis.json and the plots.", flag_values=values)
  flags.mark_flags_as_required(["runs", "out"], flag_values=values)


if __name__ == "__main__":
  define_flags()
  app.run(main)
