"""What HSTU, SASRec and BERT4Rec share: embeddings in, an encoder, query vectors out, a table of scoring vectors."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrec.layers.embedding import ItemEmbedding, SequenceEmbedding
from jaxrec.layers.norm import l2_normalize, layer_norm
from jaxrec.types import SequenceBatch

OUTPUT_NORMS = ("l2", "layer_norm", "none")


class SequentialModel(nn.Module):
  """Encodes each position of a batch into a query vector whose dot products with `item_vectors` are scores.

  Subclasses define `encode`.

  num_items: V; ids 1..V. Row V + 1 of the table is the mask token of masked-item training.
  output_norm: "l2" (query and scoring vectors of unit length, scores are cosines), "layer_norm" or "none".
  """

  num_items: int
  width: int
  max_positions: int
  input_dropout: float = 0.0
  output_norm: str = "l2"
  num_special: int = 0
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    if self.output_norm not in OUTPUT_NORMS:
      raise ValueError(f"{self.output_norm=} is not one of {OUTPUT_NORMS}")
    rows = self.num_items + 1 + self.num_special
    self.items = ItemEmbedding(rows, self.width, self.output_norm == "l2", self.dtype)
    self.embedding = SequenceEmbedding(self.max_positions, self.input_dropout, self.dtype)
    self.layers = self.build_layers()

  def __call__(self, batch: SequenceBatch, deterministic: bool = True) -> Float[Array, "B N M"]:
    """Query vectors in float32; zero (or arbitrary under "layer_norm") on padding."""
    batch = jax.tree.map(jnp.asarray, batch)  # Data pipelines make NumPy arrays.
    x = self.embedding(self.items(batch.item_id), batch.item_id, batch.position, deterministic)
    x = self.encode(x, batch, deterministic)
    x = jnp.where((batch.sequence_id != 0)[..., None], x, 0).astype(jnp.promote_types(x.dtype, jnp.float32))
    if self.output_norm == "l2":
      return l2_normalize(x)
    return layer_norm(x) if self.output_norm == "layer_norm" else x

  def item_vectors(self, item_id: Int[Array, "..."] | None = None) -> Float[Array, "... M"]:
    """Scoring vectors of `item_id`, or of items 0..V (row 0 is padding)."""
    if item_id is None:
      return self.items.vectors()[: self.num_items + 1]
    return self.items.vectors(item_id)

  def build_layers(self) -> list[nn.Module]:
    """The encoder's layers."""
    raise NotImplementedError

  def encode(self, x: Float[Array, "B N M"], batch: SequenceBatch, deterministic: bool) -> Float[Array, "B N M"]:
    """Runs the layers."""
    raise NotImplementedError
