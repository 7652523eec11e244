"""The result of a training run as a table: what is printed when training ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxrec.cli.text_table import label_of_all, text_table

_DOMAIN = "domain/"
_ROWS = (
  ("select", "validation", "validation"),
  ("select", "test_of_selected", "test"),
  ("final", "test", "test, retrained with the validation events"),
)
_MOST_DOMAINS = 20


def summary_table(summary: Mapping[str, Any]) -> str:
  """Returns a row for each evaluation of the chosen parameters, over all users and for each domain (if at most 20).

  Args:
    summary: what `jaxrec.train.loop.run` returns. Metrics among other candidates than the first are left out.

  >>> metrics = {"HR@10": 0.5, "MRR": 0.25, "domain/film/HR@10": 0.75, "domain/film/count": 2, "count": 4}
  >>> print(summary_table({"select": {"best_epoch": 3, "validation": metrics}, "seconds": 61.0}))
  events      domain  count   HR@10     MRR
  validation  all         4  0.5000  0.2500
  validation  film        2  0.7500       -
  best epoch 3; 61 seconds
  """
  evaluations = [(text, summary[phase][name]) for phase, name, text in _ROWS if name in summary.get(phase, {})]
  metrics = [name for name in evaluations[0][1] if "/" not in name and name != "count"]
  rows = [("events", "domain", "count", *metrics)]
  for text, values in evaluations:
    for domain, prefix in _groups(values):
      cells = [f"{values[prefix + name]:.4f}" if prefix + name in values else "-" for name in metrics]
      rows.append((text, domain, f"{values[prefix + 'count']:,}", *cells))
  return f"{text_table(rows, 'llr')}\n{_notes(summary)}"


def _groups(values):
  """Returns (name, prefix of the metrics) for all users and for each domain."""
  suffix = "/count"
  names = [name[len(_DOMAIN) : -len(suffix)] for name in values if name.startswith(_DOMAIN) and name.endswith(suffix)]
  return [(label_of_all(names), ""), *((name, f"{_DOMAIN}{name}/") for name in names if len(names) <= _MOST_DOMAINS)]


def _notes(summary):
  best, started = summary["select"].get("best_epoch"), summary["select"].get("started_from")
  text = f"best epoch {best}; {summary['seconds']:,.0f} seconds"
  return text if not started else f"{text}; began with {started['checkpoint']}, {started['new_items']:,} new items"
