"""Plots of the results of `jaxrec.analysis.ctr_analysis`.

Each function writes a PNG and returns whether matplotlib, which it needs, is installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from jaxrec.analysis.autocdsr_plots import new_figure
from jaxrec.analysis.ctr_analysis import ROLES, RoleGradients


def draw_role_gradients(gradients: RoleGradients, path: str) -> bool:
  """Draws the norms of both gradients by step, and histograms of the cosines and of how often each row conflicts.

  Args:
    gradients: result of `role_gradients`.
    path: path of the PNG.
  """
  if (figure := new_figure(11, 3.5)) is None:
    return False
  norms, cosines, conflicts = figure.subplots(1, 3)
  for column, role in enumerate(ROLES):
    norms.plot(np.arange(1, len(gradients.norm) + 1), gradients.norm[:, column], label=role)
  norms.set(title="norm of a row's gradient", xlabel="step", yscale="log")
  norms.legend(frameon=False)
  cosines.hist(gradients.cosine, bins=20)
  cosines.axvline(0, color="black", linewidth=0.8)
  cosines.set(title=f"cosine: {gradients.share_of_steps:.0%} of the steps below 0", xlabel="mean over rows")
  conflicts.hist(gradients.conflict[~np.isnan(gradients.conflict)], bins=20)
  conflicts.set(title="rows", xlabel="share of steps in conflict")
  figure.savefig(path, dpi=120)
  return True


def draw_attention(
  information: Float[np.ndarray, "categories ages"],
  learned: Mapping[str, Float[np.ndarray, "categories ages"]],
  path: str,
) -> bool:
  """Draws mutual information and the attention of several models side by side, each scaled to 0..1.

  Args:
    information: result of `mutual_information`.
    learned: name of a model to the result of `learned_attention`.
    path: path of the PNG.
  """
  panels = {"mutual information": information, **learned}
  if (figure := new_figure(3.5 * len(panels), 3.5)) is None:
    return False
  for axes, (name, values) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
    corners = (0.5, values.shape[1] + 0.5, values.shape[0] + 0.5, 0.5)  # Both axes count from 1.
    axes.imshow(_from_0_to_1(values), aspect="auto", cmap="viridis", extent=corners)
    axes.set(title=name, xlabel="age", ylabel="category")
  figure.savefig(path, dpi=120)
  return True


def draw_bars(values: Mapping[str, Sequence[float]], ylabel: str, path: str) -> bool:
  """Draws the mean over seeds for each model, such as the NDCG of the search; error bars are minimum and maximum.

  Args:
    values: name of a model to one number per seed.
    ylabel: label of the numbers.
    path: path of the PNG.
  """
  if (figure := new_figure(6, 3.5)) is None:
    return False
  axes = figure.subplots()
  means = np.array([np.mean(numbers) for numbers in values.values()])
  reach = [[mean - min(v), max(v) - mean] for mean, v in zip(means, values.values(), strict=True)]
  axes.bar(list(values), means, yerr=np.maximum(np.array(reach).T, 0), capsize=3)
  axes.set_ylabel(ylabel)
  axes.tick_params(axis="x", rotation=20)
  figure.savefig(path, dpi=120)
  return True


def draw_discriminability(information: Mapping[str, Mapping[int, float]], path: str) -> bool:
  """Draws mutual information with the label against the number of clusters, a line per model.

  Args:
    information: name of a model to {num_clusters: `discriminability`}.
    path: path of the PNG.
  """
  return _draw_lines(information, "clusters", "information on clicks (nats)", path, xscale="log")


def draw_convergence(validation: Mapping[str, Mapping[int, float]], metric: str, path: str) -> bool:
  """Draws a validation metric by step, a line per model.

  Args:
    validation: name of a model to {step: value}, from its metrics.jsonl.
    metric: label of the metric.
    path: path of the PNG.
  """
  return _draw_lines(validation, "step", metric, path, xscale="linear")


def _draw_lines(lines, xlabel, ylabel, path, xscale):
  if (figure := new_figure(6, 4)) is None:
    return False
  axes = figure.subplots()
  for name, points in lines.items():
    axes.plot(list(points), list(points.values()), marker="o", label=name)
  axes.set(xlabel=xlabel, ylabel=ylabel, xscale=xscale)
  axes.grid(alpha=0.3)
  axes.legend(frameon=False)
  figure.savefig(path, dpi=120)
  return True


def _from_0_to_1(values):
  low, high = values.min(), values.max()
  return (values - low) / (high - low) if high > low else np.zeros_like(values)
