"""What HSTU, SASRec and BERT4Rec share: embeddings in, an encoder, query vectors out, a table of scoring vectors."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrec.batches import SequenceBatch
from jaxrec.layers.bottleneck import BottleneckTokens, with_bottlenecks
from jaxrec.layers.cache import CachePlace
from jaxrec.layers.context import AttentionContext, bidirectional_context, cached_context, causal_context
from jaxrec.layers.item_embedding import ItemEmbedding, SequenceEmbedding
from jaxrec.layers.norm import l2_normalize, layer_norm
from jaxrec.layers.transitions import TargetDomainEmbedding

OUTPUT_NORMS = ("l2", "layer_norm", "none")


class SequentialModel(nn.Module):
  """Encodes each position of a batch into a query vector whose dot products with `item_vectors` are scores.

  Subclasses define `build_layers` and `encode`, and whether tokens may read later ones (`causal`).

  num_items: V; ids 1..V. Row V + 1 of the table is the mask token of masked-item training.
  num_domains: C; domains are read by the analysis of attention, by bottlenecks, and where `target_domain`.
  target_domain: whether an embedding of the domain that is asked for joins each event: `batch.target_domain`.
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
  target_domain: bool = False
  num_bottlenecks: int = 0
  bottleneck_stride: int = 8
  attention_width: int = 0
  dtype: jnp.dtype = jnp.float32

  causal: ClassVar[bool] = True

  def setup(self):
    if self.output_norm not in OUTPUT_NORMS:
      raise ValueError(f"{self.output_norm=} is not one of {OUTPUT_NORMS}")
    rows = self.num_rows
    self.items = ItemEmbedding(rows, self.width, self.output_norm == "l2", self.dtype)
    self.embedding = SequenceEmbedding(self.max_positions, self.input_dropout, self.dtype)
    if self.target_domain:
      self.asked = TargetDomainEmbedding(self.num_domains, self.width, self.dtype)
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
    x = self.embedding(item, batch.item_id, batch.position, deterministic, self.of_domains(batch))
    x, context = self.in_context(x, batch)
    x = self.encode(x, self.with_attention_input(context, batch, deterministic), deterministic)
    return self.outputs(x[:, : item.shape[1]], batch)  # Without bottleneck tokens.

  def next_event(
    self,
    batch: SequenceBatch,
    place: CachePlace,
    key_position: Int[Array, "B L"],
    key_time: Int[Array, "B L"],
    is_seen: Bool[Array, "B C"],
  ) -> Float[Array, "B 1 M"]:
    """As `__call__` for one more event `[B, 1]` of each row, whose history is in the collection "cache".

    See `jaxrec.serving.incremental`, which keeps the arguments, and `jaxrec.layers.context.cached_context` for them.

    Raises:
      NotImplementedError: a model that reads in both directions, or with bottleneck tokens.
    """
    if not self.causal or self.num_bottlenecks:
      raise NotImplementedError("only causal models without bottleneck tokens can be fed event by event")
    x = self.embedding(
      self.input_vectors(batch.item_id), batch.item_id, batch.position, True, self.of_domains(batch)
    )  # [B, 1, M]
    context = cached_context(batch, place, key_position, key_time, is_seen)
    return self.outputs(self.encode(x, self.with_attention_input(context, batch, True), True), batch)

  def with_attention_input(
    self, context: AttentionContext, batch: SequenceBatch, deterministic: bool
  ) -> AttentionContext:
    """The context with what queries and keys are made of, where they have an item table of their own."""
    if not self.attention_width:
      return context
    item = self.attention_items(batch.item_id)
    x = self.attention_embedding(item, batch.item_id, batch.position, deterministic)  # [B, N, A]
    return context.replace(attention_input=x if context.order is None else context.order(x))

  def outputs(self, x: Float[Array, "B N M"], batch: SequenceBatch) -> Float[Array, "B N M"]:
    """Query vectors of what the encoder returned."""
    x = jnp.where((batch.sequence_id != 0)[..., None], x, 0).astype(jnp.promote_types(x.dtype, jnp.float32))
    if self.output_norm == "l2":
      return l2_normalize(x)
    return layer_norm(x) if self.output_norm == "layer_norm" else x

  @property
  def num_cache_groups(self) -> int:
    """How many parts a history has whose events don't read each other."""
    return 1

  @property
  def asks_for_domain(self) -> bool:
    """Whether queries depend on the domain that is asked for."""
    return self.target_domain

  def of_domains(self, batch: SequenceBatch) -> Float[Array, "B N M"] | None:
    """What domains add to the embeddings of events."""
    return self.asked(batch.target_domain) if self.target_domain else None

  def input_vectors(self, item_id: Int[Array, "..."]) -> Float[Array, "... M"]:
    """Rows of the item table as the encoder reads them."""
    return self.items(item_id)

  def item_vectors(self, item_id: Int[Array, "..."] | None = None) -> Float[Array, "... M"]:
    """Scoring vectors of `item_id`, or of items 0..V (row 0 is padding)."""
    if item_id is None:
      return self.items.vectors()[: self.num_items + 1]
    return self.items.vectors(item_id)

  def scoring(self, row: Float[Array, "... M"]) -> Float[Array, "... M"]:
    """Scoring vectors of rows that were taken from an item table outside of the parameters."""
    return l2_normalize(row) if self.output_norm == "l2" else row

  @property
  def num_rows(self) -> int:
    """Rows of the item table: padding, items and special ids."""
    return self.num_items + 1 + self.num_special

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
