"""Item and position embeddings at a model's input; the same item table gives the scoring vectors at its output."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrec.layers.norm import l2_normalize


def embed_sequence(
  item: Float[Array, "B N M"], position: Float[Array, "B N M"], item_id: Int[Array, "B N"]
) -> Float[Array, "B N M"]:
  """Returns `(E[id] * sqrt(M) + P[position]) * [id != 0]`.

  Source: released code of Zhai et al. 2024 (arXiv 2402.17152): the item is scaled before the position is added.

  >>> embed_sequence(jnp.full((1, 2, 4), 3.0), jnp.full((1, 2, 4), 0.5), jnp.array([[7, 0]])).tolist()
  [[[6.5, 6.5, 6.5, 6.5], [0.0, 0.0, 0.0, 0.0]]]
  """
  x = item * math.sqrt(item.shape[-1]) + position
  return jnp.where((item_id != 0)[..., None], x, 0)


class ItemEmbedding(nn.Module):
  """A table of item vectors; row 0 is padding.

  num_rows: V + 1, plus special ids.
  width: M.
  normalize: scale scoring vectors, not inputs, to unit length.

  >>> items = ItemEmbedding(num_rows=10, width=4)
  >>> params = items.init(jax.random.key(0), jnp.array([1]))
  >>> items.apply(params, jnp.array([[3, 1]])).shape, items.apply(params, method="vectors").shape
  ((1, 2, 4), (10, 4))
  """

  num_rows: int
  width: int
  normalize: bool = True
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    self.table = self.param("table", nn.initializers.truncated_normal(0.02), (self.num_rows, self.width), jnp.float32)

  def __call__(self, item_id: Int[Array, "..."]) -> Float[Array, "... M"]:
    """Returns input vectors of items."""
    return jnp.take(self.table, item_id, axis=0, mode="clip").astype(self.dtype)

  def vectors(self, item_id: Int[Array, "..."] | None = None) -> Float[Array, "... M"]:
    """Returns scoring vectors of items in float32; of the whole table if `item_id` is None."""
    rows = self.table if item_id is None else jnp.take(self.table, item_id, axis=0, mode="clip")
    return l2_normalize(rows) if self.normalize else rows


class SequenceEmbedding(nn.Module):
  """Turns item vectors into the encoder's input: scale, add a learned absolute position, apply dropout.

  max_positions: rows of the position table; later positions share the last row.

  >>> embedding, ids = SequenceEmbedding(max_positions=8, dropout=0.0), jnp.array([[3, 1, 0]])
  >>> item, position = jnp.ones((1, 3, 4)), jnp.array([[0, 1, 0]])
  >>> x, params = embedding.init_with_output(jax.random.key(0), item, ids, position, True)
  >>> x.shape, x[0, 2].tolist()
  ((1, 3, 4), [0.0, 0.0, 0.0, 0.0])
  """

  max_positions: int
  dropout: float
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    item: Float[Array, "B N M"],
    item_id: Int[Array, "B N"],
    position: Int[Array, "B N"],
    deterministic: bool,
    domain_embedding: Float[Array, "B N M"] | None = None,
  ) -> Float[Array, "B N M"]:
    """Returns the embedded events, zero on padding.

    Args:
      item: item vectors.
      item_id: 0 is padding.
      position: index of an event in its own sequence.
      deterministic: True: no dropout.
      domain_embedding: vectors added to the position vectors.
    """
    width = item.shape[-1]
    init = nn.initializers.truncated_normal(math.sqrt(1 / width))
    table = self.param("position_table", init, (self.max_positions, width), jnp.float32)
    p = jnp.take(table, position, axis=0, mode="clip").astype(self.dtype)  # [B, N, M]
    x = embed_sequence(item, p if domain_embedding is None else p + domain_embedding, item_id)
    return dropout(self, x, self.dropout, deterministic)


def dropout(module: nn.Module, x: Array, rate: float, deterministic: bool) -> Array:
  """Returns `x` after inverted dropout at a rate rounded to a multiple of 1/256: one random byte per element.

  Args:
    module: the calling layer, whose "dropout" stream gives the random bits.
    x: any array.
    rate: probability that an element becomes 0.
    deterministic: True: return `x` unmodified.

  Choice: a quarter of the random bits of `flax.linen.Dropout`; on CPUs drawing them is the cost of dropout.
  """
  drop = round(rate * 256)
  if deterministic or drop == 0:
    return x
  keep = jax.random.bits(module.make_rng("dropout"), x.shape, jnp.uint8) >= drop
  return jnp.where(keep, x * (256 / (256 - drop)), 0).astype(x.dtype)
