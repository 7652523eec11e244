"""Planted interest: the events obey the rule, relevance by hand, and the truth ranks candidates best."""

import numpy as np
import pytest

from jaxrec.batches import CandidateBatch
from jaxrec.data.batches.candidates import CandidateData, CandidateOptions
from jaxrec.data.generators.planted_interest import InterestTruth, planted_interest, planted_interest_truth
from jaxrec.data.preparation.prepare import prepare
from jaxrec.data.prepared import TEST, TRAIN
from jaxrec.evaluation.metrics import auc

SMALL = {
  "num_users": 150, "num_categories": 12, "items_per_category": 20, "mean_events": 60.0, "memory": 6.0,
  "group_size": 4, "seed": 3,
}  # fmt: skip


def one_row(history_category, history_age, category):
  history = np.array([history_category], np.int32)
  return CandidateBatch(
    history_item=history,
    history_category=history,
    history_age=np.array([history_age], np.int32),
    item=np.array([1], np.int32),
    category=np.array([category], np.int32),
    label=np.ones(1, np.float32),
    user_id=np.zeros(1, np.int32),
  )


def rule(affinity, explore=0.0):
  """Two equally frequent categories, and an effect that halves with each event."""
  return InterestTruth(
    affinity=np.pad(np.array(affinity, float), ((1, 0), (1, 0))),
    weight=np.array([0, 0.5, 0.5]),
    memory=1 / np.log(2),
    strength=2.0,
    explore=explore,
  )


def test_relevance_is_the_absolute_affinity_decayed_by_age():
  truth = rule([[-1, 0.5], [0.5, 1]])
  assert truth.relevance(one_row([0, 1, 2, 1], [0, 3, 2, 1], 1)).tolist() == [[0, 0.25, 0.25, 1]]


def test_log_odds_follow_from_the_rule():
  """One behaviour of age 1: interest 1 in its category and 0 in the other."""
  odds = np.exp(2 * np.tanh(0.5))
  assert rule([[1, 0], [0, 1]]).log_odds(one_row([1], [1], 1)) == pytest.approx(np.log(odds / (odds + 1) / 0.5))
  assert rule([[1, 0], [0, 1]]).log_odds(one_row([1], [1], 2)) == pytest.approx(np.log(1 / (odds + 1) / 0.5))
  assert rule([[1, 0], [0, 1]], explore=1.0).log_odds(one_row([1], [1], 2)) == pytest.approx(0)


def test_the_rule_ranks_candidates_far_better_than_chance():
  data = planted_interest(**SMALL)
  examples = CandidateData(data, CandidateOptions(history_length=50, min_events=40))
  batch = examples.batch(TRAIN, np.arange(examples.num_examples(TRAIN)))
  truth = planted_interest_truth(data)
  assert auc(truth.log_odds(batch), batch.label) > 0.7
  shuffled = batch.replace(history_category=np.random.default_rng(0).permutation(batch.history_category))
  assert auc(truth.log_odds(shuffled), batch.label) < auc(truth.log_odds(batch), batch.label) - 0.1


def test_raised_categories_follow_a_behaviour_and_lowered_ones_do_not():
  """Compares how often pairs of a kind occur with the share of that kind among all pairs."""
  data = planted_interest(**SMALL)
  affinity = planted_interest_truth(data).affinity
  effect = affinity[data.domain_id[:-1], data.domain_id[1:]]
  raised, lowered = ((sign * effect > 0).mean() / (sign * affinity[1:, 1:] > 0).mean() for sign in (1, -1))
  assert raised > 2 and lowered < raised / 2
  assert (np.diag(affinity)[1:] == -1).all()


def test_affinity_is_symmetric_inside_groups():
  affinity = planted_interest_truth(planted_interest(**SMALL)).affinity
  assert (affinity == affinity.T).all()
  assert ((affinity != 0).sum(axis=1)[1:] == SMALL["group_size"]).all()


def test_the_same_seed_gives_the_same_events_and_rule():
  data, same, other = (planted_interest(**{**SMALL, "seed": seed}) for seed in (3, 3, 4))
  assert (data.item_id == same.item_id).all()
  assert data.item_id[:200].tolist() != other.item_id[:200].tolist()
  assert (planted_interest_truth(data).affinity != planted_interest_truth(other).affinity).any()


def test_the_truth_of_saved_data_is_the_same(tmp_path):
  data = prepare("planted_interest", out=tmp_path / "data", **SMALL)
  again = type(data).load(tmp_path / "data")
  assert (planted_interest_truth(again).affinity == planted_interest_truth(data).affinity).all()
  examples = CandidateData(again, CandidateOptions(min_events=40))
  assert examples.num_categories == 12 and examples.num_examples(TEST) > 100


def test_the_truth_of_other_data_is_refused():
  with pytest.raises(ValueError, match="the source of the data is 'synthetic'"):
    planted_interest_truth(prepare("synthetic", num_users=3))


@pytest.mark.parametrize("option", [{"group_size": 0}, {"explore": 1.5}, {"memory": 0.0}, {"num_users": 0}])
def test_options_out_of_range_are_errors(option):
  with pytest.raises(ValueError, match=next(iter(option))):
    planted_interest(**{**SMALL, **option})
