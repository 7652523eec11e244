"""Ranking and prediction metrics, worked out by hand."""

import inspect
import math

import numpy as np
import pytest
from golden_checks.metrics import missing_half_step

from jaxrec.evaluation.metrics import RankingMetrics, auc, grouped_auc, hit_rate, log_loss, mrr, ndcg

RANKS = np.array([1, 3, 10, 11])


def test_hit_rate_counts_ranks_up_to_k():
  assert hit_rate(RANKS, 10) == 3 / 4
  assert hit_rate(RANKS, 1) == 1 / 4


def test_ndcg_discounts_by_the_logarithm_of_the_rank():
  assert ndcg(RANKS, 3) == (1 + 1 / 2) / 4
  assert ndcg(RANKS, 10) == pytest.approx((1 + 1 / 2 + 1 / math.log2(11)) / 4, abs=1e-15)


def test_reciprocal_rank_has_no_cut_off():
  assert mrr(RANKS) == pytest.approx((1 + 1 / 3 + 1 / 10 + 1 / 11) / 4, abs=1e-15)


def test_batches_of_metrics_add_up_to_the_metrics_of_all_rows():
  rng = np.random.default_rng(0)
  ranks, domains = rng.integers(1, 30, 101), rng.integers(1, 4, 101)
  metrics = RankingMetrics.zero((5, 10), ("a", "b", "c"))
  for start in range(0, 101, 20):
    metrics = metrics.update(ranks[start : start + 20], domains[start : start + 20])
  result = metrics.result()
  assert result["count"] == 101
  for k in (5, 10):
    assert result[f"HR@{k}"] == pytest.approx(hit_rate(ranks, k), abs=1e-14)
    assert result[f"NDCG@{k}"] == pytest.approx(ndcg(ranks, k), abs=1e-14)
    assert result[f"domain/b/NDCG@{k}"] == pytest.approx(ndcg(ranks[domains == 2], k), abs=1e-14)
  assert result["MRR"] == pytest.approx(mrr(ranks), abs=1e-14)
  assert result["domain/c/MRR"] == pytest.approx(mrr(ranks[domains == 3]), abs=1e-14)


def test_metrics_of_two_hosts_merge_into_those_of_one():
  empty = RankingMetrics.zero((1,), ("a", "b"))
  first, second = empty.update(np.array([1, 2]), np.array([1, 2])), empty.update(np.array([4]), np.array([2]))
  both = empty.update(np.array([1, 2, 4]), np.array([1, 2, 2]))
  assert first.merge(second).result() == both.result()


def test_updating_metrics_leaves_the_old_ones_alone():
  empty = RankingMetrics.zero((1,))
  empty.update(np.array([1]))
  assert empty.count.sum() == 0


def test_rows_of_rank_zero_are_left_out():
  result = RankingMetrics.zero((1,)).update(np.array([0, 1, 0])).result()
  assert (result["HR@1"], result["count"]) == (1.0, 1)


def test_a_domain_without_rows_has_a_count_and_nothing_else():
  result = RankingMetrics.zero((1,), ("a", "b")).update(np.array([1]), np.array([1])).result()
  assert {key: value for key, value in result.items() if key.startswith("domain/b")} == {"domain/b/count": 0}


def test_one_domain_alone_is_not_reported_twice():
  result = RankingMetrics.zero((1,), ("films",)).update(np.array([1])).result()
  assert set(result) == {"HR@1", "NDCG@1", "MRR", "count"}


def test_a_prefix_marks_every_number():
  result = RankingMetrics.zero((1,), ("a", "b"), prefix="sampled/").update(np.array([1]), np.array([1])).result()
  assert all(key.startswith("sampled/") for key in result)


@pytest.mark.parametrize(
  "ranks,domains,message",
  [
    ([1], [3], r"domains holds 3, but there are domains 1\.\.2 only"),
    ([1], [0], "domains holds 0"),
    ([-1], [1], "ranks holds -1"),
    ([1, 2], [1], "must be the same"),
    ([1], None, "domains must be given: there are 2 of them"),
  ],
)
def test_rows_that_do_not_fit_are_refused(ranks, domains, message):
  metrics = RankingMetrics.zero((1,), ("a", "b"))
  update = inspect.unwrap(RankingMetrics.update)  # As users call it, without the shape checks of the tests.
  with pytest.raises(ValueError, match=message):
    update(metrics, np.array(ranks), None if domains is None else np.array(domains))


def test_metrics_of_nothing_are_refused():
  with pytest.raises(ValueError, match="no rank was added"):
    RankingMetrics.zero((1,)).result()


def test_metrics_of_different_kinds_do_not_merge():
  with pytest.raises(ValueError, match="prefix= and prefix=sampled/ cannot be merged"):
    RankingMetrics.zero((1,)).merge(RankingMetrics.zero((1,), prefix="sampled/"))


@pytest.mark.parametrize(
  "ranks,k,message", [([0, 1], 1, "ranks start at 1"), ([], 1, "at least one rank"), ([1], 0, "k=0")]
)
def test_ranks_that_are_none_are_refused(ranks, k, message):
  with pytest.raises(ValueError, match=message):
    ndcg(np.array(ranks, int), k)


def test_auc_is_the_share_of_pairs_in_the_right_order_with_ties_one_half():
  # Positives 0.8 and 0.5 against negatives 0.5 and 0.1: right, right, tie, right.
  assert auc(np.array([0.8, 0.5, 0.5, 0.1]), np.array([1, 0, 1, 0])) == 3.5 / 4


def test_auc_of_equal_scores_is_one_half():
  assert auc(np.zeros(7), np.array([0, 1, 0, 0, 1, 1, 1])) == 0.5


def test_auc_with_one_negative_is_not_halved():
  """The published AUC of DARE's scripts halves the step at the last negative: .5 here, and low in all small groups."""
  scores, labels = np.array([0.9, 0.1]), np.array([1, 0])
  assert auc(scores, labels) == 1.0
  assert auc(scores, labels) - missing_half_step(scores, labels) == 0.5


def test_auc_equals_a_count_of_all_pairs():
  rng = np.random.default_rng(1)
  scores, labels = rng.integers(0, 20, 200) / 20, rng.integers(0, 2, 200)
  difference = scores[labels == 1][:, None] - scores[labels == 0][None, :]
  assert auc(scores, labels) == pytest.approx(np.mean((difference > 0) + (difference == 0) / 2), abs=1e-14)


def test_grouped_auc_weights_by_group_size_and_counts_what_it_skips():
  # Group 7: one pair in the right order (2 rows). Group 8: one of two pairs (3 rows). Group 9: one class (1 row).
  scores, labels = np.array([0.9, 0.1, 0.2, 0.8, 0.1, 0.5]), np.array([1, 0, 1, 0, 0, 1])
  result = grouped_auc(scores, labels, np.array([7, 7, 8, 8, 8, 9]))
  assert result.value == (2 * 1 + 3 * 0.5) / 5
  assert (result.num_groups, result.num_groups_skipped, result.num_rows, result.num_rows_skipped) == (3, 1, 6, 1)


def test_grouped_auc_equals_the_auc_of_each_group():
  rng = np.random.default_rng(2)
  scores, labels, groups = rng.integers(0, 9, 300) / 9, rng.integers(0, 2, 300), rng.integers(0, 12, 300)
  sizes = np.bincount(groups)
  each = [auc(scores[groups == group], labels[groups == group]) for group in range(12)]
  assert grouped_auc(scores, labels, groups).value == pytest.approx(np.dot(sizes, each) / 300, abs=1e-14)


def test_grouped_auc_without_a_usable_group_is_nan():
  assert math.isnan(grouped_auc(np.array([0.1, 0.2]), np.array([1, 0]), np.array(["a", "b"])).value)


def test_log_loss_is_the_mean_negative_log_likelihood():
  loss = log_loss(np.array([0.5, 0.25]), np.array([1, 0]))
  assert loss == pytest.approx((math.log(2) + math.log(4 / 3)) / 2, abs=1e-15)


def test_log_loss_of_a_certain_mistake_is_finite():
  assert log_loss(np.array([0.0]), np.array([1])) == pytest.approx(-math.log(1e-7))


@pytest.mark.parametrize(
  "scores,labels,message",
  [
    ([0.1, 0.2], [1, 1], "needs both classes, but 2 of 2"),
    ([0.1, np.nan], [1, 0], "1 of 2 scores are NaN"),
    ([0.1, 0.2], [1, 5], "labels must be 0 or 1"),
    ([0.1], [1, 0], "must be the same"),
  ],
)
def test_scores_that_have_no_auc_are_refused(scores, labels, message):
  with pytest.raises(ValueError, match=message):
    inspect.unwrap(auc)(np.array(scores), np.array(labels))
