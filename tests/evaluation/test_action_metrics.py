"""Metrics of predicted actions, by hand."""

import numpy as np
import pytest

from jaxrec.batches import ActionType
from jaxrec.evaluation.action_metrics import (
  action_metrics,
  calibration_error,
  metric_names,
  reliability,
  reliability_by_action,
)

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


def test_the_calibration_error_is_zero_for_true_probabilities_and_the_shift_for_shifted_ones():
  rng = np.random.default_rng(0)
  p = rng.uniform(0.05, 0.85, 200_000)
  y = (rng.random(len(p)) < p).astype(int)
  assert calibration_error(reliability(p, y)) < 0.005
  assert calibration_error(reliability(p + 0.1, y)) == pytest.approx(0.1, abs=0.005)
  # The means agree, and the spread is too small: what "calibration" does not see.
  narrow = 0.45 + (p - 0.45) / 2
  found = action_metrics({"like": logit(narrow)}, {"like": y}, np.zeros(len(p), int), (LIKE,))
  assert found["calibration/like"] == pytest.approx(1, abs=0.01)
  assert found["ECE/like"] == pytest.approx(np.abs(p - narrow).mean(), abs=0.01)


def test_bins_hold_as_many_predictions_each_and_equal_ones_together():
  p = np.concatenate([np.full(500, 0.01), np.linspace(0.1, 0.9, 500)])
  bins = reliability(p, p > 0.5)
  assert [one.count for one in bins] == [500, 100, 100, 100, 100, 100]
  assert bins[0].predicted == pytest.approx(0.01) and (bins[0].observed, bins[-1].observed) == (0, 1)
  assert sum(one.count * one.predicted for one in bins) == pytest.approx(p.sum())
  with pytest.raises(ValueError, match="0 predictions"):
    reliability(p[:0], p[:0])


def test_the_calibration_of_classes_is_that_of_the_most_probable_one():
  p, y = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]), np.array([1, 2])
  bins = reliability_by_action({"kind": np.log(p) + 7, "seconds": y}, {"kind": y, "seconds": y}, (KIND, SECONDS))
  assert [*bins] == ["kind"]
  np.testing.assert_allclose(bins["kind"], [(1, 0.5, 0), (1, 0.8, 1)])
  found = action_metrics({"kind": np.log(p)}, {"kind": y}, np.array([0, 0]), (KIND,))
  assert found["ECE/kind"] == pytest.approx((0.5 + 0.2) / 2)


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
