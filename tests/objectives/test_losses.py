"""Losses by hand, and the full softmax that never holds the scores of all items."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.objectives.item_losses import (
  binary_cross_entropy,
  full_softmax,
  gbce_calibration,
  sampled_logits,
  sampled_softmax,
  scores_of_rows,
  scores_of_vectors,
  weighted_mean,
)

QUERY = jax.random.normal(jax.random.key(0), (2, 3, 4))
ITEMS = jax.random.normal(jax.random.key(1), (12, 4))  # Row 0 is padding.
TARGET = jnp.array([[1, 11, 4], [5, 5, 0]])


def dense_softmax(query, items, target, temperature):
  return -jnp.take_along_axis(
    jax.nn.log_softmax(query @ items[1:].T / temperature), jnp.maximum(target - 1, 0)[..., None], axis=-1
  )[..., 0]


def logits_of(negative_id, temperature):
  scores = (QUERY * ITEMS[TARGET]).sum(axis=-1), scores_of_vectors(QUERY, ITEMS[negative_id])
  return sampled_logits(*scores, TARGET, negative_id, temperature)


def test_positions_of_weight_zero_add_nothing_even_if_their_loss_is_not_finite():
  value = jnp.array([2.0, jnp.nan, jnp.inf, 6.0])
  mean, gradient = jax.value_and_grad(weighted_mean)(value, jnp.array([1.0, 0.0, 0.0, 3.0]))
  assert mean == 5
  assert gradient.tolist() == [0.25, 0, 0, 0.75]


def test_the_mean_of_nothing_is_zero():
  assert weighted_mean(jnp.array([3.0]), jnp.array([0.0])) == 0


def test_sampled_softmax_is_a_cross_entropy():
  # exp of the scores: 2 for the positive, 1 and 5 for the negatives: -ln(2 / 8).
  loss = sampled_softmax(jnp.log(jnp.array([[2.0]])), jnp.log(jnp.array([[[1.0, 5.0]]])))
  np.testing.assert_allclose(loss, [[np.log(4)]], rtol=1e-6)


def test_logits_are_scores_over_the_temperature():
  negative = scores_of_vectors(jnp.array([[[1.0, 2.0]]]), jnp.array([[0.0, 1.0], [1.0, 0.0]]))
  one, rest = sampled_logits(jnp.array([[5.0]]), negative, jnp.array([[7]]), jnp.array([8, 9]), temperature=0.5)
  assert one.tolist() == [[10]] and rest.tolist() == [[[4, 2]]]


@pytest.mark.parametrize("block_size", [1, 40, 10**6])  # One position of each row at a time, two of the three, all.
def test_rows_looked_up_in_blocks_have_the_scores_and_gradients_of_gathered_vectors(block_size):
  index = jax.random.randint(jax.random.key(2), (2, 3, 2), 0, len(ITEMS))

  def in_blocks(query, items):
    return jnp.sin(scores_of_rows(query, lambda index: items[index], index, block_size))

  def gathered(query, items):
    return jnp.sin(scores_of_vectors(query, items[index]))

  for found, expected in zip(jax.vjp(in_blocks, QUERY, ITEMS), jax.vjp(gathered, QUERY, ITEMS), strict=True):
    if callable(found):
      found, expected = found(jnp.ones((2, 3, 2))), expected(jnp.ones((2, 3, 2)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, expected)


def test_the_gathered_rows_of_all_positions_are_never_held():
  query, index = jnp.ones((4, 64, 8)), jnp.zeros((4, 64, 16), jnp.int32)

  def total(items):
    return scores_of_rows(query, lambda index: items[index], index, block_size=4 * 2 * 16 * 8).sum()

  memory = jax.jit(jax.grad(total)).lower(ITEMS[:, :1] * jnp.ones(8)).compile().memory_analysis()
  assert memory.temp_size_in_bytes < query.size * 16 * 4 / 4


@pytest.mark.parametrize("platform, has_blocks", [("cpu", True), ("tpu", False)])
def test_blocks_fit_the_device_that_a_program_is_compiled_for(platform, has_blocks):
  device = jax.sharding.AbstractDevice(platform, 1, platform)
  query, index = jax.ShapeDtypeStruct((4, 64, 128), jnp.float32), jax.ShapeDtypeStruct((4, 64, 128), jnp.int32)
  with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)):
    scores = functools.partial(scores_of_rows, rows_of=lambda index: jnp.zeros((*index.shape, 128)))
    program = jax.make_jaxpr(lambda query, index: scores(query, index=index))(query, index)
  assert ("scan" in str(program)) == has_blocks


def test_a_negative_that_equals_the_positive_counts_for_nothing():
  negative_id = jnp.array([[4, 1], [5, 6]])  # Shared by the positions of a row; targets are 1, 11, 4 and 5, 5, 0.
  positive, negative = logits_of(negative_id, 1.0)
  assert (negative == -5e4).tolist() == [[[0, 1], [0, 0], [1, 0]], [[1, 0], [1, 0], [0, 0]]]
  np.testing.assert_allclose(
    sampled_softmax(positive, negative)[0, 0], jnp.logaddexp(positive[0, 0], negative[0, 0, 0]) - positive[0, 0]
  )


def test_a_draw_gives_the_same_logits_however_it_is_shared():
  ids = jnp.array([3, 9, 4])
  shapes = ((3,), (2, 3), (2, 3, 3))
  results = [logits_of(jnp.broadcast_to(ids, shape), 0.1) for shape in shapes]
  for positive, negative in results[1:]:
    np.testing.assert_allclose(positive, results[0][0], rtol=1e-6)
    np.testing.assert_allclose(negative, results[0][1], rtol=1e-5)


def test_all_items_as_negatives_make_the_full_softmax():
  ids = jnp.arange(1, 12)
  sampled = sampled_softmax(*logits_of(ids, 0.5))
  full = full_softmax(QUERY, ITEMS, TARGET, 0.5)
  # Both subtract numbers near 16, whose neighbours in float32 are 2e-6 away.
  np.testing.assert_allclose(sampled[TARGET > 0], full[TARGET > 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 4, 11, 5000])
def test_chunks_of_items_change_neither_the_full_softmax_nor_its_gradients(chunk_size, optimized):
  def total(loss):
    return jax.jit(jax.value_and_grad(lambda query, items: (loss(query, items) * (TARGET > 0)).sum(), (0, 1)))

  value, gradients = total(lambda q, v: full_softmax(q, v, TARGET, 0.3, chunk_size))(QUERY, ITEMS)
  expected, expected_gradients = total(lambda q, v: dense_softmax(q, v, TARGET, 0.3))(QUERY, ITEMS)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  for one, other in zip(gradients, expected_gradients, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)
  assert not gradients[1][0].any()  # Padding is no item.


def test_the_full_softmax_never_holds_the_scores_of_all_items():
  positions, items = 512, 50_000
  query, table = (jax.ShapeDtypeStruct((n, 16), jnp.float32) for n in (positions, items + 1))
  target = jax.ShapeDtypeStruct((positions,), jnp.int32)
  gradient = jax.grad(lambda q, v, t: full_softmax(q, v, t, 1.0, 1024).sum(), (0, 1))
  compiled = jax.jit(gradient).lower(query, table, target).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < positions * items * 4 / 4


def test_bce_adds_the_surprise_of_each_score():
  # sigmoid(ln 3) = 3/4: -ln(3/4) for the positive, -ln(1 - 3/4) and -ln(1 - 1/2) for the negatives.
  positive, negative = jnp.full((1, 1), np.log(3.0)), jnp.array([[[np.log(3.0), 0.0]]])
  np.testing.assert_allclose(binary_cross_entropy(positive, negative), [[np.log(4 / 3 * 4 * 2)]], rtol=1e-6)
  np.testing.assert_allclose(
    binary_cross_entropy(positive, negative, 0.5), [[0.5 * np.log(4 / 3) + np.log(8)]], rtol=1e-6
  )


@pytest.mark.parametrize(
  "num_items, num_negatives, t, beta",
  [(101, 25, 0.0, 1.0), (101, 25, 1.0, 0.25), (101, 25, 0.5, 0.625), (101, 100, 0.5, 1.0), (11, 500, 1.0, 1.0)],
)
def test_calibration_goes_from_one_to_the_sampling_rate(num_items, num_negatives, t, beta):
  assert gbce_calibration(num_items, num_negatives, t) == pytest.approx(beta)


@pytest.mark.parametrize("score", [-200.0, 200.0])
def test_extreme_scores_give_finite_losses_and_gradients(score):
  positive, negative = jnp.full((1, 1), score), jnp.full((1, 1, 2), -score)
  for loss in (sampled_softmax, binary_cross_entropy):
    value, gradient = jax.value_and_grad(lambda p, n, loss=loss: loss(p, n).sum(), (0, 1))(positive, negative)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradient)


def test_one_item_needs_no_calibration_and_no_negatives_are_refused():
  assert gbce_calibration(1, 4, 0.75) == 1
  with pytest.raises(ValueError, match="num_negatives=0 must be at least 1"):
    gbce_calibration(10, 0, 0.75)
