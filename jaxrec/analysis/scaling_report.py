"""The outcome of a scaling study: points, laws and verdicts of each curve, as JSON, a table and a plot."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Bool, Float

from jaxrec.analysis import scaling_fit
from jaxrec.analysis.scaling_fit import HeldOut, LogLine, PowerLaw, on_frontier

COMPUTE, PARAMETERS = "flops", "parameters"
_SIZE = ("layers", "width", "length", "share")
_COLOURS = ("#3b82d6", "#d9730d", "#2c9a5b", "#c9559b", "#8b6fd0")
_MARKS = ("o", "s", "^", "D", "v")


@dataclasses.dataclass(frozen=True)
class Run:
  """A trained size: its curve, what was measured, the metric on test events."""

  curve: str
  measured: Mapping[str, float | int]
  quality: float

  @property
  def size(self) -> tuple[float, ...]:
    """Layers, width, length and share."""
    return tuple(self.measured[name] for name in _SIZE)


@dataclasses.dataclass(frozen=True)
class Curve:
  """The points of a config, means over seeds, in order of compute.

  name: of the config.
  points: what was measured, "quality" among it, and "seeds", how many runs a point is the mean of.
  """

  name: str
  points: Sequence[Mapping[str, float | int]]

  def column(self, name: str) -> Float[np.ndarray, " n"]:
    """Returns a number of each point."""
    return np.array([point[name] for point in self.points], float)

  def frontier(self, axis: str = COMPUTE) -> Bool[np.ndarray, " n"]:
    """Returns which points are on the frontier of the loss against compute or parameters."""
    return on_frontier(self.column(axis), self.column("loss"))

  def law(self, axis: str = COMPUTE) -> PowerLaw | None:
    """Returns the law of the frontier; None where it has fewer than three different x."""
    chosen = self.frontier(axis)
    x = self.column(axis)[chosen]
    return scaling_fit.fit_power_law(x, self.column("loss")[chosen]) if len(np.unique(x)) > 2 else None

  def line(self) -> LogLine | None:
    """Returns the line of the quality against the logarithm of compute, of the points on the frontier."""
    chosen = self.frontier()
    if chosen.sum() < 3:
      return None
    return scaling_fit.fit_log_line(self.column(COMPUTE)[chosen], self.column("quality")[chosen])

  def held_out(self) -> HeldOut | None:
    """Returns the prediction of the largest point; None where the others have fewer than three on their frontier."""
    x, loss = self.column(COMPUTE), self.column("loss")
    rest = np.arange(len(x)) != np.argmax(x)
    if len(x) < 4 or len(np.unique(x[rest][on_frontier(x[rest], loss[rest])])) < 3:
      return None
    return scaling_fit.predict_largest(x, loss)

  def reasons(self, axis: str = COMPUTE) -> list[str]:
    """Returns why the points support no power law; [] where they do."""
    return scaling_fit.why_no_law(self.column(axis), self.column("loss"))


def run_of(result: Mapping[str, Any], curve: str, metric: str) -> Run:
  """Returns a run from its line of results.jsonl.

  Args:
    result: the line.
    curve: its name.
    metric: of the test events, such as HR@10.

  Raises:
    ValueError: the run was not measured by `jaxrec scaling`, or does not report the metric.
  """
  summary = result["summary"]
  if "scaling" not in summary:
    raise ValueError(f"the run {result['key']} has no compute: it is one of `jaxrec sweep`; give another --out")
  test = summary["select"]["test_of_selected"]
  if metric not in test:
    raise ValueError(f"{metric=} is not reported; there are {', '.join(sorted(test))}")
  return Run(curve, summary["scaling"], float(test[metric]))


def curves_of(runs: Sequence[Run]) -> list[Curve]:
  """Returns the curves of runs, with a point for the seeds of each size."""
  curves = []
  for name in dict.fromkeys(run.curve for run in runs):
    sizes: dict[tuple, list[Run]] = {}
    for run in runs:
      if run.curve == name:
        sizes.setdefault(run.size, []).append(run)
    points = [_point(of_size) for of_size in sizes.values()]
    curves.append(Curve(name, sorted(points, key=lambda point: point[COMPUTE])))
  return curves


def _point(runs: Sequence[Run]) -> dict[str, float | int]:
  """The means of the runs of one size; numbers that are the same stay as they are."""
  point: dict[str, float | int] = {}
  for name in runs[0].measured:
    values = [run.measured[name] for run in runs]
    point[name] = values[0] if len(set(values)) == 1 else float(np.mean(values))
  losses = [run.measured["loss"] for run in runs]
  spread = float(np.std(losses, ddof=1)) if len(losses) > 1 else 0.0
  return point | {"quality": float(np.mean([run.quality for run in runs])), "seeds": len(runs), "loss_std": spread}


def as_json(curves: Sequence[Curve], metric: str) -> dict[str, Any]:
  """Returns points, laws with intervals, the held-out prediction and the reasons of each curve."""
  return {"metric": metric, "curves": [_curve_json(curve) for curve in curves]}


def _curve_json(curve: Curve) -> dict[str, Any]:
  found: dict[str, Any] = {"name": curve.name, "points": list(curve.points)}
  for axis in (COMPUTE, PARAMETERS):
    law = curve.law(axis)
    fitted = law and {
      "reference": law.reference, "floor": law.floor, "scale": law.scale, "exponent": law.exponent,
      "exponent_interval": law.interval(), "floor_interval": np.quantile(law.samples[:, 0], (0.025, 0.975)).tolist(),
    }  # fmt: skip
    found[axis] = {"law": fitted, "reasons_against": curve.reasons(axis)}
  held_out, line = curve.held_out(), curve.line()
  found["held_out"] = held_out and dataclasses.asdict(held_out) | {"error": held_out.error}
  found["quality_line"] = line and dataclasses.asdict(line)
  return found


def as_markdown(curves: Sequence[Curve], metric: str) -> str:
  """Returns a table of the points and, below it, what was fitted and whether it can be trusted."""
  parts = [table(curves, metric)]
  for curve in curves:
    parts.append("\n".join(sentences(curve, metric)))
  return "\n\n".join(parts)


def table(curves: Sequence[Curve], metric: str) -> str:
  """Returns the points as a Markdown table."""
  names = ("model", *_SIZE, "parameters", "FLOPs", "loss", metric, "frontier", "seeds", "seconds")
  rows = [names]
  for curve in curves:
    for point, is_best in zip(curve.points, curve.frontier(), strict=True):
      rows.append((
        curve.name, *(f"{point[name]:g}" for name in _SIZE), f"{point['parameters']:,.0f}", f"{point[COMPUTE]:.2e}",
        f"{point['loss']:.4f}", f"{point['quality']:.4f}", "yes" if is_best else "", str(point["seeds"]),
        f"{point['seconds']:.0f}",
      ))  # fmt: skip
  body = ["| " + " | ".join(row) + " |" for row in rows]
  return "\n".join([body[0], "|" + "---|" * len(names), *body[1:]])


def sentences(curve: Curve, metric: str) -> list[str]:
  """Returns what the points of a curve say, a line each."""
  lines = []
  for axis, text in ((COMPUTE, "FLOPs"), (PARAMETERS, "parameters")):
    law, reasons = curve.law(axis), curve.reasons(axis)
    if law is not None:
      low, high = law.interval()
      lines.append(
        f"- {curve.name}: loss = {law.floor:.3f} + {law.scale:.3f} ({text} / {law.reference:.2e})^-{law.exponent:.3f},"
        f" exponent between {low:.3f} and {high:.3f} (95%)."
      )
    verdict = f"The points support a power law in {text}." if not reasons else (
      f"The points do not support a power law in {text}: {'; '.join(reasons)}."
    )  # fmt: skip
    lines.append(f"- {curve.name}: {verdict}")
  if (held_out := curve.held_out()) is not None:
    lines.append(
      f"- {curve.name}: the largest run has a loss of {held_out.observed:.4f}; the others predict"
      f" {held_out.predicted:.4f} ({held_out.low:.4f} to {held_out.high:.4f}), an error of {held_out.error:+.2%}."
    )
  if (line := curve.line()) is not None:
    lines.append(
      f"- {curve.name}: {metric} = {line.intercept:.4f} + {line.slope:.4f} ln FLOPs, slope between {line.low:.4f} and"
      f" {line.high:.4f} (95%)."
    )
  return lines


def plot(curves: Sequence[Curve], metric: str, path: str) -> bool:
  """Draws loss and metric against compute to a PNG; False without matplotlib."""
  if importlib.util.find_spec("matplotlib") is None:
    logging.info("no plot: matplotlib is not installed (pip install 'jaxrec[plots]')")
    return False
  from matplotlib.figure import Figure

  figure = Figure(figsize=(12, 5), layout="constrained")
  left, right = figure.subplots(1, 2)
  for index, curve in enumerate(curves):
    _draw(left, right, curve, _COLOURS[index % len(_COLOURS)], _MARKS[index % len(_MARKS)])
  left.set(xscale="log", xlabel="training compute (FLOPs)", ylabel="held-out loss (nats)")
  right.set(xscale="log", xlabel="training compute (FLOPs)", ylabel=f"test {metric}")
  left.set_title("Loss; bands: 95% of the law")
  right.set_title(f"{metric}; lines: straight in ln FLOPs")
  for axes in (left, right):
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
  figure.savefig(path, dpi=120)
  return True


def _draw(left, right, curve: Curve, colour: str, mark: str) -> None:
  """Draws one curve: full marks on the frontier, hollow ones off it."""
  x, best = curve.column(COMPUTE), curve.frontier()
  along = np.geomspace(x.min(), x.max(), 100)
  for axes, name in ((left, "loss"), (right, "quality")):
    y = curve.column(name)
    axes.plot(x[best], y[best], mark, color=colour, label=curve.name)
    axes.plot(x[~best], y[~best], mark, color=colour, markerfacecolor="none", alpha=0.6)
  if (law := curve.law()) is not None:
    left.plot(along, law.at(along), color=colour)
    left.fill_between(along, *law.band(along), color=colour, alpha=0.15, linewidth=0)
  if (line := curve.line()) is not None:
    right.plot(along, line.intercept + line.slope * np.log(along), color=colour)
