"""Predictions of actions without histories: averages and regressions by hand, and the truth of generated data."""

import numpy as np
import pytest

from jaxrec.batches import ActionType
from jaxrec.data.generators.planted_actions import planted_actions
from jaxrec.data.prepared import PreparedData
from jaxrec.evaluation.action_baselines import evaluate_baselines
from jaxrec.evaluation.id_regression import fit_ids

STARS = ActionType("stars", "regression", mean=3.0, scale=2.0)
USER, ITEM = np.array([0, 0, 1, 1]), np.array([1, 2, 1, 2])


def test_averages_by_hand():
  data = PreparedData.from_columns(
    user=[0, 0, 0, 1, 1, 1], item_id=[1, 2, 1, 1, 2, 2], split=[0, 0, 2, 0, 0, 2],
    actions={"stars": [5, 1, 4, 3, 3, 2]}, action_kinds={"stars": "regression"},
  )  # fmt: skip
  found = evaluate_baselines(data, (STARS,), 2)
  item = {1: (5 + 3 + 5 * 3) / 7, 2: (1 + 3 + 5 * 3) / 7}
  assert found["item"]["MAE/stars"] == pytest.approx((abs(item[1] - 4) + abs(item[2] - 2)) / 2)
  assert found["user"]["MAE/stars"] == pytest.approx(1)  # Both users have the overall average, 3.
  assert found["item and user"] == pytest.approx(found["item"])
  assert set(found) == {"item", "user", "item and user", "ids"}


@pytest.mark.parametrize("penalty", [0.5, 4.0])
def test_a_linear_regression_on_ids_is_the_ridge_regression(penalty):
  value = np.array([5.0, 1.0, 3.0, 2.0])
  one_hot = np.concatenate([np.ones((4, 1)), np.eye(2)[USER], np.eye(2)[ITEM - 1]], axis=1)
  ridge = one_hot.T @ one_hot + penalty * np.diag([0, 1, 1, 1, 1])
  expected = one_hot @ np.linalg.solve(ridge, one_hot.T @ ((value - 3) / 2))
  found = fit_ids(USER, ITEM, value, STARS, num_users=2, num_items=2, penalty=penalty)
  np.testing.assert_allclose(found.predict(USER, ITEM), expected, atol=1e-4)


def test_probabilities_of_a_logistic_regression_have_the_mean_of_the_labels():
  value = np.array([1, 0, 1, 1])
  found = fit_ids(USER, ITEM, value, ActionType("like", "binary"), num_users=2, num_items=2)
  assert (1 / (1 + np.exp(-found.predict(USER, ITEM)))).mean() == pytest.approx(0.75, abs=1e-4)
  assert found.predict(USER, ITEM)[0] > found.predict(USER, ITEM)[1]


def test_a_multinomial_regression_of_two_classes_is_the_logistic_one():
  value = np.array([1, 0, 1, 1])
  both = fit_ids(USER, ITEM, value, ActionType("kind", "multi_class", 2), num_users=2, num_items=2, penalty=2.0)
  logits = both.predict(USER, ITEM)
  one = fit_ids(USER, ITEM, value, ActionType("like", "binary"), num_users=2, num_items=2, penalty=1.0)
  np.testing.assert_allclose(logits[:, 1] - logits[:, 0], one.predict(USER, ITEM), atol=1e-3)


def test_nothing_beats_the_truth_of_generated_data():
  data = planted_actions(num_users=300, num_genres=2, items_per_genre=4, mean_events=12.0)
  kinds = {"like": ("binary", 2), "reaction": ("multi_class", 3)}
  heads = tuple(ActionType(name, *kind) for name, kind in kinds.items())
  found = evaluate_baselines(data, (*heads, ActionType("seconds", "regression", mean=30.0, scale=10.0)), 2)
  truth = found.pop("truth")
  assert set(found) == {"item", "user", "item and user", "ids"}
  for values in found.values():
    assert values["log_loss/like"] > truth["log_loss/like"] and values["RMSE/seconds"] > truth["RMSE/seconds"]
    assert values["log_loss/reaction"] > truth["log_loss/reaction"]
  assert truth["calibration/like"] == pytest.approx(1, abs=0.15)


def test_a_split_without_events_is_an_error():
  data = PreparedData.from_columns(
    user=[0, 0], item_id=[1, 2], split=[0, 0], actions={"stars": [5, 1]}, action_kinds={"stars": "regression"}
  )
  with pytest.raises(ValueError, match="split=2 has 0 events, with 2 before them"):
    evaluate_baselines(data, (STARS,), 2)
