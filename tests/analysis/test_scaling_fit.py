"""Power laws: known laws are found, intervals hold them, and what is no law is called so."""

import re

import numpy as np
import pytest

from jaxrec.analysis.scaling_fit import (
  fit_log_line,
  fit_power_law,
  on_frontier,
  predict_largest,
  why_no_law,
)

COMPUTE = np.geomspace(1e8, 1e12, 9)


def law(x, floor=2.0, scale=3.0, exponent=0.2):
  """A loss that falls from 5 at 1e8."""
  return floor + scale * (x / 1e8) ** -exponent


def noisy(seed, spread=0.01):
  return law(COMPUTE) + spread * np.random.default_rng(seed).normal(size=len(COMPUTE))


@pytest.mark.parametrize("exponent", [0.05, 0.2, 1.0])
def test_a_known_law_is_found(exponent):
  found = fit_power_law(COMPUTE, law(COMPUTE, exponent=exponent), resamples=10)
  assert (found.floor, found.exponent) == pytest.approx((2.0, exponent), rel=0.02)
  np.testing.assert_allclose(found.at(1e14), law(1e14, exponent=exponent), rtol=0.005)


def test_a_law_without_a_floor_has_none():
  found = fit_power_law(COMPUTE, law(COMPUTE, floor=0.0), resamples=10)
  assert found.floor == pytest.approx(0, abs=0.01) and found.exponent == pytest.approx(0.2, rel=0.01)


def test_the_fit_is_the_best_of_all_laws():
  """Against the reference: every exponent and floor of a fine grid, with the best scale of each."""
  loss = noisy(3, spread=0.05)
  found = fit_power_law(COMPUTE, loss, resamples=1)
  best = ((found.at(COMPUTE) - loss) ** 2).sum()
  for exponent in np.geomspace(0.01, 2, 120):
    power = COMPUTE**-exponent
    for floor in np.linspace(0, 3, 61):
      scale = max(power @ (loss - floor) / (power @ power), 0)
      assert best <= ((floor + scale * power - loss) ** 2).sum() + 1e-9


def test_intervals_hold_the_truth_about_as_often_as_they_say():
  inside = 0
  for seed in range(60):
    low, high = fit_power_law(COMPUTE, noisy(seed), resamples=200).interval()
    inside += low <= 0.2 <= high
  assert 48 <= inside <= 60


def test_more_noise_gives_wider_bands():
  narrow, wide = (fit_power_law(COMPUTE, noisy(0, spread), resamples=200) for spread in (0.005, 0.05))
  gaps = [np.diff(one.band(COMPUTE, new_point=True), axis=0).mean() for one in (narrow, wide)]
  assert gaps[1] > 3 * gaps[0]
  assert (narrow.band(COMPUTE)[0] <= narrow.at(COMPUTE)).all() and (narrow.at(COMPUTE) <= narrow.band(COMPUTE)[1]).all()


def test_the_largest_point_is_predicted_from_the_others():
  loss = noisy(1, spread=0.002)
  loss[-1] = 9.0  # Not looked at.
  predicted = predict_largest(COMPUTE, loss)
  assert predicted.observed == 9.0
  assert predicted.predicted == pytest.approx(law(COMPUTE[-1]), rel=0.02)
  assert predicted.error == pytest.approx((predicted.predicted - 9) / 9)


def test_points_of_a_law_support_it():
  assert why_no_law(COMPUTE, noisy(2, spread=0.002)) == []


@pytest.mark.parametrize(
  ("loss", "reason"),
  [
    (5 - 0.1 * np.log(COMPUTE / 1e8), "straight line in the logarithm|exponent is not determined"),
    (np.append(noisy(0, 0.002)[:-1], 2.2), "outside of what the others predict"),
    (np.append(noisy(0, 0.002)[:-1], 4.0), "the largest point is not on the frontier"),
    (6 - 3 / (1 + (1e10 / COMPUTE) ** 2), "the points bend otherwise than the law"),
    (noisy(1, 0.4), "more than half of the range of the losses"),
    (np.append(5.0, np.full(8, 5.0) + np.arange(8)), "1 points are on the frontier; at least 5"),
  ],
)
def test_what_is_no_law_is_called_so(loss, reason):
  reasons = why_no_law(COMPUTE, np.asarray(loss))
  assert any(re.search(reason, text) for text in reasons), reasons


def test_points_of_one_decade_support_no_law():
  x = np.geomspace(1e8, 1e9, 9)
  assert "the frontier spans 1.0 decades; at least 2 are needed" in why_no_law(x, law(x))


def test_the_frontier_drops_what_another_point_beats():
  x, loss = np.array([1.0, 1.0, 2.0, 3.0, 4.0]), np.array([5.0, 4.0, 4.5, 3.0, 3.0])
  assert on_frontier(x, loss).tolist() == [False, True, False, True, False]


def test_hit_rates_are_a_line_in_the_logarithm():
  quality = 0.15 + 0.0195 * np.log(COMPUTE) + 0.001 * np.random.default_rng(0).normal(size=9)
  line = fit_log_line(COMPUTE, quality)
  assert line.slope == pytest.approx(0.0195, rel=0.02) and line.low < 0.0195 < line.high


@pytest.mark.parametrize("x", [[1.0, 1.0, 2.0, 2.0], [0.0, 1.0, 2.0, 3.0]])
def test_too_few_or_impossible_points_are_refused(x):
  with pytest.raises(ValueError, match="three different values above 0"):
    fit_power_law(np.array(x), np.ones(4))
