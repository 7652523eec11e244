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


FEATURES, HAS_ID = "features", "has_id"  # Data among the parameters of an `ItemEmbedding`, which are not trained.


class ItemEmbedding(nn.Module):
  """A table of item vectors; row 0 is padding.

  With features the vector of an item is `has_id * E[id] + x[id] W`: its row of the table, if it has one, and a
  projection of its features. `features` [num_rows, F] and `has_id` [num_rows, 1] are data: they are saved with the
  parameters, but have no gradient. They begin as 0 and 1.

  num_rows: V + 1, plus special ids.
  width: M.
  normalize: scale scoring vectors, not inputs, to unit length.
  num_features: F; 0: the vectors are the rows of the table.

  Source: an item as the sum of the vectors of its features, its id among them: Kula 2015 (LightFM), arXiv 1507.08439.

  >>> items = ItemEmbedding(num_rows=10, width=4)
  >>> params = items.init(jax.random.key(0), jnp.array([1]))
  >>> items.apply(params, jnp.array([[3, 1]])).shape, items.apply(params, method="vectors").shape
  ((1, 2, 4), (10, 4))
  """

  num_rows: int
  width: int
  normalize: bool = True
  dtype: jnp.dtype = jnp.float32
  num_features: int = 0

  def setup(self):
    init = nn.initializers.truncated_normal(0.02)
    self.table = self.param("table", init, (self.num_rows, self.width), jnp.float32)
    if self.num_features:
      self.projection = self.param("projection", init, (self.num_features, self.width), jnp.float32)
      shapes = (self.num_rows, self.num_features), (self.num_rows, 1)
      self.features = self.param(FEATURES, nn.initializers.zeros, shapes[0], jnp.float32)
      self.has_id = self.param(HAS_ID, nn.initializers.ones, shapes[1], jnp.float32)

  def __call__(self, item_id: Int[Array, "..."]) -> Float[Array, "... M"]:
    """Returns input vectors of items."""
    return self._rows(item_id).astype(self.dtype)

  def vectors(self, item_id: Int[Array, "..."] | None = None) -> Float[Array, "... M"]:
    """Returns scoring vectors of items in float32; of the whole table if `item_id` is None."""
    rows = self._rows(item_id)
    return l2_normalize(rows) if self.normalize else rows

  def _rows(self, item_id):
    """Returns the vectors of items, or of all rows, before they are normalised."""
    of = (lambda table: table) if item_id is None else lambda table: jnp.take(table, item_id, axis=0, mode="clip")
    if not self.num_features:
      return of(self.table)
    features, has_id = jax.lax.stop_gradient((of(self.features), of(self.has_id)))
    return of(self.table) * has_id + features @ self.projection  # [..., M]


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
