"""Means and standard deviations of repeated runs, as a Markdown table and a plot."""

from __future__ import annotations

import dataclasses
import importlib.util
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from jaxrec.cli.text_table import text_table


@dataclasses.dataclass(frozen=True)
class Cell:
  """Mean and sample standard deviation (n - 1) of a metric over n runs; `std` is None for a single run."""

  mean: float
  std: float | None
  n: int

  def __str__(self) -> str:
    return f"{self.mean:.4f}" if self.std is None else f"{self.mean:.4f} ± {self.std:.4f}"


Rows = dict[str, dict[str, Cell]]


def summarize(runs: Sequence[tuple[str, Mapping[str, Any]]], metrics: Sequence[str]) -> Rows:
  """Returns {label: {column: cell}}; runs with the same label are repetitions with other seeds.

  Args:
    runs: (label, summary) pairs; a summary is a tree of numbers, as `experiments.train` writes it.
    metrics: names of metrics such as "HR@10" or "domain/books/HR@10"; there is one column for each path in the
      summaries (select/validation, final/test, ...) that contains the metric.

  Raises:
    ValueError: no run reports a metric.

  >>> rows = summarize([("a", {"test": {"MRR": 0.5}}), ("a", {"test": {"MRR": 0.75}})], ["MRR"])
  >>> rows["a"]["test/MRR"].mean, rows["a"]["test/MRR"].n
  (0.625, 2)
  """
  values: dict[str, dict[str, list[float]]] = {}
  flat_runs = [(label, _flatten(summary)) for label, summary in runs]
  for metric in metrics:
    found = False
    for label, flat in flat_runs:
      cells = values.setdefault(label, {})
      for path, value in flat.items():
        if _is_metric(path, metric):
          cells.setdefault(path, []).append(value)
          found = True
    if flat_runs and not found:
      raise ValueError(f"{metric=} is in no summary; there are {', '.join(sorted(flat_runs[0][1]))}")
  return {label: {path: _cell(samples) for path, samples in cells.items()} for label, cells in values.items()}


def as_markdown(rows: Rows) -> str:
  """Formats the cells as a Markdown table: one row per label, one column per metric, and the number of runs.

  >>> print(as_markdown({"a": {"test/MRR": Cell(0.5, 0.1, 3)}}))
  | run | n |        test/MRR |
  |:----|--:|----------------:|
  | a   | 3 | 0.5000 ± 0.1000 |
  """
  columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
  table = [["run", "n", *columns]]
  for label, cells in rows.items():
    counts = sorted({cell.n for cell in cells.values()})
    count = "-".join(map(str, counts[:1] + counts[1:][-1:]))
    table.append([label, count, *(str(cells[column]) if column in cells else "" for column in columns)])
  return text_table(table, "lr", markdown=True)


def plot(rows: Rows, path: str) -> bool:
  """Plots bars with error bars, one panel per column, to a PNG; False without rows or matplotlib."""
  if not rows or importlib.util.find_spec("matplotlib") is None:
    logging.info("no plot: %s", "matplotlib is not installed (pip install 'jaxrec[plots]')" if rows else "no results")
    return False
  from matplotlib.figure import Figure

  columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
  labels = list(rows)
  figure = Figure(figsize=(2 + 3.5 * len(columns), 1.2 + 0.45 * len(labels)), layout="constrained")
  panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
  for panel, column in zip(panels, columns, strict=True):
    cells = [rows[label].get(column) for label in labels]
    means = [cell.mean if cell else 0.0 for cell in cells]
    errors = [cell.std or 0.0 if cell else 0.0 for cell in cells]
    panel.barh(labels, means, xerr=errors, color="#4C72B0", ecolor="#333333", capsize=3, height=0.6)
    panel.set_title(column)
    panel.grid(axis="x", alpha=0.3)
  panels[0].invert_yaxis()
  figure.savefig(path, dpi=120)
  return True


def _flatten(tree, prefix=""):
  """Flattens a tree: {"a": {"b": 1.0}} -> {"a/b": 1.0}; values that are not numbers are dropped."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= _flatten(value, f"{prefix}{key}/")
    elif isinstance(value, int | float) and not isinstance(value, bool):
      flat[prefix + key] = float(value)
  return flat


def _is_metric(path, metric):
  """Returns whether a path of a summary ends in this metric and is not the same metric of a single domain."""
  parent, _, _ = path.rpartition(metric)
  return path.endswith(metric) and (parent == "" or parent.endswith("/")) and "domain" not in parent.split("/")


def _cell(samples):
  std = statistics.stdev(samples) if len(samples) > 1 else None
  return Cell(statistics.fmean(samples), std, len(samples))
