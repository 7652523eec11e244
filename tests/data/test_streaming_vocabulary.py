"""A stream of records: items keep appearing, what was chosen is chosen again, whole records are held out."""

import numpy as np
import pytest

from jaxrec.data.generators.streaming_vocabulary import (
  StreamingOptions,
  event_probability,
  items_there,
  streaming_vocabulary,
)
from jaxrec.data.prepared import TEST, TRAIN, VALIDATION

SMALL = {"num_records": 400, "num_items": 200, "num_categories": 10, "length": 20, "most_concentration": 20.0}


@pytest.fixture(scope="module")
def data():
  return streaming_vocabulary(**SMALL)


def records(data):
  """Items of each record, [U, T]."""
  return np.asarray(data.item_id).reshape(data.num_users, -1)


def test_whole_records_at_the_end_are_held_out(data):
  split = np.asarray(data.split).reshape(data.num_users, -1)
  assert (split == split[:, :1]).all()
  assert split[:, 0].tolist() == [TRAIN] * 360 + [VALIDATION] * 20 + [TEST] * 20


def test_records_come_one_after_another(data):
  assert (np.diff(data.timestamp) > 0).all()


def test_no_record_has_an_item_before_it_appears(data):
  first = np.full(data.num_items + 1, data.num_users)
  np.minimum.at(first, data.item_id, np.repeat(np.arange(data.num_users), 20))
  appeared = np.sort(first[1:])  # The k-th item is seen when there are k + 1 items or later.
  there = items_there(StreamingOptions(**SMALL))
  seen = np.searchsorted(appeared, np.arange(data.num_users), side="right")
  assert (seen <= there).all()
  assert len(np.unique(records(data)[:40])) < 120 < 195 < len(np.unique(data.item_id))


def test_a_record_stays_within_few_categories():
  """With as many items as categories the items of a record are those of at most five categories."""
  data = streaming_vocabulary(**SMALL | {"num_items": 10, "initial_share": 1.0})
  assert max(len(set(items)) for items in records(data).tolist()) == 5


def test_small_concentrations_repeat_and_large_ones_do_not():
  few, many = (
    streaming_vocabulary(**SMALL | {"least_concentration": a, "most_concentration": a, "initial_share": 1.0})
    for a in (0.01, 1e6)
  )
  assert np.mean([len(set(items)) for items in records(few).tolist()]) < 1.2
  assert np.mean([len(set(items)) for items in records(many).tolist()]) > 12


def test_draws_have_the_stated_probabilities():
  """One category of two items and concentration 1: after A, the next is A with (1/2 + 1) / 2, in both positions."""
  options = {"num_records": 6000, "num_items": 2, "num_categories": 1, "most_categories": 1, "length": 3}
  options |= {"least_concentration": 1.0, "most_concentration": 1.0, "initial_share": 1.0}
  items = records(streaming_vocabulary(**options)) - 1
  settings = StreamingOptions(**options)
  for history in ((0,), (0, 1), (0, 0)):
    t = len(history)
    following = items[(items[:, :t] == history).all(axis=1), t]
    expected = event_probability(settings, np.array(history), np.array([0]), 1.0, there=2)
    error = 3 * np.sqrt(expected[0] * expected[1] / len(following))
    assert np.mean(following == 0) == pytest.approx(expected[0], abs=error)


def test_the_same_seed_gives_the_same_data(data):
  same, other = (streaming_vocabulary(**SMALL | {"seed": seed}) for seed in (0, 1))
  assert (same.item_id == data.item_id).all() and (other.item_id != data.item_id).any()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"num_items": 205}, "settings.num_items=205 must be a multiple of settings.num_categories=10"),
    ({"most_categories": 11}, "most_categories=11 must be at most"),
    ({"least_concentration": 0.0}, "least_concentration=0.0 must be above 0"),
    ({"initial_share": 0.02}, "without items at the beginning"),
    ({"held_out_share": 0.5}, "held_out_share=0.5 in 0..0.5"),
    ({"length": 2}, "length=2 must be at least 3"),
  ],
)
def test_fields_out_of_range_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    streaming_vocabulary(**SMALL | options)
