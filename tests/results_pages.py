"""The pages of experiments/results that are made from their JSON lines alone.

    python tests/results_pages.py

writes them anew; a test compares them with the lines.
"""

import json

from conftest import REPOSITORY

from jaxrec.cli.audit import LEGEND, SHARES, percent
from jaxrec.cli.text_table import text_table
from jaxrec.data.audit import DOMAIN
from jaxrec.evaluation.beyond_accuracy import METRICS

RESULTS = REPOSITORY / "experiments" / "results"
MADE = "<!-- Made by `python tests/results_pages.py` from {}; change the lines or the program, not this page. -->\n"


def lines_of(name: str) -> list[dict]:
  """Returns the recorded lines of a file of experiments/results."""
  return [json.loads(line) for line in (RESULTS / name).read_text().splitlines()]


def audit_page(lines: list[dict]) -> str:
  """Returns `audit.md`: every data set at hand, audited by `experiments.audit`."""
  commands = [f"{i}. `python -m {line['command']}`" for i, line in enumerate(lines, 1)]
  return "\n\n".join([
    "# What the data sets are like",
    MADE.format("audit.jsonl").strip(),
    "Figures of `experiments.audit`, numbered by command (the raw data in `$JAXREC_DATA`):",
    "\n".join(commands),
    "## Sizes, ties, duplicates, leakage of time",
    "`tied`: events with the same time as the user's event before. `repeated`: the user had the item before;\n"
    "`duplicate`: at the same time. The last two columns: share of the training events that happen after the earliest\n"
    "and after the median test event.",
    _sizes(lines),
    "## Held-out events",
    "\n".join(["Of the held-out events (targets):\n", *(f"- {name}: {text}" for name, text in LEGEND.items())]),
    _targets(lines),
    "## Test events by domain",
    _domains(lines),
  ]) + "\n"  # fmt: skip


def _sizes(lines):
  header = " |users|items|events|tied|repeated|duplicate|items without training|after first test|after median test"
  rows = [header.split("|")]
  for i, line in enumerate(lines, 1):
    new = line["items"] - line["training"]["items"]
    rows.append([
      f"{i}", f"{line['users']:,}", f"{line['items']:,}", f"{line['events']:,}", percent(line["neighbours_tied"], 1),
      percent(line["repeated_items"], line["events"]), percent(line["duplicates"], line["events"]), f"{new:,}",
      percent(line["training_after_first_test"], 1), percent(line["training_after_median_test"], 1),
    ])  # fmt: skip
  return text_table(rows, "lr", markdown=True)


def _targets(lines):
  rows = [["", "split", "targets", *SHARES.values(), "later events"]]
  for i, line in enumerate(lines, 1):
    rows += [[f"{i}", split, *_cells(line[split])] for split in ("validation", "test")]
  return text_table(rows, "llr", markdown=True)


def _domains(lines):
  rows = [["", "domain", "targets", *SHARES.values(), "later events"]]
  for i, line in enumerate(lines, 1):
    for name, figures in line["test"].items():
      if name.startswith(DOMAIN) and len(line["test"]) < 60:  # Not the categories of Taobao.
        rows.append([f"{i}", name.removeprefix(DOMAIN), *_cells(figures)])
  return text_table(rows, "llr", markdown=True)


def _cells(figures):
  shares = [percent(figures[name], figures["targets"]) for name in SHARES]
  return [f"{figures['targets']:,}", *shares, percent(figures["later_training"], 1)]


PROTOCOL = {
  "split": str, "evaluated": str, "tie_order": str, "target_time": bool, "seen_items": str, "candidates": str,
  "sampled_negatives": int, "epoch_chosen_by": str, "epochs": int, "seeds": list, "hardware": str, "seconds": int,
}  # fmt: skip
"""What every line of quality.jsonl says beside its metrics; None: not recorded, or not stated by the source."""

ORIGINS = {"here": "this library", "re-run": "independent re-run", "authors": "the authors"}


def quality_page(lines: list[dict]) -> str:
  """Returns `quality.md`: results by data set, each with its protocol."""
  parts = [
    "# Quality, with the protocol of each number",
    MADE.format("quality.jsonl").strip(),
    "Full ranking, leave-one-out. Numbers compare where all columns but the ranker agree, above all the *order of\n"
    "ties*, which decides a large part of the test targets ([audit.md](audit.md)):\n"
    "\"file\" keeps the order of the file;\n"
    "\"unstable sort\" is what such a sort left, another test set; \"published lists\" is that of the 5-core lists.\n"
    "\"-\": not recorded, or not stated by the source. Seconds are those of the phase whose parameters are evaluated.",
  ]  # fmt: skip
  for data in dict.fromkeys(line["data"] for line in lines):
    chosen = [line for line in lines if line["data"] == data]
    parts += [f"## {data}", _protocols(chosen)]
  return "\n\n".join(parts) + "\n"


def _protocols(lines):
  rows = [[
    "ranker", "by", "evaluated", "HR@10", "NDCG@10", "target's time", "ties", "seen items", "epoch chosen by", "epochs",
    "seeds", "hardware", "seconds", "record",
  ]]  # fmt: skip
  for line in lines:
    seeds = ", ".join(map(str, line["seeds"])) if line["seeds"] else "-"
    given = "given" if line["target_time"] else "not given"
    cells = [line[name] for name in ("tie_order", "seen_items", "epoch_chosen_by", "epochs")]
    rows.append([
      line["ranker"], ORIGINS[line["origin"]], line["evaluated"], short(line["HR@10"]), short(line["NDCG@10"]), given,
      *map(_text, cells), seeds, _text(line["hardware"]), _text(line["seconds"]), line["log"],
    ])  # fmt: skip
  return text_table(rows, "l-", markdown=True)


def _text(value):
  return "-" if value is None else f"{value:,}" if isinstance(value, int) else value


def short(value: float) -> str:
  """Returns a metric as documents show it.

  >>> short(0.36421)
  '.3642'
  """
  return f"{value:.4f}".removeprefix("0")


def time_split_page(lines: list[dict]) -> str:
  """Returns `time_split.md`: the baselines of all events after a cut, by data set."""
  names = [*("HR@10", "NDCG@10"), *("cold/HR@10", "cold/count"), *(f"{name}@10" for name in METRICS)]
  parts = [
    "# Popularity after a global cut in time",
    MADE.format("time_split.jsonl").strip(),
    "`split=by_time`: the events from the 90% quantile of the times on are for validation, those from the 95%\n"
    "quantile on for test. Every event of a split is a target, with everything before it\n"
    "as history (`eval.targets=all`); full\n"
    "ranking without seen items. `popularity_7d` counts the events of the last 7 days before the split only. Cold\n"
    "targets have no event before the split. No model has been measured under this split yet. The lines come from\n"
    "`jaxrec.train.sequence_task.evaluate_baselines(config, data, split)` with `eval.beyond_accuracy=10`.",
  ]
  for data in dict.fromkeys(line["data"] for line in lines):
    rows = [["split", "ranker", "targets", "of new users", "left out", *names]]
    for line in lines:
      if line["data"] == data:
        counts = (f"{line[name]:,}" for name in ("count", "new_users", "without_history"))
        cells = [_number(line.get(name)) for name in names]
        rows.append([line["split"], line["ranker"], *counts, *cells])
    parts += [f"## {data}", text_table(rows, "llr", markdown=True)]
  return "\n\n".join(parts) + "\n"


def _number(value):
  return "-" if value is None else f"{value:,}" if isinstance(value, int) else short(value)


PAGES = {
  "time_split.md": lambda: time_split_page(lines_of("time_split.jsonl")),
  "quality.md": lambda: quality_page(lines_of("quality.jsonl")),
  "audit.md": lambda: audit_page(lines_of("audit.jsonl")),
}


if __name__ == "__main__":
  for name, page in PAGES.items():
    (RESULTS / name).write_text(page())
