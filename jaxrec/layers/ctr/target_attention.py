"""Attention of one candidate to a user's history: scores, the search for what is worth reading, aggregation.

    s_i  = <q, k_i> / sqrt(d) + <q', k'_i> / sqrt(d')   item and category together, the age apart
    kept = the K events with the largest s
    w    = softmax of s over what is kept
    r    = sum_i w_i v_i                                what the candidate's history looks like from its side
    h    = u * r                                        the target-aware representation; u is the candidate itself

Pure functions; `jaxrec.layers.ctr.decoupled` makes q, k, u and v.

Source: DARE, arXiv 2410.02604; TWIN, arXiv 2302.02352 (top-k search with the scores of the aggregation).
Choice: an event that is padding is never kept: with fewer than K events all of them are, and the softmax is over
  these. The published code fills up with padding, whose scores then take part.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

FEATURES = ("all", "pair", "product")


def scaled_query(target: Float[Array, "... M"], age_width: int) -> Float[Array, "... M"]:
  """The candidate's vector, scaled so that its dot products with the events' vectors are the scores.

  Args:
    target: item and category first, the age in the last `age_width` numbers.
    age_width: d'; 0: there is no age.

  >>> scaled_query(jnp.array([2.0, 2.0, 2.0, 2.0, 3.0]), age_width=1).tolist()
  [1.0, 1.0, 1.0, 1.0, 3.0]
  """
  widths = (target.shape[-1] - age_width, age_width)
  scale = [1 / math.sqrt(width) for width in widths for _ in range(width)]
  return target * jnp.asarray(scale, target.dtype)


def target_scores(
  target: Float[Array, "B M"], history: Float[Array, "B N M"], age_width: int = 0
) -> Float[Array, "B N"]:
  """The score of each event for the candidate of its row, that of padding included.

  >>> target_scores(jnp.array([[3.0, 4.0]]), jnp.array([[[1.0, 1.0], [2.0, 0.0]]]), age_width=1).tolist()
  [[7.0, 6.0]]
  """
  return jnp.einsum("bm,bnm->bn", scaled_query(target, age_width), history)  # [B, N]


def top_k(
  scores: Float[Array, "B N"], may_keep: Bool[Array, "B N"], k: int
) -> tuple[Int[Array, "B K"], Bool[Array, "B K"]]:
  """Where the k largest scores among those that may be kept are, best first, and which of these places are filled.

  Of equal scores the earlier event comes first. K is `min(k, N)`; a place that is not filled points anywhere.

  >>> index, filled = top_k(jnp.array([[1.0, 9.0, 2.0]]), jnp.array([[True, False, True]]), 3)
  >>> index[:, :2].tolist(), filled.tolist()
  ([[2, 0]], [[True, True, False]])
  """
  index = jax.lax.top_k(jnp.where(may_keep, scores, -jnp.inf), min(k, scores.shape[-1]))[1]  # [B, K]
  filled = jnp.arange(index.shape[-1]) < may_keep.sum(axis=-1, keepdims=True)
  return index, filled


def top_k_mask(scores: Float[Array, "B N"], may_keep: Bool[Array, "B N"], k: int) -> Bool[Array, "B N"]:
  """Which events `top_k` finds.

  >>> top_k_mask(jnp.array([[1.0, 9.0, 2.0, 0.0]]), jnp.array([[True, False, True, True]]), 2).tolist()
  [[True, False, True, False]]
  """
  index, filled = top_k(scores, may_keep, k)
  rows = jnp.arange(scores.shape[0])[:, None]
  return jnp.zeros(scores.shape, bool).at[rows, index].set(filled)


def masked_softmax(scores: Float[Array, "... N"], mask: Bool[Array, "... N"]) -> Float[Array, "... N"]:
  """Softmax over what the mask lets through; 0 elsewhere, and everywhere in a row of which it lets nothing through.

  >>> masked_softmax(jnp.zeros((2, 2)), jnp.array([[True, True], [False, False]])).tolist()
  [[0.5, 0.5], [0.0, 0.0]]
  """
  largest = jnp.max(scores, axis=-1, keepdims=True, where=mask, initial=-jnp.inf)
  shifted = scores - jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0))
  weight = jnp.where(mask, jnp.exp(jnp.where(mask, shifted, 0)), 0)
  total = weight.sum(axis=-1, keepdims=True)
  return weight / jnp.where(total > 0, total, 1)


def aggregate(weights: Float[Array, "B N"], values: Float[Array, "B N M"]) -> Float[Array, "B M"]:
  """The weighted sum of the events' vectors.

  >>> aggregate(jnp.array([[0.25, 0.75]]), jnp.array([[[4.0, 0.0], [0.0, 4.0]]])).tolist()
  [[1.0, 3.0]]
  """
  return jnp.einsum("bn,bnm->bm", weights, values)  # [B, M]


def target_aware_features(
  target: Float[Array, "B M"], pooled: Float[Array, "B M"], kind: str = "all"
) -> Float[Array, "B F"]:
  """What the click head reads.

  Args:
    target: u.
    pooled: r, the aggregated history.
    kind: "all": `[u, r, u * r]`; "pair": `[u, r]`, without the target-aware representation; "product": `u * r` alone.

  Raises:
    ValueError: another kind.

  >>> target_aware_features(jnp.array([[2.0]]), jnp.array([[3.0]])).tolist()
  [[2.0, 3.0, 6.0]]
  """
  if kind not in FEATURES:
    raise ValueError(f"features={kind!r} is not one of {FEATURES}")
  parts = {"all": (target, pooled, target * pooled), "pair": (target, pooled), "product": (target * pooled,)}
  return jnp.concatenate(parts[kind], axis=-1)  # [B, F]


class AttentionUnit(nn.Module):
  """Scores of events from a small network over `[q, k, q - k, q * k]`, divided by the width of q.

  Source: DIN, arXiv 1706.06978, as in the released code of arXiv 2410.02604: PReLU for Dice, a softmax after it.
  """

  hidden: int = 36

  @nn.compact
  def __call__(self, target: Float[Array, "B M"], history: Float[Array, "B N M"]) -> Float[Array, "B N"]:
    query = jnp.broadcast_to(target[:, None], history.shape)
    x = jnp.concatenate([query, history, query - history, query * history], axis=-1)  # [B, N, 4 M]
    x = nn.PReLU(negative_slope_init=0.1, name="activation")(nn.Dense(self.hidden, name="hidden_layer")(x))
    return nn.Dense(1, name="output")(x)[..., 0] / target.shape[-1]  # [B, N]
