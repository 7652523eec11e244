"""Packed candidates: the examples are those of separate rows, every target comes once, users do not mix."""

import numpy as np
import pytest

from jaxrec.data.batches.candidates import CandidateData, CandidateOptions
from jaxrec.data.batches.packed_training import PackedTraining
from jaxrec.data.prepared import TRAIN, VALIDATION, PreparedData

OPTIONS = {"history_length": 7, "min_events": 8, "target_stride": 2, "targets_per_user": 6, "seed": 1}


def examples_of(lengths, **options):
  rng = np.random.default_rng(0)
  items = rng.integers(1, 60, sum(lengths))
  data = PreparedData.from_columns(
    user=np.repeat(np.arange(len(lengths)), lengths), item_id=items, domain_id=items % 3 + 1, num_items=60,
    item_domain=[0, *(np.arange(1, 61) % 3 + 1)],
  )  # fmt: skip
  return CandidateData(data, CandidateOptions(**{**OPTIONS, **options}))


def rows(batch):
  """Each candidate as a tuple of all that a model reads of it."""
  columns = (batch.history_item, batch.history_category, batch.history_age)
  lists = [np.asarray(column).tolist() for column in columns]
  ids = [np.asarray(x).tolist() for x in (batch.item, batch.category, batch.label, batch.user_id)]
  return [(*map(tuple, histories), *one) for *histories, one in zip(*lists, zip(*ids, strict=True), strict=True)]


def all_rows(examples, split):
  return rows(examples.batch(split, np.arange(examples.num_examples(split))))


def epoch_of(batches, epoch=0):
  steps = range(epoch * batches.batches_per_epoch, (epoch + 1) * batches.batches_per_epoch)
  return [row for step in steps for row in rows(batches[step].unpacked())]


@pytest.mark.parametrize("targets_per_row", [1, 2, 3, 6])
def test_the_examples_of_an_epoch_are_those_of_separate_rows(targets_per_row):
  """Of users of 40 events all histories are full, of one of 19 events some are not."""
  examples = examples_of([40, 40, 19, 40])
  each = 3 * targets_per_row
  batches = PackedTraining(examples, each, 2, seed=0, targets_per_row=targets_per_row)
  assert (len(batches), batches.examples_left_out) == (2 * batches.batches_per_epoch, 0)
  first, second = (epoch_of(batches, epoch) for epoch in (0, 1))
  assert sorted(first) == sorted(second) == sorted(all_rows(examples, TRAIN))
  assert first != second


def test_targets_that_do_not_fill_a_row_differ_from_epoch_to_epoch():
  examples = examples_of([40, 40, 10])  # 6, 6 and 4 targets: 4 rows of 3 and 1 of 4 - 3.
  batches = PackedTraining(examples, 9, 20, seed=0, targets_per_row=3)
  assert batches.batches_per_epoch == 5 and batches.examples_left_out == (16 - 15) * 3
  seen = [epoch_of(batches, epoch) for epoch in range(20)]
  for epoch in seen:
    clicked = [row for row in epoch if row[-2] == 1]
    assert len(set(clicked)) == len(clicked) == 15
  assert {row for epoch in seen for row in epoch} == set(all_rows(examples, TRAIN))


def test_a_row_holds_the_events_that_its_histories_cover_and_no_more():
  batch = PackedTraining(examples_of([40, 40]), 18, 1, seed=0, targets_per_row=6)[0]
  assert batch.history_item.shape == (1, 7 + 5 * 2) and batch.end.tolist() == [[7, 9, 11, 13, 15, 17]]


def test_training_on_two_splits_visits_the_examples_of_both():
  examples = examples_of([40] * 5)
  batches = PackedTraining(examples, 21, 1, seed=0, targets_per_row=7, splits=(TRAIN, VALIDATION))
  expected = all_rows(examples, TRAIN) + all_rows(examples, VALIDATION)
  assert sorted(epoch_of(batches)) == sorted(expected)


def test_hosts_share_the_rows_of_a_batch():
  examples = examples_of([40] * 6)
  whole = PackedTraining(examples, 36, 1, seed=0, targets_per_row=3)
  parts = [PackedTraining(examples, 36, 1, 0, 3, shard_index=i, shard_count=2) for i in range(2)]
  for step in range(len(whole)):
    expected = rows(whole[step].unpacked())
    assert [row for part in parts for row in rows(part[step].unpacked())] == expected
    assert rows(parts[0].whole(step).unpacked()) == expected


def test_batches_that_rows_do_not_fill_are_errors():
  with pytest.raises(ValueError, match="batch_size=10 must be divisible by 9 candidates of a row"):
    PackedTraining(examples_of([40]), 10, 1, seed=0, targets_per_row=3)
  with pytest.raises(ValueError, match="batch_size=27 must be at most 18, the examples in rows of 3 targets"):
    PackedTraining(examples_of([40]), 27, 1, seed=0, targets_per_row=3)
