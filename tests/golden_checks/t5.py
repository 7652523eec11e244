"""T5's encoder on our segment attention, whose keys are the tokens that a mask allows: of a domain, say.

Source: Raffel et al. 2020, arXiv 1910.10683, sections 2.1 and 3.1 (no scale, no biases, RMS norm, relative buckets).
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import IntervalMask, RelativeBias, segment_attention


@dataclasses.dataclass(frozen=True)
class Encoder:
  """Blocks of one encoder: self-attention and a ReLU network, a final norm, and one bias table for all of them.

  params: by reference name. prefix: of this encoder's names. num_prefix: the first keys, which everybody may read.
  """

  params: dict
  prefix: str
  num_layers: int
  num_heads: int
  num_prefix: int = 0
  implementation: str = "reference"
  max_distance: int = 128  # From here on all distances are in the last bucket of their direction.

  def __call__(
    self, x: Float[Array, "B S M"], is_key: Bool[Array, "B N"]
  ) -> tuple[Float[Array, "B S M"], Float[Array, "B S H"], Float[Array, "B S H S"]]:
    """Returns the output, the attention mass on the prefix, and the weights; the last two are of the last block."""
    for i in range(self.num_layers):
      block = f"block.{i}.layer."
      out, mass, weights = self._attend(_rms_norm(x) * self._of(f"{block}0.layer_norm.weight"), is_key, block)
      x = x + out
      hidden = _rms_norm(x) * self._of(f"{block}1.layer_norm.weight")
      hidden = jax.nn.relu(hidden @ self._of(f"{block}1.DenseReluDense.wi.weight").T)
      x = x + hidden @ self._of(f"{block}1.DenseReluDense.wo.weight").T
    return _rms_norm(x) * self._of("final_layer_norm.weight"), mass, weights

  def _attend(self, x, is_key, block):
    """The keys that may be read are sorted to the front; their mass comes from columns appended to the values."""
    q, k, v = (self._heads(x, f"{block}0.SelfAttention.{name}.weight") for name in "qkv")  # [B, S, H, D]
    order = self._order(is_key)  # [B, S]
    index = jnp.broadcast_to(jnp.arange(x.shape[1]), order.shape)
    bias = RelativeBias(position_table=self._table(x.shape[1]), query_position=index, key_position=order)
    is_prefix = (order < self.num_prefix)[..., None]  # [B, S, 1]
    columns = jnp.concatenate([is_prefix, jax.nn.one_hot(order, x.shape[1], dtype=bool)], axis=-1).astype(v.dtype)
    columns = jnp.broadcast_to(columns[:, :, None], (*v.shape[:3], columns.shape[-1]))  # [B, S, H, 1 + S]
    k, v = (jnp.take_along_axis(a, order[..., None, None], axis=1) for a in (k, v))
    out = segment_attention(
      q, k, jnp.concatenate([v, columns], axis=-1), self._mask(is_key), activation="softmax", scale=1.0, bias=bias,
      implementation=self.implementation,
    )  # fmt: skip
    out, mass, weights = jnp.split(out, [v.shape[-1], v.shape[-1] + 1], axis=-1)
    out = out.reshape(*x.shape[:2], -1) @ self._of(f"{block}0.SelfAttention.o.weight").T  # [B, S, M]
    return out, mass[..., 0], weights

  def _order(self, is_key):
    """The prefix, the keys, the rest; the order inside each is kept."""
    rest = self.num_prefix + jnp.argsort(~is_key, axis=1, stable=True)
    first = jnp.broadcast_to(jnp.arange(self.num_prefix), (len(is_key), self.num_prefix))
    return jnp.concatenate([first, rest], axis=1).astype(jnp.int32)  # [B, S]

  def _mask(self, is_key):
    shape = (is_key.shape[0], self.num_prefix + is_key.shape[1])
    zeros, prefix = jnp.zeros(shape, jnp.int32), jnp.full(shape, self.num_prefix, jnp.int32)
    end = prefix + is_key.sum(axis=1, keepdims=True, dtype=jnp.int32)
    return IntervalMask(zeros, prefix, prefix, end, jnp.zeros(shape, bool))

  def _table(self, num_tokens) -> Float[Array, "H W"]:
    """The value of the bucket of each difference query - key, from -(S-1) to S-1."""
    weights = self._of("block.0.layer.0.SelfAttention.relative_attention_bias.weight")  # [buckets, H]
    return weights[buckets(-np.arange(1 - num_tokens, num_tokens), weights.shape[0], self.max_distance)].T

  def _heads(self, x, name):
    return (x @ self._of(name).T).reshape(*x.shape[:2], self.num_heads, -1)  # [B, S, H, D]

  def _of(self, name):
    return self.params[self.prefix + name]


def buckets(offset: Int[np.ndarray, " D"], num_buckets: int, max_distance: int) -> Int[np.ndarray, " D"]:
  """The bucket of key position - query position: half for each direction, of which half are exact.

  The others grow like the logarithm of the distance, in float32 as in the reference.
  """
  half, exact = num_buckets // 2, num_buckets // 4
  distance = np.abs(offset)
  nearness = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / math.log(max_distance / exact)
  far = exact + (nearness * (half - exact)).astype(int)
  bucket = np.where(distance < exact, distance, np.minimum(far, half - 1))
  return np.where(offset > 0, half, 0) + bucket


def _rms_norm(x):
  return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + 1e-6)
