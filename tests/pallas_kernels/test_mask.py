"""Masks against definitions that ask one question for one pair of tokens, and the tiles that attention computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import IntervalMask, count_live_tiles, permute, sort_by_segment
from pallas_kernels.schedule import interior_tiles, live_tiles, work_list

N = 12
SEQUENCE = jnp.array([[1, 1, 1, 1, 1, 1, 2, 2, 2, 0, 0, 0], [3, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5], [0] * N])
DOMAIN = jnp.array([[1, 2, 1, 3, 2, 1, 2, 1, 2, 0, 0, 0], [2, 2, 2, 1, 1, 2, 1, 2, 3, 1, 3, 2], [0] * N])

packed_rows = st.lists(st.integers(1, 5), max_size=4).map(
  lambda lengths: (np.repeat(np.arange(len(lengths)), lengths) + 1).tolist()[:N]
)


@functools.partial(jax.jit, static_argnums=1)
def dense(mask, num_keys=N):
  """`mask.to_dense`, compiled once for each shape."""
  return mask.to_dense(num_keys)


def matrix(may_read, num_queries=N, num_keys=N):
  """The dense mask of a definition `may_read(query, key)`."""
  return np.array([[may_read(i, j) for j in range(num_keys)] for i in range(num_queries)])


def assert_mask(mask, definition):
  """Each row of `mask` holds exactly the pairs for which `definition(row, query, key)` is true."""
  expected = np.stack([matrix(functools.partial(definition, row)) for row in range(mask.shape[0])])
  np.testing.assert_array_equal(dense(mask), expected)


def test_a_causal_token_reads_itself_and_earlier_tokens_of_its_sequence():
  sequence = SEQUENCE.tolist()
  assert_mask(IntervalMask.causal(SEQUENCE), lambda b, i, j: j <= i and sequence[b][i] == sequence[b][j] != 0)


def test_a_full_token_reads_its_whole_sequence():
  sequence = SEQUENCE.tolist()
  assert_mask(IntervalMask.full(SEQUENCE), lambda b, i, j: sequence[b][i] == sequence[b][j] != 0)


@settings(deadline=None, max_examples=25)
@given(packed_rows)
def test_any_packing_keeps_sequences_apart(row):
  row = row + [0] * (N - len(row))
  causal, full = (build(jnp.array([row])) for build in (IntervalMask.causal, IntervalMask.full))
  assert_mask(causal, lambda b, i, j: j <= i and row[i] == row[j] != 0)
  assert_mask(full, lambda b, i, j: row[i] == row[j] != 0)


def test_a_position_that_does_not_grow_starts_a_new_sequence():
  ids, position = jnp.array([[7, 7, 7, 7, 7, 0]]), jnp.array([[0, 1, 0, 1, 1, 0]])
  assert IntervalMask.causal(ids, position).to_dense(6)[0].astype(int).tolist() == [
    [1, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0],
    [0, 0, 1, 0, 0, 0],
    [0, 0, 1, 1, 0, 0],
    [0, 0, 0, 0, 1, 0],
    [0, 0, 0, 0, 0, 0],
  ]


def test_sorted_by_segment_a_token_reads_earlier_tokens_of_its_sequence_and_domain():
  order, inverse = sort_by_segment(SEQUENCE, DOMAIN)
  sequence, domain = (jnp.take_along_axis(x, order, axis=1) for x in (SEQUENCE, DOMAIN))
  mask, inverse = np.asarray(dense(IntervalMask.intra_domain(sequence, domain))), np.asarray(inverse)
  unsorted = np.stack([mask[b][inverse[b]][:, inverse[b]] for b in range(3)])
  s, d = SEQUENCE.tolist(), DOMAIN.tolist()
  expected = [matrix(lambda i, j, b=b: j <= i and s[b][i] == s[b][j] != 0 and d[b][i] == d[b][j]) for b in range(3)]
  np.testing.assert_array_equal(unsorted, expected)


def test_intra_domain_separates_neighbours_of_one_domain_from_two_sequences():
  mask = IntervalMask.intra_domain(jnp.array([[4, 4, 4, 4]]), jnp.array([[1, 1, 1, 2]]), jnp.array([[0, 1, 0, 1]]))
  assert mask.to_dense(4)[0].astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_sorting_brings_segments_together_keeps_their_time_order_and_puts_padding_last():
  order, inverse = sort_by_segment(jnp.array([[0, 2, 2, 1, 1, 1]]), jnp.array([[0, 1, 1, 2, 1, 2]]))
  assert order.tolist() == [[4, 3, 5, 1, 2, 0]]
  assert inverse.tolist() == [[5, 3, 4, 1, 0, 2]]


def test_a_permutation_and_its_gradient_are_those_of_take_along_axis():
  order, inverse = sort_by_segment(SEQUENCE, DOMAIN)
  x, d_out = (jax.random.normal(jax.random.key(seed), (3, N, 2)) for seed in (0, 1))
  out, pull_back = jax.vjp(lambda x: permute(x, order, inverse), x)
  expected, expected_pull_back = jax.vjp(lambda x: jnp.take_along_axis(x, order[..., None], axis=1), x)
  np.testing.assert_array_equal(out, expected)
  np.testing.assert_array_equal(pull_back(d_out)[0], expected_pull_back(d_out)[0])
  np.testing.assert_array_equal(permute(out, inverse, order), x)


@pytest.mark.parametrize("look_back", [0, 1, 3, N])
def test_a_limited_mask_forgets_what_lies_further_back(look_back):
  sequence = SEQUENCE.tolist()
  mask = IntervalMask.full(SEQUENCE).limited(look_back)
  assert_mask(mask, lambda b, i, j: j >= i - look_back and sequence[b][i] == sequence[b][j] != 0)


@pytest.mark.parametrize("build", [lambda: IntervalMask.causal(SEQUENCE), lambda: hstu([(12, 3), (7, 2), (0, 0)])])
def test_some_queries_keep_their_rows_of_the_mask(build):
  whole = build()
  part = whole.queries(3, 4)
  np.testing.assert_array_equal(dense(part), dense(whole)[:, 3:7])
  np.testing.assert_array_equal(dense(part.limited(2)), dense(whole.limited(2))[:, 3:7])
  np.testing.assert_array_equal(dense(part.queries(1, 2)), dense(whole)[:, 4:6])


def may_read_hstu(i, j, length, targets, look_back, prefix, full_rows, causal):
  """The option grid for one pair: prefix tokens share place 0, targets share the place after the history."""
  if max(i, j) >= length:
    return False
  shift = max(prefix - 1, 0)
  end = length - shift - targets
  place_i, place_j = (min(max(x - shift, 0), end) for x in (i, j))
  if i == j or (prefix and place_i == 0 and place_j < end):
    return True
  distance = place_i - place_j if causal else abs(place_i - place_j)
  sees_far = not look_back or (full_rows and place_i >= end - full_rows)
  return distance > 0 and (sees_far or distance <= look_back)


hstu_rows = st.lists(
  st.integers(0, N).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), min_size=3, max_size=3
)


@settings(deadline=None, max_examples=80)
@given(hstu_rows, st.integers(0, 5), st.integers(0, 4), st.integers(0, 4), st.booleans())
def test_hstu_options_mean_what_they_say(rows, look_back, prefix, full_rows, causal):
  mask = hstu(rows, look_back, prefix, full_rows, causal)
  assert_mask(mask, lambda b, i, j: may_read_hstu(i, j, *rows[b], look_back, prefix, full_rows, causal))
  in_a, in_b = (
    (start[..., None] <= np.arange(N)) & (np.arange(N) < end[..., None])
    for start, end in ((mask.start_a, mask.end_a), (mask.start_b, mask.end_b))
  )
  assert not (in_a & in_b).any(), "the two intervals of a query overlap"


def hstu(rows, look_back=0, prefix=0, full_rows=0, causal=True):
  lengths, targets = jnp.array(rows, jnp.int32).T
  return IntervalMask.hstu(
    lengths, N, num_targets=targets, max_attention_length=look_back, contextual_length=prefix,
    min_full_attention_length=full_rows, causal=causal,
  )  # fmt: skip


def test_targets_read_the_history_and_themselves_but_not_each_other():
  mask = IntervalMask.hstu(jnp.array([4]), 5, num_targets=jnp.array([2]))
  assert mask.to_dense(5)[0].astype(int).tolist() == [
    [1, 0, 0, 0, 0],
    [1, 1, 0, 0, 0],
    [1, 1, 1, 0, 0],
    [1, 1, 0, 1, 0],
    [0, 0, 0, 0, 0],
  ]


def test_no_targets_are_the_same_as_zero_targets():
  lengths = jnp.array([12, 5, 1])
  for options in ({}, {"contextual_length": 3}, {"max_attention_length": 2, "causal": False}):
    none = IntervalMask.hstu(lengths, N, **options)
    zero = IntervalMask.hstu(lengths, N, num_targets=jnp.zeros(3, jnp.int32), **options)
    np.testing.assert_array_equal(dense(none), dense(zero))


MASKS = {
  "causal": IntervalMask.causal(SEQUENCE),
  "full": IntervalMask.full(SEQUENCE),
  "limited": IntervalMask.full(SEQUENCE).limited(2),
  "intra_domain": IntervalMask.intra_domain(SEQUENCE, jnp.where(SEQUENCE == 0, 0, jnp.arange(N) // 4)),
  "hstu": hstu([(9, 2), (12, 0), (0, 0)], look_back=3, prefix=2, full_rows=2),
  "hstu_not_causal": hstu([(9, 2), (12, 0), (0, 0)], look_back=3, causal=False),
}


@pytest.mark.parametrize("name", MASKS)
def test_padding_reads_nothing_and_is_read_by_nothing(name):
  may_read, is_padding = np.asarray(dense(MASKS[name])), np.asarray(SEQUENCE == 0)
  assert not may_read[is_padding].any()
  assert not may_read.swapaxes(1, 2)[is_padding].any()


def test_building_under_jit_changes_nothing():
  def build(ids, lengths):
    return IntervalMask.causal(ids).limited(4), IntervalMask.hstu(lengths, N, num_targets=lengths // 2)

  lengths = jnp.array([12, 5, 0])
  jax.tree.map(np.testing.assert_array_equal, jax.jit(build)(SEQUENCE, lengths), build(SEQUENCE, lengths))


@pytest.mark.parametrize("block_q, block_k", [(1, 1), (2, 3), (4, 4), (6, 2), (12, 12)])
def test_every_pair_that_is_read_lies_in_a_live_tile(block_q, block_k):
  find_live = jax.jit(lambda mask: live_tiles(mask, N, block_q, block_k))
  for mask in MASKS.values():
    tiles = np.asarray(dense(mask)).reshape(3, N // block_q, block_q, N // block_k, block_k)
    needed, live = tiles.any(axis=(2, 4)), np.asarray(find_live(mask))
    assert not (needed & ~live).any()
    if block_q == block_k == 1:
      np.testing.assert_array_equal(live, needed)


@pytest.mark.parametrize("multiple", [1, 5, 100])
@pytest.mark.parametrize("name", ["causal", "full"])
def test_the_work_list_names_each_live_tile_once_those_without_a_mask_first(name, multiple):
  mask = MASKS[name]
  work = work_list(mask, N, 2, 3, multiple)
  live, interior = (np.asarray(tiles(mask, N, 2, 3)) for tiles in (live_tiles, interior_tiles))
  assert interior.any() and (live & ~interior).any()
  expected = [(b * 6 + i, b * 4 + j) for part in (interior, live & ~interior) for b, i, j in np.argwhere(part)]
  count = int(work.count)
  pairs = zip(work.query_tile.tolist()[:count], work.key_tile.tolist()[:count], strict=True)
  assert list(pairs) == expected
  assert work.interior == interior.sum()
  assert work.query_tile.size == work.key_tile.size == -(-live.size // multiple) * multiple


@functools.partial(jax.jit, static_argnums=(0, 2))
def number_of_tiles(build, ids, block):
  """Live tiles of the mask that `build` makes of `ids`."""
  return live_tiles(build(ids), ids.shape[1], block, block).sum()


def test_a_mask_without_pairs_has_no_live_tile():
  assert number_of_tiles(IntervalMask.causal, jnp.zeros((1, 1024), jnp.int32), 32) == 0


def test_eight_balanced_domains_leave_an_eighth_of_the_causal_tiles_and_the_diagonal():
  one, eight = jnp.ones((1, 1024), jnp.int32), jnp.arange(1024)[None] // 128 + 1
  # 32 tiles of 32 tokens: the causal half is 32 * 33 / 2. Sorted, each of 8 domains has 4 tiles a side: 8 * 4 * 5 / 2.
  assert number_of_tiles(IntervalMask.causal, one, 32) == 528
  assert number_of_tiles(lambda domain: IntervalMask.intra_domain(one, domain), eight, 32) == 80


def test_a_window_leaves_a_band_of_tiles():
  ids = jnp.ones((1, 1024), jnp.int32)
  assert number_of_tiles(lambda ids: IntervalMask.causal(ids).limited(32), ids, 32) == 32 + 31  # And the tile before.


def test_lengths_that_blocks_do_not_divide_are_padded():
  # Queries 0-4 of the first row read keys 0-5, queries 5-9 keys 0-8, 10 and 11 are padding; the second row is full.
  assert count_live_tiles(MASKS["full"], N, block_q=5, block_k=7) == (1 + 2 + 0) + 3 * 2 + 0


def test_negative_lengths_are_refused():
  with pytest.raises(ValueError, match="look_back=-1 must not be negative"):
    MASKS["causal"].limited(-1)
  for name in ("max_attention_length", "contextual_length", "min_full_attention_length"):
    with pytest.raises(ValueError, match=f"{name}=-2 must not be negative"):
      IntervalMask.hstu(jnp.array([3]), 4, **{name: -2})
