"""Sequence packing: best fit, no overlap, high fill, and a new order for each epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.data.batches.packing import pack, reshuffle, separate_rows

lengths_and_row = st.integers(1, 20).flatmap(
  lambda row_length: st.tuples(st.lists(st.integers(1, row_length), min_size=1, max_size=40), st.just(row_length))
)


def test_a_sequence_goes_where_it_fills_the_free_space_best():
  # 3 and 2 share the first row, 3 and 2 the second; the last 3 needs a new one.
  packing = pack(np.array([3, 2, 3, 2, 3]), row_length=5)
  np.testing.assert_array_equal(packing.row, [0, 0, 1, 1, 2])
  np.testing.assert_array_equal(packing.column, [0, 3, 0, 3, 0])
  np.testing.assert_array_equal(packing.sequence_id, [1, 2, 1, 2, 1])
  assert packing.num_rows == 3


def test_the_smallest_sufficient_gap_is_taken_and_not_the_first_one():
  packing = pack(np.array([4, 6, 4]), row_length=10)
  np.testing.assert_array_equal(packing.row, [0, 0, 1])
  packing = pack(np.array([5, 6, 4]), row_length=10)  # Gaps of 5 and 4.
  np.testing.assert_array_equal(packing.row, [0, 1, 1])


@settings(deadline=None, max_examples=50)
@given(lengths_and_row)
def test_no_two_sequences_overlap_and_none_leaves_its_row(case):
  lengths, row_length = np.array(case[0]), case[1]
  packing = pack(lengths, row_length)
  taken = np.zeros((packing.num_rows, row_length), int)
  for row, column, length in zip(packing.row, packing.column, lengths, strict=True):
    assert column + length <= row_length
    taken[row, column : column + length] += 1
  assert taken.max() == 1 and taken.sum() == lengths.sum()


@settings(deadline=None, max_examples=50)
@given(lengths_and_row, st.integers(0, 3))
def test_a_reshuffled_packing_holds_each_sequence_once_at_a_position_of_its_length(case, epoch):
  lengths, row_length = np.array(case[0]), case[1]
  packing, sequence = reshuffle(pack(lengths, row_length), lengths, (7, epoch))
  assert sorted(sequence) == list(range(len(lengths)))
  assert (np.diff(packing.row) >= 0).all()
  taken = np.zeros((packing.num_rows, row_length), int)
  for row, column, k in zip(packing.row, packing.column, sequence, strict=True):
    taken[row, column : column + lengths[k]] += 1
  assert taken.max() == 1 and taken.sum() == lengths.sum()


def test_at_most_one_row_is_less_than_half_full():
  lengths = np.random.default_rng(0).integers(1, 50, 500)
  packing = pack(lengths, row_length=64)
  filled = np.bincount(packing.row, weights=lengths)
  assert (filled <= 32).sum() <= 1


def test_random_lengths_fill_more_than_95_percent():
  lengths = np.random.default_rng(0).integers(10, 200, 2000)
  assert lengths.sum() / (pack(lengths, 512).num_rows * 512) > 0.95


def test_separate_rows_hold_one_sequence_each():
  packing = separate_rows(np.array([3, 5, 2]), row_length=5)
  np.testing.assert_array_equal(packing.row, [0, 1, 2])
  np.testing.assert_array_equal(packing.column, [0, 0, 0])


@pytest.mark.parametrize("pack_rows", [pack, separate_rows])
def test_a_sequence_longer_than_a_row_is_refused(pack_rows):
  with pytest.raises(ValueError, match="length 6 does not fit into row_length=5"):
    pack_rows(np.array([2, 6]), 5)


@pytest.mark.parametrize("pack_rows", [pack, separate_rows])
def test_an_empty_sequence_is_refused(pack_rows):
  with pytest.raises(ValueError, match="length 0 cannot be packed"):
    pack_rows(np.array([2, 0]), 5)
