"""The convex combination of gradients with the smallest norm, from their Gram matrix alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# A solve takes about one pass per objective that enters or leaves the support, rarely more than 2K. The bound only
# stops solves in which rounding makes an objective enter and leave forever.
PASSES_PER_OBJECTIVE = 8


def min_norm_weights(gram: Float[Array, "K K"], participates: Bool[Array, "K"] | None = None) -> Float[Array, "K"]:
  """Returns the weights w >= 0, sum w = 1, with the smallest squared norm w^T G w of the combined gradient.

  The combined gradient descends on all objectives at once, or is zero at a Pareto-stationary point. If several w give
  the same gradient (duplicates, linearly dependent gradients), one of them is returned; identical gradients share their
  weight equally. A zero gradient gets all the weight, because the point is Pareto-stationary; to keep training the
  other objectives, exclude it with `participates`, as `mgda` does. A NaN or infinity in `gram` makes all weights NaN.

  Args:
    gram: inner products of the K gradients, symmetric; float32 or float64. Any scale.
    participates: objectives that may have weight; the others get 0. None: all. All False counts as all True.

  Source: Désidéri 2012, Multiple-gradient descent algorithm; Sener & Koltun 2018 (arXiv 1810.04650), eq. 3 and its
  two-gradient solution in section 3.2; Wolfe 1976, Finding the nearest point in a polytope.
  Choice: an active-set method instead of Frank-Wolfe, which zigzags: it ends after finitely many steps at the precision
  of the dtype.

  >>> min_norm_weights(jnp.array([[1.0, 0.0], [0.0, 3.0]])).tolist()  # orthogonal: inverse squared norms
  [0.75, 0.25]
  >>> min_norm_weights(jnp.array([[1.0, 2.0], [2.0, 9.0]])).tolist()  # the short one is closest to the origin
  [1.0, 0.0]
  """
  return simplex_minimum(gram, jnp.zeros_like(gram[0]), participates)


def simplex_minimum(
  quadratic: Float[Array, "K K"], linear: Float[Array, "K"], participates: Bool[Array, "K"] | None = None
) -> Float[Array, "K"]:
  """Returns argmin of w^T Q w / 2 + b^T w over the simplex w >= 0, sum w = 1.

  A NaN or infinity in Q or b makes the whole result NaN.

  Args:
    quadratic: Q, symmetric positive semidefinite.
    linear: b.
    participates: entries that may be positive; None: all. All False counts as all True.

  >>> simplex_minimum(jnp.eye(2), jnp.array([0.0, 0.5])).tolist()  # minimum of (x^2 + (1-x)^2) / 2 + (1-x) / 2
  [0.75, 0.25]
  """
  if participates is None:
    participates = jnp.ones(linear.shape, bool)
  participates = participates | ~participates.any()
  is_finite = jnp.isfinite(quadratic).all() & jnp.isfinite(linear).all()
  scale = jnp.maximum(jnp.abs(quadratic).max(), jnp.abs(linear).max())
  shrink = jnp.where(scale > 1, 1 / 8, 1)  # compilers turn the division into 1 / scale, which must not underflow
  scale = jnp.where(is_finite & (scale > 0), scale, 1) * shrink
  quadratic = jnp.where(is_finite, quadratic, 0) * shrink / scale
  linear = jnp.where(is_finite, linear, 0) * shrink / scale
  solve = {1: _solve_one, 2: _solve_two}.get(len(linear), _active_set)
  return jnp.where(is_finite, solve(quadratic, linear, participates), jnp.nan)


def _solve_one(quadratic, linear, participates):
  return jnp.ones_like(linear)


def _solve_two(quadratic, linear, participates):
  """Returns the minimum of a parabola on [0, 1]; the middle if it is flat."""
  slope = quadratic[1, 1] - quadratic[0, 1] + linear[1] - linear[0]
  curvature = quadratic[0, 0] + quadratic[1, 1] - 2 * quadratic[0, 1]
  is_curved = curvature > 0
  x = jnp.where(is_curved, slope / jnp.where(is_curved, curvature, 1), 0.5 + jnp.sign(slope))
  x = jnp.where(participates.all(), jnp.clip(x, 0, 1), participates[0].astype(x.dtype))
  return jnp.stack([x, 1 - x])


def _active_set(quadratic, linear, participates):
  """Iterates Newton steps on the support of w: entries that would turn negative leave it, the steepest one enters.

  Every step starts from a feasible w and descends, so the last w is the best one, whatever stops the loop.
  """
  size = jnp.sqrt(jnp.maximum(jnp.diagonal(quadratic), 0))
  rounding = 4 * len(linear) * jnp.finfo(linear.dtype).eps

  def one_pass(state):
    w, support, _, passes = state
    w, support, stayed = _step(quadratic, _gradient(quadratic, linear, w), w, support)
    slope = _gradient(quadratic, linear, w)
    slope = slope - (w * slope).sum()  # of moving weight to an entry: 0 on the support, >= 0 off it at the minimum
    tolerance = rounding * (size * (w * size).sum() + jnp.abs(linear) + (w * jnp.abs(linear)).sum())
    may_enter = participates & ~support & (slope < -tolerance) & stayed
    enters = may_enter & (jnp.arange(len(w)) == jnp.argmin(jnp.where(may_enter, slope, jnp.inf)))
    is_done = stayed & ~may_enter.any() & jnp.all(~support | (jnp.abs(slope) <= tolerance))
    return w, support | enters, is_done, passes + 1

  def is_unfinished(state):
    return ~state[2] & (state[3] < PASSES_PER_OBJECTIVE * len(linear))

  w = participates.astype(linear.dtype)
  w = w / w.sum()
  return jax.lax.while_loop(is_unfinished, one_pass, (w, participates, jnp.array(False), 0))[0]


def _gradient(quadratic, linear, w):
  return (quadratic * w[None]).sum(-1) + linear  # not `@`, which rounds to bfloat16 on a TPU


def _step(quadratic, gradient, w, support):
  """Moves w to the minimum on the plane of its support, or to the first bound on the way, whose entry then leaves.

  Returns w, the support, and whether every entry stayed.
  """
  target = w + _newton_step(quadratic, gradient, support)
  leaves = support & (target < 0)
  part = jnp.where(leaves, w / jnp.where(leaves, w - target, 1), 1)
  leaves &= part <= part.min()
  w = jnp.where(support & ~leaves, jnp.maximum(w + part.min() * (target - w), 0), 0)
  return w / w.sum(), support & ~leaves, ~leaves.any()


def _newton_step(quadratic, gradient, support):
  """Returns the step, with sum 0, to the minimum on the support's plane, in differences from its shortest vector.

  The small ridge keeps the system definite if differences are linearly dependent; the next pass, which starts from the
  new w, corrects the error that it causes. If coarse rounding of the Gram matrix makes the system indefinite anyway,
  the step is steepest descent, short enough for every system with this diagonal.
  """
  size = jnp.diagonal(quadratic)
  base = jnp.argmin(jnp.where(support, size, jnp.inf))
  moves = support & (jnp.arange(len(size)) != base)
  difference = quadratic - quadratic[base][None] - quadratic[:, base, None] + size[base]  # [K, K] inner products
  rounding = 4 * len(size) * jnp.finfo(size.dtype).eps
  length = jnp.sqrt(jnp.maximum(jnp.diagonal(difference), rounding * (size + size[base])))
  length = jnp.where(moves & (length > 0), length, 1)
  identity = jnp.eye(len(size), dtype=bool)
  system = jnp.where(moves[None] & moves[:, None] & ~identity, difference / (length[None] * length[:, None]), 0)
  system += jnp.diag(jnp.full_like(size, 1 + rounding))
  slope = jnp.where(moves, gradient - gradient[base], 0) / length
  newton = jax.scipy.linalg.solve(system, slope, assume_a="pos")
  step = -jnp.where(jnp.isfinite(newton).all(), newton, slope / len(size)) / length
  return step.at[base].set(-step.sum())
