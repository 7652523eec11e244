"""Metrics of predicted actions: ranking (AUC), probabilities (log loss, calibration) and errors of numbers (RMSE).

Plain NumPy in float64, on the host, as in `jaxrec.evaluation.metrics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from jaxrec.batches import BINARY, MULTI_CLASS, ActionType
from jaxrec.evaluation.metrics import auc, grouped_auc, log_loss

OVERALL = "RIG"
BINS = 10  # Of the expected calibration error.
_FLOOR = 1e-12


def action_metrics(
  predictions: Mapping[str, Shaped[np.ndarray, " B *rest"]],
  labels: Mapping[str, Shaped[np.ndarray, " B"]],
  user: Int[np.ndarray, " B"],
  heads: tuple[ActionType, ...],
) -> dict[str, float | int]:
  """Returns "<metric>/<action>" for each action, "RIG", its mean over the actions, and "count".

  binary: "AUC" and "GAUC" (by user), where both classes occur (to a user); "log_loss" in nats; "NE", the log loss
    divided by that of the share of positives; "calibration", the mean probability divided by that share.
    "ECE", the expected calibration error, over bins of `reliability`.
  multi_class: "accuracy", "log_loss" and "NE" likewise, the "calibration" of the class where it is worst, and the "ECE"
    of the most probable class.
  regression: "RMSE", "MAE", and "calibration", the mean prediction divided by the mean label.
  "RIG", relative information gain: 1 - NE, or of a regression the share of the variance that is explained. 0 is a
    constant, 1 a perfect prediction.

  Args:
    predictions: of the model, see `jaxrec.models.ranking.RankingModel`.
    labels: actions.
    user: groups of "GAUC".
    heads: the actions to measure.

  Raises:
    ValueError: no rows.

  Source: normalized entropy: He et al. 2014, "Practical Lessons from Predicting Clicks on Ads at Facebook".

  >>> like = ActionType("like", "binary")
  >>> found = action_metrics({"like": np.zeros(4)}, {"like": np.array([1, 0, 1, 0])}, np.array([0, 0, 1, 1]), (like,))
  >>> found["AUC/like"], round(found["NE/like"], 6), found["calibration/like"], round(found["RIG"], 6)
  (0.5, 1.0, 1.0, 0.0)
  """
  if not len(user):
    raise ValueError("no candidate was predicted: is there any event in this split?")
  result: dict[str, float | int] = {}
  for head in heads:
    prediction = np.asarray(predictions[head.name], np.float64)
    label = np.asarray(labels[head.name])
    measure = {BINARY: _binary, MULTI_CLASS: _multi_class}.get(head.kind, _regression)
    result |= {f"{name}/{head.name}": value for name, value in measure(prediction, label, user, head).items()}
  gains = [result[f"{OVERALL}/{head.name}"] for head in heads]
  return result | {OVERALL: float(np.mean(gains)), "count": len(user)}


class ReliabilityBin(NamedTuple):
  """Predictions of about the same size: how many, their mean, and the share that came true."""

  count: int
  predicted: float
  observed: float


def reliability(
  probability: Float[np.ndarray, " B"], happened: Shaped[np.ndarray, " B"], bins: int = BINS
) -> list[ReliabilityBin]:
  """Returns predicted and observed shares of about equally many predictions each, by rising prediction.

  Equal predictions share a bin, so that there may be fewer bins.

  Args:
    probability: predictions in 0..1.
    happened: 1 or True where the predicted thing happened.
    bins: how many, at least 1.

  Raises:
    ValueError: no prediction, or no bin.

  Choice: bins of equally many predictions; with bins of equal width nearly all probabilities of rare actions would be
    in the first one.

  >>> [tuple(one) for one in reliability(np.array([0.1, 0.3, 0.9, 0.9]), np.array([0, 0, 1, 0]), bins=2)]
  [(2, 0.2, 0.0), (2, 0.9, 0.5)]
  """
  if not len(probability) or bins < 1:
    raise ValueError(f"{len(probability)} predictions in {bins=}: both must be at least 1")
  order = np.argsort(probability, kind="stable")
  probability, happened = np.asarray(probability, np.float64)[order], np.asarray(happened, np.float64)[order]
  edge = probability[np.arange(1, bins) * len(order) // bins]
  starts = np.unique(np.concatenate([[0], np.searchsorted(probability, edge, side="left")]))
  counts = np.diff(np.append(starts, len(order)))
  means = (np.add.reduceat(values, starts) / counts for values in (probability, happened))
  return [ReliabilityBin(int(n), float(p), float(y)) for n, p, y in zip(counts, *means, strict=True)]


def calibration_error(bins: Sequence[ReliabilityBin]) -> float:
  """Returns the expected calibration error: the mean of |predicted - observed|, weighted by the count.

  Source: Naeini et al. 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning"; Guo et al. 2017, arXiv
    1706.04599, equation 3.

  >>> round(calibration_error([ReliabilityBin(3, 0.2, 0.0), ReliabilityBin(1, 0.9, 0.5)]), 6)
  0.25
  """
  total = sum(one.count for one in bins)
  return sum(one.count * abs(one.predicted - one.observed) for one in bins) / total


def reliability_by_action(
  predictions: Mapping[str, Shaped[np.ndarray, " B *rest"]],
  labels: Mapping[str, Shaped[np.ndarray, " B"]],
  heads: tuple[ActionType, ...],
  bins: int = BINS,
) -> dict[str, list[ReliabilityBin]]:
  """Returns the bins of each action that is no regression; arguments as of `action_metrics`."""
  found = {}
  for head in heads:
    if head.kind in (BINARY, MULTI_CLASS):
      prediction = np.asarray(predictions[head.name], np.float64)
      confident = _probability(prediction) if head.kind == BINARY else _most_probable(prediction)[0]
      label = np.asarray(labels[head.name])
      found[head.name] = reliability(
        confident, label if head.kind == BINARY else label == _most_probable(prediction)[1], bins
      )
  return found


def metric_names(heads: tuple[ActionType, ...]) -> tuple[str, ...]:
  """Returns the names of the metrics that are better the higher they are, which can choose parameters."""
  higher = {BINARY: ("AUC", "GAUC"), MULTI_CLASS: ("accuracy",)}
  return OVERALL, *(f"{name}/{head.name}" for head in heads for name in (*higher.get(head.kind, ()), OVERALL))


def _binary(logit, label, user, head):
  probability = _probability(logit)
  share, loss = float(label.mean()), log_loss(probability, label)
  entropy = log_loss(np.full(len(label), share), label)
  found = {"log_loss": loss, "NE": _ratio(loss, entropy), "calibration": _ratio(float(probability.mean()), share)}
  found["ECE"] = calibration_error(reliability(probability, label))
  if 0 < share < 1:
    found["AUC"] = auc(logit, label)
    by_user = grouped_auc(logit, label, user).value
    found |= {} if np.isnan(by_user) else {"GAUC": by_user}
  return found | {OVERALL: 1 - found["NE"]}


def _multi_class(logits, label, user, head):
  shifted = logits - logits.max(axis=-1, keepdims=True)
  log_probability = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))  # [B, K]
  loss = float(-np.take_along_axis(log_probability, label[:, None], axis=-1).mean())
  share = np.bincount(label, minlength=head.classes) / len(label)
  entropy = float(-(share * np.log(np.maximum(share, _FLOOR))).sum())
  accuracy = float((logits.argmax(axis=-1) == label).mean())
  calibration = np.exp(log_probability).mean(axis=0)[share > 0] / share[share > 0]
  worst = float(calibration[np.abs(calibration - 1).argmax()])
  gain = {"NE": _ratio(loss, entropy), OVERALL: 1 - _ratio(loss, entropy)}
  confidence, chosen = _most_probable(logits)
  gain["ECE"] = calibration_error(reliability(confidence, chosen == label))
  return {"accuracy": accuracy, "log_loss": loss, "calibration": worst, **gain}


def _regression(standard, label, user, head):
  value = standard * head.scale + head.mean
  error = value - label
  explained = 1 - _ratio(float(np.square(error).mean()), float(label.var(dtype=np.float64)))
  rmse, mae = float(np.sqrt(np.square(error).mean())), float(np.abs(error).mean())
  calibration = _ratio(float(value.mean()), float(label.mean(dtype=np.float64)))
  return {"RMSE": rmse, "MAE": mae, "calibration": calibration, OVERALL: explained}


def _probability(logit):
  return 1 / (1 + np.exp(-logit))


def _most_probable(logits):
  """Returns the probability of the most probable class, and which it is."""
  shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
  return 1 / shifted.sum(axis=-1), logits.argmax(axis=-1)


def _ratio(value: float, base: float) -> float:
  """Returns value / base; 1 where both are 0, as for labels without variation that are predicted exactly."""
  if abs(base) < _FLOOR:
    return 1.0 if abs(value) < 1e-6 else float(value / _FLOOR)
  return value / base
