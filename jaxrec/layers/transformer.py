"""Softmax attention layers: the transformer blocks of SASRec and BERT4Rec."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.layers.attention import attend
from jaxrec.layers.context import AttentionContext
from jaxrec.layers.feed_forward import FeedForward
from jaxrec.layers.item_embedding import dropout
from jaxrec.layers.norm import layer_norm, widen


class MultiHeadAttention(nn.Module):
  """Softmax attention with biases in all projections; queries, keys and values may come from different vectors.

  num_heads: H; divides the width of the values.
  implementation: of `segment_attention`.

  Choice: dropout is applied to the output of attention, not to its weights, which no kernel here materialises.

  Raises:
    ValueError: the heads do not divide the width.

  >>> import jax
  >>> from jaxrec.batches import next_item_batch
  >>> from jaxrec.layers.context import causal_context
  >>> layer = MultiHeadAttention(num_heads=2)
  >>> x, context = jnp.ones((1, 4, 8)), causal_context(next_item_batch(jnp.array([[5, 3, 8, 0]])))
  >>> y, params = layer.init_with_output(jax.random.key(0), x, x, x, context)
  >>> y.shape
  (1, 4, 8)
  """

  num_heads: int
  dropout: float = 0.0
  implementation: str = "auto"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    query: Float[Array, "B N A"],
    key: Float[Array, "B N A"],
    value: Float[Array, "B N M"],
    context: AttentionContext,
    deterministic: bool = True,
  ) -> Float[Array, "B N M"]:
    width = value.shape[-1]
    if width % self.num_heads:
      raise ValueError(f"{width=} must be divisible by {self.num_heads=}")

    def project(name, x):
      x = nn.Dense(width, kernel_init=nn.initializers.xavier_normal(), dtype=self.dtype, name=name)(x)
      return x.reshape(*x.shape[:-1], self.num_heads, width // self.num_heads)  # [B, N, H, D]

    query, key, value = (context.without_padding(x) for x in (query, key, value))
    q, k, v = project("query", query), project("key", key), project("value", value)
    scale = (width // self.num_heads) ** -0.5
    y = attend(
      self, q, k, v, context, activation="softmax", scale=scale, implementation=self.implementation
    )  # [B, N, H, D]
    y = dropout(self, y.reshape(value.shape), self.dropout, deterministic)
    return nn.Dense(width, kernel_init=nn.initializers.xavier_normal(), dtype=self.dtype, name="output")(y)


class SASRecLayer(nn.Module):
  """SASRec's block as in the released HSTU baseline: only queries are normalised, and residuals add normalised vectors.

  `Q = LN(x)`;  `z = LN(Q + MHA(Q, x, x))`;  `y = z + FFN(z)`. With `a = context.attention_input` it is
  `MHA(LN(a), a, x)`.

  num_heads, dropout, implementation: see `MultiHeadAttention`.
  hidden, activation: see `FeedForward`.

  Source: Kang and McAuley 2018, arXiv 1808.09781, section III-B; released code of arXiv 2402.17152.

  >>> import jax
  >>> from jaxrec.batches import next_item_batch
  >>> from jaxrec.layers.context import causal_context
  >>> layer = SASRecLayer(num_heads=2, hidden=16)
  >>> x, context = jnp.ones((1, 4, 8)), causal_context(next_item_batch(jnp.array([[5, 3, 8, 0]])))
  >>> y, params = layer.init_with_output(jax.random.key(0), x, context)
  >>> y.shape
  (1, 4, 8)
  """

  num_heads: int
  hidden: int
  activation: str = "relu"
  dropout: float = 0.0
  implementation: str = "auto"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "B N M"], context: AttentionContext, deterministic: bool = True
  ) -> Float[Array, "B N M"]:
    x = context.without_padding(x)
    a = x if context.attention_input is None else context.without_padding(context.attention_input)
    residual = layer_norm(x, 1e-8)
    attention = MultiHeadAttention(self.num_heads, self.dropout, self.implementation, self.dtype, name="attention")
    z = layer_norm(residual + attention(layer_norm(a, 1e-8), a, x, context, deterministic), 1e-8)
    feed_forward = FeedForward(self.hidden, self.activation, self.dropout, self.dtype, name="feed_forward")
    return z + feed_forward(z, deterministic)


class BERT4RecLayer(nn.Module):
  """A bidirectional transformer block; queries and keys are projected from `context.attention_input` if it is set.

  num_heads, dropout, implementation: see `MultiHeadAttention`.
  hidden, activation: see `FeedForward`.

  Source: Sun et al. 2019, arXiv 1904.06690, section 3.3.
  Choice: layer norms come before the two sub-layers (pre-norm), which trains without warm-up; in the paper they come
    after.

  >>> import jax
  >>> from jaxrec.batches import next_item_batch
  >>> from jaxrec.layers.context import bidirectional_context
  >>> layer = BERT4RecLayer(num_heads=2, hidden=16)
  >>> x, context = jnp.ones((1, 4, 8)), bidirectional_context(next_item_batch(jnp.array([[5, 3, 8, 0]])))
  >>> y, params = layer.init_with_output(jax.random.key(0), x, context)
  >>> y.shape
  (1, 4, 8)
  """

  num_heads: int
  hidden: int
  activation: str = "gelu"
  dropout: float = 0.0
  implementation: str = "auto"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "B N M"], context: AttentionContext, deterministic: bool = True
  ) -> Float[Array, "B N M"]:
    x = context.without_padding(x)
    y = nn.LayerNorm(name="attention_norm")(widen(x)).astype(self.dtype)
    attention = MultiHeadAttention(self.num_heads, self.dropout, self.implementation, self.dtype, name="attention")
    a = y if context.attention_input is None else layer_norm(context.without_padding(context.attention_input))
    x = x + dropout(self, attention(a, a, y, context, deterministic), self.dropout, deterministic)
    y = nn.LayerNorm(name="feed_forward_norm")(widen(x)).astype(self.dtype)
    return x + FeedForward(self.hidden, self.activation, self.dropout, self.dtype, name="feed_forward")(
      y, deterministic
    )
