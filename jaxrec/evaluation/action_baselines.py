"""Averages as predictions of actions: what a model of histories must beat."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from jaxrec.batches import BINARY, REGRESSION, ActionType
from jaxrec.data.prepared import PreparedData
from jaxrec.evaluation.action_metrics import action_metrics

_PRIOR = 5.0  # Events at the overall average that are added to each item and user.


def evaluate_averages(
  data: PreparedData, heads: tuple[ActionType, ...], split: int
) -> dict[str, dict[str, float | int]]:
  """Returns the metrics of the averages of items, of users, and of both, over the events of earlier splits.

  "item" predicts the average of the item, "user" that of the user, "item and user" adds their deviations from the
  overall average: of log-probabilities, or of numbers. An average includes a few events at the overall one.

  Args:
    data: with typed actions.
    heads: actions to predict.
    split: 1 or 2, whose events are predicted.

  Raises:
    ValueError: no event in the split, or before it.
  """
  known, asked = np.flatnonzero(np.asarray(data.split) < split), np.flatnonzero(np.asarray(data.split) == split)
  if not len(known) or not len(asked):
    raise ValueError(f"{split=} has {len(asked)} events, with {len(known)} before them; both are needed")
  user = np.repeat(np.arange(data.num_users), np.diff(data.offsets))
  groups = {"item": np.asarray(data.item_id), "user": user}
  labels = {head.name: np.asarray(data.actions[head.name])[asked] for head in heads}
  predictions = {name: {} for name in ("item", "user", "item and user")}
  for head in heads:
    values = _scores(np.asarray(data.actions[head.name])[known], head)  # [E, K]
    overall = _link(values.mean(axis=0), head)
    deviation = {
      name: _link(_averages(values, group[known], int(group.max()) + 1), head)[group[asked]] - overall
      for name, group in groups.items()
    }
    deviation["item and user"] = deviation["item"] + deviation["user"]
    for name, found in deviation.items():
      predictions[name][head.name] = _as_prediction(overall + found, head)
  return {name: action_metrics(found, labels, user[asked], heads) for name, found in predictions.items()}


def _scores(values, head) -> Float[np.ndarray, "E K"]:
  """Returns numbers whose averages mean something: one-hot classes, or the numbers themselves."""
  if head.kind == REGRESSION:
    return values[:, None].astype(np.float64)
  return np.eye(head.classes)[values]


def _averages(values, group, num_groups) -> Float[np.ndarray, "G K"]:
  count = np.bincount(group, minlength=num_groups)[:, None]
  total = np.stack([np.bincount(group, column, num_groups) for column in values.T], axis=1)
  return (total + _PRIOR * values.mean(axis=0)) / (count + _PRIOR)


def _link(average, head):
  return average if head.kind == REGRESSION else np.log(np.maximum(average, 1e-9))


def _as_prediction(score, head):
  """Returns what a model's head would: standard deviations, log-odds or logits."""
  if head.kind == REGRESSION:
    return (score[:, 0] - head.mean) / head.scale
  return score[:, 1] - score[:, 0] if head.kind == BINARY else score
