"""Re-evaluates a checkpoint and compares it with popularity and random order, over all users and per domain.

    python -m experiments.evaluate --workdir=runs/ml1m_hstu --split=test --ks=1,10,50

Of a run of generative ranking it evaluates the predicted actions, beside averages of items and users, a regression on
their ids and, for generated data, the true distributions.

Prints a table and writes the metrics to <workdir>/evaluation_<split>.json (or --out). Flags override the evaluation
settings of the run's config.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from jaxrec.cli import ranking_runs
from jaxrec.cli.process import describe
from jaxrec.cli.text_table import label_of_all, text_table
from jaxrec.data.batches.evaluation import TARGETS
from jaxrec.data.local_path import check_local
from jaxrec.evaluation.beyond_accuracy import COLD, METRICS, WARM
from jaxrec.evaluation.model import evaluate
from jaxrec.evaluation.protocols import REPORTED, SAMPLED, WITHIN_DOMAIN
from jaxrec.train.config import SEQUENTIAL
from jaxrec.train.runs import load_run
from jaxrec.train.sequence_task import SequenceTask, evaluate_baselines
from jaxrec.train.writers import write_json

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
  """Runs the program with the parsed flags."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  out = FLAGS.out or f"{FLAGS.workdir}/evaluation_{FLAGS.split}.json"
  try:
    check_local("--out", out)
    if ranking_runs.is_ranking_run(FLAGS.workdir):
      print(_evaluate_actions(out))
      return
    loaded = load_run(FLAGS.workdir, FLAGS.checkpoint, FLAGS.phase, task=SEQUENTIAL)
    task = loaded.task
    _apply_flags(task.config)
    scores = score(task, loaded.params, 1 if FLAGS.split == "validation" else 2, FLAGS.baselines)
    settings = task.config.eval.to_dict()
    write_json(out, {"split": FLAGS.split, "step": loaded.step, "eval": settings, **scores})
  except (OSError, ValueError) as error:
    sys.exit(describe(error))
  print(table(scores, task.data.domain_names, task.config.eval.ks))
  if settings["protocol"] == "both":
    print("\nAmong the items of the target domain:")
    print(table(scores, task.data.domain_names, task.config.eval.ks, WITHIN_DOMAIN))
  if settings["sampled_negatives"]:
    print(f"\nAmong {settings['sampled_negatives']} sampled negatives; not comparable with full ranking:")
    print(table(scores, task.data.domain_names, task.config.eval.ks, SAMPLED))
  if settings["beyond_accuracy"]:
    print(f"\nThe lists of the first {settings['beyond_accuracy']}:")
    print(lists_table(scores, task.data.domain_names, settings["beyond_accuracy"]))
    print("\nTargets with an event before the split (warm), and without (cold):")
    print(ages_table(scores, task.config.eval.ks))
  if settings["targets"] == "all":
    values = scores[task.config.model.name]
    new, without = (f"{values[name]:,}" for name in ("new_users", "without_history"))
    print(f"\n{new} of these targets belong to users without an event before the split; {without} more, which no event")
    print("of the user precedes, are left out")
  candidates = (
    f"protocol={settings['protocol']}, targets={settings['targets']}, exclude_seen={settings['exclude_seen']}"
  )
  print(f"{FLAGS.split} events, parameters of step {loaded.step}, {candidates}; written to {out}")


def _evaluate_actions(out: str) -> str:
  """Writes the metrics of a run of generative ranking, and returns them as text."""
  ignored = [name for name in ("ks", "protocol", "sampled_negatives", "exclude_seen") if FLAGS[name].value is not None]
  if ignored:
    raise ValueError(
      f"a ranking run predicts actions and ranks no catalogue; it does not take --{', --'.join(ignored)}"
    )
  loaded = load_run(FLAGS.workdir, FLAGS.checkpoint, FLAGS.phase)
  scores, reliability = ranking_runs.scores_of(loaded, 1 if FLAGS.split == "validation" else 2, FLAGS.baselines)
  bins = {name: [one._asdict() for one in of_action] for name, of_action in reliability.items()}
  write_json(out, {"split": FLAGS.split, "step": loaded.step, **scores, "reliability": bins})
  found = ranking_runs.score_table(scores, [head.name for head in loaded.task.model.heads])
  return f"{found}\n{FLAGS.split} events, parameters of step {loaded.step}; written to {out}"


def score(task: SequenceTask, params: Any, split: int, baselines: bool = True) -> dict[str, dict[str, float | int]]:
  """Returns the metrics of the model under its name and, with `baselines`, those of "popularity", "random" and so on.

  Args:
    task: data, model and config.
    params: parameters of the model.
    split: 1 validation, 2 test. Popularity counts the events available for training before it.
    baselines: whether to evaluate the baselines too; where the split is by time also popularity in the last days.

  Raises:
    ValueError: no user has an event in this split.
  """
  data, config = task.data, task.config
  scores = {config.model.name: evaluate(task.model, params, data, config, split)}
  if baselines:
    scores |= evaluate_baselines(config, data, split)
  return scores


def table(
  scores: dict[str, dict[str, float | int]], domain_names: Sequence[str], ks: Sequence[int], prefix: str = ""
) -> str:
  """Formats metrics as text, one row per ranker for all users, then one per domain and ranker.

  Args:
    scores: ranker -> metrics.
    domain_names: names of the domains of the data.
    ks: list lengths.
    prefix: prefix of the metric names: "" for full ranking, or one of `jaxrec.evaluation.protocols`.

  >>> print(table({"hstu": {"HR@10": 0.5, "NDCG@10": 0.25, "MRR": 0.2, "count": 4}}, ("films",), (10,)))
  domain  ranker  users   HR@10  NDCG@10     MRR
  all     hstu        4  0.5000   0.2500  0.2000
  """
  metrics = [*(f"{name}@{k}" for name in ("HR", "NDCG") for k in ks), "MRR"]
  rows = [["domain", "ranker", "users", *metrics]]
  groups = [(label_of_all(domain_names), prefix)]
  groups += [(name, f"{prefix}domain/{name}/") for name in domain_names if domain_names[1:]]
  for domain, start in groups:
    for ranker, values in scores.items():
      cells = [_cell(values, start + name) for name in metrics]
      rows.append([domain, ranker, str(values[f"{start}count"]), *cells])
  return text_table(rows, "llr")


def lists_table(scores: dict[str, dict[str, float | int]], domain_names: Sequence[str], k: int) -> str:
  """Formats what lists of k items are like, one row per ranker for all users, then one per domain and ranker.

  >>> values = {"Coverage@5": 0.5, "Gini@5": 0.25, "Popularity@5": 12.0, "count": 4}
  >>> print(lists_table({"hstu": values}, ("films",), 5))
  domain  ranker  Coverage@5  Gini@5  Novelty@5  Popularity@5  Diversity@5  Serendipity@5
  all     hstu        0.5000  0.2500          -       12.0000            -              -
  """
  names = [f"{name}@{k}" for name in METRICS]
  rows = [["domain", "ranker", *names]]
  groups = [(label_of_all(domain_names), "")]
  groups += [(name, f"domain/{name}/") for name in domain_names if domain_names[1:]]
  for domain, start in groups:
    for ranker, values in scores.items():
      rows.append([domain, ranker, *(_cell(values, start + name) for name in names)])
  return text_table(rows, "llr")


def ages_table(scores: dict[str, dict[str, float | int]], ks: Sequence[int]) -> str:
  """Formats the metrics of warm and of cold targets, one row per kind and ranker.

  >>> print(ages_table({"hstu": {"warm/HR@1": 0.5, "warm/NDCG@1": 0.5, "warm/count": 4, "cold/count": 0}}, (1,)))
  targets  ranker  count    HR@1  NDCG@1
  warm     hstu        4  0.5000  0.5000
  cold     hstu        0       -       -
  """
  names = [f"{name}@{k}" for name in ("HR", "NDCG") for k in ks]
  rows = [["targets", "ranker", "count", *names]]
  for age in (WARM, COLD):
    for ranker, values in scores.items():
      rows.append([age.strip("/"), ranker, str(values[f"{age}count"]), *(_cell(values, age + name) for name in names)])
  return text_table(rows, "llr")


def _cell(values, name):
  return f"{values[name]:.4f}" if name in values else "-"


def _apply_flags(config):
  with config.unlocked(), config.ignore_type():
    if FLAGS.ks is not None:
      config.eval.ks = tuple(int(k) for k in FLAGS.ks)
    if FLAGS.protocol is not None:
      config.eval.protocol = FLAGS.protocol
    if FLAGS.sampled_negatives is not None:
      config.eval.sampled_negatives = FLAGS.sampled_negatives
    if FLAGS.beyond_accuracy is not None:
      config.eval.beyond_accuracy = FLAGS.beyond_accuracy
    if FLAGS.targets is not None:
      config.eval.targets = FLAGS.targets
    if FLAGS.exclude_seen is not None:
      config.eval.exclude_seen = FLAGS.exclude_seen


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  flags.DEFINE_string("workdir", None, "Workdir of the training run.", flag_values=values)
  flags.DEFINE_enum("split", "test", ["validation", "test"], "Held-out events to rank.", flag_values=values)
  flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Checkpoint to load.", flag_values=values)
  flags.DEFINE_enum("phase", None, ["select", "final"], "Phase of the run; default: the last one.", flag_values=values)
  flags.DEFINE_list("ks", None, "List lengths of HR and NDCG; default: those of the config.", flag_values=values)
  flags.DEFINE_enum("protocol", None, REPORTED, "Candidates to rank; default: those of the config.", flag_values=values)
  flags.DEFINE_enum(
    "targets", None, TARGETS, "Events of the split to predict: the first of each user, or all; default: as in the"
    " config.", flag_values=values,
  )  # fmt: skip
  flags.DEFINE_bool(
    "exclude_seen", None, "Exclude seen items from the candidates; default: as in the config.", flag_values=values
  )
  flags.DEFINE_integer(
    "sampled_negatives", None, "Also rank among that many random items; default: as in the config.", lower_bound=0,
    flag_values=values,
  )  # fmt: skip
  flags.DEFINE_integer(
    "beyond_accuracy", None, "Length of the lists whose coverage, novelty, popularity, diversity and serendipity are"
    " reported; 0: none; default: as in the config.", lower_bound=0, flag_values=values,
  )  # fmt: skip
  flags.DEFINE_bool("baselines", True, "Also evaluate popularity and random order.", flag_values=values)
  flags.DEFINE_string("out", None, "JSON file; default: <workdir>/evaluation_<split>.json.", flag_values=values)
  flags.mark_flags_as_required(["workdir"], flag_values=values)
