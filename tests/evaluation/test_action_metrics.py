"""Metrics of predicted actions, by hand."""

import numpy as np
import pytest

from jaxrec.batches import ActionType
from jaxrec.evaluation.action_metrics import action_metrics, metric_names

LIKE, KIND = ActionType("like", "binary"), ActionType("kind", "multi_class", 3)
SECONDS = ActionType("seconds", "regression", mean=10.0, scale=2.0)


def logit(p):
  return np.log(p) - np.log1p(-np.asarray(p))


def test_binary_metrics():
  p, y = np.array([0.8, 0.4, 0.4, 0.2]), np.array([1, 0, 1, 0])
  found = action_metrics({"like": logit(p)}, {"like": y}, np.array([0, 0, 1, 1]), (LIKE,))
  assert found["AUC/like"] == 0.875 and found["GAUC/like"] == 1.0 and found["count"] == 4
  loss = -np.log([0.8, 0.6, 0.4, 0.8]).mean()
  assert found["log_loss/like"] == pytest.approx(loss) and found["NE/like"] == pytest.approx(loss / np.log(2))
  assert found["calibration/like"] == pytest.approx(0.9) and found["RIG"] == pytest.approx(1 - loss / np.log(2))


def test_multi_class_metrics():
  p, y = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]), np.array([1, 2])
  found = action_metrics({"kind": np.log(p) + 7}, {"kind": y}, np.array([0, 0]), (KIND,))
  loss = -np.log([0.3, 0.8]).mean()
  assert found["accuracy/kind"] == 0.5 and found["log_loss/kind"] == pytest.approx(loss)
  assert found["NE/kind"] == pytest.approx(loss / np.log(2)) and found["RIG/kind"] == 1 - found["NE/kind"]


def test_regression_metrics():
  label, value = np.array([8.0, 12.0, 10.0]), np.array([9.0, 12.0, 12.0])
  found = action_metrics({"seconds": (value - 10) / 2}, {"seconds": label}, np.zeros(3, int), (SECONDS,))
  assert found["RMSE/seconds"] == pytest.approx(np.sqrt(5 / 3)) and found["MAE/seconds"] == 1
  assert found["calibration/seconds"] == pytest.approx(1.1)
  assert found["RIG/seconds"] == pytest.approx(1 - (5 / 3) / (8 / 3))


def test_the_gain_is_the_mean_over_the_heads():
  labels = {"like": np.array([0, 1]), "seconds": np.array([8.0, 12.0])}
  found = action_metrics(
    {"like": np.zeros(2), "seconds": np.array([-1.0, 1.0])}, labels, np.zeros(2, int), (LIKE, SECONDS)
  )
  assert found["RIG"] == pytest.approx((found["RIG/like"] + found["RIG/seconds"]) / 2) and found[
    "RIG"
  ] == pytest.approx(0.5)


def test_one_class_has_no_auc():
  found = action_metrics({"like": np.zeros(2)}, {"like": np.ones(2, int)}, np.zeros(2, int), (LIKE,))
  assert "AUC/like" not in found and found["calibration/like"] == 0.5


def test_no_candidates_are_an_error():
  with pytest.raises(ValueError, match="no candidate was predicted"):
    action_metrics({"like": np.zeros(0)}, {"like": np.zeros(0, int)}, np.zeros(0, int), (LIKE,))


def test_metrics_that_may_choose_parameters_grow_with_quality():
  assert metric_names((LIKE, KIND)) == ("RIG", "AUC/like", "GAUC/like", "RIG/like", "accuracy/kind", "RIG/kind")
