"""Weightings for conflicting gradients, computed from their Gram matrix: PCGrad and CAGrad."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxrec.multi_objective.base import Weighting, norms, stateless
from jaxrec.multi_objective.min_norm import simplex_minimum

REDUCTIONS = ("sum", "mean")
HALVINGS = 50  # bisects log ||g_w|| from an interval of width log 1e12 = 28 down to 3e-14


def pcgrad(reduction: str = "sum") -> Weighting:
  """Returns the PCGrad weighting: from each gradient, its projection onto every conflicting gradient is subtracted.

  The order of the projections is random, drawn from the key for each gradient. Without conflicts all weights are 1 (or
  1 / K).

  Args:
    reduction: "sum": the update is the sum of the projected gradients, as in the paper's algorithm 1; "mean": the sum
      divided by K.

  Raises:
    ValueError: for an unknown reduction.

  Source: Yu et al. 2020 (arXiv 2001.06782), algorithm 1.
  """
  if reduction not in REDUCTIONS:
    raise ValueError(f"{reduction=} is not one of {REDUCTIONS}")

  def weigh(gram, losses, key):
    mixes = pcgrad_mixes(gram, key)
    return mixes.sum(0) if reduction == "sum" else mixes.mean(0)

  return stateless(weigh)


def pcgrad_mixes(gram: Float[Array, "K K"], key: PRNGKeyArray) -> Float[Array, "K K"]:
  """Returns the coefficients of the projected gradients: row i is projected gradient i in terms of the given ones.

  >>> gram = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
  >>> pcgrad_mixes(gram, jax.random.key(0)).tolist()  # g1 + g2 / 4, and g2 + g1 / 1
  [[1.0, 0.25], [1.0, 1.0]]
  """
  num = len(gram)

  def project(own, key):
    def remove(mix, other):
      product = (mix * gram[other]).sum()
      length = gram[other, other]
      conflicts = (product < 0) & (other != own) & (length > 0)
      return mix.at[other].add(jnp.where(conflicts, -product / jnp.where(length > 0, length, 1), 0)), None

    start = (jnp.arange(num) == own).astype(gram.dtype)
    return jax.lax.scan(remove, start, jax.random.permutation(key, num))[0]

  return jax.vmap(project)(jnp.arange(num), jax.random.split(key, num))


def cagrad(c: float = 0.5, rescale: bool = False) -> Weighting:
  """Returns the CAGrad weighting: the best worst-case descent within a ball of c ||g_0|| around the mean gradient g_0.

  Args:
    c: radius as a multiple of the mean gradient's norm, 0 <= c < 1; 0 is the mean gradient.
    rescale: divide the weights by 1 + c^2, as the released code does by default.

  Raises:
    ValueError: c is out of range.

  Source: Liu et al. 2021 (arXiv 2110.14048), algorithm 1: d = g_0 + c ||g_0|| g_w / ||g_w||.
  """
  if not 0 <= c < 1:
    raise ValueError(f"{c=} must be at least 0 and below 1")

  def weigh(gram, losses, key):
    mean = jnp.full_like(losses, 1 / len(losses), dtype=gram.dtype)
    radius = c * jnp.sqrt(jnp.maximum((gram * mean[None] * mean[:, None]).sum(), 0))
    inner = cagrad_inner(gram, radius)
    length = _length(gram, inner)
    weights = mean + jnp.where(length > 0, radius / jnp.where(length > 0, length, 1), 0) * inner
    return weights / (1 + c**2) if rescale else weights

  return stateless(weigh)


def cagrad_inner(gram: Float[Array, "K K"], radius: Float[Array, ""]) -> Float[Array, "K"]:
  """Returns argmin over the simplex of g_w . g_0 + radius ||g_w||, with g_w = sum w_k g_k and g_0 the mean gradient.

  ||g_w|| is the minimum over t > 0 of (||g_w||^2 / t + t) / 2. For a given t a quadratic problem remains, solved
  exactly; the value as a function of t is convex, and its slope vanishes where ||g_w|| = t, found by bisection.

  >>> [round(w, 5) for w in cagrad_inner(jnp.eye(2), jnp.array(0.3)).tolist()]
  [0.5, 0.5]
  """
  product_with_mean = gram.mean(0)
  largest = jnp.maximum(norms(gram).max(), jnp.finfo(gram.dtype).tiny)

  def solve(t):
    return simplex_minimum(gram * (radius / t), product_with_mean)

  def halve(_, bounds):
    low, high = bounds
    middle = jnp.sqrt(low) * jnp.sqrt(high)
    is_longer = _length(gram, solve(middle)) > middle
    return jnp.where(is_longer, middle, low), jnp.where(is_longer, high, middle)

  low, high = jax.lax.fori_loop(0, HALVINGS, halve, (largest * 1e-12, largest))
  return solve(high)


def _length(gram, weights):
  return jnp.sqrt(jnp.maximum((gram * weights[None] * weights[:, None]).sum(), 0))
