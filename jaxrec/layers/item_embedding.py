"""Item and position embeddings at the input of a model, and the same item table as scoring vectors at its output."""

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
  """`(E[id] * sqrt(M) + P[position]) * [id != 0]`.

  Source: released code of Zhai et al. 2024 (arXiv 2402.17152): the item is scaled before the position is added.
  """
  x = item * math.sqrt(item.shape[-1]) + position
  return jnp.where((item_id != 0)[..., None], x, 0)


class ItemEmbedding(nn.Module):
  """A table of `num_rows` item vectors; row 0 is padding.

  normalize: whether scoring vectors (not inputs) are scaled to unit length.
  """

  num_rows: int
  width: int
  normalize: bool = True
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    self.table = self.param("table", nn.initializers.truncated_normal(0.02), (self.num_rows, self.width))

  def __call__(self, item_id: Int[Array, "..."]) -> Float[Array, "... M"]:
    """Input vectors of items."""
    return jnp.take(self.table, item_id, axis=0, mode="clip").astype(self.dtype)

  def vectors(self, item_id: Int[Array, "..."] | None = None) -> Float[Array, "... M"]:
    """Scoring vectors of items, in float32; of the whole table if no ids are given."""
    rows = self.table if item_id is None else jnp.take(self.table, item_id, axis=0, mode="clip")
    return l2_normalize(rows) if self.normalize else rows


class SequenceEmbedding(nn.Module):
  """Turns item vectors into the encoder's input: scale, add a learned absolute position, dropout."""

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
    added: Float[Array, "B N M"] | None = None,
  ) -> Float[Array, "B N M"]:
    """`added` joins the position: what depends on domains."""
    width = item.shape[-1]
    init = nn.initializers.truncated_normal(math.sqrt(1 / width))
    table = self.param("position_table", init, (self.max_positions, width))
    place = jnp.take(table, position, axis=0, mode="clip").astype(self.dtype)  # [B, N, M]
    x = embed_sequence(item, place if added is None else place + added, item_id)
    return dropout(self, x, self.dropout, deterministic)


def dropout(module: nn.Module, x: Array, rate: float, deterministic: bool) -> Array:
  """Inverted dropout with one random byte an element: rates are rounded to multiples of 1/256, and the scale with them.

  Choice: a quarter of the random bits that `flax.linen.Dropout` draws; on CPUs drawing them is what dropout costs.
  """
  drop = round(rate * 256)
  if deterministic or drop == 0:
    return x
  keep = jax.random.bits(module.make_rng("dropout"), x.shape, jnp.uint8) >= drop
  return jnp.where(keep, x * (256 / (256 - drop)), 0).astype(x.dtype)
