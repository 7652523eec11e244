"""Popularity and random order, through the ranking code that models use."""

import numpy as np
import pytest

from jaxrec.data.batches.evaluation import evaluation_batches
from jaxrec.data.prepared import PreparedData
from jaxrec.evaluation.baselines import evaluate_baseline, popularity, random_order

# Items 1, 2, 3 in domain 1 and 4, 5 in domain 2. Training events: item 1 three times, 2 twice, 4 twice, 5 once, 3
# never.
EVENTS = {0: [1, 4, 2, 5], 1: [1, 2, 1, 4], 2: [4, 1, 2, 5, 1, 3]}
ITEM_DOMAIN = np.array([0, 1, 1, 1, 2, 2])


def _data():
  items = np.concatenate([EVENTS[user] for user in EVENTS])
  users = np.repeat(list(EVENTS), [len(EVENTS[user]) for user in EVENTS])
  names = ("books", "films")
  return PreparedData.from_columns(
    user=users, item_id=items, domain_id=ITEM_DOMAIN[items], domain_names=names, item_domain=ITEM_DOMAIN
  )


def _test_metrics(baseline, data, **options):
  return evaluate_baseline(baseline, data, evaluation_batches(data, 2, 4, 8), ks=(1, 2), **options)


def test_popularity_counts_training_events_only():
  assert popularity(_data()).item_vectors[:, 0].tolist() == [0, 3, 2, 0, 2, 1]


def test_popularity_counts_validation_events_where_asked():
  assert popularity(_data(), last_split=1).item_vectors[:, 0].tolist() == [0, 5, 3, 0, 2, 1]


def test_popularity_counts_the_given_users_only():
  assert popularity(_data(), users=(0, 2)).item_vectors[:, 0].tolist() == [0, 2, 1, 0, 2, 1]


def test_recent_popularity_counts_events_from_a_time_on():
  data = PreparedData.from_columns(user=[0, 0, 0, 0, 0], item_id=[1, 1, 2, 3, 3], timestamp=[1, 5, 6, 7, 8])
  assert popularity(data, since=5).item_vectors[:, 0].tolist() == [0, 1, 1, 0]
  assert popularity(data, last_split=1, since=6).item_vectors[:, 0].tolist() == [0, 0, 1, 1]
  with pytest.raises(ValueError, match="needs times"):
    popularity(_data(), since=5)


def test_popularity_ranks_are_those_worked_out_by_hand():
  # Targets 5, 4, 3. Unseen rivals: user 0 has 3 (0 < 1): rank 1. User 1 has 3, 5: rank 1. User 2 has met all: rank 1.
  data = _data()
  result = _test_metrics(popularity(data), data)
  assert (result["HR@1"], result["count"], result["domain/films/count"]) == (1.0, 3, 2)


def test_popularity_among_seen_items_too_is_beaten_by_them():
  # User 0: 5 scores 1 and loses to 1, 2, 4: rank 4. User 1: 4 loses to 1, ties with 2: rank 3. User 2: 3 ranks 5.
  data = _data()
  result = _test_metrics(popularity(data), data, exclude_seen=False)
  assert result["MRR"] == pytest.approx((1 / 4 + 1 / 3 + 1 / 5) / 3)


def test_popularity_per_domain_competes_inside_the_domain():
  # User 0: 5 loses to 4: rank 2. User 1: 4 beats 5: rank 1. User 2: 3 loses to 1 and 2: rank 3.
  data = _data()
  result = _test_metrics(popularity(data), data, exclude_seen=False, protocol="full_per_domain")
  assert result["MRR"] == pytest.approx((1 / 2 + 1 + 1 / 3) / 3)
  assert result["domain/films/HR@2"] == 1.0
  assert result["domain/books/HR@2"] == 0.0


def test_random_order_hits_as_often_as_chance():
  rng = np.random.default_rng(0)
  data = PreparedData.from_columns(
    user=np.repeat(np.arange(2000), 3), item_id=rng.integers(1, 101, 6000), num_items=100
  )
  batches = evaluation_batches(data, 2, 500, 8)
  result = evaluate_baseline(random_order(data), data, batches, ks=(10,), exclude_seen=False)
  assert result["HR@10"] == pytest.approx(0.1, abs=0.03)
  assert evaluate_baseline(random_order(data), data, batches, ks=(10,), exclude_seen=False) == result


def test_an_unknown_protocol_is_refused():
  data = _data()
  with pytest.raises(ValueError, match="protocol='sampled' is unknown; use one of"):
    _test_metrics(popularity(data), data, protocol="sampled")


def test_an_unknown_split_is_refused():
  with pytest.raises(ValueError, match="last_split=2 must be 0"):
    popularity(_data(), last_split=2)
