"""Weightings of objectives, against values worked by hand and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import REPOSITORY
from scipy.optimize import minimize

import jaxrec.multi_objective
from jaxrec.multi_objective.conflicts import cagrad, pcgrad
from jaxrec.multi_objective.pareto_mtl import pareto, pareto_weights, preference_vectors
from jaxrec.multi_objective.weighting import WEIGHTINGS, build, fixed, mgda, uncertainty

KEY = jax.random.key(0)
EXAMPLES = [
  *(fixed([1, 2]), uncertainty(0.1), pcgrad(), cagrad()),
  *(mgda(normalization) for normalization in ("none", "l2", "loss", "loss+")),
  *(pareto(directions=directions) for directions in ("constraints", "gradients_and_constraints")),
]


def weights_of(weighting, gram, losses, key=KEY):
  gram = jnp.asarray(gram, float)
  return np.asarray(jitted(weighting)(gram, jnp.asarray(losses, float), weighting.init(len(gram)), key)[0])


@functools.cache
def jitted(weighting):
  return jax.jit(weighting.update)


def pair(cosine, first=1.0, second=1.0):
  return [[first**2, first * second * cosine], [first * second * cosine, second**2]]


def test_fixed_weights_are_returned():
  assert weights_of(fixed([1, 0.25]), pair(0), [1, 1]).tolist() == [1, 0.25]
  with pytest.raises(ValueError, match=r"weights=\(1.0, 2.0\) are for 2 objectives, but there are 3"):
    fixed([1, 2]).init(3)


def test_uncertainty_starts_at_one_and_goes_to_inverse_losses():
  weighting, losses = uncertainty(0.1), jnp.array([4.0, 0.5])
  weights, state = weighting.update(jnp.eye(2), losses, weighting.init(2), KEY)
  assert weights.tolist() == [1, 1]
  np.testing.assert_allclose(state, [0.3, -0.05], atol=1e-6)  # 0 - 0.1 * (1 - L)
  for _ in range(300):
    weights, state = weighting.update(jnp.eye(2), losses, state, KEY)
  np.testing.assert_allclose(weights, [0.25, 2], rtol=1e-5)


@pytest.mark.parametrize(
  ("normalization", "divisor"), [("none", [1, 1]), ("l2", [2, 3]), ("loss", [5, 0.5]), ("loss+", [10, 1.5])]
)
def test_mgda_solves_for_normalized_gradients(normalization, divisor):
  length = np.array([2, 3]) / divisor  # orthogonal gradients: weights by inverse squared norms
  expected = length**-2.0 / (length**-2.0).sum()
  gram, losses = pair(0, 2, 3), [5, 0.5]
  np.testing.assert_allclose(weights_of(mgda(normalization), gram, losses), expected, atol=1e-6)
  rescaled = weights_of(mgda(normalization, rescale=True), gram, losses)
  np.testing.assert_allclose(rescaled, expected / divisor, atol=1e-6)


def test_mgda_keeps_training_when_one_gradient_is_zero():
  gram = jnp.diag(jnp.array([0.0, 4.0, 4.0]))
  for normalization in ("none", "l2", "loss", "loss+"):
    np.testing.assert_allclose(weights_of(mgda(normalization), gram, [0.1, 1, 1]), [0, 0.5, 0.5], atol=1e-6)


def test_mgda_refuses_to_normalize_by_a_loss_that_is_not_positive():
  assert np.isnan(weights_of(mgda("loss"), pair(0), [1, -1])).all()


def test_the_default_pareto_weights_follow_the_closed_form():
  with jax.enable_x64(True):
    rho, weighting = np.linspace(-0.99, 0.99, 67), pareto()
    for norms in ((1, 1), (3, 0.01)):
      weights = np.stack([weights_of(weighting, pair(r, *norms), [3.0, 0.02]) for r in rho])
      assert (weights[:, 0] == 1).all()
      np.testing.assert_allclose(weights[:, 1], (1 - 2 * rho) / (2 - rho), atol=1e-9)


@pytest.mark.parametrize("rho", [-0.9, 0, 0.7])
def test_inside_the_region_pareto_is_min_norm_half_and_half(rho):
  np.testing.assert_allclose(weights_of(pareto(anchor=None), pair(rho, 5, 0.1), [0.4, 1.0]), [0.5, 0.5], atol=1e-6)
  np.testing.assert_allclose(weights_of(pareto(), pair(rho, 5, 0.1), [0.4, 1.0]), [1, 1], atol=1e-6)


def test_constraints_alone_give_the_published_form():
  vectors = preference_vectors(2)  # (1, 0), (.71, .71), (0, 1); the first loss is too large: along p_0 - p_1
  weights, active = pareto_weights(jnp.eye(2), jnp.array([2.0, 0.1]), vectors, 1, "constraints")
  assert active.tolist() == [True, False, False]
  np.testing.assert_allclose(weights, [1 - 0.5**0.5, -(0.5**0.5)], rtol=1e-6)
  weights = pareto_weights(jnp.eye(2), jnp.array([2.0, 0.1]), vectors, 1)[0]
  mixes = np.array([[1, 0], [0, 1], [1 - 0.5**0.5, -(0.5**0.5)]])
  np.testing.assert_allclose(weights, shortest_by_search(mixes), atol=2e-3)


def shortest_by_search(vectors):
  grid = [np.array([a, b, 1 - a - b]) for a in np.linspace(0, 1, 401) for b in np.linspace(0, 1 - a, 201)]
  return min((g @ vectors for g in grid), key=lambda v: v @ v)


def test_the_floor_bounds_the_multiplier_where_the_anchor_has_negative_weight():
  options = {"preferences": preference_vectors(2), "index": 1, "directions": "constraints"}
  gram, losses = jnp.eye(2), [0.1, 2.0]  # along (-.71, .29): ascends on the anchor
  raw = weights_of(pareto(anchor=None, **options), gram, losses)
  np.testing.assert_allclose(raw, [-(0.5**0.5), 1 - 0.5**0.5], rtol=1e-6)
  np.testing.assert_allclose(
    weights_of(pareto(floor=0.1, **options), gram, losses), [1, (1 - 0.5**0.5) / 0.1], rtol=1e-5
  )
  clamped = pareto(multiplier_range=(0, 1.5), **options)
  np.testing.assert_allclose(weights_of(clamped, gram, losses), [1, 1.5], rtol=1e-6)


def test_the_weight_of_parallel_gradients_reaches_minus_one():
  np.testing.assert_allclose(weights_of(pareto(), pair(1), [3, 0.02]), [1, -1], atol=1e-3)


def test_pareto_with_a_zero_gradient_is_finite():
  weighting = pareto()
  for zero in ((0, 1), (1, 0), (0, 0)):
    for losses in ([3, 0.02], [0.1, 1]):
      assert np.isfinite(weights_of(weighting, pair(0, *zero), losses)).all()


def pcgrad_of_vectors(vectors, orders):
  """Applies the published algorithm to the vectors themselves."""
  projected = [vector.copy() for vector in vectors]
  for i, order in enumerate(orders):
    for j in order:
      if j != i and (product := projected[i] @ vectors[j]) < 0:
        projected[i] -= product / (vectors[j] @ vectors[j]) * vectors[j]
  return sum(projected)


def test_pcgrad_of_the_gram_matrix_is_pcgrad_of_the_vectors():
  total, mean = pcgrad(), pcgrad("mean")
  for seed in range(5):
    vectors = np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)
    key = jax.random.key(seed)
    orders = [np.asarray(jax.random.permutation(one, 4)) for one in jax.random.split(key, 4)]
    weights = weights_of(total, vectors @ vectors.T, np.ones(4), key)
    np.testing.assert_allclose(weights @ vectors, pcgrad_of_vectors(vectors, orders), atol=1e-5)
    averaged = weights_of(mean, vectors @ vectors.T, np.ones(4), key)
    np.testing.assert_allclose(averaged, weights / 4, rtol=1e-6)


def test_pcgrad_leaves_gradients_without_conflict_unchanged():
  assert weights_of(pcgrad(), pair(0.5), [1, 1]).tolist() == [1, 1]


@pytest.mark.parametrize("size", [2, 3, 8])
def test_cagrad_solves_its_inner_problem(size):
  c, weighting = 0.6, cagrad(0.6)
  with jax.enable_x64(True):
    for seed in range(5):
      vectors = np.random.default_rng(seed).normal(size=(size, 10)) + 0.3
      mean = vectors.mean(0)
      weights = weights_of(weighting, vectors @ vectors.T, np.ones(size))
      update = weights @ vectors
      np.testing.assert_allclose(np.linalg.norm(update - mean), c * np.linalg.norm(mean), rtol=1e-7)
      assert np.isclose((vectors @ update).min(), best_worst_case(vectors, mean, c), rtol=1e-6)


def best_worst_case(vectors, mean, c):
  """Returns max over ||d - g_0|| <= c ||g_0|| of min_k g_k . d, from its dual, with a general solver."""

  def dual(logits):
    weights = np.exp(logits - logits.max())
    combined = weights / weights.sum() @ vectors
    return combined @ mean + c * np.linalg.norm(mean) * np.linalg.norm(combined)

  options = {"maxiter": 20000, "maxfev": 20000, "xatol": 1e-10, "fatol": 1e-13}
  start = minimize(dual, np.zeros(len(vectors)), method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-12}).x
  return minimize(dual, start, method="Nelder-Mead", options=options).fun


def test_cagrad_without_radius_is_the_mean_and_rescaling_divides():
  assert weights_of(cagrad(0.0), pair(-0.5), [1, 1]).tolist() == [0.5, 0.5]
  gram = pair(-0.5, 1, 3)
  weights = weights_of(cagrad(0.5), gram, [1, 1])
  np.testing.assert_allclose(weights_of(cagrad(0.5, rescale=True), gram, [1, 1]), weights / 1.25, rtol=1e-6)


@pytest.mark.parametrize("weighting", EXAMPLES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_inputs_make_all_weights_nan(weighting, bad):
  assert np.isnan(weights_of(weighting, [[1, 0], [0, bad]], [1, 1])).all()
  assert np.isnan(weights_of(weighting, pair(0), [1, bad])).all()


@pytest.mark.parametrize("weighting", EXAMPLES)
def test_weightings_run_inside_jit_and_vmap(weighting):
  grams = jnp.stack([jnp.asarray(pair(rho, 1.0, 2.0)) for rho in (-0.5, 0.0, 0.5)])
  losses = jnp.array([[1.0, 2.0], [3.0, 0.1], [1.0, 1.0]])
  update = jax.jit(jax.vmap(lambda gram, losses: weighting.update(gram, losses, weighting.init(2), KEY)[0]))
  expected = [weights_of(weighting, gram, loss) for gram, loss in zip(grams, losses, strict=True)]
  np.testing.assert_allclose(update(grams, losses), expected, atol=1e-5)


def test_a_weighting_is_built_from_its_name_and_arguments():
  needed = {"fixed": {"weights": [1.0, 2.0]}, "uncertainty": {"learning_rate": 0.1}}
  numbers_kept = {"uncertainty": 2, "set_point": 3}
  for name in WEIGHTINGS:
    kept = numbers_kept.get(name, 0)
    assert optax.tree.size(build({"name": name, **needed.get(name, {})}).init(2)) == kept


@pytest.mark.parametrize(
  ("config", "text"),
  [
    ({"name": "magic"}, "weighting name='magic' is not one of .*'cagrad'"),
    ({"name": "mgda", "c": 1}, r"weighting 'mgda' has no field \['c'\]; it has \['clamp', 'normalization', 'rescale'"),
    ({"name": "fixed"}, r"weighting 'fixed' needs a value for \['weights'\]"),
    ({"name": "mgda", "normalization": "l3"}, "normalization='l3' is not one of"),
    ({"name": "uncertainty", "learning_rate": -1.0}, "learning_rate=-1.0 must not be negative"),
    ({"name": "pcgrad", "reduction": "max"}, "reduction='max' is not one of"),
    ({"name": "cagrad", "c": 1.0}, "c=1.0 must be at least 0 and below 1"),
    ({"name": "pareto", "index": 3}, "index=3 must be the index of one of the 3 preferences"),
    ({"name": "pareto", "preferences": [[1.0, 0.0], [1.0]]}, "two vectors or more of one length"),
    ({"name": "pareto", "directions": "up"}, "directions='up' is not one of"),
    ({"name": "pareto", "anchor": 2}, "anchor=2 must be the index of one of the 2 objectives"),
    ({"name": "pareto", "floor": 0.0}, "floor=0.0 must be above 0"),
    ({"name": "pareto", "multiplier_range": [2, 1]}, "must be .lowest, highest."),
  ],
)
def test_invalid_configs_are_refused_by_name(config, text):
  with pytest.raises(ValueError, match=text):
    build(config)


def test_preferences_for_another_number_of_objectives_are_refused():
  with pytest.raises(ValueError, match="preferences have 2 entries each, but there are 3 objectives"):
    pareto().init(3)


def test_every_weighting_has_a_documented_name():
  readme = (REPOSITORY / "jaxrec" / "multi_objective" / "README.md").read_text()
  for name, make in WEIGHTINGS.items():
    assert getattr(jaxrec.multi_objective, name) is make
    assert f"| `{name}(" in readme
