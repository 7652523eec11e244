"""Training batches: inputs and targets, cropping, packing, masks, shards of hosts, resuming."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.data.batches.training import (
  TrainingBatches,
  TrainingOptions,
  batches_per_epoch,
  packing_efficiency,
  rows_for,
  training_batches,
  users_per_epoch,
)
from jaxrec.data.generators.synthetic import synthetic_data
from jaxrec.data.prepared import PreparedData

# Users 0, 1, 2; the last event of each is the test item, the one before it the validation item.
ITEMS = [[1, 2, 3, 4, 5], [6, 7, 8], [2, 4, 6, 8]]
OPTIONS = TrainingOptions(max_length=4, row_length=4, rows_per_batch=3, packing=False, num_epochs=1)


def three_users(**columns):
  flat = np.concatenate(ITEMS)
  defaults = {
    "domain_id": 1 + flat % 2, "timestamp": 1_000_000 + 10 * flat, "action": flat + 20, "num_items": 9,
  }  # fmt: skip
  return PreparedData.from_columns(offsets=[0, 5, 8, 12], item_id=flat, **{**defaults, **columns})


def random_users(seed=0, num_users=30, longest=12):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, longest + 1, num_users)
  items = rng.integers(1, 50, lengths.sum())
  times = np.cumsum(rng.integers(0, 1000, lengths.sum()))
  return PreparedData.from_columns(
    offsets=np.concatenate([[0], np.cumsum(lengths)]), item_id=items, timestamp=times, num_items=50
  )


def row_of(batch, first_item):
  """The row whose first item is `first_item`, field by field."""
  row = int(np.flatnonzero(batch.item_id[:, 0] == first_item)[0])
  return {name: value[row].tolist() for name, value in vars(batch).items() if value is not None}


def sequences_of(batch):
  """All fields of each sequence of a batch, as a list of tuples."""
  found = []
  for row in range(batch.item_id.shape[0]):
    for sequence_id in range(1, batch.sequence_id[row].max() + 1):
      here = batch.sequence_id[row] == sequence_id
      fields = (v[row][here].tolist() for k, v in vars(batch).items() if v is not None and k != "sequence_id")
      found.append(tuple(map(tuple, fields)))
  return found


def assert_same_batch(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_inputs_are_all_but_the_last_training_event_and_targets_all_but_the_first():
  batch = TrainingBatches(three_users(), OPTIONS)[0]
  assert row_of(batch, 1) == {
    "item_id": [1, 2, 0, 0],
    "domain_id": [2, 1, 0, 0],
    "timestamp": [0, 10, 0, 0],
    "sequence_id": [1, 1, 0, 0],
    "position": [0, 1, 0, 0],
    "target_item": [2, 3, 0, 0],
    "target_domain": [1, 2, 0, 0],
    "target_time": [10, 20, 0, 0],
    "target_weight": [1, 1, 0, 0],
    "action": [21, 22, 0, 0],
  }
  assert row_of(batch, 2)["target_item"] == [4, 0, 0, 0]


def test_the_validation_event_is_trained_on_only_with_last_split_1():
  batch = TrainingBatches(three_users(), dataclasses.replace(OPTIONS, last_split=1))[0]
  assert row_of(batch, 1)["target_item"] == [2, 3, 4, 0]
  assert row_of(batch, 6)["target_item"] == [7, 0, 0, 0]
  assert row_of(batch, 2)["target_item"] == [4, 6, 0, 0]


def test_held_out_items_appear_neither_as_inputs_nor_as_targets():
  flat = np.arange(1, 13)  # Every event has another item.
  data = PreparedData.from_columns(offsets=[0, 5, 8, 12], item_id=flat)
  for task in ("next_item", "masked_item"):
    for last_split in (0, 1):
      options = dataclasses.replace(OPTIONS, task=task, last_split=last_split)
      batch = TrainingBatches(data, options)[0]
      held_out = flat[data.split > last_split]
      assert not np.isin(batch.item_id, held_out).any() and not np.isin(batch.target_item, held_out).any()


def test_cropping_keeps_the_most_recent_events():
  options = dataclasses.replace(OPTIONS, max_length=2, last_split=1)
  batch = TrainingBatches(three_users(), options)[0]
  row = row_of(batch, 2)
  assert row["item_id"][:2] in ([2, 3], [2, 4])
  assert sorted(batch.target_item.max(axis=1).tolist()) == [4, 6, 7]
  assert row["position"] == [0, 1, 0, 0]


def test_users_with_one_training_event_are_left_out_and_counted():
  batches = TrainingBatches(three_users(), OPTIONS)
  assert (batches.users_per_epoch, batches.users_left_out) == (2, 1)
  assert users_per_epoch(three_users(), OPTIONS) == 2


def test_request_time_of_the_last_event_is_the_time_of_the_input():
  batch = TrainingBatches(three_users(), dataclasses.replace(OPTIONS, request_time="last_event"))[0]
  np.testing.assert_array_equal(batch.target_time, batch.timestamp)


def test_data_without_times_or_actions_have_zero_times_and_no_action_field():
  batch = TrainingBatches(three_users(timestamp=None, action=None), OPTIONS)[0]
  assert batch.action is None
  assert not batch.timestamp.any() and not batch.target_time.any()


def test_every_field_is_32_bits_wide():
  batch = TrainingBatches(three_users(), OPTIONS)[0]
  assert {str(x.dtype) for x in jax.tree.leaves(batch)} == {"int32", "float32"}
  assert batch.target_weight.dtype == np.float32


def test_times_beyond_int32_are_refused():
  times = np.zeros(12, np.int64)
  times[4] = 2**31
  with pytest.raises(ValueError, match="timestamp spans 2147483648 seconds"):
    TrainingBatches(three_users(timestamp=times), OPTIONS)


@pytest.mark.parametrize("packing", [True, False])
def test_every_user_appears_exactly_once_in_every_epoch(packing):
  data = random_users()
  options = TrainingOptions(max_length=8, row_length=11, rows_per_batch=3, packing=packing, num_epochs=3)
  batches = TrainingBatches(data, options)
  expected = np.flatnonzero(np.diff(data.offsets) - 2 * (np.diff(data.offsets) >= 3) >= 2).tolist()
  for epoch in range(3):
    steps = range(epoch * batches.batches_per_epoch, (epoch + 1) * batches.batches_per_epoch)
    assert sorted(np.concatenate([batches.users(step) for step in steps])) == expected
    assert sum(len(sequences_of(batches[step])) for step in steps) == len(expected)
  assert len(batches) == 3 * batches.batches_per_epoch == 3 * batches_per_epoch(data, options)


@pytest.mark.parametrize("task", ["next_item", "masked_item"])
def test_packed_rows_hold_the_same_sequences_as_separate_rows(task):
  data = random_users()
  packed = TrainingOptions(max_length=8, row_length=16, rows_per_batch=100, num_epochs=1, task=task)
  separate = dataclasses.replace(packed, packing=False, row_length=8)
  one, other = TrainingBatches(data, packed)[0], TrainingBatches(data, separate)[0]
  assert one.sequence_id.max() > 1 and other.sequence_id.max() == 1
  assert sorted(sequences_of(one)) == sorted(sequences_of(other))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 5), st.integers(1, 9), st.integers(0, 9), st.integers(1, 5))
def test_the_sequences_of_an_epoch_do_not_depend_on_the_shape_of_the_batches(seed, max_length, extra, rows):
  data = random_users(seed)
  options = TrainingOptions(max_length=max_length, row_length=max_length + extra, rows_per_batch=rows, num_epochs=1)
  batches = TrainingBatches(data, options)
  found = sorted(sum((sequences_of(batches[i]) for i in range(len(batches))), []))
  plain = dataclasses.replace(options, packing=False, rows_per_batch=30)
  assert found == sorted(sequences_of(TrainingBatches(data, plain)[0]))


def test_padding_is_zero_in_every_field_and_on_the_right():
  options = TrainingOptions(max_length=8, row_length=16, rows_per_batch=4, num_epochs=1)
  batches = TrainingBatches(random_users(), options)
  for i in range(len(batches)):
    batch = batches[i]
    padding = batch.sequence_id == 0
    assert (np.diff(padding.astype(int), axis=1) >= 0).all()
    assert all(not leaf[padding].any() for leaf in jax.tree.leaves(batch))
    assert (batch.target_weight[~padding] == 1).all()


def test_the_last_batch_of_an_epoch_is_padded_with_empty_rows():
  options = dataclasses.replace(OPTIONS, last_split=1, rows_per_batch=2)
  batches = TrainingBatches(three_users(), options)
  assert batches.batches_per_epoch == 2
  assert batches[1].item_id.shape == (2, 4)
  assert (batches[1].sequence_id[0] > 0).any() and not batches[1].sequence_id[1].any()


def test_epochs_differ_in_order_and_the_same_seed_repeats_them():
  data = random_users()
  options = TrainingOptions(max_length=8, row_length=16, rows_per_batch=100, num_epochs=2)
  batches, again = TrainingBatches(data, options), TrainingBatches(data, options)
  assert_same_batch(batches[1], again[1])
  assert sequences_of(batches[0]) != sequences_of(batches[1])
  other = TrainingBatches(data, dataclasses.replace(options, seed=1))
  assert sequences_of(batches[0]) != sequences_of(other[0])


@pytest.mark.parametrize("task", ["next_item", "masked_item"])
def test_hosts_partition_the_global_batch(task):
  data = random_users()
  options = TrainingOptions(max_length=8, row_length=10, rows_per_batch=6, num_epochs=2, task=task)
  whole = TrainingBatches(data, options)
  hosts = [TrainingBatches(data, dataclasses.replace(options, shard_index=i, shard_count=3)) for i in range(3)]
  for step in range(len(whole)):
    shards = [host[step] for host in hosts]
    assert_same_batch(jax.tree.map(lambda *rows: np.concatenate(rows), *shards), whole[step])
    np.testing.assert_array_equal(hosts[1].users(step), whole.users(step))


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("task", ["next_item", "masked_item"])
def test_a_resumed_iterator_continues_value_for_value(task, prefetch):
  data = random_users()
  options = TrainingOptions(max_length=8, row_length=10, rows_per_batch=2, num_epochs=2, task=task)
  uninterrupted = iter(training_batches(data, options, prefetch))
  for _ in range(batches_per_epoch(data, options) + 2):  # Into the second epoch.
    next(uninterrupted)
  state = uninterrupted.get_state()
  resumed = iter(training_batches(data, options, prefetch))
  resumed.set_state(state)
  rest, again = list(uninterrupted), list(resumed)
  assert len(rest) == len(again) == batches_per_epoch(data, options) - 2
  for one, other in zip(rest, again, strict=True):
    assert_same_batch(one, other)


def test_without_a_number_of_epochs_the_batches_do_not_end():
  batches = TrainingBatches(three_users(), dataclasses.replace(OPTIONS, num_epochs=None))
  assert sorted(sequences_of(batches[10**6])) == sorted(sequences_of(batches[0]))
  assert next(iter(training_batches(three_users(), dataclasses.replace(OPTIONS, num_epochs=None)))) is not None


def test_only_the_requested_users_are_trained_on():
  options = dataclasses.replace(OPTIONS, last_split=1, only_users=(0, 1))
  batches = TrainingBatches(three_users(), options)
  assert sorted(batches.users(0)) == [0, 1] and batches.users_left_out == 0


def masked_batch(**changes):
  options = dataclasses.replace(OPTIONS, task="masked_item", last_split=1, **changes)
  return TrainingBatches(three_users(), options)[0]


def test_masked_positions_hold_the_mask_token_and_are_the_only_targets():
  for seed in range(10):
    batch = masked_batch(seed=seed, mask_probability=0.4)
    masked = batch.item_id == 10  # V + 1
    np.testing.assert_array_equal(batch.target_weight, masked.astype(np.float32))
    assert not batch.target_item[~masked].any() and (batch.target_item[masked] > 0).all()
    assert not batch.domain_id[masked].any() and not batch.action[masked].any()
    restored = np.where(masked, batch.target_item, batch.item_id).tolist()
    assert sorted(restored) == [[1, 2, 3, 4], [2, 4, 6, 0], [6, 7, 0, 0]]


def test_every_sequence_has_a_masked_event_even_at_probability_zero():
  for seed in range(10):
    np.testing.assert_array_equal(masked_batch(seed=seed, mask_probability=0.0).target_weight.sum(axis=1), [1, 1, 1])


def test_masks_have_their_probability_and_change_with_the_epoch():
  data = synthetic_data(num_users=300, num_items=48)
  options = TrainingOptions(max_length=40, row_length=40, rows_per_batch=300, packing=False, task="masked_item")
  batches = TrainingBatches(data, dataclasses.replace(options, mask_probability=0.3))
  batch = batches[0]
  long = (batch.sequence_id > 0).sum(axis=1) >= 20  # There the minimum of one mask hardly matters.
  share = batch.target_weight[long].sum() / (batch.sequence_id[long] > 0).sum()
  assert abs(share - 0.3) < 0.03
  assert sorted(sequences_of(batch)) != sorted(sequences_of(batches[1]))


def test_the_last_event_alone_can_be_masked():
  batch = masked_batch(mask_last_probability=1.0)
  last = (batch.sequence_id > 0).sum(axis=1) - 1
  np.testing.assert_array_equal(batch.target_weight.argmax(axis=1), last)
  np.testing.assert_array_equal(batch.target_weight.sum(axis=1), [1, 1, 1])


def test_positions_of_masked_sequences_count_back_from_the_latest_event():
  assert sorted(masked_batch().position.tolist()) == [[1, 0, 0, 0], [2, 1, 0, 0], [3, 2, 1, 0]]


def test_the_domain_of_a_masked_item_is_revealed_only_on_request():
  batch = masked_batch(reveal_domain=True)
  np.testing.assert_array_equal(batch.domain_id > 0, batch.sequence_id > 0)


def test_derived_rows_hold_about_the_given_number_of_users():
  data = synthetic_data(num_users=1000, num_items=48)
  options = TrainingOptions(max_length=50, row_length=128, rows_per_batch=0)
  for expected_users in (32, 128):
    rows = rows_for(data, options, expected_users)
    batches = TrainingBatches(data, dataclasses.replace(options, rows_per_batch=rows))
    users = [len(batches.users(step)) for step in range(batches.batches_per_epoch)]
    assert abs(np.mean(users) - expected_users) < 0.1 * expected_users
    assert users[-1] > 0.5 * expected_users


def test_derived_rows_divide_among_hosts_and_devices():
  data = synthetic_data(num_users=100, num_items=48)
  options = TrainingOptions(max_length=50, row_length=64, rows_per_batch=0, shard_count=3)
  assert rows_for(data, options, 20, multiple_of=2) % 6 == 0


def test_packing_efficiency_is_the_filled_share_of_the_rows():
  # Inputs with the validation event take 3, 1 and 2 positions: one full row of 3 and one of 1 + 2.
  packed = dataclasses.replace(OPTIONS, packing=True, max_length=3, row_length=3, last_split=1)
  assert packing_efficiency(three_users(), packed) == 1.0
  assert packing_efficiency(three_users(), dataclasses.replace(packed, packing=False)) == 6 / 9


def test_rows_shorter_than_a_sequence_are_refused():
  with pytest.raises(ValueError, match="row_length=3 is shorter than max_length=4"):
    TrainingBatches(three_users(), dataclasses.replace(OPTIONS, row_length=3))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"task": "next"}, "task='next' is unknown"),
    ({"request_time": "now"}, "request_time='now' is unknown"),
    ({"last_split": 2}, "last_split=2 is unknown"),
    ({"rows_per_batch": 0}, "rows_per_batch=0 must be at least 1"),
    ({"num_epochs": 0}, "num_epochs=0 must be at least 1"),
    ({"mask_probability": 1.5}, "mask_probability=1.5 must be between 0 and 1"),
    ({"shard_index": 1}, "shard_index=1 must be between 0 and shard_count=1 - 1"),
    ({"shard_count": 2}, "rows_per_batch=3 must be divisible by shard_count=2"),
    ({"only_users": (1,)}, "no user has two events"),
  ],
)
def test_contradicting_options_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    TrainingBatches(three_users(), dataclasses.replace(OPTIONS, **change))


def test_a_training_event_after_a_held_out_one_is_refused():
  split = [0, 0, 0, 1, 2, 0, 2, 1, 0, 0, 1, 2]
  with pytest.raises(ValueError, match="split of user 1 falls from 2 to 1 at event 7"):
    TrainingBatches(three_users(split=split), OPTIONS)
