"""Differences between click-through models on the same candidates: intervals by resampling users and seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from jaxrec.analysis.paired_bootstrap import Interval

METRICS = ("AUC", "GAUC", "log_loss")


class ClickScores(NamedTuple):
  """Log-odds of the same candidates by S seeds of a model.

  user: of each candidate.
  label: 1 for a click, else 0.
  logit: log-odds; one row for what has no seed, such as a count.
  """

  user: Int[np.ndarray, " B"]
  label: Shaped[np.ndarray, " B"]
  logit: Float[np.ndarray, "S B"]


def click_interval(
  value: ClickScores, base: ClickScores, metric: str = "AUC", *, resamples: int = 2000, seed: int = 0
) -> Interval:
  """Returns the mean difference of a metric, each seed with the same seed of the base, and its interval of 95%.

  A resample draws users with all their candidates, and seeds, with replacement; both models get the same draws, so that
  what they have in common cancels. What has one row of log-odds is compared with every seed of the other.

  Args:
    value: a model.
    base: what it is compared with.
    metric: one of `METRICS`.
    resamples: draws.
    seed: of the draws.

  Raises:
    ValueError: other candidates, other numbers of seeds, an unknown metric, or a class that no candidate has.

  >>> user, label = np.array([0, 0, 1, 1]), np.array([1, 0, 1, 0])
  >>> good, bad = (ClickScores(user, label, sign * np.array([[1.0, 0.0, 1.0, 0.0]])) for sign in (1, -1))
  >>> click_interval(good, bad, resamples=100)[:4]
  (1.0, 0.0, 1.0, 1.0)
  """
  _check(value, base, metric)
  num_seeds = max(len(value.logit), len(base.logit))
  users, index = np.unique(value.user, return_inverse=True)
  of_seed = [
    [_weighted(metric, np.float64(row), value.label > 0.5, index, len(users)) for row in scores.logit]
    for scores in (value, base)
  ]
  rng = np.random.default_rng(seed)

  def difference(seeds, weight):
    return np.mean([of_seed[0][s % len(of_seed[0])](weight) - of_seed[1][s % len(of_seed[1])](weight) for s in seeds])

  found = np.empty(resamples)
  for i in range(resamples):
    drawn = np.bincount(rng.integers(len(users), size=len(users)), minlength=len(users)).astype(np.float64)
    found[i] = difference(rng.integers(num_seeds, size=num_seeds), drawn)
  low, high = np.nanquantile(found, (0.025, 0.975))
  mean = difference(range(num_seeds), np.ones(len(users)))
  return Interval(float(mean), float(np.nanstd(found, ddof=1)), float(low), float(high), len(users), num_seeds)


def weighted_auc(
  score: Float[np.ndarray, " B"], label: Bool[np.ndarray, " B"]
) -> Callable[[Float[np.ndarray, " B"]], float]:
  """Returns a function of the weights of the rows: the AUC in which a row counts as often as its weight says.

  The rows are sorted once; a resample then costs two sums. NaN where a class has no weight.

  >>> auc = weighted_auc(np.array([0.9, 0.4, 0.4, 0.1]), np.array([True, True, False, False]))
  >>> auc(np.ones(4)), auc(np.array([0.0, 1.0, 1.0, 0.0]))
  (0.875, 0.5)
  """
  order = np.argsort(score, kind="stable")
  ordered = score[order]
  starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # Of the runs of equal scores.
  is_positive = label[order]

  def auc(weight):
    weight = weight[order]
    positive = np.add.reduceat(np.where(is_positive, weight, 0.0), starts)
    negative = np.add.reduceat(np.where(is_positive, 0.0, weight), starts)
    pairs = positive.sum() * negative.sum()
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / pairs) if pairs else float("nan")

  return auc


def _weighted(metric, logit, label, user, num_users) -> Callable[[Float[np.ndarray, " U"]], float]:
  """Returns a function of the weights of the users: the metric of their candidates."""
  if metric == "AUC":
    auc = weighted_auc(logit, label)
    return lambda weight: auc(weight[user])
  if metric == "log_loss":
    loss = np.logaddexp(0.0, np.where(label, -logit, logit))
    value, size = np.bincount(user, loss, num_users), np.bincount(user, minlength=num_users)
  else:
    value, size = _sums_of_user_aucs(logit, label, user, num_users)
  return lambda weight: float(weight @ value / (weight @ size))


def _sums_of_user_aucs(logit, label, user, num_users):
  """Returns AUC times number of candidates of each user, and that number; 0 for users with one class only."""
  value, size = np.zeros(num_users), np.zeros(num_users)
  order = np.argsort(user, kind="stable")
  for rows in np.split(order, np.flatnonzero(np.diff(user[order])) + 1):
    if 0 < label[rows].sum() < len(rows):
      value[user[rows[0]]] = len(rows) * weighted_auc(logit[rows], label[rows])(np.ones(len(rows)))
      size[user[rows[0]]] = len(rows)
  return value, size


def _check(value, base, metric):
  if metric not in METRICS:
    raise ValueError(f"{metric=} must be one of {METRICS}")
  if not (np.array_equal(value.user, base.user) and np.array_equal(value.label, base.label)):
    raise ValueError("the candidates differ: give both runs the same data and the same config.data.held_out_seed")
  if len(value.logit) != len(base.logit) and 1 not in (len(value.logit), len(base.logit)):
    raise ValueError(f"{len(value.logit)} seeds are compared with {len(base.logit)}; give each model the same seeds")
  if not 0 < (value.label > 0.5).sum() < len(value.label):
    raise ValueError(f"all {len(value.label)} candidates have the same label; a comparison needs clicks and others")
