"""The pages of experiments/results that are made from their JSON lines alone.

    python tests/results_pages.py

writes them anew; a test compares them with the lines.
"""

import json

from conftest import REPOSITORY

from jaxrec.cli.audit import LEGEND, SHARES, percent
from jaxrec.cli.text_table import text_table
from jaxrec.data.audit import DOMAIN

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


PAGES = {"audit.md": lambda: audit_page(lines_of("audit.jsonl"))}


if __name__ == "__main__":
  for name, page in PAGES.items():
    (RESULTS / name).write_text(page())
