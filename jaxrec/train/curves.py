"""Draws the curves of a run from its metrics.jsonl."""

from __future__ import annotations

import os
from typing import Any

import jax
from absl import logging

from jaxrec.train.writers import read_records


def plot(workdir: str, metric: str = "NDCG@10") -> str | None:
  """Writes curves.png (loss and validation against the step) and returns its path; None without matplotlib.

  Args:
    workdir: of the run.
    metric: validation metric to draw, overall and for each domain.
  """
  if jax.process_index() != 0:
    return None
  try:
    import matplotlib
    from matplotlib.figure import Figure
  except ImportError:
    logging.info("matplotlib is not installed: no curves.png (pip install 'jaxrec[plots]')")
    return None
  path = os.path.join(workdir, "curves.png")
  with matplotlib.rc_context({"text.parse_math": False}):  # A domain may have dollar signs in its name.
    figure = Figure(figsize=(10, 4), layout="constrained")
    _draw_both(figure, read_records(os.path.join(workdir, "metrics.jsonl")), metric)
    figure.savefig(path, dpi=120)
  return path


def _draw_both(figure: Any, records: list[dict[str, Any]], metric: str) -> None:
  left, right = figure.subplots(1, 2)
  for phase in dict.fromkeys(record["phase"] for record in records):
    _draw(left, records, phase, "train", ["loss"])
  domains = [f"domain/{name}/{metric}" for name in _domains(records)]
  _draw(right, records, "select", "validation", [metric, *domains])
  left.set(xlabel="step", ylabel="training loss")
  right.set(xlabel="step", ylabel=f"validation {metric}")
  for axes in (left, right):
    axes.grid(alpha=0.3)
    if axes.lines:
      axes.legend(frameon=False)


def _draw(axes: Any, records: list[dict[str, Any]], phase: str, kind: str, names: list[str]) -> None:
  for name in names:
    points = [(r["step"], r[name]) for r in records if r["phase"] == phase and r["kind"] == kind and name in r]
    if points:
      axes.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else None, label=f"{phase}: {name}")


def _domains(records):
  names = {key.split("/")[1] for record in records for key in record if key.startswith("domain/")}
  return sorted(names)[:10]
