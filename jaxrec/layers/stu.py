"""STU: the HSTU layer of Meta's production ranking models, and its positional encoder.

    positional  x <- sqrt(M) x + Position[p'] + Time[t']              p' and t' count back from the end of the history
    layer       u, v, q, k = split(LN(x) W + b),  u <- silu(u)        silu on u only, unlike the research layer
                o = sum_j may_attend(i, j) silu(scale q_i·k_j) / normalizer v_j
                y = x + dropout([u, o, u * norm(o)]) W_out

Rows are padded on the right. The first `contextual_length` tokens of a row describe the user; the last `num_targets`
are candidates, which attend to the history and to themselves but not to each other. `jaxrec.models.stu` is a model of
next items that uses `STULayer`.

Source: Zhai et al. 2024, arXiv 2402.17152, and its authors' production module `STULayer`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxrec.batches import AnyArray
from jaxrec.layers.attention import attend
from jaxrec.layers.cache import CachedRows, Prefill
from jaxrec.layers.context import AttentionContext, token_context
from jaxrec.layers.hstu import split_uvqk, uniform
from jaxrec.layers.item_embedding import dropout
from jaxrec.layers.norm import layer_norm, widen
from pallas_kernels import IntervalMask, segment_attention
from pallas_kernels.integers import as_integers


class STU(nn.Module):
  """A stack of STU layers over rows of history and candidate targets.

  num_heads: H.
  head_width, value_width: width of a query or key (D) and of a value (E), per head.
  normalizer: divisor of the silu weights.
  scale: multiplies q·k; None = 1 / sqrt(head_width).
  max_attention_length: attention window in tokens, 0 = unlimited.
  min_full_attention_length: this many last tokens of the history ignore the window.
  contextual_length: tokens at the start of a row that attend to the whole history, and that all tokens attend to.
  group_norm: normalise the attention output per head, with one scale and bias per head.
  implementation: of `segment_attention`.

  Choice: the normalizer is a constant, so that a row's result never depends on its batch or on padding. The published
    code divides by the padded length of the call, and by a different length when it uses a cache.

  >>> stack = STU(num_layers=1, num_heads=2, head_width=4, value_width=4, normalizer=6.0)
  >>> x, lengths, num_targets = jnp.ones((1, 6, 8)), jnp.array([5]), jnp.array([2])
  >>> y, params = stack.init_with_output(jax.random.key(0), x, lengths, num_targets)
  >>> y.shape, y[0, 5].any().item()
  ((1, 6, 8), False)
  """

  num_layers: int
  num_heads: int
  head_width: int
  value_width: int
  normalizer: float
  scale: float | None = None
  max_attention_length: int = 0
  min_full_attention_length: int = 0
  contextual_length: int = 0
  group_norm: bool = False
  dropout: float = 0.0
  implementation: str = "auto"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B N M"],
    lengths: Integer[AnyArray, " B"],
    num_targets: Integer[AnyArray, " B"] | None = None,
    deterministic: bool = True,
    slot: Prefill | CachedRows | None = None,
  ) -> Float[Array, "B N M"]:
    """Returns the encoded tokens, 0 on padding.

    Args:
      x: embedded tokens, with any value on padding.
      lengths: tokens in each row, targets included.
      num_targets: candidates at the end of each row; None: all tokens are history.
      deterministic: True: no dropout.
      slot: keeps keys and values of these tokens, or reads those that were kept: `x` are then some tokens of the rows,
        and `lengths` count all of them. None: neither. A contextual prefix reads the whole history, so that its keys
        are those of the history at hand: with one, histories must not grow between the two.
    """
    is_some = isinstance(slot, CachedRows)
    mask = IntervalMask.hstu(
      lengths,
      slot.capacity if is_some else x.shape[1],
      num_targets=num_targets,
      max_attention_length=self.max_attention_length,
      contextual_length=self.contextual_length,
      min_full_attention_length=self.min_full_attention_length,
    )
    positions = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
    index = as_integers("slot.index", slot.index) if is_some else jnp.broadcast_to(positions, x.shape[:2])  # [B, N]
    mask = mask.take(index) if is_some else mask
    is_real = index < as_integers("lengths", lengths)[:, None]  # [B, N]
    context = mask if slot is None else token_context(mask, index, jnp.zeros_like(index), is_real, slot=slot)
    x = jnp.where(is_real[..., None], x, 0)
    for i in range(self.num_layers):
      layer = STULayer(
        num_heads=self.num_heads,
        head_width=self.head_width,
        value_width=self.value_width,
        normalizer=self.normalizer,
        scale=self.scale,
        group_norm=self.group_norm,
        dropout=self.dropout,
        implementation=self.implementation,
        dtype=self.dtype,
        name=f"layer_{i}",
      )
      x = layer(x, context, deterministic)
      x = jnp.where(is_real[..., None], x, 0)
    return x


class STULayer(nn.Module):
  """One STU layer; for its options see `STU`.

  >>> layer = STULayer(num_heads=2, head_width=4, value_width=4, normalizer=6.0)
  >>> x, mask = jnp.ones((1, 6, 8)), IntervalMask.causal(jnp.array([[1, 1, 1, 2, 2, 0]]))
  >>> y, params = layer.init_with_output(jax.random.key(0), x, mask)
  >>> y.shape
  (1, 6, 8)
  """

  num_heads: int
  head_width: int
  value_width: int
  normalizer: float
  scale: float | None = None
  group_norm: bool = False
  dropout: float = 0.0
  implementation: str = "auto"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "B N M"], context: IntervalMask | AttentionContext, deterministic: bool = True
  ) -> Float[Array, "B N M"]:
    """Returns the layer's output; arbitrary on padding.

    Args:
      x: tokens.
      context: which keys each query may read: a mask, or the context of a model, with its cache and bottleneck tokens.
        Times, positions and `attention_input` are not read.
      deterministic: True: no dropout.
    """
    is_mask = isinstance(context, IntervalMask)
    x = x.astype(self.dtype)
    return stu_layer(
      x if is_mask else context.without_padding(x),
      self._weights(x.shape[-1]),
      context if is_mask else context.mask,
      is_token=None if is_mask else jnp.ones((1, 1), bool),
      num_heads=self.num_heads,
      head_width=self.head_width,
      normalizer=self.normalizer,
      scale=self.scale,
      attention=segment_attention if is_mask else self._attention_in(context),
      dropout=lambda features: dropout(self, features, self.dropout, deterministic),
      implementation=self.implementation,
    )

  def _attention_in(self, context: AttentionContext) -> Callable[..., Array]:
    return lambda q, k, v, _mask, **options: attend(self, q, k, v, context, **options)

  def _weights(self, width: int) -> STUWeights:
    values = self.num_heads * self.value_width
    projected = 2 * values + 2 * self.num_heads * self.head_width
    norm = self.num_heads if self.group_norm else values
    xavier, zeros, ones = nn.initializers.xavier_uniform(), nn.initializers.zeros, nn.initializers.ones
    return STUWeights(
      input_norm_scale=self.param("input_norm_scale", ones, (width,), jnp.float32),
      input_norm_bias=self.param("input_norm_bias", zeros, (width,), jnp.float32),
      uvqk_kernel=self.param("uvqk_kernel", xavier, (width, projected), jnp.float32),
      uvqk_bias=self.param("uvqk_bias", zeros, (projected,), jnp.float32),
      output_norm_scale=self.param("output_norm_scale", ones, (norm,), jnp.float32),
      output_norm_bias=self.param("output_norm_bias", zeros, (norm,), jnp.float32),
      output_kernel=self.param("output_kernel", xavier, (3 * values, width), jnp.float32),
      group_norm=self.group_norm,
    )


@flax.struct.dataclass
class STUWeights:
  """Weights of one STU layer: P = 2 H E + 2 H D, in the order u, v, q, k; G is H with group_norm, else H E."""

  input_norm_scale: Float[Array, " M"]
  input_norm_bias: Float[Array, " M"]
  uvqk_kernel: Float[Array, "M P"]
  uvqk_bias: Float[Array, " P"]
  output_norm_scale: Float[Array, " G"]
  output_norm_bias: Float[Array, " G"]
  output_kernel: Float[Array, "HE3 M"]
  group_norm: bool = flax.struct.field(pytree_node=False, default=False)


def stu_layer(
  x: Float[Array, "B N M"],
  weights: STUWeights,
  mask: IntervalMask,
  *,
  is_token: Bool[Array, "#B #N"] | None = None,
  num_heads: int,
  head_width: int,
  normalizer: float | Float[Array, "B N"],
  scale: float | None = None,
  attention: Callable[..., Array] = segment_attention,
  dropout: Callable[[Array], Array] = lambda features: features,
  implementation: str = "auto",
) -> Float[Array, "B N M"]:
  """Returns the layer's output, in the dtype of `x`; arbitrary on padding.

  Args:
    x: tokens; matrix products run in its dtype, norms and attention weights in float32 or wider.
    weights: see `STUWeights`.
    mask: which keys each query may read.
    is_token: False on padding, whose vectors count as zeros; None: the tokens that read something.
    num_heads, head_width: H and D; E follows from the shape of `weights.uvqk_kernel`.
    normalizer: divisor of the silu weights, one number or one per query.
    scale: multiplies q·k; None = 1 / sqrt(head_width).
    attention: called with q, k, v, `mask` and options, as `segment_attention`.
    dropout: applied to the 3 H E features before the last projection.
    implementation: of `segment_attention`.

  Raises:
    ValueError: the width of the projection does not fit `num_heads` and `head_width`.

  Source: Zhai et al. 2024, arXiv 2402.17152, equations 1-3; `STULayer.forward` of generative-recommenders.
  Choice: a scale of 0 is 0; the published code replaces it by the default.
  """
  is_token = mask.reads_any(x.shape[1]) if is_token is None else is_token
  x = jnp.where(is_token[..., None], x, 0)
  u, v, q, k = _project(x, weights, num_heads, head_width)
  scale = 1 / math.sqrt(head_width) if scale is None else scale
  attended = attention(
    q, k, v, mask, activation="silu", scale=scale, normalizer=normalizer, implementation=implementation
  )  # [B, N, H, E]
  gated = u * _output_norm(attended, weights)  # [B, N, HE]
  features = jnp.concatenate([u, _merge_heads(attended), gated], axis=-1)  # [B, N, 3HE]
  return x + dropout(features) @ weights.output_kernel.astype(x.dtype)


def _project(x: Array, weights: STUWeights, num_heads: int, head_width: int) -> tuple[Array, Array, Array, Array]:
  """Returns the activated gate `[B, N, H*E]`, and values, queries and keys `[B, N, H, E or D]`."""
  projected = weights.uvqk_kernel.shape[1]
  value_width, rest = divmod(projected - 2 * num_heads * head_width, 2 * num_heads)
  if rest or value_width < 1:
    raise ValueError(
      f"weights.uvqk_kernel has {projected} columns; {num_heads=} and {head_width=} need "
      f"2 * {num_heads} * ({head_width} + value_width) with a value_width of 1 or more: check the heads and the widths"
    )
  scale, bias = weights.input_norm_scale[None, None], weights.input_norm_bias[None, None]
  normed = _wide_layer_norm(x) * scale + bias  # [B, N, M]
  z = (
    normed.astype(x.dtype) @ weights.uvqk_kernel.astype(x.dtype) + weights.uvqk_bias.astype(x.dtype)[None, None]
  )  # [B, N, P]
  u, v, q, k = split_uvqk(z, num_heads, head_width, value_width)
  return jax.nn.silu(u), v, q, k


def _output_norm(attended: Float[Array, "B N H E"], weights: STUWeights) -> Float[Array, "B N HE"]:
  if weights.group_norm:
    scale, bias = (x[None, None, :, None] for x in (weights.output_norm_scale, weights.output_norm_bias))
    return _merge_heads(_wide_layer_norm(attended) * scale + bias).astype(attended.dtype)
  normed = _wide_layer_norm(_merge_heads(attended))  # [B, N, HE]
  return (normed * weights.output_norm_scale[None, None] + weights.output_norm_bias[None, None]).astype(attended.dtype)


def _wide_layer_norm(x: Float[Array, "... W"]) -> Float[Array, "... W"]:
  """`layer_norm` whose result stays in float32 or wider until gain and bias are applied."""
  return layer_norm(widen(x))


def _merge_heads(x: Float[Array, "B N H W"]) -> Float[Array, "B N HW"]:
  return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])  # [B, N, HW]


class STUPositionalEncoder(nn.Module):
  """Adds learned embeddings of a token's position and age to the scaled tokens.

  num_positions: rows of the position table; larger positions share the last row.
  num_time_buckets: the last time bucket; the table has one more row.
  contextual_length: as in `STU`.

  >>> encoder = STUPositionalEncoder(num_positions=8, num_time_buckets=5)
  >>> x, timestamps, lengths = jnp.ones((1, 3, 4)), jnp.array([[0, 60, 120]]), jnp.array([3])
  >>> y, params = encoder.init_with_output(jax.random.key(0), x, timestamps, lengths)
  >>> y.shape
  (1, 3, 4)
  """

  num_positions: int
  num_time_buckets: int
  contextual_length: int = 0

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B N M"],
    timestamps: Integer[AnyArray, "B N"],
    lengths: Integer[AnyArray, " B"],
    num_targets: Integer[AnyArray, " B"] | None = None,
  ) -> Float[Array, "B N M"]:
    """Returns sqrt(M) x + Position[...] + Time[...]; `timestamps` are seconds, of which only differences matter."""
    width = x.shape[-1]
    tables = [
      self.param(name, uniform(math.sqrt(1 / rows)), (rows, width), jnp.float32)
      for name, rows in (("position_table", self.num_positions), ("time_table", self.num_time_buckets + 1))
    ]
    return stu_positional_encoding(
      x, *tables, timestamps, lengths, num_targets, contextual_length=self.contextual_length
    )


def stu_positional_encoding(
  x: Float[Array, "B N M"],
  position_table: Float[Array, "P M"],
  time_table: Float[Array, "T M"],
  timestamps: Integer[AnyArray, "B N"],
  lengths: Integer[AnyArray, " B"],
  num_targets: Integer[AnyArray, " B"] | None = None,
  *,
  contextual_length: int = 0,
) -> Float[Array, "B N M"]:
  """Returns sqrt(M) x + position_table[stu_position_index] + time_table[stu_time_bucket], in the dtype of `x`."""
  N, M = x.shape[1:]
  index = stu_position_index(lengths, num_targets, N, len(position_table), contextual_length=contextual_length)
  bucket = stu_time_bucket(timestamps, lengths, len(time_table) - 1)
  return x * math.sqrt(M) + (position_table[index] + time_table[bucket]).astype(x.dtype)  # [B, N, M]


def stu_position_index(
  lengths: Integer[AnyArray, " B"],
  num_targets: Integer[AnyArray, " B"] | None,
  num_positions: int,
  num_rows: int,
  *,
  contextual_length: int = 0,
) -> Int[Array, "B N"]:
  """Returns the row of the position table for each of `num_positions` positions; arbitrary on padding.

  Positions count back from the end of the history, so that the newest event has the same index in histories of any
  length: targets have `contextual_length`, the newest event one more, and so on up to `num_rows - 1`. Contextual tokens
  keep their own positions.

  >>> import jax.numpy as jnp
  >>> stu_position_index(jnp.array([5]), jnp.array([2]), 5, 20).tolist()
  [[3, 2, 1, 0, 0]]
  >>> stu_position_index(jnp.array([5]), jnp.array([2]), 5, 20, contextual_length=1).tolist()
  [[0, 3, 2, 1, 1]]
  """
  lengths, num_targets = as_integers("lengths", lengths), as_integers("num_targets", num_targets)
  history = (lengths if num_targets is None else lengths - num_targets)[:, None]  # [B, 1]
  position = jnp.arange(num_positions, dtype=jnp.int32)[None]
  backwards = history - jnp.minimum(position, history) + contextual_length  # [B, N]
  index = jnp.clip(backwards, 0, num_rows - 1)
  return jnp.where(position < contextual_length, position, index)  # [B, N]


def stu_time_bucket(
  timestamps: Integer[AnyArray, "B N"], lengths: Integer[AnyArray, " B"], last_bucket: int
) -> Int[Array, "B N"]:
  """Returns floor(sqrt(age in minutes)), at most `last_bucket`; a token's age is measured at the last token of its row.

  Integer arithmetic makes bucket edges (1, 4, 9, ... minutes) identical on all devices. Arbitrary on padding.

  >>> import jax.numpy as jnp
  >>> stu_time_bucket(jnp.array([[0, 301, 360, 541]]), jnp.array([4]), last_bucket=2).tolist()
  [[2, 2, 1, 0]]

  Choice: the limit is the number of table rows, as in the published Triton kernel; the published PyTorch code uses the
    width of the embedding instead, which leaves rows unused or reads past the end.
  """
  timestamps = as_integers("timestamps", timestamps)
  if not timestamps.shape[1]:
    return timestamps
  last = jnp.maximum(as_integers("lengths", lengths) - 1, 0)[:, None]  # [B, 1]
  now = jnp.take_along_axis(timestamps, last, axis=1)  # [B, 1]
  minutes = jnp.maximum(now - timestamps, 0) // 60  # [B, N]
  squares = jnp.arange(1, last_bucket + 1, dtype=minutes.dtype) ** 2
  return jnp.searchsorted(squares, minutes, side="right")  # [B, N]
