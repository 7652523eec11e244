"""Weightings that hold a loss at a level, what modifies any weighting, and inner products on an objective's path."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec.multi_objective import (
  band,
  build,
  clamped,
  delayed,
  fixed,
  gram_matrix,
  mgda,
  multi_objective,
  pareto,
  preference_vectors,
  set_point,
  smoothed,
)

KEY = jax.random.key(0)


def run(weighting, losses, gram=((1.0, 0.0), (0.0, 1.0))):
  """The second weight of each update; `losses` are pairs, `gram` one matrix or one for each."""
  grams = jnp.broadcast_to(jnp.array(gram), (len(losses), 2, 2))

  def update(state, inputs):
    weights, state = weighting.update(*inputs, state, KEY)
    return state, weights

  weights = jax.jit(functools.partial(jax.lax.scan, update))(weighting.init(2), (grams, jnp.array(losses)))[1]
  assert weights[:, 0].tolist() == [1] * len(losses)
  return np.asarray(weights[:, 1])


@pytest.mark.parametrize("count", [1, 5, 10, 20])
def test_the_band_is_the_published_rule_without_gradients_clipped(count):
  published = pareto(preference_vectors(count), 1, "constraints", multiplier_range=(-0.5, 0.5))
  losses = [(4.5, 4.5 * np.tan(angle * np.pi / count)) for angle in (0.05, 0.2, 0.24, 0.26, 0.4, 0.49)]
  found = run(band(count), losses)
  assert found.tolist() == [-0.5] * 3 + [0.5] * 3
  np.testing.assert_allclose(found, run(published, losses))


def test_the_band_may_leave_a_low_loss_alone():
  assert run(band(10, (0, 0.25)), [(4.5, 0.1), (4.5, 1.0)]).tolist() == [0, 0.25]


def test_a_set_point_measures_first_and_then_moves_the_weight_until_the_loss_is_there():
  rule = set_point(kappa=0.5, learning_rate=0.1, maximum=0.12, base_updates=2)
  losses = [(4, 0.6), (4, 1.0), (4, 0.8), (4, 1.4), (4, 0.9), (4, 0.1), (4, 0.1)]  # Base .8, set-point .4.
  expected = [0, 0, 0.04, 0.12, 0.12, 0.09, 0.06]
  np.testing.assert_allclose(run(rule, losses), expected, atol=1e-6)


def test_a_set_point_is_reached_where_the_loss_answers_the_weight():
  weighting = set_point(kappa=0.25, learning_rate=0.05, base_updates=10)
  state, loss = weighting.init(2), 0.8
  for _ in range(400):
    weights, state = jax.jit(weighting.update)(jnp.eye(2), jnp.array([4.0, loss]), state, KEY)
    loss = 0.8 - 0.7 * float(weights[1])
  assert abs(loss - 0.2) < 0.01


@pytest.mark.parametrize(
  ("options", "expected"),
  [
    ({"start_after": 2}, [0, 0, 0.5, 0.5, 0.5, 0.5]),
    ({"start_below": 3.5}, [0, 0, 0, 0, 0.5, 0.5]),  # Running means 4, 3.995, 3.989, 3.649, 3.312, 3.419.
    ({"start_after": 5, "start_below": 3.5}, [0, 0, 0, 0, 0, 0.5]),
  ],
)
def test_a_late_start_waits_for_a_step_or_for_the_first_loss_and_then_stays(options, expected):
  losses = [(4.0, 1.0), (3.99, 1.0), (3.98, 1.0), (2.6, 1.0), (1.9, 1.0), (4.0, 1.0)]
  np.testing.assert_allclose(run(delayed(fixed([1, 0.5]), **options), losses), expected)


def test_until_a_late_start_the_weighting_sees_nothing():
  rule = delayed(set_point(kappa=0.5, learning_rate=0.1, base_updates=1), start_after=2)
  np.testing.assert_allclose(run(rule, [(4, 9.0), (4, 9.0), (4, 0.4), (4, 0.3)]), [0, 0, 0, 0.01], atol=1e-6)


def test_smoothing_averages_inner_products_without_a_bias_to_zero():
  grams = [[[1, rho], [rho, 1]] for rho in (-0.5, 0.5, 0.5)]
  means = (-0.5, (-0.25 + 0.5) / 1.5, (-0.125 + 0.25 + 0.5) / 1.75)  # Decay 1/2.
  expected = [(1 - 2 * rho) / (2 - rho) for rho in means]
  np.testing.assert_allclose(run(smoothed(pareto(), 0.5), [(4, 0.4)] * 3, grams), expected, atol=1e-5)


def test_a_clamp_fixes_the_first_weight_and_clips_the_second():
  gram = [[1.0, 0], [0, 0.0025]]  # Min-norm weights 1 : 400.
  assert run(clamped(mgda(), (0, 0.5)), [(4.5, 0.45)], gram).tolist() == [0.5]
  np.testing.assert_allclose(run(clamped(mgda("loss+"), (0, 0.5)), [(4.5, 0.45)], gram), [0.01], rtol=1e-5)


def test_modifiers_work_together_in_a_config():
  built = build({"name": "mgda", "clamp": [0, 0.5], "smoothing": 0.9, "start_after": 1})
  assert run(built, [(4.5, 0.45)] * 2, [[1.0, 0], [0, 0.0025]]).tolist() == [0, 0.5]
  with pytest.raises(
    ValueError, match=r"'band' has no field \['start'\]; it has \['clamp', 'count', 'multiplier_range'"
  ):
    build({"name": "band", "start": 3})


@pytest.mark.parametrize(
  ("make", "text"),
  [
    (lambda: band(0), "count=0 must be at least 1"),
    (lambda: band(5, (1, 0)), r"multiplier_range=\(1.0, 0.0\) must be"),
    (lambda: set_point(kappa=0), "kappa=0 must be above 0"),
    (lambda: set_point().init(3), "for 2 objectives, but there are 3"),
    (lambda: band().init(1), "for 2 objectives, but there are 1"),
    (lambda: smoothed(mgda(), 1.0), "decay=1.0 must be"),
    (lambda: clamped(mgda(), (0.5, 0)), r"clamp=\(0.5, 0.0\) must be"),
    (lambda: delayed(mgda(), start_after=-1), "start_after=-1 must be"),
  ],
)
def test_settings_out_of_range_are_refused(make, text):
  with pytest.raises(ValueError, match=text):
    make()


@pytest.mark.parametrize("weighting", [band(), set_point(), smoothed(mgda(), 0.9), clamped(mgda(), (0, 1)),
                                       delayed(mgda(), 5)])  # fmt: skip
def test_non_finite_inputs_make_all_weights_nan(weighting):
  for gram, losses in (([[1, 0], [0, np.nan]], [1, 1]), (np.eye(2), [1, np.inf])):
    weights, _ = weighting.update(jnp.array(gram), jnp.array(losses, float), weighting.init(2), KEY)
    assert np.isnan(weights).all()


def test_rules_work_under_strict_promotion_of_types():
  with jax.numpy_dtype_promotion("strict"):
    for weighting in (band(), set_point(), delayed(smoothed(clamped(mgda(), (0, 1)), 0.9), 5, 3.0)):
      jax.eval_shape(weighting.update, jnp.eye(2), jnp.ones(2), weighting.init(2), KEY)


def test_inner_products_can_be_those_of_the_path_of_one_objective():
  grads = ({"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0])}, {"a": jnp.array([0.0, 1.0]), "b": jnp.array([0.0])})
  assert gram_matrix(grads).tolist() == [[14, 2], [2, 1]]
  assert gram_matrix(grads, path=1).tolist() == [[4, 2], [2, 1]]
  optimizer = multi_objective(pareto(), optax.sgd(1.0), path=1)
  state = optimizer.update(grads, optimizer.init(grads[0]), losses=jnp.array([4.0, 0.4]))[1]
  assert state.norms.tolist() == [2, 1] and state.cosines[0, 1] == 1
