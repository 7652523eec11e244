"""Draws of negatives: what is drawn, how often, and with which probability we say it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.objectives.negatives import IN_BATCH, log_probability, sample_in_batch, sample_items

V = 20


def assert_drawn_with(probability, drawn):
  """Pearson's statistic stays below mean + 5 standard deviations of its distribution."""
  counts = np.bincount(np.asarray(drawn).reshape(-1), minlength=len(probability) + 1)[1:]
  assert counts.sum() == drawn.size, "an id outside 1..V"
  expected = np.asarray(probability, np.float64) * drawn.size
  freedom = len(probability) - 1
  assert ((counts - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("sampler", ["uniform", "log_uniform"])
def test_items_are_drawn_as_often_as_the_log_probability_says(sampler):
  probability = jnp.exp(log_probability(sampler, jnp.arange(1, V + 1), V))
  np.testing.assert_allclose(probability.sum(), 1, rtol=1e-5)
  assert_drawn_with(probability, sample_items(jax.random.key(0), sampler, (100, 1000), V))


def test_log_uniform_draws_item_one_half_of_the_time_among_three():
  # ln(2/1) / ln(4), ln(3/2) / ln(4), ln(4/3) / ln(4)
  probability = jnp.exp(log_probability("log_uniform", jnp.array([1, 2, 3]), 3))
  np.testing.assert_allclose(probability, [0.5, 0.29248, 0.20752], atol=1e-5)


def test_a_draw_depends_on_its_key_alone():
  one, same, other = (sample_items(jax.random.key(seed), "uniform", (50,), V).tolist() for seed in (1, 1, 2))
  assert one == same != other


def test_one_item_is_all_that_can_be_drawn():
  for sampler in ("uniform", "log_uniform"):
    assert set(sample_items(jax.random.key(0), sampler, (50,), 1).tolist()) == {1}


def test_distinct_targets_of_the_batch_are_equally_likely():
  target = jnp.array([[3, 3, 3, 3], [1, 2, 3, 4], [4, 5, 0, 0]])
  weight = (target != 0) & (target != 5)  # Item 5 is not predicted.
  drawn = sample_in_batch(jax.random.key(0), (40_000,), target, weight.astype(jnp.float32))
  assert_drawn_with([0.25] * 4, drawn)


def test_without_removal_of_duplicates_a_target_is_as_likely_as_it_is_frequent():
  target = jnp.array([[3, 3, 0, 3], [1, 2, 3, 4], [4, 5, 0, 0]])
  weight = (target != 0) & (target != 5)
  arguments = (jax.random.key(0), (40_000,), target, weight.astype(jnp.float32))
  drawn = sample_in_batch(*arguments, sampler="in_batch_frequency")
  assert_drawn_with([1 / 8, 1 / 8, 4 / 8, 2 / 8], drawn)


@pytest.mark.parametrize("sampler", IN_BATCH)
def test_a_batch_without_targets_gives_padding(sampler):
  drawn = sample_in_batch(jax.random.key(0), (2, 3), jnp.array([[5, 6]]), jnp.zeros((1, 2)), sampler)
  assert drawn.tolist() == [[0] * 3] * 2


def test_an_unknown_sampler_is_refused():
  with pytest.raises(ValueError, match=r"sampler='popularity' is not one of \('uniform', 'log_uniform'\)"):
    sample_items(jax.random.key(0), "popularity", (1,), V)
  with pytest.raises(ValueError, match="sampler='in_batch' has no known probabilities"):
    log_probability("in_batch", jnp.array([1]), V)
  with pytest.raises(ValueError, match=r"sampler='uniform' is not one of \('in_batch', 'in_batch_frequency'\)"):
    sample_in_batch(jax.random.key(0), (1,), jnp.array([[1]]), jnp.ones((1, 1)), "uniform")
