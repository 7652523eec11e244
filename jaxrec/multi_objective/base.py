"""The interface of a weighting, and functions of the Gram matrix that several weightings share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

NORMALIZATIONS = ("none", "l2", "loss", "loss+")


class Weighting(NamedTuple):
  """A rule for the weights of K objectives: a pair of functions, like an Optax transformation.

  init: number of objectives K -> state (a pytree).
  update: (gram [K, K], losses [K], state, key) -> (weights [K], new state). `gram` holds the inner products of the
    unmodified gradients, and the weights multiply these same gradients. A NaN or infinity in `gram` or `losses` makes
    all weights NaN; it is never replaced. Pure, for use inside `jit`.

  >>> equal = Weighting(lambda num_objectives: (), lambda gram, losses, state, key: (jnp.ones_like(losses), state))
  >>> equal.update(jnp.eye(2), jnp.array([3.0, 4.0]), equal.init(2), None)[0].tolist()
  [1.0, 1.0]
  """

  init: Callable[[int], Any]
  update: Callable[[Array, Array, Any, PRNGKeyArray], tuple[Array, Any]]


def stateless(weigh: Callable[..., Float[Array, "K"]], check: Callable[[int], None] = lambda _: None) -> Weighting:
  """Returns the weighting that calls a function (gram, losses, key) -> weights.

  Args:
    weigh: the function.
    check: called by `init` with the number of objectives; raises if it does not fit.
  """

  def init(num_objectives):
    check(num_objectives)
    return ()

  def update(gram, losses, state, key):
    return nan_unless_finite(weigh(gram, losses, key), gram, losses), state

  return Weighting(init, update)


def nan_unless_finite(
  weights: Float[Array, "K"], gram: Float[Array, "K K"], losses: Float[Array, "K"]
) -> Float[Array, "K"]:
  """Returns the weights, or NaN for all of them if `gram` or `losses` is not finite, which a comparison can hide.

  >>> nan_unless_finite(jnp.ones(1), jnp.array([[jnp.inf]]), jnp.ones(1)).tolist()
  [nan]
  """
  return jnp.where(jnp.isfinite(gram).all() & jnp.isfinite(losses).all(), weights, jnp.nan)


def norms(gram: Float[Array, "K K"]) -> Float[Array, "K"]:
  """Returns the L2 norms of the gradients.

  >>> norms(jnp.array([[4.0, 0.0], [0.0, 9.0]])).tolist()
  [2.0, 3.0]
  """
  return jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))


def cosines(gram: Float[Array, "K K"]) -> Float[Array, "K K"]:
  """Returns the cosines of the angles between gradients; 0 where either of the two is zero.

  >>> cosines(jnp.array([[4.0, 3.0], [3.0, 9.0]])).tolist()
  [[1.0, 0.5], [0.5, 1.0]]
  """
  norm = norms(gram)
  inverse = jnp.where(norm == 0, 0, 1 / jnp.where(norm == 0, 1, norm))
  return gram * inverse[None] * inverse[:, None]


def normalizers(gram: Float[Array, "K K"], losses: Float[Array, "K"], normalization: str) -> Float[Array, "K"]:
  """Returns the number by which each gradient is divided before the min-norm problem.

  Args:
    gram: inner products of the gradients.
    losses: loss of each objective.
    normalization: "none": 1; "l2": the gradient's norm; "loss": the loss; "loss+": loss times norm. With the last two a
      loss that is not positive gives NaN, because dividing by it would reverse the gradient.

  Source: the code released with Sener & Koltun 2018 (arXiv 1810.04650).
  """
  norm = norms(gram)
  positive = jnp.where(losses > 0, losses, jnp.nan).astype(gram.dtype)
  return {"none": jnp.ones_like(norm), "l2": norm, "loss": positive, "loss+": positive * norm}[normalization]


def normalized(
  gram: Float[Array, "K K"], losses: Float[Array, "K"], normalization: str
) -> tuple[Float[Array, "K K"], Float[Array, "K"]]:
  """Returns the Gram matrix of the normalized gradients and their divisors; zero gradients stay zero."""
  divisor = normalizers(gram, losses, normalization)
  divisor = jnp.where(norms(gram) == 0, 1, divisor)
  return gram / divisor[None] / divisor[:, None], divisor


def anchored(
  weights: Float[Array, "K"], anchor: int, floor: float, multiplier_range: Sequence[float] | None
) -> Float[Array, "K"]:
  """Returns the weights divided by that of the anchor, which becomes exactly 1, the others clipped to a range.

  Args:
    weights: of K objectives.
    anchor: index of the objective whose weight becomes 1.
    floor: lower bound, as a share of sum |w|, on the anchor's weight as a divisor; also where that is negative.
    multiplier_range: (lowest, highest) of the other weights; None: no clipping.

  >>> anchored(jnp.array([2.0, 1.0]), 0, 0.05, None).tolist()
  [1.0, 0.5]
  """
  divisor = jnp.maximum(weights[anchor], floor * jnp.abs(weights).sum())
  multiplier = weights / jnp.where(divisor == 0, 1, divisor)
  if multiplier_range is not None:
    multiplier = jnp.clip(multiplier, *multiplier_range)
  return multiplier.at[anchor].set(1)


def check_normalization(normalization: str) -> None:
  """Raises ValueError for an unknown normalization."""
  if normalization not in NORMALIZATIONS:
    raise ValueError(f"{normalization=} is not one of {NORMALIZATIONS}")
