"""Planted styles: the events obey the rule, the truth by hand, and what recency and popularity cannot do."""

import functools

import numpy as np
import pytest

from jaxrec.analysis.ctr_analysis import search_ndcg
from jaxrec.batches import CandidateBatch
from jaxrec.data.batches.candidates import CandidateData, CandidateOptions
from jaxrec.data.generators.planted_styles import StyleTruth, planted_styles, planted_styles_truth
from jaxrec.data.preparation.prepare import prepare
from jaxrec.data.prepared import TEST, TRAIN
from jaxrec.evaluation.click_counts import candidate_counts, fit_logistic
from jaxrec.evaluation.metrics import auc

SMALL = {
  "num_users": 150, "num_categories": 40, "items_per_category": 40, "num_styles": 4, "mean_events": 100.0, "seed": 3,
}  # fmt: skip


@functools.cache
def small():
  data = planted_styles(**SMALL)
  return data, planted_styles_truth(data)


@functools.cache
def candidates():
  options = CandidateOptions(history_length=100, min_events=60, exclude_clicked=False, negatives_from="split")
  examples = CandidateData(small()[0], options)
  return examples.batch(TRAIN, np.arange(examples.num_examples(TRAIN)))


def one_row(history_item, history_category, history_age, item, category):
  return CandidateBatch(
    history_item=np.array([history_item], np.int32),
    history_category=np.array([history_category], np.int32),
    history_age=np.array([history_age], np.int32),
    item=np.array([item], np.int32),
    category=np.array([category], np.int32),
    label=np.ones(1, np.float32),
    user_id=np.zeros(1, np.int32),
  )


def rule(keep_style=0.0, explore=0.0, strength=2.0):
  """Two equally frequent categories, items 1 and 3 of style 1, 2 and 4 of style 2; an effect that halves each event."""
  return StyleTruth(
    num_categories=2,
    item_style=np.array([0, 1, 2, 1, 2]),
    memory=1 / np.log(2),
    strength=strength,
    explore=explore,
    keep_style=keep_style,
  )


def test_behaviours_of_the_category_are_relevant_and_fade_with_age():
  batch = one_row([0, 1, 3, 2], [0, 1, 2, 1], [0, 3, 2, 1], item=1, category=1)
  assert rule().relevance(batch).tolist() == [[0, 0.25, 0, 1]]


def test_log_odds_of_the_category_follow_from_the_rule():
  """One behaviour of age 1: interest 1 in its category and 0 in the other; styles say nothing."""
  odds, history = np.exp(2 * np.tanh(0.5)), ([1], [1], [1])
  assert rule().log_odds(one_row(*history, 2, 1)) == pytest.approx(np.log(odds / (odds + 1) / 0.5))
  assert rule().log_odds(one_row(*history, 3, 2)) == pytest.approx(np.log(1 / (odds + 1) / 0.5))
  assert rule(explore=1.0).log_odds(one_row(*history, 3, 2)) == pytest.approx(0)


def test_log_odds_of_the_style_follow_from_the_styles_seen_in_the_category():
  """Kept with 1/2, any of two with 1/2: .75 for the own style. Seen once, a style is the own one with .75."""
  again, other = 0.75 * 0.75 + 0.25 * 0.25, 0.75 * 0.25 + 0.25 * 0.75
  truth = rule(keep_style=0.5, strength=0.0)
  assert truth.log_odds(one_row([1], [1], [1], 1, 1)) == pytest.approx(np.log(2 * again))
  assert truth.log_odds(one_row([1], [1], [1], 2, 1)) == pytest.approx(np.log(2 * other))
  assert truth.log_odds(one_row([1], [1], [1], 3, 2)) == pytest.approx(0)  # Nothing is known of the other category.
  assert truth.log_odds(one_row([0], [0], [0], 3, 2)) == pytest.approx(0)


def test_events_of_one_user_and_category_mostly_have_one_style():
  data, truth = small()
  style = truth.item_style[data.item_id]
  user = np.repeat(np.arange(data.num_users), np.diff(data.offsets))
  group = user * 1000 + data.domain_id
  order = np.argsort(group, kind="stable")
  same_group, same_style = np.diff(group[order]) == 0, np.diff(style[order]) == 0
  kept = 0.8 + 0.2 / 4
  expected = kept**2 + 3 * (0.05) ** 2  # Both own, or both the same other one.
  assert abs(same_style[same_group].mean() - expected) < 0.02
  assert np.bincount(style)[1:].min() > 0.2 * len(style)  # No style is rare over all.


def test_popularity_says_nothing_counts_something_and_the_truth_the_most():
  (data, truth), batch = small(), candidates()
  clicks = np.bincount(data.item_id, minlength=data.num_items + 1)
  assert abs(auc(clicks[batch.item].astype(float), batch.label) - 0.5) < 0.03
  found, counts = truth.log_odds(batch), candidate_counts(batch, clicks)
  by_counts = fit_logistic(counts, batch.label).log_odds(counts)
  assert 0.6 < auc(by_counts, batch.label) < auc(found, batch.label) - 0.03
  other_style = np.random.default_rng(0).permutation(truth.item_style[1:])
  blind = StyleTruth(**{**vars(truth), "item_style": np.concatenate([[0], other_style])})
  assert auc(blind.log_odds(batch), batch.label) < auc(found, batch.label) - 0.01


def test_recency_does_not_find_what_matters():
  truth, batch = small()[1], candidates()
  relevance, is_real = truth.relevance(batch), batch.history_item > 0
  assert search_ndcg(-batch.history_age.astype(float), relevance, is_real) < 0.45


def test_the_truth_of_saved_data_is_the_same(tmp_path):
  data = prepare("planted_styles", out=tmp_path / "data", **SMALL)
  again = type(data).load(tmp_path / "data")
  assert (again.item_id == small()[0].item_id).all()
  assert (planted_styles_truth(again).item_style == small()[1].item_style).all()
  examples = CandidateData(again, CandidateOptions(min_events=60))
  assert examples.num_categories == 40 and examples.num_examples(TEST) > 100
  with pytest.raises(ValueError, match="the source of the data is 'synthetic'"):
    planted_styles_truth(prepare("synthetic", num_users=3))


def test_another_seed_gives_other_events_and_another_rule():
  other = planted_styles(**{**SMALL, "seed": 4})
  assert other.item_id[:200].tolist() != small()[0].item_id[:200].tolist()
  assert (planted_styles_truth(other).item_style != small()[1].item_style).any()


@pytest.mark.parametrize(
  "option, message",
  [
    ({"num_styles": 3}, "items_per_category=40 must be a multiple of num_styles=3"),
    ({"keep_style": 1.5}, "keep_style"),
    ({"memory": 0.0}, "memory"),
    ({"num_styles": 1}, "num_styles"),
  ],
)
def test_options_out_of_range_are_errors(option, message):
  with pytest.raises(ValueError, match=message):
    planted_styles(**{**SMALL, **option})
