"""The min-norm solver against an independent solver, the optimality conditions, and degenerate problems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

from jaxrec.multi_objective import min_norm_weights
from jaxrec.multi_objective.min_norm import simplex_minimum

SIZES = [2, 3, 5, 8, 16]
WEIGHTS = jax.jit(min_norm_weights)
SOLVE = jax.jit(jax.vmap(min_norm_weights))


def gradients(kind, size, count=30):
  """Returns `count` problems `[count, K, P]`."""
  rng = np.random.default_rng(size)
  vectors = rng.normal(size=(count, size, 3 if kind == "low rank" else 20))
  if kind == "acute":
    vectors += 2
  if kind == "nearly parallel":
    vectors = rng.normal(size=(count, 1, 20)) + 1e-4 * vectors
  if kind == "duplicates":
    vectors[:, 1::2] = vectors[:, :1]
  if kind == "scales":
    vectors *= 10 ** rng.uniform(-3, 3, size=(count, size, 1))
  if kind == "ill-conditioned":
    vectors = vectors * 10.0 ** -np.minimum(np.arange(20), 8) + (np.arange(20) == 0)
  return vectors


KINDS = ["random", "acute", "low rank", "nearly parallel", "duplicates", "scales", "ill-conditioned"]


def independent_weights(vectors):
  """Solves by nonnegative least squares: one more row imposes sum 1 (Lawson & Hanson 1974, chapter 23)."""
  scale = np.sqrt((vectors**2).sum(1).max())
  system = np.vstack([vectors.T, np.full(len(vectors), scale)])
  solution = nnls(system, np.append(np.zeros(vectors.shape[1]), scale))[0]
  return solution / solution.sum()


def solve(gram, dtype):
  with jax.enable_x64(dtype == np.float64):
    return np.asarray(SOLVE(jnp.asarray(gram, dtype)), np.float64)


def squared_norm(weights, vectors):
  return (np.einsum("ck,ckp->cp", weights, vectors) ** 2).sum(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_the_norm_equals_that_of_an_independent_solver(size, kind):
  vectors = gradients(kind, size)
  gram = vectors @ vectors.swapaxes(1, 2)
  expected = squared_norm(np.stack([independent_weights(v) for v in vectors]), vectors)
  largest = np.diagonal(gram, axis1=1, axis2=2).max(1)
  for dtype, tolerance in ((np.float64, 1e-14), (np.float32, 1e-6)):
    weights = solve(gram, dtype)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    assert (squared_norm(weights, vectors) <= expected + tolerance * largest).all()


@pytest.mark.parametrize("kind", ["random", "acute", "scales"])
@pytest.mark.parametrize("size", SIZES)
def test_unique_weights_equal_those_of_an_independent_solver(size, kind):
  vectors = gradients(kind, size)
  expected = np.stack([independent_weights(v) for v in vectors])
  np.testing.assert_allclose(solve(vectors @ vectors.swapaxes(1, 2), np.float64), expected, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_combined_gradient_descends_on_every_objective_at_least_as_fast_as_on_those_with_weight(kind):
  vectors = gradients(kind, 16)
  gram = vectors @ vectors.swapaxes(1, 2)
  weights = solve(gram, np.float64)
  slope = np.einsum("ckj,cj->ck", gram, weights)
  excess = slope - (slope * weights).sum(1, keepdims=True)
  scale = 1e-12 * np.diagonal(gram, axis1=1, axis2=2).max(1, keepdims=True)
  assert (excess > -scale).all()
  assert (np.abs(excess * (weights > 1e-12)) < scale).all()


@pytest.mark.parametrize("size", SIZES)
def test_identical_gradients_share_equally(size):
  np.testing.assert_allclose(WEIGHTS(jnp.full((size, size), 7.0)), np.full(size, 1 / size), rtol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1.0, 1e20, 3e38])
def test_weights_do_not_depend_on_the_scale(size, scale):
  gram = jnp.diag(1 / jnp.arange(1.0, size + 1))  # orthogonal: inverse squared norms
  expected = np.arange(1, size + 1) / np.arange(1, size + 1).sum()
  np.testing.assert_allclose(WEIGHTS(gram * scale), expected, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_a_zero_gradient_gets_all_the_weight_unless_it_is_excluded(size):
  gram = jnp.diag(jnp.arange(1.0, size + 1)).at[1, 1].set(0)
  np.testing.assert_allclose(WEIGHTS(gram), np.arange(size) == 1, atol=1e-6)
  rest = np.where(np.arange(size) == 1, 0, 1 / np.arange(1, size + 1))
  np.testing.assert_allclose(WEIGHTS(gram, jnp.arange(size) != 1), rest / rest.sum(), atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_all_gradients_zero_is_not_a_division_by_zero(size):
  zero = jnp.zeros((size, size))
  for participates in (None, jnp.zeros(size, bool)):
    np.testing.assert_allclose(WEIGHTS(zero, participates), 1 / size, rtol=1e-6)


@pytest.mark.parametrize("size", [1, *SIZES])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_inputs_make_every_weight_nan(size, bad):
  for where in ((0, 0), (size - 1, 0)):
    assert np.isnan(WEIGHTS(jnp.eye(size).at[where].set(bad))).all()


@pytest.mark.parametrize("size", SIZES)
def test_a_gram_matrix_made_indefinite_by_rounding_still_gives_weights(size):
  rng = np.random.default_rng(size)
  noise = 1e-3 * rng.normal(size=(size, size))
  weights = WEIGHTS(jnp.asarray(1 + noise + noise.T, jnp.float32))
  assert (weights >= 0).all() and abs(weights.sum() - 1) < 1e-5


def test_a_linear_term_is_taken_into_account():
  quadratic = jnp.diag(jnp.array([1.0, 1.0, 1.0]))
  np.testing.assert_allclose(simplex_minimum(quadratic, jnp.array([0.0, 0.0, 5.0])), [0.5, 0.5, 0], atol=1e-6)
  np.testing.assert_allclose(
    simplex_minimum(quadratic, jnp.array([0.0, 0.3, 0.6])), [19 / 30, 1 / 3, 1 / 30], atol=1e-6
  )


def test_one_objective_has_weight_one():
  assert WEIGHTS(jnp.array([[5.0]])).tolist() == [1.0]
