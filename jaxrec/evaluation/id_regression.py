"""Regression of an action on the ids of user and item: logistic, multinomial or linear."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int, Shaped

from jaxrec.batches import BINARY, MULTI_CLASS, REGRESSION, ActionType

_CURVATURE = {BINARY: 0.25, MULTI_CLASS: 0.5, REGRESSION: 1.0}  # Upper bounds of the second derivative of the loss.
_SWEEPS = 50


@dataclasses.dataclass(frozen=True)
class IdRegression:
  """`overall + user[u] + item[i]`: log-odds, logits, or a number in standard deviations, with an axis of K outputs.

  K is the number of classes of a multi_class action, else 1.
  """

  overall: Float[np.ndarray, " K"]
  user: Float[np.ndarray, "U K"]
  item: Float[np.ndarray, "V1 K"]
  head: ActionType

  def predict(self, user: Int[np.ndarray, " E"], item: Int[np.ndarray, " E"]) -> Shaped[np.ndarray, " E *classes"]:
    """Returns the prediction for each pair, in the form of `jaxrec.models.ranking.RankingModel`."""
    found = self.overall + self.user[user] + self.item[item]  # [E, K]
    return found if self.head.kind == MULTI_CLASS else found[:, 0]


def fit_ids(
  user: Int[np.ndarray, " E"],
  item: Int[np.ndarray, " E"],
  value: Shaped[np.ndarray, " E"],
  head: ActionType,
  *,
  num_users: int,
  num_items: int,
  penalty: float = 1.0,
) -> IdRegression:
  """Returns the weights with the smallest sum of losses and of half the penalty times their squares, nearly.

  Users and items in turn take a step to the minimum of a parabola above their part of the objective, which is convex.

  Args:
    user: of each event, from 0.
    item: of each event.
    value: the action of each event.
    head: the action; its loss is that of `jaxrec.objectives.action_prediction`.
    num_users, num_items: U and V.
    penalty: inverse variance of the weights of ids; "overall" is free.

  >>> like, ids = ActionType("like", "binary"), np.array([0, 0, 1, 1])
  >>> found = fit_ids(ids, ids + 1, np.array([1, 1, 0, 0]), like, num_users=2, num_items=2)
  >>> [round(float(x), 3) for x in found.predict(ids, ids + 1)]
  [1.043, 1.043, -1.043, -1.043]
  """
  target, curvature = _target(value, head), _CURVATURE[head.kind]
  overall, groups = np.zeros(target.shape[1]), (user, item)
  sizes = (num_users, num_items + 1)
  weights = [np.zeros((size, target.shape[1])) for size in sizes]
  counts = [np.bincount(group, minlength=size)[:, None] for group, size in zip(groups, sizes, strict=True)]
  score = np.zeros(target.shape)  # [E, K]
  for _ in range(_SWEEPS):
    step = (target - _mean(score, head)).mean(axis=0) / curvature
    overall, score = overall + step, score + step
    for group, size, weight, count in zip(groups, sizes, weights, counts, strict=True):
      slope = _sums(target - _mean(score, head), group, size) - penalty * weight
      step = slope / (curvature * count + penalty)
      weight += step
      score += step[group]
  return IdRegression(overall, *weights, head)


def _target(value, head) -> Float[np.ndarray, "E K"]:
  if head.kind == REGRESSION:
    return (value[:, None].astype(np.float64) - head.mean) / head.scale
  return np.eye(head.classes)[value] if head.kind == MULTI_CLASS else value[:, None].astype(np.float64)


def _mean(score, head) -> Float[np.ndarray, "E K"]:
  """Returns the mean of the target that a score stands for: a number, a probability, probabilities of classes."""
  if head.kind == REGRESSION:
    return score
  if head.kind == BINARY:
    return 1 / (1 + np.exp(-score))
  exponential = np.exp(score - score.max(axis=1, keepdims=True))
  return exponential / exponential.sum(axis=1, keepdims=True)


def _sums(values, group, size) -> Float[np.ndarray, "G K"]:
  return np.stack([np.bincount(group, column, size) for column in values.T], axis=1)
