"""What HSTU, SASRec and BERT4Rec share: embeddings in, an encoder, query vectors out, a table of scoring vectors."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrec.layers.bottleneck import BottleneckTokens, with_bottlenecks
from jaxrec.layers.context import AttentionContext, bidirectional_context, causal_context
from jaxrec.layers.embedding import ItemEmbedding, SequenceEmbedding
from jaxrec.layers.norm import l2_normalize, layer_norm
from jaxrec.types import SequenceBatch

OUTPUT_NORMS = ("l2", "layer_norm", "none")


class SequentialModel(nn.Module):
  """Encodes each position of a batch into a query vector whose dot products with `item_vectors` are scores.

  Subclasses define `build_layers` and `encode`, and whether tokens may read later ones (`causal`).

  num_items: V; ids 1..V. Row V + 1 of the table is the mask token of masked-item training.
  num_domains: C; only the analysis of attention and the bottlenecks read domains.
  num_bottlenecks: T of AutoCDSR+, bottleneck tokens after every `bottleneck_stride` events; 0 = attention among all
    events. See `jaxrec.layers.bottleneck`.
  attention_width: of a second item table, of which all layers make their queries and keys (DARE, arXiv 2410.02604), so
    that attention and representation don't pull at the same rows. 0: there is one table.
  output_norm: "l2" (query and scoring vectors of unit length, scores are cosines), "layer_norm" or "none".
  """

  num_items: int
  width: int
  max_positions: int
  input_dropout: float = 0.0
  output_norm: str = "l2"
  num_special: int = 0
  num_domains: int = 1
  num_bottlenecks: int = 0
  bottleneck_stride: int = 8
  attention_width: int = 0
  dtype: jnp.dtype = jnp.float32

  causal: ClassVar[bool] = True

  def setup(self):
    if self.output_norm not in OUTPUT_NORMS:
      raise ValueError(f"{self.output_norm=} is not one of {OUTPUT_NORMS}")
    rows = self.num_items + 1 + self.num_special
    self.items = ItemEmbedding(rows, self.width, self.output_norm == "l2", self.dtype)
    self.embedding = SequenceEmbedding(self.max_positions, self.input_dropout, self.dtype)
    if self.attention_width:
      if self.num_bottlenecks:
        raise ValueError(f"{self.attention_width=} and {self.num_bottlenecks=}: bottleneck tokens have one table only")
      self.attention_items = ItemEmbedding(rows, self.attention_width, False, self.dtype)
      self.attention_embedding = SequenceEmbedding(self.max_positions, self.input_dropout, self.dtype)
    self.layers = self.build_layers()
    if self.num_bottlenecks:
      self.bottlenecks = BottleneckTokens(self.num_bottlenecks, self.width)

  def __call__(
    self, batch: SequenceBatch, deterministic: bool = True, item: Float[Array, "B N M"] | None = None
  ) -> Float[Array, "B N M"]:
    """Query vectors in float32; zero (or arbitrary under "layer_norm") on padding.

    Args:
      batch: sequences.
      deterministic: True: no dropout.
      item: what `input_vectors` returned for the batch, where the caller wants gradients with respect to it.
    """
    batch = jax.tree.map(jnp.asarray, batch)  # Data pipelines make NumPy arrays.
    item = self.input_vectors(batch.item_id) if item is None else item
    x = self.embedding(item, batch.item_id, batch.position, deterministic)
    x, context = self.in_context(x, batch)
    if self.attention_width:
      other = self.attention_items(batch.item_id)
      other = self.attention_embedding(other, batch.item_id, batch.position, deterministic)
      context = context.replace(attention_input=other)
    x = self.encode(x, context, deterministic)
    x = x[:, : item.shape[1]]  # Without bottleneck tokens.
    x = jnp.where((batch.sequence_id != 0)[..., None], x, 0).astype(jnp.promote_types(x.dtype, jnp.float32))
    if self.output_norm == "l2":
      return l2_normalize(x)
    return layer_norm(x) if self.output_norm == "layer_norm" else x

  def input_vectors(self, item_id: Int[Array, "..."]) -> Float[Array, "... M"]:
    """Rows of the item table as the encoder reads them."""
    return self.items(item_id)

  def item_vectors(self, item_id: Int[Array, "..."] | None = None) -> Float[Array, "... M"]:
    """Scoring vectors of `item_id`, or of items 0..V (row 0 is padding)."""
    if item_id is None:
      return self.items.vectors()[: self.num_items + 1]
    return self.items.vectors(item_id)

  def build_layers(self) -> list[nn.Module]:
    """The encoder's layers."""
    raise NotImplementedError

  def in_context(
    self, x: Float[Array, "B N M"], batch: SequenceBatch
  ) -> tuple[Float[Array, "B S M"], AttentionContext]:
    """The tokens that the layers see, and what they may read."""
    if self.num_bottlenecks:
      return with_bottlenecks(x, self.bottlenecks(), batch, self.num_domains, self.bottleneck_stride, self.causal)
    return x, (causal_context if self.causal else bidirectional_context)(batch, self.num_domains)

  def encode(self, x: Float[Array, "B S M"], context: AttentionContext, deterministic: bool) -> Float[Array, "B S M"]:
    """Runs the layers."""
    raise NotImplementedError
