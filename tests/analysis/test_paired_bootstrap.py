"""Differences between models on the same users, and their intervals."""

import numpy as np
import pytest

from jaxrec.analysis.paired_bootstrap import (
  UserValues,
  bootstrap,
  joined,
  means_by_seed,
  paired_difference,
  user_values,
)
from jaxrec.evaluation.metrics import ndcg_of_each
from jaxrec.evaluation.protocols import UserRanks

RNG = np.random.default_rng(0)


def values(user, domain, value):
  return UserValues(np.array(user), np.array(domain), np.atleast_2d(np.array(value, float)))


def test_the_value_of_a_user_is_the_ndcg_of_one_target():
  ranks = [UserRanks(np.array([2, 5]), np.array([1, 3]), np.array(rank)) for rank in ([1, 11], [3, 10])]
  found = user_values(ranks, np.array([0, 1, 1, 2]), 10)
  assert found.domain.tolist() == [1, 2]
  np.testing.assert_allclose(found.value, [[1, 0], [0.5, 1 / np.log2(11)]])
  assert ndcg_of_each(np.array(4), 3) == 0
  with pytest.raises(ValueError, match="different users or targets"):
    user_values([ranks[0], ranks[1]._replace(target_item=np.array([1, 1]))], np.array([0, 1, 1, 2]), 10)


def test_what_models_share_cancels_in_the_paired_interval():
  difficulty = RNG.normal(size=(1, 2000))
  base = values(range(2000), [1] * 2000, difficulty)
  other = base._replace(value=difficulty + 0.1 + 0.01 * RNG.normal(size=(1, 2000)))
  found = paired_difference(other, base, resamples=500)
  assert 0.099 < found.low < found.mean < found.high < 0.101
  assert found.error == pytest.approx(0.01 / np.sqrt(2000), rel=0.1)
  assert (found.count, found.seeds) == (2000, 1)


def test_seeds_that_disagree_widen_the_interval():
  of_seeds = np.array([[-0.1], [0.1], [0.3]]) + np.zeros((3, 100))
  found = bootstrap(of_seeds, 1000)
  assert found.mean == pytest.approx(0.1) and found.low == pytest.approx(-0.1) and found.high == pytest.approx(0.3)
  assert found.error == pytest.approx(np.sqrt(0.08 / 3 / 3), rel=0.1)  # Of the mean of three draws.


def test_a_user_is_drawn_with_all_targets():
  of_user = RNG.normal(size=300)
  user = np.repeat(np.arange(300), 10)
  clustered = bootstrap(of_user[user][None], 1000, user=user)
  independent = bootstrap(of_user[user][None], 1000)
  assert clustered.mean == pytest.approx(independent.mean) and (clustered.count, independent.count) == (300, 3000)
  assert clustered.error == pytest.approx(of_user.std() / np.sqrt(300), rel=0.1)
  assert independent.error == pytest.approx(clustered.error / np.sqrt(10), rel=0.1)


def test_the_targets_of_a_user_are_paired_in_their_order():
  base = values([1, 1, 2, 2, 3], [1, 2, 1, 1, 2], [[0, 1, 2, 3, 4.0]])
  other = values([1, 1, 2], [1, 2, 1], [[1, 3, 2.0]])  # The second model misses targets of two users.
  found = paired_difference(other, base)
  assert found.mean == pytest.approx((1 + 2 + 0) / 3) and found.count == 2
  assert paired_difference(other, base, 2).mean == 2
  with pytest.raises(ValueError, match="the targets of a user differ"):
    paired_difference(other._replace(domain=np.array([2, 2, 1])), base)


def test_one_target_a_user_gives_the_interval_of_the_plain_bootstrap():
  draw = RNG.normal(size=(2, 50))
  assert bootstrap(draw, 100, user=np.arange(50)) == bootstrap(draw, 100)


def test_an_interval_covers_the_truth_nineteen_times_in_twenty():
  draws = [RNG.normal(size=(1, 200)) for _ in range(200)]
  covered = sum(found.low <= 0 <= found.high for found in (bootstrap(draw, 200) for draw in draws))
  assert 180 <= covered <= 199


def test_only_users_of_both_models_and_of_the_domain_are_compared():
  base = values([1, 2, 3, 4], [1, 1, 2, 2], [[0, 0, 0, 0.0]])
  other = values([2, 3, 4], [1, 2, 2], [[1, 3, 5.0]])
  assert paired_difference(other, base).mean == 3
  assert paired_difference(other, base, 2)[::4] == (4, 2)
  with pytest.raises(ValueError, match="no user is in both"):
    paired_difference(other, base, 3)
  with pytest.raises(ValueError, match="1 seeds are compared with 2"):
    paired_difference(other, base._replace(value=np.zeros((2, 4))))


def test_models_of_one_domain_each_are_joined():
  one, two = values([1, 4], [1, 1], [[0.1, 0.4]]), values([2], [2], [[0.2]])
  both = joined([one, two])
  assert both.user.tolist() == [1, 2, 4] and both.domain.tolist() == [1, 2, 1]
  assert both.value.tolist() == [[0.1, 0.2, 0.4]]
  assert means_by_seed(both, 1).tolist() == [0.25]
  with pytest.raises(ValueError, match="a user is in the runs of two domains"):
    joined([one, one])
