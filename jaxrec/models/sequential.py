"""The base class of the sequential models: item embeddings, an encoder, query vectors, scoring vectors."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrec.batches import SequenceBatch, check_is_batch
from jaxrec.layers.bottleneck import BottleneckTokens, with_bottlenecks
from jaxrec.layers.cache import CacheSlot, Prefill
from jaxrec.layers.context import AttentionContext, bidirectional_context, cached_context, causal_context
from jaxrec.layers.intra_domain import intra_domain_context, latest_events
from jaxrec.layers.item_embedding import ItemEmbedding, SequenceEmbedding
from jaxrec.layers.norm import l2_normalize, layer_norm
from jaxrec.layers.transitions import TargetDomainEmbedding
from pallas_kernels.dtypes import at_least_float32
from pallas_kernels.integers import as_arrays

OUTPUT_NORMS = ("l2", "layer_norm", "none")


class SequentialModel(nn.Module):
  """Encodes each event of a batch into a query vector, whose dot products with `item_vectors` are scores.

  Subclasses define `build_layers` and `encode`, and whether tokens attend to earlier tokens only (`causal`).

  num_items: V; ids 1..V. Row V + 1 of the item table is the mask token of masked-item training.
  width: M.
  max_positions: rows of the position table; later positions share the last row.
  input_dropout: dropout rate of the embedded events.
  output_norm: "l2" (query and scoring vectors have unit length, scores are cosines), "layer_norm" or "none".
  num_special: rows of the item table above V.
  num_domains: C; used by the analysis of attention, by bottlenecks and by `target_domain`.
  target_domain: add an embedding of `batch.target_domain` to each event.
  num_actions: A: actions 1..A of the events, such as ratings or kinds of behaviour, each add a vector to their events;
    action 0 adds nothing. 0: actions are not read.
  event_domain: add an embedding of its own domain to each event, none where that is hidden.
  num_bottlenecks: T of AutoCDSR+: bottleneck tokens after every `bottleneck_stride` events; 0: none, so that attention
    is among all events. See `jaxrec.layers.bottleneck`.
  attention_width: width of a second item table from which all layers project queries and keys (DARE, arXiv 2410.02604),
    so that attention and representation do not send conflicting gradients to the same rows. 0: one table.
  num_features: F, numbers that describe each item and add to its vectors; 0: none. See `ItemEmbedding`.
  id_dropout: with features, the share of the items whose row of the item table is left out in a training step, so that
    features alone learn to stand for an item. See `jaxrec.objectives.item`.
  dtype: of activations; parameters and query vectors are float32.

  Raises:
    ValueError: from `init`, an unknown `output_norm`, or a second item table together with what has one only.

  >>> from jaxrec.models.hstu import HSTU
  >>> issubclass(HSTU, SequentialModel)
  True
  """

  num_items: int
  width: int
  max_positions: int
  input_dropout: float = 0.0
  output_norm: str = "l2"
  num_special: int = 0
  num_domains: int = 1
  target_domain: bool = False
  num_actions: int = 0
  event_domain: bool = False
  num_bottlenecks: int = 0
  bottleneck_stride: int = 8
  attention_width: int = 0
  num_features: int = 0
  id_dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32

  causal: ClassVar[bool] = True

  def setup(self):
    if self.output_norm not in OUTPUT_NORMS:
      raise ValueError(f"{self.output_norm=} is not one of {OUTPUT_NORMS}")
    rows = self.num_rows
    self.items = ItemEmbedding(rows, self.width, self.output_norm == "l2", self.dtype, self.num_features)
    self.embedding = SequenceEmbedding(self.max_positions, self.input_dropout, self.dtype)
    if self.target_domain:
      # Saved checkpoints call it "asked".
      self.target_domain_embedding = TargetDomainEmbedding(self.num_domains, self.width, self.dtype, name="asked")
    if self.num_actions:
      self.action_embedding = TargetDomainEmbedding(self.num_actions, self.width, self.dtype)  # A row each, 0 for none.
    if self.event_domain:
      self.event_domains = TargetDomainEmbedding(self.num_domains, self.width, self.dtype)
    if self.attention_width:
      if self.num_bottlenecks:
        raise ValueError(f"{self.attention_width=} and {self.num_bottlenecks=}: bottleneck tokens have one table only")
      if self.num_features:
        raise ValueError(f"{self.attention_width=} and {self.num_features=}: features are for models with one table")
      self.attention_items = ItemEmbedding(rows, self.attention_width, False, self.dtype)
      self.attention_embedding = SequenceEmbedding(self.max_positions, self.input_dropout, self.dtype)
    self.layers = self.build_layers()
    if self.num_bottlenecks:
      self.bottlenecks = BottleneckTokens(self.num_bottlenecks, self.width)

  def __call__(
    self, batch: SequenceBatch, deterministic: bool = True, item: Float[Array, "B N M"] | None = None
  ) -> Float[Array, "B N M"]:
    """Returns query vectors in float32; on padding zero, or arbitrary if `output_norm` is "layer_norm".

    Args:
      batch: sequences.
      deterministic: True: no dropout.
      item: `input_vectors(batch.item_id)`, given by a caller that differentiates with respect to it; None: looked up.

    Raises:
      ValueError: `batch` is something else; its values are checked by `jaxrec.check_batch`.
    """
    check_is_batch(batch)
    batch = as_arrays("batch", batch)  # Data pipelines make NumPy arrays.
    item = self.input_vectors(batch.item_id) if item is None else item
    x = self.embedding(item, batch.item_id, batch.position, deterministic, self.domain_embedding(batch))
    x, context = self.build_context(x, batch)
    x = self.encode(x, self.layer_context(context, batch, deterministic), deterministic)
    return self.normalize_queries(x[:, : item.shape[1]], batch)  # Drops bottleneck tokens.

  def within_domain(
    self,
    batch: SequenceBatch,
    deterministic: bool = True,
    item: Float[Array, "B N M"] | None = None,
    own: str = "query",
  ) -> Float[Array, "B N M"]:
    """Returns the query vectors of a model whose events attend to those of one domain only, with the same parameters.

    Arguments are those of a call, and `own`: events attend to those of their own domain ("query"), or to themselves and
    those of the domain of their target, where that is known ("target").

    Raises:
      NotImplementedError: a model with bottleneck tokens, or whose attention is inside a domain already.
    """
    if self.num_bottlenecks or self.num_cache_groups > 1:
      raise NotImplementedError(f"{type(self).__name__}: attention inside a domain is for models of all events")
    batch = as_arrays("batch", batch)
    item = self.input_vectors(batch.item_id) if item is None else item
    x = self.embedding(item, batch.item_id, batch.position, deterministic, self.domain_embedding(batch))
    context = intra_domain_context(batch, self.num_domains, self.causal, own=own)
    x = self.encode(context.order(x), self.layer_context(context, batch, deterministic), deterministic)
    return self.normalize_queries(context.order.undo(x), batch)

  def next_event(
    self,
    batch: SequenceBatch,
    slot: CacheSlot,
    key_position: Int[Array, "B L"],
    key_time: Int[Array, "B L"],
    num_seen: Int[Array, "B C"],
  ) -> Float[Array, "B 1 M"]:
    """Returns the query vectors of one new event per row, whose history is in the collection "cache".

    `jaxrec.serving.incremental` keeps the arguments; `jaxrec.layers.context.cached_context` describes them.

    Raises:
      NotImplementedError: a bidirectional model, or one with bottleneck tokens or actions.
    """
    if not self.causal or self.num_bottlenecks:
      raise NotImplementedError("only causal models without bottleneck tokens can read a history event by event")
    if self.num_actions:
      raise NotImplementedError(f"{self.num_actions=}: a history with actions is read at once, not event by event")
    x = self.embedding(
      self.input_vectors(batch.item_id), batch.item_id, batch.position, True, self.domain_embedding(batch)
    )  # [B, 1, M]
    context = cached_context(batch, slot, key_position, key_time, num_seen, self.num_states)
    return self.normalize_queries(self.encode(x, self.layer_context(context, batch, True), True), batch)

  def keep_histories(self, batch: SequenceBatch, capacity: int) -> tuple[Int[Array, "B N"], Int[Array, "B N"]]:
    """Keeps what layers read of whole histories in the collection "cache", and returns positions and times of the keys.

    See `jaxrec.serving.mfalcon_retrieval`.

    Args:
      batch: one history a row, from the first column on.
      capacity: keys and values that there is room for.

    Raises:
      NotImplementedError: a bidirectional model, or one with bottleneck tokens.
    """
    self._check_reads_candidates()
    x = self.embedding(
      self.input_vectors(batch.item_id), batch.item_id, batch.position, True, self.domain_embedding(batch)
    )  # [B, N, M]
    x, context = self.build_context(x, batch)
    context = context.replace(slot=Prefill(capacity))
    if context.states is not None:
      latest = latest_events(batch.domain_id, self.num_domains, self.num_states)
      context = context.replace(states=context.states.replace(latest=latest))
    self.encode(x, self.layer_context(context, batch, True), True)
    return context.key_position, context.key_time

  def read_candidates(self, batch: SequenceBatch, context: AttentionContext) -> Float[Array, "B Q M"]:
    """Returns the query vectors of tokens whose histories are in the collection "cache".

    Args:
      batch: the tokens.
      context: what each of them reads, see `jaxrec.layers.candidate_context`.
    """
    self._check_reads_candidates()
    x = self.embedding(
      self.input_vectors(batch.item_id), batch.item_id, batch.position, True, self.domain_embedding(batch)
    )  # [B, Q, M]
    return self.normalize_queries(self.encode(x, self.layer_context(context, batch, True), True), batch)

  def _check_reads_candidates(self):
    if not self.causal or self.num_bottlenecks:
      raise NotImplementedError("only causal models without bottleneck tokens can read candidates after a history")

  def layer_context(self, context: AttentionContext, batch: SequenceBatch, deterministic: bool) -> AttentionContext:
    """Returns the context that layers read, with the input of queries and keys if these have their own item table.

    The embeddings are zero on padding, so that no layer has to zero it again.
    """
    context = context.replace(is_token=None)
    if not self.attention_width:
      return context
    item = self.attention_items(batch.item_id)
    x = self.attention_embedding(item, batch.item_id, batch.position, deterministic)  # [B, N, A]
    return context.replace(attention_input=x if context.order is None else context.order(x))

  def normalize_queries(self, x: Float[Array, "B N M"], batch: SequenceBatch) -> Float[Array, "B N M"]:
    """Returns the encoder's output as query vectors: zero on padding, in float32, normalised by `output_norm`."""
    x = jnp.where((batch.sequence_id != 0)[..., None], x, 0).astype(at_least_float32(x.dtype))
    if self.output_norm == "l2":
      return l2_normalize(x)
    return layer_norm(x) if self.output_norm == "layer_norm" else x

  @property
  def num_states(self) -> int:
    """The number of events of each other domain whose states are read, where states are read."""
    return 1

  @property
  def num_cache_groups(self) -> int:
    """The number of groups of events that attend to each other but not to other groups: 1, or one per domain."""
    return 1

  @property
  def needs_target_domain(self) -> bool:
    """Whether query vectors depend on `batch.target_domain`."""
    return self.target_domain

  def domain_embedding(self, batch: SequenceBatch) -> Float[Array, "B N M"] | None:
    """Returns the vectors that domains and actions add to the embeddings of events, if any."""
    parts = []
    if self.target_domain:
      parts.append(self.target_domain_embedding(batch.target_domain))
    if self.num_actions:
      parts.append(self.action_embedding(jnp.zeros_like(batch.item_id) if batch.action is None else batch.action))
    if self.event_domain:
      parts.append(self.event_domains(batch.domain_id))
    return sum(parts[1:], parts[0]) if parts else None

  def input_vectors(self, item_id: Int[Array, "..."]) -> Float[Array, "... M"]:
    """Returns rows of the item table as the encoder reads them."""
    return self.items(item_id)

  def item_vectors(self, item_id: Int[Array, "..."] | None = None) -> Float[Array, "... M"]:
    """Returns scoring vectors of `item_id`, or of items 0..V (row 0 is padding)."""
    if item_id is None:
      return self.items.vectors()[: self.num_items + 1]
    return self.items.vectors(item_id)

  def scoring(self, row: Float[Array, "... M"]) -> Float[Array, "... M"]:
    """Returns scoring vectors of rows of an item table that is not in the parameters."""
    return l2_normalize(row) if self.output_norm == "l2" else row

  @property
  def num_rows(self) -> int:
    """The number of rows of the item table: padding, items and special ids."""
    return self.num_items + 1 + self.num_special

  def build_layers(self) -> list[nn.Module]:
    """Returns the encoder's layers."""
    raise NotImplementedError

  def build_context(
    self, x: Float[Array, "B N M"], batch: SequenceBatch
  ) -> tuple[Float[Array, "B S M"], AttentionContext]:
    """Returns the tokens that the layers read, and their context."""
    if self.num_bottlenecks:
      return with_bottlenecks(x, self.bottlenecks(), batch, self.num_domains, self.bottleneck_stride, self.causal)
    return x, (causal_context if self.causal else bidirectional_context)(batch, self.num_domains)

  def encode(self, x: Float[Array, "B S M"], context: AttentionContext, deterministic: bool) -> Float[Array, "B S M"]:
    """Returns the output of the layers."""
    raise NotImplementedError
