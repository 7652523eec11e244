"""A recommender that keeps the states of users answers as one that does not."""

import dataclasses

import jax
import numpy as np
import pytest
from known_scores import DAY, recommender
from programs import strangers_at_once
from random_models import MAX_LENGTH, random_model

from jaxrec.serving.incremental_recommender import with_states
from jaxrec.serving.state_store import StateStore

ITEMS = ["b1", "b2", "b3", "f4", "f5", "f6"]
EVENTS = [(ITEMS[n * n % 6], DAY * n) for n in range(MAX_LENGTH + 3)]


def counts(made):
  return made.states.counters.hits, made.states.counters.misses


@pytest.mark.parametrize("name", ["HSTU", "SASRec", "MultiDomainHSTU"])
def test_a_growing_history_is_scored_as_without_states(name):
  """The last lengths are more than the model reads at once."""
  made = random_model(name)
  incremental = with_states(made, 10**8)
  for n, length in enumerate((1, 2, 5, MAX_LENGTH - 1, MAX_LENGTH, MAX_LENGTH + 1)):
    given = {"domain": ("books", "films")[n % 2], "at": DAY * (length + 1)}
    found = incremental.score(ITEMS, histories={"eve": EVENTS[:length], "dan": EVENTS[:1]}, **given)
    expected = made.score(ITEMS, histories=[EVENTS[:length], EVENTS[:1]], **given)
    np.testing.assert_allclose(found, expected, atol=1e-5)
  assert counts(incremental) == (4 + 5, 1 + 1)  # Eve's last history is encoded in one pass.


def test_strangers_encoded_in_one_batch_have_the_vectors_of_one_event_after_the_other():
  """With few of them; `strangers_at_once.py` has 200, of up to 1,000 events."""
  made = random_model("HSTU")
  histories = strangers_at_once.strangers(made.data, users=5, events=MAX_LENGTH)
  found = strangers_at_once.compare(made, histories, alone=2)
  assert max(map(len, histories)) > MAX_LENGTH / 2 and found.vectors < 1e-5 and found.scores < 1e-5


def test_recommendations_and_users_of_the_data_are_the_same():
  made, (events, users) = random_model("HSTU"), (EVENTS[:4], ["bob", "cyd"])
  incremental = with_states(made, 10**8)
  for _ in range(2):
    for given in ({"histories": {"eve": events}}, {"users": users}):
      for found, expected in zip(incremental.recommend(**given), made.recommend(**given), strict=True):
        assert [item.item for item in found.items] == [item.item for item in expected.items]
  assert counts(incremental) == (3, 3)


def test_a_corrected_history_is_encoded_anew():
  made = random_model("HSTU")
  incremental = with_states(made, 10**8)
  for events in (EVENTS[:4], EVENTS[:3], [*EVENTS[:2], ("b3", 9 * DAY)], EVENTS[1:4], EVENTS[:0]):
    found = incremental.score(ITEMS, histories={"eve": events})
    np.testing.assert_allclose(found, made.score(ITEMS, histories=[events]), atol=1e-5)
  assert counts(incremental) == (0, 4)


def test_users_without_a_name_have_no_state():
  incremental = with_states(random_model("HSTU"), 10**8)
  incremental.score(ITEMS, histories=[EVENTS[:4]])
  assert counts(incremental) == (0, 0) and incremental.states.counters.users == 0


def test_states_do_not_survive_a_change_of_the_checkpoint():
  before = with_states(random_model("HSTU"), 10**8)
  given = {"histories": {"eve": EVENTS[:4]}}
  before.score(ITEMS, **given)
  params = jax.tree.map(lambda x: -2 * x, before.params)
  after = dataclasses.replace(before, params=params)
  expected = dataclasses.replace(random_model("HSTU"), params=params).score(ITEMS, **given)
  np.testing.assert_allclose(after.score(ITEMS, **given), expected, atol=1e-5)
  assert counts(after) == (0, 1)
  assert np.abs(before.score(ITEMS, **given) - expected).max() > 1e-3


def test_users_beyond_the_budget_are_dropped_and_encoded_anew():
  made = random_model("HSTU")
  one = with_states(made, 10**8)
  one.score(ITEMS, histories={"eve": EVENTS[:4]})
  incremental = with_states(made, 2 * one.states.counters.bytes)
  for user in ("ann", "bob", "ann", "cyd", "bob"):
    found = incremental.score(ITEMS, histories={user: EVENTS[:4]})
    np.testing.assert_allclose(found, made.score(ITEMS, histories=[EVENTS[:4]]), atol=1e-5)
  assert counts(incremental) == (1, 4)  # Bob was dropped for Cyd, Ann for Bob.
  assert dataclasses.astuple(incremental.states.counters)[2:] == (2, 2, incremental.states.capacity_bytes)


def test_ten_thousand_users_stay_within_the_budget():
  store, size = StateStore(capacity_bytes=100_000), 64
  for user in range(10_000):
    store.put(user, {"keys": np.zeros(size // 2, np.int8), "values": np.zeros(size // 8, np.float32)})
    assert store.counters.bytes <= store.capacity_bytes
    if user % 2:
      assert store.get(1) is not None  # Is used all the time.
  kept = [user for user in range(10_000) if store.get(user) is not None]
  assert len(kept) == store.counters.users == 100_000 // size
  assert kept == [1, *range(10_000 - len(kept) + 1, 10_000)]
  assert store.counters.evictions == 10_000 - len(kept)


def test_a_state_that_exceeds_the_budget_is_not_kept():
  store = StateStore(10)
  store.put("ann", np.zeros(8, np.int8))
  store.put("ann", np.zeros(11, np.int8))
  assert store.get("ann") is None and dataclasses.astuple(store.counters) == (0, 0, 1, 0, 0)


def test_models_without_states_are_refused():
  with pytest.raises(NotImplementedError, match="only causal models without bottleneck tokens"):
    with_states(random_model("BERT4Rec"), 10)
  with pytest.raises(ValueError, match="the model is an exported program, or another one without states"):
    with_states(recommender(), 10)
  with pytest.raises(ValueError, match="capacity_bytes=0 must be at least 1"):
    with_states(random_model("HSTU"), 0)
