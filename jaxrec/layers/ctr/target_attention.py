"""Target attention of one candidate to a user's history: scores, search for the top-K events, aggregation.

    s_i  = <q, k_i> / sqrt(d) + <q', k'_i> / sqrt(d')   item and category in one product, age in another
    kept = the K events with the largest s
    w    = softmax of s over the kept events
    r    = sum_i w_i v_i                                the history, pooled for this candidate
    h    = u * r                                        the target-aware representation; u is the candidate's vector

Pure functions; `jaxrec.layers.ctr.decoupled` computes q, k, u and v.

Source: DARE, arXiv 2410.02604, its public code for the two products of a score (the paper has one); TWIN,
  arXiv 2302.02352 (top-k search with the scores of the aggregation).
Choice: padding is never kept: if there are fewer than K events, all are kept and the softmax covers these only. The
  published code fills up with padding, whose scores then enter the softmax. With the age in vectors of its own its hard
  search also counts the age twice, once more in the first product; ours does not.
"""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

FEATURES = ("all", "pair", "product")


def scaled_query(target: Float[Array, "... M"], age_width: int) -> Float[Array, "... M"]:
  """Returns the candidate's vector, scaled so that its dot products with the events' vectors are the scores.

  Args:
    target: item and category first, age in the last `age_width` entries.
    age_width: d'; 0: no age.

  >>> scaled_query(jnp.array([2.0, 2.0, 2.0, 2.0, 3.0]), age_width=1).tolist()
  [1.0, 1.0, 1.0, 1.0, 3.0]
  """
  widths = (target.shape[-1] - age_width, age_width)
  scale = [1 / math.sqrt(width) for width in widths for _ in range(width)]
  return target * jnp.asarray(scale, target.dtype).reshape(*(1,) * (target.ndim - 1), -1)


def target_scores(
  target: Float[Array, "B M"], history: Float[Array, "B N M"], age_width: int = 0
) -> Float[Array, "B N"]:
  """Returns the score of each event, including padding, for the candidate of its row.

  >>> target_scores(jnp.array([[3.0, 4.0]]), jnp.array([[[1.0, 1.0], [2.0, 0.0]]]), age_width=1).tolist()
  [[7.0, 6.0]]
  """
  return jnp.einsum("bm,bnm->bn", scaled_query(target, age_width), history)  # [B, N]


def top_k(
  scores: Float[Array, "B N"], may_keep: Bool[Array, "B N"], k: int
) -> tuple[Int[Array, "B K"], Bool[Array, "B K"]]:
  """Returns the indices of the k largest scores among events that may be kept, best first, and which are valid.

  Among equal scores the earlier event comes first. K is `min(k, N)`; an index that is not valid is arbitrary.

  >>> index, is_valid = top_k(jnp.array([[1.0, 9.0, 2.0]]), jnp.array([[True, False, True]]), 3)
  >>> index[:, :2].tolist(), is_valid.tolist()
  ([[2, 0]], [[True, True, False]])
  """
  index = jax.lax.top_k(jnp.where(may_keep, scores, -jnp.inf), min(k, scores.shape[-1]))[1]  # [B, K]
  is_valid = jnp.arange(index.shape[-1])[None] < may_keep.sum(axis=-1, keepdims=True)
  return index, is_valid


def top_k_mask(scores: Float[Array, "B N"], may_keep: Bool[Array, "B N"], k: int) -> Bool[Array, "B N"]:
  """Returns which events `top_k` selects.

  >>> top_k_mask(jnp.array([[1.0, 9.0, 2.0, 0.0]]), jnp.array([[True, False, True, True]]), 2).tolist()
  [[True, False, True, False]]
  """
  index, is_valid = top_k(scores, may_keep, k)
  rows = jnp.arange(scores.shape[0])[:, None]
  return jnp.zeros(scores.shape, bool).at[rows, index].set(is_valid)


def category_preference(
  history_category: Int[Array, "B N"], category: Int[Array, " B"]
) -> tuple[Float[Array, "B N"], Bool[Array, "B N"]]:
  """Returns scores for a hard search, and which events have the candidate's category.

  The scores prefer events of that category to others, and among each of both later events to earlier ones.

  Source: SIM, arXiv 2006.05639, "hard search", and the public code of arXiv 2410.02604, which fills up with the latest
    events of other categories.

  >>> score, is_same = category_preference(jnp.array([[2, 1, 2, 1]]), jnp.array([2]))
  >>> score.tolist(), is_same.tolist()
  ([[4.0, 1.0, 6.0, 3.0]], [[True, False, True, False]])
  """
  num_events = history_category.shape[1]
  is_same = history_category == category[:, None]
  return jnp.arange(num_events, dtype=jnp.float32)[None] + num_events * is_same.astype(jnp.float32), is_same


def masked_softmax(scores: Float[Array, "... N"], mask: Bool[Array, "... N"]) -> Float[Array, "... N"]:
  """Returns softmax over the entries where `mask` is True; 0 elsewhere, and in rows where it is False throughout.

  >>> masked_softmax(jnp.zeros((2, 2)), jnp.array([[True, True], [False, False]])).tolist()
  [[0.5, 0.5], [0.0, 0.0]]
  """
  largest = jnp.max(scores, axis=-1, keepdims=True, where=mask, initial=-jnp.inf)
  shifted = scores - jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0))
  weight = jnp.where(mask, jnp.exp(jnp.where(mask, shifted, 0)), 0)
  total = weight.sum(axis=-1, keepdims=True)
  return weight / jnp.where(total > 0, total, 1)


def aggregate(weights: Float[Array, "B *G N"], values: Float[Array, "B N M"]) -> Float[Array, "B *G M"]:
  """Returns the weighted sums of the events' vectors.

  >>> aggregate(jnp.array([[0.25, 0.75]]), jnp.array([[[4.0, 0.0], [0.0, 4.0]]])).tolist()
  [[1.0, 3.0]]
  """
  return jnp.einsum("b...n,bnm->b...m", weights, values)  # [B, (G,) M]


def target_aware_features(
  target: Float[Array, "B M"], pooled: Float[Array, "B M"], kind: str = "all"
) -> Float[Array, "B F"]:
  """Returns the input features of the click head.

  Args:
    target: u.
    pooled: r, the aggregated history.
    kind: "all": `[u, r, u * r]`; "pair": `[u, r]`, without the target-aware representation; "product": `u * r`.

  Raises:
    ValueError: an unknown kind.

  >>> target_aware_features(jnp.array([[2.0]]), jnp.array([[3.0]])).tolist()
  [[2.0, 3.0, 6.0]]
  """
  if kind not in FEATURES:
    raise ValueError(f"features={kind!r} is not one of {FEATURES}")
  parts = {"all": (target, pooled, target * pooled), "pair": (target, pooled), "product": (target * pooled,)}
  return jnp.concatenate(parts[kind], axis=-1)  # [B, F]


class AttentionUnit(nn.Module):
  """Scores events with a small network over `[q, k, q - k, q * k]`, divided by the width of q.

  `[B, M]` queries with a history each, or `[B, P, M]` queries of which P share one, have scores `[B, (P,) N]`.

  hidden: width of its hidden layer.

  Source: DIN, arXiv 1706.06978, as in the released code of arXiv 2410.02604: PReLU instead of Dice, then a softmax.

  >>> q, k = jnp.ones((2, 4)), jnp.ones((2, 3, 4))
  >>> scores, params = AttentionUnit().init_with_output(jax.random.key(0), q, k)
  >>> scores.shape
  (2, 3)
  """

  hidden: int = 36

  def setup(self):
    self.hidden_layer = _PairDense(self.hidden)
    self.activation = nn.PReLU(negative_slope_init=0.1)
    self.output = nn.Dense(1)

  def __call__(self, target: Float[Array, "B *P M"], history: Float[Array, "B N M"]) -> Float[Array, "B *P N"]:
    if target.ndim == 2:
      return self._scores(target, history)

    # One candidate of each row at a time, whose hidden layer is computed again in the backward pass: those of all
    # candidates do not fit a CPU's caches and take twice as long.
    @functools.partial(nn.scan, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
    @nn.remat
    def of_one(unit, carry, query):
      return carry, unit._scores(query, history)

    return of_one(self, (), target)[1]  # [B, P, N]

  def _scores(self, target: Float[Array, "B M"], history: Float[Array, "B N M"]) -> Float[Array, "B N"]:
    x = self.activation(self.hidden_layer(target, history))
    return self.output(x)[..., 0] / target.shape[-1]


class _PairDense(nn.Module):
  """A dense layer of `[q, k, q - k, q * k]`, which is never made for all events: that would be most of a step's time.

  With the rows of the kernel in four parts it is `k (diag(q) W4 + W2 - W3) + q (W1 + W3) + b`.
  """

  width: int

  @nn.compact
  def __call__(self, target: Float[Array, "B M"], history: Float[Array, "B N M"]) -> Float[Array, "B N H"]:
    size = target.shape[-1]
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (4 * size, self.width), jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)
    of_query, of_event, of_difference, of_product = kernel.reshape(4, size, self.width)
    by_query = target @ (of_query + of_difference) + bias[None]  # [B, H]
    by_event = jnp.einsum("bm,mh->bmh", target, of_product) + (of_event - of_difference)[None]  # [B, M, H]
    return history @ by_event + by_query[:, None]
