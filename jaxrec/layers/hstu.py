"""The HSTU layer: pointwise SiLU attention with time and position bias, gated.

`U, V, Q, K = split(SiLU(LN(X) W_uvqk))`;  `A V = silu(Q K^T + rab^{p,t}) / N masked, times V`;
`Y = (LN(A V) * U) W_o + b_o + X`;  with `feed_forward`, `Z = Y + SwiGLU(LN(Y))`.

Source: Zhai et al. 2024, arXiv 2402.17152, equations 1-3 and the released code; the feed-forward network: FuXi-alpha,
  arXiv 2502.03036, the second stage of its multi-stage network.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.layers.attention import attend
from jaxrec.layers.context import AttentionContext, check_context
from jaxrec.layers.feed_forward import GatedFeedForward
from jaxrec.layers.item_embedding import dropout
from jaxrec.layers.norm import layer_norm
from pallas_kernels import NUM_TIME_BUCKETS, RelativeBias


def split_uvqk(
  projected: Float[Array, "B N P"], num_heads: int, head_width: int, value_width: int
) -> tuple[Array, Array, Array, Array]:
  """Returns the gate `u [B, N, H*E]`, values `[B, N, H, E]`, queries and keys `[B, N, H, D]`; heads are outermost.

  >>> u, v, q, k = split_uvqk(jnp.arange(6.0).reshape(1, 1, 6), num_heads=1, head_width=1, value_width=2)
  >>> u.tolist(), v.tolist(), q.tolist(), k.tolist()
  ([[[0.0, 1.0]]], [[[[2.0, 3.0]]]], [[[[4.0]]]], [[[[5.0]]]])
  """
  wide, narrow = num_heads * value_width, num_heads * head_width
  u, v, q, k = jnp.split(projected, (wide, 2 * wide, 2 * wide + narrow), axis=-1)
  lead = projected.shape[:-1]
  v = v.reshape(*lead, num_heads, value_width)  # [B, N, H, E]
  q = q.reshape(*lead, num_heads, head_width)  # [B, N, H, D]
  k = k.reshape(*lead, num_heads, head_width)  # [B, N, H, D]
  return u, v, q, k


def gate(u: Float[Array, "B N W"], normalized: Float[Array, "B N W"], concat_ua: bool) -> Float[Array, "B N _"]:
  """Returns `u * a`, where a is the normalised output of attention, or `[u, a, u * a]` if `concat_ua`.

  >>> gate(jnp.array([[[2.0]]]), jnp.array([[[5.0]]]), concat_ua=True).tolist()
  [[[2.0, 5.0, 10.0]]]
  """
  gated = u * normalized
  return jnp.concatenate([u, normalized, gated], axis=-1) if concat_ua else gated


BIAS_TABLES = ("shared", "head")
NORMALIZERS = ("length", "keys")
DROPOUTS = ("gated", "output")


class HSTULayer(nn.Module):
  """One HSTU layer.

  If `context.attention_input` is set, queries and keys are projected from it, with a kernel of their own.

  num_heads: H.
  head_width, value_width: width of a query or key (D) and of a value (E), per head.
  attention_length: N of the equations: the divisor of the SiLU weights and the reach of the position table. It is a
    constant of the model, not the padded length of a batch, so that padding never changes a result.
  time_bias, position_bias: which terms of rab^{p,t} exist.
  bias_tables: "shared" by the heads of the layer, as published, or one of each "head".
  normalizer: what SiLU weights are divided by: "length", N, or the number of "keys" that the query reads. Since LN(A V)
    follows, it matters only where A V is so small that the epsilon of LN counts.
  dropout_on: the "gated" output of attention, before W_o, as released, or the "output" of the layer, before X is added.
  concat_ua: see `gate`.
  activation: "silu", or "softmax" over the keys that may be attended, for the ablation.
  linear_activation: "silu" or "none", applied to the input projection.
  feed_forward: hidden width of the SwiGLU network; 0 for none, as published.
  implementation: of `segment_attention`.

  Choice: the released "softmax_rel_bias" merges heads and lets future keys into the denominator; ours does neither.
    FuXi-alpha normalises by the root mean square with a learned scale, and separates its channels of attention; here
    it is LN without parameters, and rab^{p,t} is one sum, as in HSTU.

  >>> from jaxrec.batches import next_item_batch
  >>> from jaxrec.layers.context import causal_context
  >>> layer = HSTULayer(num_heads=2, head_width=4, value_width=4, attention_length=4)
  >>> x, context = jnp.ones((1, 4, 8)), causal_context(next_item_batch(jnp.array([[5, 3, 8, 0]])))
  >>> y, params = layer.init_with_output(jax.random.key(0), x, context)
  >>> y.shape
  (1, 4, 8)
  """

  num_heads: int
  head_width: int
  value_width: int
  attention_length: int
  dropout: float = 0.0
  time_bias: bool = True
  position_bias: bool = True
  concat_ua: bool = False
  activation: str = "silu"
  linear_activation: str = "silu"
  bias_tables: str = "shared"
  normalizer: str = "length"
  dropout_on: str = "gated"
  feed_forward: int = 0
  implementation: str = "auto"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "B N M"], context: AttentionContext, deterministic: bool = True
  ) -> Float[Array, "B N M"]:
    check_context(context)
    self._check_options()
    x, attention_input = context.without_padding(x), context.attention_input
    if attention_input is not None:
      attention_input = context.without_padding(attention_input)
    projected = self.project(x, attention_input)  # [B, N, H * (2E + 2D)]
    if self.linear_activation == "silu":
      projected = jax.nn.silu(projected)
    u, v, q, k = split_uvqk(projected, self.num_heads, self.head_width, self.value_width)
    attended = attend(
      self, q, k, v, context, activation=self.activation, bias=self.relative_bias(context),
      normalizer=self._divisor(context), implementation=self.implementation,
    )  # fmt: skip
    normalized = self.combine_domains(layer_norm(attended.reshape(u.shape)), q, k, v, context)
    y = gate(u, normalized, self.concat_ua)
    y = dropout(self, y, self.dropout if self.dropout_on == "gated" else 0.0, deterministic)
    fan_in = y.shape[-1]
    output = nn.Dense(
      x.shape[-1],
      kernel_init=nn.initializers.xavier_uniform(),
      bias_init=uniform(fan_in**-0.5),
      dtype=self.dtype,
      name="output",
    )
    y = x + dropout(self, output(y), self.dropout if self.dropout_on == "output" else 0.0, deterministic)
    if not self.feed_forward:
      return y
    network = GatedFeedForward(self.feed_forward, dtype=self.dtype, name="feed_forward")
    return y + dropout(self, network(layer_norm(y)), self.dropout, deterministic)

  def _divisor(self, context):
    if self.activation != "silu":
      return None
    return self.attention_length if self.normalizer == "length" else keys_read(context)

  def _check_options(self):
    choices = {
      "linear_activation": ("silu", "none"), "bias_tables": BIAS_TABLES, "normalizer": NORMALIZERS,
      "dropout_on": DROPOUTS,
    }  # fmt: skip
    for name, known in choices.items():
      if getattr(self, name) not in known:
        raise ValueError(f"self.{name}={getattr(self, name)!r} is not one of {known}")
    if self.feed_forward < 0:
      raise ValueError(f"{self.feed_forward=} must be a width, or 0 for no feed-forward network")
    if self.normalizer == "keys" and self.activation != "silu":
      raise ValueError(f"{self.normalizer=} is for activation='silu', not {self.activation!r}: it normalises already")

  def combine_domains(
    self, normalized: Float[Array, "B N W"], q: Array, k: Array, v: Array, context: AttentionContext
  ) -> Float[Array, "B N W"]:
    """Returns the normalised output of attention; subclasses add information from other domains.

    Args:
      normalized: LN(A V).
      q, k, v: of the attention, `[B, N, H, D]`, and of the values `[B, N, H, E]`.
      context: as in `__call__`.
    """
    del q, k, v, context
    return normalized

  def project(self, x: Float[Array, "B N M"], attention_input: Float[Array, "B N A"] | None) -> Float[Array, "B N P"]:
    """Returns u, v, q and k concatenated: projected from `x`, or q and k from `attention_input`."""

    def dense(name, width, x):
      init = nn.initializers.normal(0.02)
      return nn.Dense(width, use_bias=False, kernel_init=init, dtype=self.dtype, name=name)(layer_norm(x))

    wide, narrow = 2 * self.num_heads * self.value_width, 2 * self.num_heads * self.head_width
    if attention_input is None:
      return dense("uvqk", wide + narrow, x)
    return jnp.concatenate([dense("uv", wide, x), dense("qk", narrow, attention_input)], axis=-1)

  def relative_bias(self, context: AttentionContext) -> RelativeBias | None:
    """Returns rab^{p,t}: this layer's tables with the times and positions of the batch; None if it has no tables."""
    init = nn.initializers.normal(0.02)
    if not (self.time_bias or self.position_bias):
      return None
    time = position = {}
    heads = (self.num_heads,) if self.bias_tables == "head" else ()
    if self.time_bias:
      table = self.param("time_table", init, (*heads, NUM_TIME_BUCKETS), jnp.float32)
      time = {"time_table": table, "query_time": context.query_time, "key_time": context.key_time}
    if self.position_bias:
      table = self.param("position_table", init, (*heads, 2 * self.attention_length - 1), jnp.float32)
      position = {"position_table": table, "query_position": context.query_position}
      position["key_position"] = context.key_position
    return RelativeBias(**time, **position)


def keys_read(context: AttentionContext) -> Float[Array, "B Q"]:
  """Returns how many keys each query reads, itself among them; 1 on padding.

  >>> from jaxrec.batches import next_item_batch
  >>> from jaxrec.layers.context import causal_context
  >>> keys_read(causal_context(next_item_batch(jnp.array([[5, 3, 8, 0]])))).tolist()
  [[1.0, 2.0, 3.0, 1.0]]
  """
  others = context.mask.count_keys(jnp.zeros_like(context.key_position), 1)[..., 0]  # [B, Q]
  return (1 + others).astype(jnp.float32)


def uniform(bound: float):
  """Returns an initializer: uniform in `[-bound, bound]`."""

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init
