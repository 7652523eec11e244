"""Click-through by counting: the numbers by hand, the regression, and that held-out events are not counted."""

import numpy as np
import pytest
from candidates import candidate_batch

from jaxrec.data.batches.candidates import CandidateData, CandidateOptions
from jaxrec.data.prepared import TEST, PreparedData
from jaxrec.evaluation.click_counts import (
  BASELINES,
  FEATURES,
  candidate_counts,
  count_baselines,
  fit_logistic,
)
from jaxrec.evaluation.metrics import auc


def test_counts_of_item_and_category_by_hand():
  """Items 1, 5 and 9 are of category 1; the candidate is 5, and its history is padded by 2."""
  clicks = np.array([0, 0, 0, 0, 0, np.expm1(2), 0, 0, 0, 0])
  found = dict(zip(FEATURES, candidate_counts(candidate_batch([[9, 2, 1, 3]], [5]), clicks)[0], strict=True))
  assert found == pytest.approx({
    "item_before": 0, "category_before": 1, "category_count": np.log(3), "category_by_recency": np.log(1.75),
    "category_is_latest": 0, "category_in_latest": 2, "popularity": 2,
  })  # fmt: skip


def test_padding_is_not_counted():
  found = candidate_counts(candidate_batch([[], [5]], [5, 5]), np.zeros(10))
  assert found[0].tolist() == [0] * len(FEATURES)
  assert found[1][:2].tolist() == [1, 1]


def test_a_regression_finds_the_weights_that_made_the_labels():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(20_000, 3)) * [1, 10, 0.1] + [0, 5, 1]
  truth = 0.5 + x[:, 0] - 0.1 * x[:, 1]
  label = rng.random(len(x)) < 1 / (1 + np.exp(-truth))
  np.testing.assert_allclose(fit_logistic(x, label).log_odds(x[:50]), truth[:50], atol=0.15)


def test_a_regression_on_separable_or_constant_columns_is_finite():
  x = np.stack([np.arange(6.0), np.ones(6)], axis=1)
  found = fit_logistic(x, x[:, 0] > 2).log_odds(x)
  assert np.isfinite(found).all() and ((found > 0) == (x[:, 0] > 2)).all()


def test_counting_predicts_whose_category_returns():
  """Half of the users click category 1 only, half category 2 only; both categories are equally popular."""
  rng = np.random.default_rng(0)
  items = np.stack([rng.integers(1, 21, 40) + 20 * (user % 2) for user in range(60)])
  data = PreparedData.from_columns(
    user=np.repeat(np.arange(60), 40), item_id=items.ravel(), domain_id=(items.ravel() > 20) + 1, num_items=40,
    item_domain=[0, *[1] * 20, *[2] * 20],
  )  # fmt: skip
  examples = CandidateData(data, CandidateOptions(history_length=30, min_events=30, targets_per_user=3))
  label = examples.batch(TEST, np.arange(examples.num_examples(TEST))).label
  found = count_baselines(examples, TEST)
  assert found.keys() == BASELINES.keys()
  assert auc(found["category counts"], label) > 0.9 > 0.65 > auc(found["popularity"], label)
