"""Audits a data set before numbers on it are trusted: ties, duplicates, popularity of targets, leakage of time.

    python -m experiments.audit --data=prepared/ml1m
    python -m experiments.audit --source=movielens-1m --split=by_time --json >> experiments/results/audit.jsonl

Give a folder of prepared data, or a source with the options of `experiments.prepare`, which is then prepared in memory.
Nothing is trained, and no file is written. `jaxrec.data.audit` defines every figure.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from absl import app, flags

from jaxrec.cli import prepare as prepare_program
from jaxrec.cli.prepare import hidden_flags  # noqa: F401  (read by `jaxrec.cli.process.start`)
from jaxrec.cli.process import describe
from jaxrec.cli.text_table import label_of_all, text_table
from jaxrec.data import audit as audits
from jaxrec.data.local_path import check_local
from jaxrec.data.preparation.prepare import prepare, recorded_options
from jaxrec.data.prepared import PreparedData
from jaxrec.data.printable import printable

FLAGS = flags.FLAGS

SHARES = {
  "order_decides": "order decides", "tied": "tied", "seen_before": "seen before", "top_1_percent": "top 1%",
  "top_10_percent": "top 10%", "not_in_training": "not in training", "item_only_later": "only later",
}  # fmt: skip
LEGEND = {
  "order decides": "another event of the user at the same time could stand in its place: the order of the file chose",
  "tied": "another event of the user at the same time has another item, whatever its split",
  "seen before": "the user had the item before",
  "top 1%, 10%": "the item is among the most popular of the catalogue, by training events",
  "not in training": "no training event has the item",
  "only later": "training events have the item, but all of them happen after the target",
  "later events": "mean share of the training events that happen after the target",
}
_MAX_DOMAINS = 40  # More domains are not listed.


def main(argv: list[str]) -> None:
  """Runs the program with the parsed flags."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  try:
    data = _data()
  except (OSError, ValueError) as error:
    sys.exit(f"audit: {describe(error)}")
  command = shlex.join(["experiments.audit", *(flag for flag in sys.argv[1:] if flag != "--json")])
  described = {"command": command, "source": data.meta["source"], "options": recorded_options(data.meta)}
  figures = described | audits.audit(data)
  print(json.dumps(figures, ensure_ascii=False) if FLAGS.json else report(figures))


def _data() -> PreparedData:
  if bool(FLAGS.data) == bool(FLAGS.source):
    raise ValueError("give either --data, a folder of prepared data, or --source, to prepare it in memory")
  options = prepare_program.given_options(FLAGS) if FLAGS.source else {}
  if FLAGS.data:
    given = [name for name in prepare_program.option_names() if FLAGS[name].value is not None]
    if given or FLAGS.raw or FLAGS.sources:
      raise ValueError(f"--data={FLAGS.data} is prepared already; options {given or ['raw or sources']} need --source")
    return PreparedData.load(FLAGS.data)
  if FLAGS.raw:
    check_local("--raw", FLAGS.raw)
  return prepare(FLAGS.source, FLAGS.raw, **options)


def report(figures: Mapping[str, Any]) -> str:
  """Returns the figures of `jaxrec.data.audit.audit` as text."""
  legend = ["Of the held-out events (targets):", *(f"  {name:16} {text}" for name, text in LEGEND.items())]
  parts = sizes_table(figures), targets_table(figures), "\n".join(legend), "\n".join(_notes(figures))
  return "\n\n".join(parts)


def sizes_table(figures: Mapping[str, Any]) -> str:
  """Returns events, users and items of each split as a table."""
  rows = [("split", "events", "users", "without training", "items", "without training")]
  names = ("events", "users", "users_not_in_training", "items", "items_not_in_training")
  for split in audits.SPLITS:
    rows.append((split, *(f"{figures[split][name]:,}" if name in figures[split] else "" for name in names)))
  return text_table(rows, "lr")


def targets_table(figures: Mapping[str, Any]) -> str:
  """Returns the shares of targets as a table: a row for each held-out split, then for its domains, if at most 40."""
  rows = [("split", "domain", "targets", *SHARES.values(), "later events")]
  for split in ("validation", "test"):
    domains = [name for name in figures[split] if name.startswith(audits.DOMAIN)]
    names = [name.removeprefix(audits.DOMAIN) for name in domains]
    groups = [(label_of_all(names), figures[split])]
    groups += [(name, figures[split][audits.DOMAIN + name]) for name in names if len(names) <= _MAX_DOMAINS]
    for domain, counts in groups:
      shares = [percent(counts[name], counts["targets"]) for name in SHARES]
      rows.append((split, domain, f"{counts['targets']:,}", *shares, percent(counts["later_training"], 1)))
  return text_table(rows, "llr")


def percent(count: float | None, total: int) -> str:
  """Returns a share as text, "-" where there is none.

  >>> percent(1, 8), percent(None, 8), percent(0, 0)
  ('12.5%', '-', '-')
  """
  return "-" if count is None or not total else f"{100 * count / total:.1f}%"


def _notes(figures):
  events, training = figures["events"], figures["training"]["events"]
  yield printable(f"split {figures['split']}; {'with' if figures['has_timestamps'] else 'without'} timestamps")
  yield (
    f"same time as the event before: {percent(figures['neighbours_tied'], 1)} of {events:,} events; repeated items:"
    f" {percent(figures['repeated_items'], events)}; same user, item and time:"
    f" {'-' if figures['duplicates'] is None else format(figures['duplicates'], ',')}"
  )
  yield (
    f"of {training:,} training events, {percent(figures['training_after_first_test'], 1)} happen after the earliest"
    f" test event, {percent(figures['training_after_median_test'], 1)} after the median one"
  )


def define_flags(values: flags.FlagValues = FLAGS) -> None:
  """Defines the flags of this program. Not done on import, because programs share flag names."""
  flags.DEFINE_string("data", None, "Folder of prepared data.", flag_values=values)
  flags.DEFINE_bool("json", False, "Print the figures as a line of JSON instead of tables.", flag_values=values)
  prepare_program.define_source_flags(values)
  if values is FLAGS:
    flags.adopt_module_key_flags(prepare_program)
