"""Integers keep all of their bits on their way into JAX, or are refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import IntervalMask, RelativeBias, segment_attention, sort_by_segment, time_bucket
from pallas_kernels.bias import time_bucket_between
from pallas_kernels.integers import as_integers

INT32 = np.iinfo(np.int32)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.uint32, np.int64, np.uint64])
def test_integers_of_any_type_become_int32(dtype):
  for values in (np.array([0, 7, 127], dtype), jnp.asarray(np.array([0, 7, 127], dtype))):
    kept = as_integers("ids", values)
    assert kept.dtype == jnp.int32 and kept.tolist() == [0, 7, 127]


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2**32 + 5, 2**40, 2**63 - 1])
def test_what_jax_would_cut_is_refused_by_name(value):
  with pytest.raises(ValueError, match=f"times holds {value}, which JAX would cut to 32 bits"):
    as_integers("times", np.array([3, value]))


def test_the_64_bit_mode_keeps_wide_integers_and_narrows_others():
  with jax.enable_x64(True):
    assert as_integers("ids", np.array([2**40])).tolist() == [2**40]
    assert as_integers("ids", np.array([7])).dtype == jnp.int32
    with pytest.raises(ValueError, match="ids holds 18446744073709551615"):
      as_integers("ids", np.array([2**64 - 1], np.uint64))


def test_traced_uint32_keeps_ids_apart_and_differences_right():
  values = np.array([1, 2**31 + 5, 2**32 - 1], np.uint32)
  kept = jax.jit(lambda x: as_integers("ids", x))(values)
  assert kept.dtype == jnp.int32 and len(set(kept.tolist())) == 3 and int(kept[2] - kept[1]) == 2**31 - 6


@pytest.mark.parametrize("values", [np.array([1.0]), np.array([True]), np.array(["a"])], ids=str)
def test_other_kinds_of_numbers_are_refused(values):
  with pytest.raises(ValueError, match="ids must hold integers, not"):
    as_integers("ids", values)


@pytest.mark.unchecked_shapes
def test_the_bucket_of_a_difference_that_takes_33_bits_is_that_of_the_difference():
  edges = np.array([INT32.min, INT32.min + 1, -(2**30), -1, 0, 1, 2**30, INT32.max - 1, INT32.max], np.int32)
  seconds = np.abs(edges[:, None].astype(np.int64) - edges)
  expected = np.minimum(np.floor(np.log(np.maximum(seconds, 1)) / 0.301), 128)
  np.testing.assert_array_equal(time_bucket_between(jnp.asarray(edges)[:, None], jnp.asarray(edges)[None]), expected)
  assert time_bucket(jnp.array([INT32.min])).tolist() == [71]
  assert time_bucket(np.array([-128, 127], np.int8)).tolist() == [16, 16]


def attend(time, position, ids=((1, 1, 1, 1),), implementation="xla"):
  x = np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 4, 1, 4)
  bias = RelativeBias(
    np.linspace(-1, 1, 129, dtype=np.float32), time, time, np.linspace(-3, 3, 7, dtype=np.float32), position, position
  )
  return segment_attention(x, x, x, IntervalMask.full(np.array(ids)), bias=bias, implementation=implementation)


@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int64])
@pytest.mark.unchecked_shapes
def test_times_and_positions_of_any_type_give_the_bias_of_int32(dtype, implementation):
  time, position = np.array([[100, 3, 90, 0]]), np.array([[0, 1, 5, 120]])
  expected = attend(time.astype(np.int32), position.astype(np.int32))
  actual = attend(time.astype(dtype), position.astype(dtype), implementation=implementation)
  np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["query_time", "key_time", "query_position", "key_position"])
@pytest.mark.unchecked_shapes
def test_milliseconds_of_today_are_refused_by_the_name_of_their_field(name):
  fields = dict.fromkeys(("query_time", "key_time", "query_position", "key_position"), np.zeros((1, 4), np.int64))
  bias = RelativeBias(
    time_table=np.zeros(129, np.float32), position_table=np.zeros(3, np.float32),
    **fields | {name: np.full((1, 4), 1_700_000_000_000)},
  )  # fmt: skip
  x = np.zeros((1, 4, 1, 4), np.float32)
  with pytest.raises(ValueError, match=f"bias.{name} holds 1700000000000"):
    segment_attention(x, x, x, IntervalMask.causal(np.ones((1, 4), int)), bias=bias)


@pytest.mark.unchecked_shapes
def test_masks_of_narrow_integers_are_those_of_wide_ones():
  x = np.linspace(-1, 1, 130 * 2, dtype=np.float32).reshape(1, 130, 1, 2)
  end = np.arange(130) % 127 + 1
  results = []
  for dtype in (np.int8, np.int32):
    none = np.zeros((1, 130), dtype)
    mask = IntervalMask(none, end[None].astype(dtype), none, none, np.zeros((1, 130), bool))
    results.append(segment_attention(x, x, x, mask, implementation="xla"))
  np.testing.assert_array_equal(*results)


def test_ids_that_differ_above_32_bits_are_not_merged():
  wide = np.array([[1, 2**32 + 1, 0]])
  for build in (IntervalMask.causal, IntervalMask.full, lambda ids: IntervalMask.intra_domain(ids, ids)):
    with pytest.raises(ValueError, match="sequence_id holds 4294967297"):
      build(wide)
  with pytest.raises(ValueError, match="lengths holds 4294967297"):
    IntervalMask.hstu(wide[0], 4)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
def test_the_largest_id_of_a_type_is_not_taken_for_padding(dtype):
  largest = np.iinfo(dtype).max
  order, _ = sort_by_segment(np.array([[0, largest, 0, 3, largest]], dtype), np.array([[9, 1, 0, 1, 1]], dtype))
  assert order.tolist() == [[3, 1, 4, 2, 0]]
  smallest = np.array([[0, np.iinfo(dtype).min, 5, -1]], dtype)
  assert sort_by_segment(smallest, smallest)[0][0, -1] == 0
