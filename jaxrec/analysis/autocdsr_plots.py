"""Plots of the results of `jaxrec.analysis.autocdsr_analysis`.

Each function writes a PNG and returns whether matplotlib, which it needs, is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from jaxrec.analysis.autocdsr_analysis import TRAJECTORY, Mean, MeanStd

USEFULNESS = ("own", "informative", "noise", "bottleneck")


def draw_strata(
  strata: Mapping[str, Mapping[str, Mean]], path: str, ylabel: str = "attention to other domains"
) -> bool:
  """Draws the means of each stratum, with a colour per model.

  Args:
    strata: name of a model to the result of `attention_by_strata`.
    path: path of the PNG.
    ylabel: label of the means.
  """
  if (figure := new_figure(7, 4)) is None:
    return False
  axes = figure.subplots()
  counts = next(iter(strata.values()))
  _bars(axes, strata, {name: f"{name}\n{mean.count} users" for name, mean in counts.items()})
  axes.set_ylabel(ylabel)
  _legend_below(figure)
  figure.savefig(path, dpi=120)
  return True


def draw_weights(trajectories: Mapping[str, Mapping[str, Any]], path: str) -> bool:
  """Draws the scalars of `weight_trajectory`, a panel each, with a line per run.

  Args:
    trajectories: name of a run to its trajectory.
    path: path of the PNG.
  """
  if (figure := new_figure(9, 6)) is None:
    return False
  for axes, name in zip(figure.subplots(2, 2, sharex=True).flat, TRAJECTORY, strict=True):
    for run, values in trajectories.items():
      axes.plot(values["step"], values[name], label=run)
    axes.set(title=name, xlabel="step")
    axes.grid(alpha=0.3)
  figure.axes[0].legend(frameon=False)
  figure.savefig(path, dpi=120)
  return True


def draw_sweep(fixed: Mapping[float, MeanStd], automatic: Mapping[str, MeanStd], metric: str, path: str) -> bool:
  """Draws a metric against the fixed weight, with automatic weightings as horizontal lines.

  Error bars and bands are standard deviations over seeds.

  Args:
    fixed: result of `weight_sweep` for fixed weights.
    automatic: result of `weight_sweep` for automatic weightings.
    metric: label of the metric.
    path: path of the PNG.
  """
  if (figure := new_figure(6, 4)) is None:
    return False
  axes = figure.subplots()
  if fixed:
    stds = [cell.std or 0.0 for cell in fixed.values()]
    axes.errorbar(list(fixed), [cell.mean for cell in fixed.values()], stds, marker="o", capsize=3, label="fixed")
    axes.set_xscale("symlog", linthresh=min([weight for weight in fixed if weight], default=1.0))
  for number, (name, cell) in enumerate(automatic.items(), 1):
    axes.axhline(cell.mean, color=f"C{number}", label=name)
    axes.axhspan(cell.mean - (cell.std or 0.0), cell.mean + (cell.std or 0.0), color=f"C{number}", alpha=0.15)
  axes.set(xlabel="weight of cross-domain attention", ylabel=metric)
  axes.grid(alpha=0.3)
  axes.legend(frameon=False)
  figure.savefig(path, dpi=120)
  return True


def draw_usefulness(usefulness: Mapping[str, Mapping[str, Mapping[str, Mean]]], path: str) -> bool:
  """Draws the attention of queries for the target domain, a panel per group of users.

  Dots are the shares of events.

  Args:
    usefulness: name of a model to the result of `attention_to_usefulness`.
    path: path of the PNG.
  """
  if (figure := new_figure(12, 4)) is None:
    return False
  parts = list(next(iter(usefulness.values())))
  for axes, part in zip(figure.subplots(1, len(parts), sharey=True, squeeze=False)[0], parts, strict=True):
    _bars(axes, {name: groups[part] for name, groups in usefulness.items()}, {name: name for name in USEFULNESS})
    events = next(iter(usefulness.values()))[part]
    heights = [events[f"events/{name}"].mean or 0.0 for name in USEFULNESS]
    axes.scatter(range(len(USEFULNESS)), heights, color="k", s=12, zorder=3)
    axes.set_title(f"{part}: {events['own'].count} users")
  figure.axes[0].set_ylabel("share of attention")
  _legend_below(figure)
  figure.savefig(path, dpi=120)
  return True


def _bars(axes, groups, labels):
  """Draws bars with error bars: a position for each of `labels`, a colour for each of `groups`."""
  positions, width = np.arange(len(labels)), 0.8 / len(groups)
  for number, (name, means) in enumerate(groups.items()):
    shift = (number - (len(groups) - 1) / 2) * width
    heights, errors = ([getattr(means[key], field) or 0.0 for key in labels] for field in ("mean", "error"))
    axes.bar(positions + shift, heights, width, yerr=errors, capsize=2, label=name)
  axes.set_xticks(positions, list(labels.values()))
  axes.grid(axis="y", alpha=0.3)


def _legend_below(figure):
  """Draws one legend for all panels, below them."""
  handles, labels = figure.axes[0].get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)


def new_figure(width: float, height: float) -> Any:
  """Returns a figure without a window, or None if matplotlib is not installed."""
  try:
    from matplotlib.figure import Figure
  except ImportError:
    logging.info("no plot: matplotlib is not installed (pip install 'jaxrec[plots]')")
    return None
  return Figure(figsize=(width, height), layout="constrained")
