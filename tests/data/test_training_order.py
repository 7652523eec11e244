"""Users in the order of the data, and shares of the users."""

import numpy as np
import pytest
import tiny_run
from ml_collections import ConfigDict

from jaxrec.data.batches.training import TrainingBatches, TrainingOptions
from jaxrec.data.prepared import PreparedData
from jaxrec.train.sequence_task import train_users


def stream(lengths):
  """Users with so many events, who have their own number as items."""
  return PreparedData.from_columns(
    offsets=np.concatenate([[0], np.cumsum(lengths)]),
    item_id=np.repeat(np.arange(len(lengths)), lengths) + 1,
    split=np.zeros(sum(lengths), int),
  )


def users_of_epoch(data, epoch, **options):
  batches = TrainingBatches(data, TrainingOptions(max_length=4, rows_per_batch=3, **options))
  steps = range(epoch * batches.batches_per_epoch, (epoch + 1) * batches.batches_per_epoch)
  return [int(user) for step in steps for user in batches.users(step)]


@pytest.mark.parametrize("packing", [False, True])
def test_a_stream_is_read_in_its_order_in_each_epoch(packing):
  data = stream([5] * 20)
  for epoch in (0, 1):
    assert users_of_epoch(data, epoch, row_length=8, packing=packing, order="given") == list(range(20))


def test_packed_rows_of_a_stream_are_in_the_order_of_their_first_users():
  data = stream([4, 2, 5, 2, 3, 5, 2, 4])
  batches = TrainingBatches(data, TrainingOptions(max_length=4, row_length=4, rows_per_batch=1, order="given"))
  first = [int(batches.users(step)[0]) for step in range(batches.batches_per_epoch)]
  assert first == sorted(first) and sorted(users_of_epoch(data, 0, row_length=4, order="given")) == list(range(8))


def test_shuffled_epochs_have_all_users_in_other_orders():
  data = stream([5] * 20)
  one, two = (users_of_epoch(data, epoch, row_length=8) for epoch in (0, 1))
  assert sorted(one) == sorted(two) == list(range(20)) and one != two != list(range(20))


def test_an_unknown_order_is_refused():
  with pytest.raises(ValueError, match="order='sorted' is unknown; use one of .*given"):
    users_of_epoch(stream([5] * 4), 0, row_length=8, order="sorted")


def config_with_share(share, seed=42):
  config = ConfigDict(tiny_run.get_config().to_dict())
  config.data.train_share, config.seed = share, seed
  return config


def test_a_smaller_share_is_part_of_a_larger_one_whatever_the_seed():
  data = stream([5] * 400)
  small, large = (set(train_users(config_with_share(share), data, 0)) for share in (0.1, 0.5))
  assert small < large and len(small) == 40 and len(large) == 200
  assert set(train_users(config_with_share(0.1, seed=1), data, 0)) == small
  assert train_users(config_with_share(1.0), data, 0) is None


def test_a_share_without_a_user_is_refused():
  with pytest.raises(ValueError, match="train_share=0.001: all of them"):
    train_users(config_with_share(0.001), stream([0, 0, 0, 5]), 0)
