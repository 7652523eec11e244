"""Predictions of actions that read no history, which a model of histories must beat, and the best possible ones."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from jaxrec.batches import BINARY, REGRESSION, ActionType
from jaxrec.data.generators.planted_actions import planted_action_truth
from jaxrec.data.prepared import PreparedData
from jaxrec.evaluation.action_metrics import OVERALL, action_metrics
from jaxrec.evaluation.id_regression import IdRegression, fit_ids

_PRIOR = 5.0  # Events at the overall average that are added to each item and user.
_PENALTIES = (1.0, 3.0, 10.0)


@dataclasses.dataclass(frozen=True)
class _Events:
  """Users and items of all events, those whose actions are known, and those whose actions are predicted."""

  user: Int[np.ndarray, " E"]
  item: Int[np.ndarray, " E"]
  known: Bool[np.ndarray, " E"]
  asked: Bool[np.ndarray, " E"]


def evaluate_baselines(
  data: PreparedData, heads: tuple[ActionType, ...], split: int
) -> dict[str, dict[str, float | int]]:
  """Returns the metrics of predictions from the events of earlier splits, by predictor.

  item, user: the average of the item, or of the user; an average includes a few events at the overall one.
  item and user: the sum of their deviations from the overall average, of log-probabilities or of numbers.
  ids: a regression on the ids of user and item, logistic or linear, whose penalty is chosen on each user's latest known
    event; see `fit_ids`.
  truth: of data made by `planted_actions`, the distributions from which the actions were drawn: no model does better.

  Args:
    data: with typed actions.
    heads: actions to predict.
    split: 1 or 2, whose events are predicted.

  Raises:
    ValueError: no event in the split, or before it.
  """
  user = np.repeat(np.arange(data.num_users), np.diff(data.offsets))
  splits = np.asarray(data.split)
  events = _Events(user, np.asarray(data.item_id), splits < split, splits == split)
  if not events.known.any() or not events.asked.any():
    raise ValueError(
      f"{split=} has {events.asked.sum()} events, with {events.known.sum()} before them; both are needed"
    )
  predictions: dict[str, dict[str, np.ndarray]] = {}
  for head in heads:
    values = np.asarray(data.actions[head.name])
    found = _averages(events, values, head) | {"ids": _by_ids(data, events, values, head)}
    if data.meta["source"] == "planted_actions":
      found["truth"] = _truth(data, head)[events.asked]
    for name, prediction in found.items():
      predictions.setdefault(name, {})[head.name] = prediction
  labels = {head.name: np.asarray(data.actions[head.name])[events.asked] for head in heads}
  return {name: action_metrics(found, labels, user[events.asked], heads) for name, found in predictions.items()}


def _averages(events, values, head) -> dict[str, Shaped[np.ndarray, "..."]]:
  known = _scores(values[events.known], head)  # [E, K]
  overall = _link(known.mean(axis=0), head)
  deviation = {}
  for name, group in (("item", events.item), ("user", events.user)):
    means = _means(known, group[events.known], int(group.max()) + 1)
    deviation[name] = _link(means, head)[group[events.asked]] - overall
  deviation["item and user"] = deviation["item"] + deviation["user"]
  return {name: _as_prediction(overall + found, head) for name, found in deviation.items()}


def _by_ids(data, events, values, head) -> Shaped[np.ndarray, "..."]:
  """Returns the predictions of the regression on ids."""

  def fit(chosen: Int[np.ndarray, " F"], penalty: float) -> IdRegression:
    columns = events.user[chosen], events.item[chosen], values[chosen]
    return fit_ids(*columns, head, num_users=data.num_users, num_items=data.num_items, penalty=penalty)

  known = np.flatnonzero(events.known)
  is_last = np.append(np.diff(events.user[known]) != 0, True)
  last, earlier = known[is_last], known[~is_last]
  penalty = _PENALTIES[0]
  if len(earlier):
    penalty = max(_PENALTIES, key=lambda penalty: _gain(fit(earlier, penalty), events, values, last))
  return fit(known, penalty).predict(events.user[events.asked], events.item[events.asked])


def _gain(fitted, events, values, chosen) -> float:
  prediction = {fitted.head.name: fitted.predict(events.user[chosen], events.item[chosen])}
  found = action_metrics(prediction, {fitted.head.name: values[chosen]}, events.user[chosen], (fitted.head,))
  return found[OVERALL]


def _truth(data, head) -> Shaped[np.ndarray, "..."]:
  """Returns the true distribution of every event as a model's head would."""
  true = getattr(planted_action_truth(data), head.name)
  if head.kind == REGRESSION:
    return (true - head.mean) / head.scale
  return np.log(true) - np.log1p(-true) if head.kind == BINARY else np.log(true)


def _scores(values, head) -> Float[np.ndarray, "E K"]:
  """Returns numbers whose averages mean something: one-hot classes, or the numbers themselves."""
  if head.kind == REGRESSION:
    return values[:, None].astype(np.float64)
  return np.eye(head.classes)[values]


def _means(values, group, num_groups) -> Float[np.ndarray, "G K"]:
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
