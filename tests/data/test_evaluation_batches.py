"""Evaluation batches: targets, histories, request times, padding."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxrec.data.batches.evaluation import evaluation_batches
from jaxrec.data.prepared import PreparedData

ITEMS = [[1, 2, 3, 4, 5], [6, 7, 8], [2, 4, 6, 8]]


def three_users(**columns):
  flat = np.concatenate(ITEMS)
  columns = {"domain_id": 1 + flat % 2, "timestamp": 1_000_000 + 10 * flat, **columns}
  return PreparedData.from_columns(offsets=[0, 5, 8, 12], item_id=flat, num_items=9, **columns)


def by_user(batches):
  """User -> (items, index and time of the predicting position, target, seen items)."""
  found = {}
  for evaluation in batches:
    for row in np.flatnonzero(evaluation.user >= 0):
      (predicts,) = np.flatnonzero(evaluation.batch.target_weight[row])
      items = evaluation.batch.item_id[row]
      seen = evaluation.seen_items[row]
      found[int(evaluation.user[row])] = (
        items[items > 0].tolist(),
        (int(predicts), int(evaluation.batch.target_time[row, predicts])),
        int(evaluation.target_item[row]),
        seen[seen > 0].tolist(),
      )
  return found


def test_the_test_item_is_predicted_from_everything_before_it():
  assert by_user(evaluation_batches(three_users(), 2, 2, max_length=10)) == {
    0: ([1, 2, 3, 4], (3, 40), 5, [1, 2, 3, 4]),
    1: ([6, 7], (1, 70), 8, [6, 7]),
    2: ([2, 4, 6], (2, 70), 8, [2, 4, 6]),
  }


def test_the_validation_item_is_predicted_from_the_training_events_only():
  assert by_user(evaluation_batches(three_users(), 1, 2, max_length=10)) == {
    0: ([1, 2, 3], (2, 30), 4, [1, 2, 3]),
    1: ([6], (0, 60), 7, [6]),
    2: ([2, 4], (1, 50), 6, [2, 4]),
  }


def test_all_events_of_a_split_are_targets_with_everything_before_them_as_history():
  split = [0, 0, 1, 2, 2, 2, 2, 2, 0, 0, 0, 2]  # User 1 has nothing before the test events.
  data = three_users(split=split)
  batches = evaluation_batches(data, 2, 2, max_length=10, targets="all")
  found = [
    (int(user), int(target), batch.seen_items[row][batch.seen_items[row] > 0].tolist())
    for batch in batches
    for row, (user, target) in enumerate(zip(batch.user, batch.target_item, strict=True))
    if user >= 0
  ]
  assert sorted(found) == [
    (0, 4, [1, 2, 3]), (0, 5, [1, 2, 3, 4]), (1, 7, [6]), (1, 8, [6, 7]), (2, 8, [2, 4, 6])
  ]  # fmt: skip
  assert (batches.new_users, batches.without_history) == (2, 1)
  assert [len(row[row > 0]) for batch in batches for row in batch.batch.item_id if row.any()] == [1, 2, 3, 3, 4]
  first = evaluation_batches(data, 2, 2, max_length=10)
  assert sorted(first.users.tolist()) == [0, 2] and first.without_history == 1


@pytest.mark.parametrize(
  ("limit", "places"), [(1, [9]), (2, [4, 9]), (3, [2, 5, 9]), (10, [*range(10)]), (0, [*range(10)])]
)
def test_a_limit_of_targets_spreads_them_over_a_users_events_up_to_the_last(limit, places):
  data = PreparedData.from_columns(user=[0] * 12, item_id=range(1, 13), split=[0, 0] + [2] * 10)
  batches = evaluation_batches(data, 2, 4, max_length=20, targets="all", targets_per_user=limit)
  target = [item for batch in batches for item in batch.target_item.tolist() if item]
  assert sorted(target) == [place + 3 for place in places]


def test_one_event_a_user_makes_all_targets_the_first_ones():
  every, first = (evaluation_batches(three_users(), 2, 2, max_length=10, targets=name) for name in ("all", "first"))
  jax.tree.map(np.testing.assert_array_equal, [*every], [*first])


def test_cropping_keeps_the_most_recent_events_and_seen_items_are_not_cropped():
  assert by_user(evaluation_batches(three_users(), 2, 4, max_length=2))[0] == ([3, 4], (1, 40), 5, [1, 2, 3, 4])


def test_a_masked_model_predicts_at_a_mask_token_after_the_history():
  batches = evaluation_batches(three_users(), 2, 4, max_length=3, task="masked_item")
  assert by_user(batches) == {
    0: ([3, 4, 10], (2, 40), 5, [1, 2, 3, 4]),
    1: ([6, 7, 10], (2, 70), 8, [6, 7]),
    2: ([4, 6, 10], (2, 70), 8, [2, 4, 6]),
  }
  assert not batches[0].batch.domain_id[batches[0].batch.item_id == 10].any()


@pytest.mark.parametrize(("task", "times"), [("next_item", [30, 60, 50]), ("masked_item", [30, 60, 50])])
def test_a_request_whose_time_is_unknown_has_the_time_of_the_last_event(task, times):
  found = by_user(evaluation_batches(three_users(), 2, 4, max_length=10, task=task, request_time="last_event"))
  assert [found[user][1][1] for user in range(3)] == times


def test_target_times_of_earlier_positions_are_those_of_training():
  evaluation = evaluation_batches(three_users(), 2, 1, max_length=10, users=[0])[0]
  assert evaluation.batch.target_time[0, :4].tolist() == [10, 20, 30, 40]
  assert evaluation.target_domain.tolist() == [2]


def test_the_last_batch_is_padded_with_rows_of_weight_zero():
  last = evaluation_batches(three_users(), 2, 2, max_length=10)[1]
  assert last.user.tolist() == [0, -1]
  assert last.target_item.tolist() == [5, 0]
  assert not last.batch.target_weight[1].any() and not last.seen_items[1].any()


def test_users_without_a_target_are_left_out():
  split = [0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 1]
  assert sorted(by_user(evaluation_batches(three_users(split=split), 2, 2, max_length=10))) == [0]
  assert sorted(by_user(evaluation_batches(three_users(split=split), 1, 2, max_length=10))) == [0, 2]


def test_the_first_of_several_held_out_events_is_the_target():
  split = [0, 0, 2, 2, 2, 0, 0, 2, 0, 0, 0, 2]
  assert by_user(evaluation_batches(three_users(split=split), 2, 4, max_length=10))[0][2] == 3


def test_rows_are_as_long_as_their_users_need():
  rng = np.random.default_rng(0)
  lengths = np.array([5, 60, 70, 150, 400, 420, 30])
  data = PreparedData.from_columns(
    offsets=np.concatenate([[0], np.cumsum(lengths)]), item_id=rng.integers(1, 100, lengths.sum()), num_items=100
  )
  batches = evaluation_batches(data, 2, 2, max_length=200)
  shapes = [(b.batch.item_id.shape[1], b.seen_items.shape[1]) for b in batches]
  assert shapes == [(64, 64), (64, 64), (200, 256), (200, 1024)]
  assert sorted(by_user(batches)) == list(range(7))
  np.testing.assert_array_equal(batches.users, [0, 6, 1, 2, 3, 4, 5])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"split": 0}, "split=0 is unknown"),
    ({"task": "next"}, "task='next' is unknown"),
    ({"request_time": "now"}, "request_time='now' is unknown"),
    ({"max_length": 0}, "max_length=0 is too short"),
    ({"max_length": 1, "task": "masked_item"}, "max_length=1 is too short"),
    ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ({"users": []}, "no user has an event with split=2"),
  ],
)
def test_contradicting_options_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    evaluation_batches(three_users(), **{"split": 2, "batch_size": 2, "max_length": 10, **options})


def test_an_evaluation_batch_is_a_pytree():
  evaluation = evaluation_batches(three_users(), 2, 4, max_length=10)[0]
  assert len(jax.tree.leaves(evaluation)) == len(dataclasses.fields(evaluation.batch)) - 1 + 4  # No actions here.
