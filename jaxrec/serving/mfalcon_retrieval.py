"""M-FALCON for the encoders of retrieval: m candidates as the next event of a history that is encoded once.

    scorer = RetrievalMFalcon(model, params, capacity=2048)
    history = scorer.encode(batch)                         # once: keys, values and domain states of all layers
    scores = scorer.score(history, items, time)            # [B, m], in microbatches

A candidate is read by the encoder as the event after the history, at the time of the request, so that each layer
compares it with the history (target-aware), which one query vector for all candidates cannot. Its score is the product
of its query vector with its item vector; `vectors` returns the query vectors, for a head of one's own. Candidates never
read each other: results are those of one history for each, whatever the microbatch.

Source: Zhai et al. 2024, arXiv 2402.17152, section 3.4 and appendix H.
Choice: models that are trained to predict the next item have not been trained to score the event that they read; use
  one that has, or a head on `vectors`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrec.batches import AnyArray, SequenceBatch, check_is_batch
from jaxrec.layers.cache import CACHE
from jaxrec.layers.candidate_context import KeptHistory, candidate_context
from jaxrec.models import SequentialModel
from jaxrec.serving.incremental import REQUEST_TIMES
from jaxrec.serving.mfalcon import in_microbatches
from pallas_kernels.integers import as_arrays, as_integers


@flax.struct.dataclass
class EncodedHistories:
  """The histories of B users, encoded (a pytree).

  cache: what the layers keep of all events but the latest.
  kept: where these are.
  latest: the latest event of each, `[B, 1]`; sequence 0 for an empty history.
  """

  cache: Any
  kept: KeptHistory
  latest: SequenceBatch


@dataclasses.dataclass(frozen=True)
class RetrievalMFalcon:
  """Scores candidates of users whose histories were encoded before.

  model: a causal model of `jaxrec.models` without bottleneck tokens.
  params: its parameters.
  capacity: events of the longest history.
  microbatch: candidates of each user that are scored at a time; see `jaxrec.serving.mfalcon.plan_microbatch`.
  request_time: as in training: "target" if an event knows the time of the next one, "last_event" if only its own.
  """

  model: SequentialModel
  params: Any
  capacity: int
  microbatch: int = 256
  request_time: str = "target"

  def __post_init__(self):
    if self.capacity < 1 or self.microbatch < 1:
      raise ValueError(f"{self.capacity=} and {self.microbatch=} must be at least 1")
    if self.request_time not in REQUEST_TIMES:
      raise ValueError(f"{self.request_time=} must be one of {REQUEST_TIMES}")

  def encode(self, batch: SequenceBatch) -> EncodedHistories:
    """Returns the encoded histories.

    Args:
      batch: one history a row, from the first column on, whose events have the next ones as targets; those of the
        latest events are not read. `jaxrec.next_item_batch` makes one.

    Raises:
      ValueError: a row has several histories or more events than `capacity`.
      NotImplementedError: the model is bidirectional or has bottleneck tokens.
    """
    check_is_batch(batch)
    batch = as_arrays("batch", batch)
    sequence = np.asarray(batch.sequence_id)
    if sequence.max(initial=0) > 1 or (np.diff(sequence, axis=1) > 0).any():
      raise ValueError("a row holds several histories, or does not begin with one; encode one history a row")
    if sequence.shape[1] > self.capacity:
      raise ValueError(f"the histories have {sequence.shape[1]} columns, more than {self.capacity=}")
    return encode_histories(self.model, self.capacity + self._num_copies + self.microbatch, self.params, batch)

  def score(
    self,
    histories: EncodedHistories,
    item: Int[AnyArray, "B K"],
    time: Int[AnyArray, " B"],
    domain: Int[AnyArray, "B K"] | None = None,
  ) -> Float[np.ndarray, "B K"]:
    """Returns the score of each candidate: the product of its query vector and its item vector.

    Args:
      histories: of B users, see `encode`.
      item: m candidates of each user; any m.
      time: of the request, in seconds, as in the batch of the histories.
      domain: 1..C of the candidates; None: all of domain 1.

    Raises:
      ValueError: domains that the model does not have, or integers that JAX would cut to 32 bits.
    """
    return self._read(histories, item, time, domain, False)

  def vectors(
    self,
    histories: EncodedHistories,
    item: Int[AnyArray, "B K"],
    time: Int[AnyArray, " B"],
    domain: Int[AnyArray, "B K"] | None = None,
  ) -> Float[np.ndarray, "B K M"]:
    """Returns the query vector of each candidate as the latest event of the history. Arguments are those of `score`."""
    return self._read(histories, item, time, domain, True)

  def _read(self, histories, item, time, domain, as_vectors):
    item, time = (np.asarray(as_integers(name, x)) for name, x in (("item", item), ("time", time)))
    domain = np.ones_like(item) if domain is None else np.asarray(as_integers("domain", domain))
    outside = (item != 0) & ((domain < 1) | (domain > self.model.num_domains))
    if outside.any():
      row = int(np.argwhere(outside)[0][0])
      raise ValueError(f"row {row} has a candidate of domain {int(domain[outside][0])}; 1..{self.model.num_domains}")
    reads_time = self.request_time == "target"
    score = functools.partial(read_microbatch, self.model, as_vectors, reads_time, self.params, histories, time)
    return in_microbatches(score, (item, domain), self.microbatch)

  @property
  def _num_copies(self) -> int:
    return num_copies(self.model)


def num_copies(model: SequentialModel) -> int:
  """Returns how many encodings the latest event has: one, or one for each domain that may come next."""
  return model.num_domains if model.needs_target_domain else 1


@functools.partial(jax.jit, static_argnums=(0, 1))
def encode_histories(model: SequentialModel, length: int, params: Any, batch: SequenceBatch) -> EncodedHistories:
  """Returns the encoded histories of `RetrievalMFalcon.encode`, compiled once for each shape.

  All events but the latest are kept: its encoding depends on the candidate and on the time of the request.

  Args:
    model: a causal model.
    length: keys that there is room for: those of the longest history, the latest events, and a microbatch.
    params: its parameters.
    batch: one history a row.
  """
  column = jnp.arange(batch.sequence_id.shape[1], dtype=jnp.int32)[None]
  count = (batch.sequence_id != 0).sum(axis=1, dtype=jnp.int32)[:, None]  # [B, 1]
  last = jnp.maximum(count - 1, 0)
  latest = jax.tree.map(lambda x: jnp.take_along_axis(x, last, axis=1), batch)
  closed = jax.tree.map(lambda x: jnp.where(column < count - 1, x, 0), batch)
  (position, time), variables = model.apply(
    {"params": params}, closed, length, method="keep_histories", mutable=[CACHE]
  )
  room = ((0, 0), (0, length - position.shape[1]))
  is_domain = closed.domain_id[..., None] == jnp.arange(1, model.num_domains + 1, dtype=jnp.int32).reshape(1, 1, -1)
  num_seen = is_domain.sum(axis=1, dtype=jnp.int32)  # [B, C]
  groups = num_seen if model.num_cache_groups > 1 else jnp.maximum(count - 1, 0)
  kept = KeptHistory(jnp.pad(position, room), jnp.pad(time, room), groups, num_seen)
  return EncodedHistories(variables[CACHE], kept, latest)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def read_microbatch(
  model: SequentialModel,
  as_vectors: bool,
  reads_time: bool,
  params: Any,
  histories: EncodedHistories,
  time: Int[AnyArray, " B"],
  item: Int[AnyArray, "B Q"],
  domain: Int[AnyArray, "B Q"],
) -> Array:
  """Returns scores `[B, Q]` or query vectors `[B, Q, M]` of one microbatch of `RetrievalMFalcon`.

  Args:
    model: a causal model.
    as_vectors: whether query vectors are returned.
    reads_time: whether the latest events know the time of the request.
    params: parameters of the model.
    histories: of `encode_histories`.
    time: of the request.
    item: candidates, 0 for none.
    domain: of the candidates.
  """
  copies = num_copies(model)
  batch = _tokens(copies, reads_time, histories.latest, time, item, domain)
  context = candidate_context(batch, histories.kept, copies, model.num_domains, model.num_states)
  variables = {"params": params, CACHE: histories.cache}
  vectors = model.apply(variables, batch, context, method="read_candidates")[:, copies:]
  if as_vectors:
    return vectors
  items = model.apply(variables, item, method="item_vectors")
  return (vectors * items.astype(vectors.dtype)).sum(axis=-1)


def _tokens(copies, reads_time, latest, time, item, domain) -> SequenceBatch:
  """Returns the copies of the latest event, one for each domain that may come next, and then the candidates."""
  repeated = jax.tree.map(lambda x: jnp.repeat(x, copies, axis=1), latest)
  next_domain = jnp.arange(1, copies + 1, dtype=jnp.int32)[None] if copies > 1 else jnp.ones((1, 1), jnp.int32)
  now = jnp.broadcast_to(time[:, None], item.shape)
  is_real = item != 0
  zero = jnp.zeros_like(item)
  position = jnp.broadcast_to(jnp.where(latest.sequence_id != 0, latest.position + 1, 0), item.shape)
  candidates = SequenceBatch(
    item_id=item, domain_id=jnp.where(is_real, domain, 0), timestamp=now, sequence_id=is_real.astype(jnp.int32),
    position=position, target_item=zero, target_domain=zero, target_time=now,
    target_weight=zero.astype(latest.target_weight.dtype), action=None if latest.action is None else zero,
  )  # fmt: skip
  repeated = repeated.replace(
    target_domain=jnp.broadcast_to(next_domain, repeated.domain_id.shape),
    target_time=jnp.repeat(time[:, None], copies, axis=1) if reads_time else repeated.timestamp,
  )
  return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), repeated, candidates)
