"""Power laws: fits of a loss against compute or parameters, their intervals, and whether the points support them.

`loss = floor + scale * (x / reference)^-exponent`, with a floor and a scale that are not negative.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

EXPONENTS = np.geomspace(0.005, 4.0, 300)
"""The exponents that are tried; the best is refined between its neighbours."""
LEAST_POINTS, LEAST_DECADES, LEAST_CHANCE = 5, 2.0, 0.05
RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class PowerLaw:
  """A fitted law, and fits to its resamples.

  reference: x at which the power is 1, the geometric mean of the fitted ones.
  floor, scale, exponent: of the points.
  samples: floor, scale and exponent of each of R resamples.
  residual: standard deviation of the points around the law, degrees of freedom accounted for.
  freedom: degrees of freedom, the points less the three fitted numbers.
  """

  reference: float
  floor: float
  scale: float
  exponent: float
  samples: Float[np.ndarray, "R 3"]
  residual: float
  freedom: int

  def at(self, x: float | Float[np.ndarray, " n"]) -> float | Float[np.ndarray, " n"]:
    """Returns the law at x."""
    return self.floor + self.scale * (np.asarray(x) / self.reference) ** -self.exponent

  def band(self, x: Float[np.ndarray, " n"], level: float = 0.95, new_point: bool = False) -> Float[np.ndarray, "2 n"]:
    """Returns the lower and upper end of the band of the law at each x.

    Args:
      x: where.
      level: share of the resamples between them.
      new_point: whether the band is that of a new observation, which scatters around the law too.
    """
    floor, scale, exponent = self.samples.T[:, :, None]
    values = floor + scale * (np.asarray(x, float) / self.reference) ** -exponent  # [R, n]
    if new_point:
      values += self.residual * np.random.default_rng(1).standard_t(self.freedom, values.shape)
    return np.quantile(values, ((1 - level) / 2, (1 + level) / 2), axis=0)

  def interval(self, level: float = 0.95) -> tuple[float, float]:
    """Returns the interval of the exponent."""
    low, high = np.quantile(self.samples[:, 2], ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def fit_power_law(
  x: Float[np.ndarray, " n"], loss: Float[np.ndarray, " n"], resamples: int = RESAMPLES, seed: int = 0
) -> PowerLaw:
  """Returns the law of least squares, with resamples of its residuals.

  For each exponent the best floor and scale are known in closed form; the exponent is found on a grid and refined.

  Args:
    x: compute or parameters, above 0; at least three different ones.
    loss: of each point.
    resamples: of the bootstrap: residuals are drawn with replacement, widened for the three fitted numbers, and added
      to the law.
    seed: of the draws.

  Raises:
    ValueError: fewer than three different x, or one that is not above 0.

  >>> x = np.array([1e9, 1e10, 1e11, 1e12])
  >>> law = fit_power_law(x, 2.0 + 3.0 * (x / 1e9) ** -0.3)
  >>> round(law.floor, 3), round(law.exponent, 3), round(float(law.at(1e13)), 3)
  (2.0, 0.3, 2.189)
  """
  x, loss = np.asarray(x, float), np.asarray(loss, float)
  if len(np.unique(x)) < 3 or (x <= 0).any():
    raise ValueError(f"a power law needs three different values above 0 or more, got {sorted(set(x.tolist()))}")
  reference = float(np.exp(np.log(x).mean()))
  floor, scale, exponent = _best(x / reference, loss[None])[0]
  fitted = floor + scale * (x / reference) ** -exponent
  freedom = max(len(x) - 3, 1)
  residuals = (loss - fitted) * np.sqrt(len(x) / freedom)
  rng = np.random.default_rng(seed)
  drawn = fitted + residuals[rng.integers(len(x), size=(resamples, len(x)))]  # [R, n]
  spread = float(np.sqrt(((loss - fitted) ** 2).sum() / freedom))
  samples = _best(x / reference, drawn)
  return PowerLaw(reference, float(floor), float(scale), float(exponent), samples, spread, freedom)


def _best(x, losses: Float[np.ndarray, "R n"]) -> Float[np.ndarray, "R 3"]:
  """Returns floor, scale and exponent of each row of losses."""
  coarse, _, error = _at_exponents(x, losses, EXPONENTS)
  best = error.argmin(axis=1)
  found = np.empty((len(losses), 3))
  for index in np.unique(best):
    rows = best == index
    around = EXPONENTS[[max(index - 1, 0), min(index + 1, len(EXPONENTS) - 1)]]
    exponents = np.geomspace(*around, 41)
    floor, scale, error = _at_exponents(x, losses[rows], exponents)
    chosen = error.argmin(axis=1)[:, None]
    columns = [np.take_along_axis(values, chosen, axis=1)[:, 0] for values in (floor, scale)]
    found[rows] = np.stack([*columns, exponents[chosen[:, 0]]], axis=1)
  return found


def _at_exponents(x, losses, exponents):
  """Returns floor, scale and squared error, each [R, G], of the best law with each exponent."""
  power = x[None] ** -exponents[:, None]  # [G, n]
  count, mean = len(x), power.mean(axis=1)
  mean_loss = losses.mean(axis=1, keepdims=True)  # [R, 1]
  product, square = losses @ power.T / count, (power**2).mean(axis=1)  # [R, G], [G]
  variance = square - mean**2
  scale = (product - mean_loss * mean) / np.where(variance == 0, 1, variance)
  scale = np.where(variance == 0, 0, np.maximum(scale, 0))
  floor = mean_loss - scale * mean
  alone = np.maximum(product / square, 0)  # Of a floor of 0.
  scale, floor = np.where(floor < 0, alone, scale), np.maximum(floor, 0)
  second = (losses**2).mean(axis=1, keepdims=True)
  error = second - 2 * (floor * mean_loss + scale * product) + floor**2 + 2 * floor * scale * mean + scale**2 * square
  return floor, scale, error


@dataclasses.dataclass(frozen=True)
class LogLine:
  """A quality that grows with the logarithm of x: `intercept + slope * ln x`, and the interval of its slope."""

  intercept: float
  slope: float
  low: float
  high: float


def fit_log_line(
  x: Float[np.ndarray, " n"], quality: Float[np.ndarray, " n"], resamples: int = RESAMPLES, seed: int = 0
) -> LogLine:
  """Returns the line of least squares of a metric against `ln x`, as the HSTU paper fits hit rates against compute.

  Args:
    x: compute, above 0.
    quality: such as HR@10.
    resamples, seed: of the residuals.

  >>> line = fit_log_line(np.exp([1.0, 2.0, 3.0]), np.array([0.1, 0.3, 0.5]))
  >>> round(line.intercept, 3), round(line.slope, 3)
  (-0.1, 0.2)
  """
  logs = np.log(np.asarray(x, float))
  design = np.stack([np.ones_like(logs), logs], axis=1)
  solve = np.linalg.pinv(design)  # [2, n]
  intercept, slope = solve @ quality
  fitted = design @ (intercept, slope)
  residuals = (quality - fitted) * np.sqrt(len(logs) / max(len(logs) - 2, 1))
  drawn = np.random.default_rng(seed).integers(len(logs), size=(resamples, len(logs)))
  slopes = (fitted + residuals[drawn]) @ solve[1]
  return LogLine(float(intercept), float(slope), *(float(q) for q in np.quantile(slopes, (0.025, 0.975))))


def on_frontier(x: Float[np.ndarray, " n"], loss: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
  """Returns which points no other one beats: with as little x or less, as low a loss or lower, and one of both less.

  >>> on_frontier(np.array([1.0, 2.0, 3.0]), np.array([5.0, 6.0, 4.0])).tolist()
  [True, False, True]
  """
  x, loss = np.asarray(x), np.asarray(loss)
  beaten = [(x <= x[i]) & (loss <= loss[i]) & ((x < x[i]) | (loss < loss[i])) for i in range(len(x))]
  return ~np.array(beaten, bool).any(axis=1)


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """The largest point, predicted from the others: x, the observed and the predicted loss, the band of a new point."""

  x: float
  observed: float
  predicted: float
  low: float
  high: float

  @property
  def error(self) -> float:
    """Predicted minus observed, as a share of the observed loss."""
    return (self.predicted - self.observed) / self.observed


def predict_largest(x: Float[np.ndarray, " n"], loss: Float[np.ndarray, " n"]) -> HeldOut:
  """Returns the largest point and what the law of the frontier of all others says of it."""
  largest = int(np.argmax(x))
  others = np.arange(len(x)) != largest
  chosen = np.flatnonzero(others)[on_frontier(x[others], loss[others])]
  law = fit_power_law(x[chosen], loss[chosen])
  low, high = law.band(x[[largest]], new_point=True)[:, 0]
  return HeldOut(float(x[largest]), float(loss[largest]), float(law.at(x[largest])), float(low), float(high))


def why_no_law(x: Float[np.ndarray, " n"], loss: Float[np.ndarray, " n"]) -> list[str]:
  """Returns the reasons why points do not support a power law; none where they do.

  Points of a true law with independent noise get a reason in about one of ten studies.

  Args:
    x: of all points, not of their frontier alone.
    loss: of each.

  >>> why_no_law(np.array([1.0, 2.0, 4.0]), np.array([3.0, 2.0, 1.0]))
  ['3 points are on the frontier; at least 5 are needed']
  """
  x, loss = np.asarray(x, float), np.asarray(loss, float)
  chosen = on_frontier(x, loss)
  if chosen.sum() < LEAST_POINTS or len(np.unique(x[chosen])) < LEAST_POINTS:
    return [f"{chosen.sum()} points are on the frontier; at least {LEAST_POINTS} are needed"]
  reasons = []
  decades = float(np.log10(x[chosen].max() / x[chosen].min()))
  if decades < LEAST_DECADES:
    reasons.append(f"the frontier spans {decades:.1f} decades; at least {LEAST_DECADES:.0f} are needed")
  if not chosen[np.argmax(x)]:
    reasons.append("the largest point is not on the frontier: a smaller one has a lower loss")
  return [*reasons, *_misfits(x[chosen], loss[chosen]), *_misses(predict_largest(x, loss), np.ptp(loss[chosen]))]


def _misfits(x, loss) -> list[str]:
  """What the points of the frontier say against the form of the law."""
  law = fit_power_law(x, loss)
  reasons, (low, high) = [], law.interval()
  if low < 2 * EXPONENTS[0] or high > EXPONENTS[-1] / 2:
    reasons.append(f"the exponent is not determined: its interval is {low:.3f} to {high:.3f}")
  order = np.argsort(x)
  chance = chance_of_run(loss[order] - law.at(x[order]))
  if law.residual > np.ptp(loss) / 1000 and chance < LEAST_CHANCE:  # Rounding has no chance in it.
    reasons.append(
      f"the points bend otherwise than the law: neighbours lie on the same side of it (by chance: {chance:.1%})"
    )
  errors = {name: _left_out_error(x, loss, name) for name in ("power law", "line in ln x")}
  if errors["power law"] > errors["line in ln x"]:
    reasons.append(
      "a straight line in the logarithm predicts left-out points better: mean error"
      f" {errors['line in ln x']:.4f} instead of {errors['power law']:.4f}"
    )
  return reasons


def chance_of_run(residuals: Float[np.ndarray, " n"]) -> float:
  """Returns the share of orders of the residuals in which neighbours are as much alike as in this one, or more.

  >>> chance_of_run(np.array([-3.0, -2.0, -1.0, 1.0, 2.0, 3.0])) < 0.01
  True
  """
  rng = np.random.default_rng(0)
  orders = rng.permuted(np.tile(residuals, (RESAMPLES, 1)), axis=1)
  steps = (np.diff(orders, axis=1) ** 2).sum(axis=1)
  return float(np.mean(steps <= (np.diff(residuals) ** 2).sum()))


def _misses(found: HeldOut, span: float) -> list[str]:
  """What the prediction of the largest point says against the law; `span` is the range of the losses."""
  band = f"{found.low:.4f} to {found.high:.4f}"
  if not found.low <= found.observed <= found.high:
    return [f"the largest point, {found.observed:.4f}, is outside of what the others predict, {band}"]
  if found.high - found.low > span / 2:
    return [f"the others predict the largest point to within {band} only, more than half of the range of the losses"]
  return []


def _left_out_error(x, loss, form: str) -> float:
  """Mean absolute error of each inner or outer point, predicted from the others."""
  errors = []
  for index in range(len(x)):
    rest = np.arange(len(x)) != index
    if form == "power law":
      predicted = fit_power_law(x[rest], loss[rest], resamples=1).at(x[index])
    else:
      slope, intercept = np.polyfit(np.log(x[rest]), loss[rest], 1)
      predicted = intercept + slope * np.log(x[index])
    errors.append(abs(float(predicted) - loss[index]))
  return float(np.mean(errors))
