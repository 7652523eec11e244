"""The contexts of domain encoders: each domain's events with the bottleneck tokens of their sequence, and no others.

A sequence has T bottleneck tokens, the same ones in the encoder of each domain, through which alone these encoders
exchange information: after each layer a token becomes the mean of what the domains made of it. A masked event, whose
domain is hidden, belongs to all domains.

Source: AutoCDSR+, arXiv 2505.21811; bottleneck tokens from Nagrani et al. 2021, arXiv 2107.00135.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxrec.batches import SequenceBatch
from jaxrec.layers.context import AttentionContext, Permutation
from pallas_kernels import IntervalMask, sort_by_segment
from pallas_kernels.integers import as_arrays


@flax.struct.dataclass
class EncoderContexts:
  """What the encoders of C domains and the one of all events read.

  shared: of all events.
  domains: of each domain; N events and Z bottleneck tokens in the order of `order`.
  """

  shared: AttentionContext
  domains: tuple[AttentionContext, ...]

  def belongs(self, domain: int) -> Bool[Array, "B N"]:
    """Returns which events the encoder of a domain (from 0) reads."""
    context = self.domains[domain]
    return context.order.undo(context.is_token)[:, : self.shared.key_position.shape[1]]


def domain_contexts(
  batch: SequenceBatch, num_domains: int, num_tokens: int, shortest: int
) -> tuple[AttentionContext, ...]:
  """Returns a context for each domain, in which all its events and the bottleneck tokens of a sequence read each other.

  The tokens of a row follow its N events: T for each of at most N // shortest sequences.

  Args:
    batch: sequences, packed from the first column on, with rising ids.
    num_domains: C.
    num_tokens: T; 0: the domains exchange nothing.
    shortest: sequences of fewer events have no bottleneck tokens.

  Raises:
    ValueError: `shortest` below 1.

  >>> from jaxrec.batches import next_item_batch
  >>> batch = next_item_batch(jnp.array([[5, 3, 8, 0]]), domain_id=jnp.array([[1, 2, 1, 0]]))
  >>> one, two = domain_contexts(batch, num_domains=2, num_tokens=1, shortest=3)
  >>> one.order(jnp.arange(5)[None]).tolist(), one.is_token.astype(int).tolist()  # Events 0 and 2, then the token.
  ([[0, 2, 4, 1, 3]], [[1, 1, 1, 0, 0]])
  """
  if shortest < 1:
    raise ValueError(f"{shortest=} must be at least 1")
  batch = as_arrays("batch", batch)
  token_sequence, column = _token_sequences(batch, num_tokens, shortest)
  contexts = []
  for domain in range(1, num_domains + 1):
    belongs = (batch.domain_id == domain) | (batch.domain_id == 0)
    sequence = jnp.concatenate([jnp.where(belongs, batch.sequence_id, 0), token_sequence], axis=1)  # [B, N + Z]
    contexts.append(_context(batch, sequence, column, num_domains))
  return tuple(contexts)


def _token_sequences(batch, num_tokens, shortest):
  """Returns the sequence of each bottleneck token, 0 if it is not used, and a column of that sequence: `[B, Z]`."""
  num_events = batch.sequence_id.shape[1]
  count = num_events // shortest if num_tokens else 0
  marks = (batch.sequence_id != 0) & (batch.position == shortest - 1)  # One event of each sequence that is long enough.
  column = jax.vmap(lambda row: jnp.nonzero(row, size=count, fill_value=num_events)[0])(marks).astype(jnp.int32)
  inside = jnp.minimum(column, num_events - 1)
  sequence = jnp.where(column < num_events, jnp.take_along_axis(batch.sequence_id, inside, axis=1), 0)
  return jnp.repeat(sequence, num_tokens, axis=1), jnp.repeat(inside, num_tokens, axis=1)


def _context(batch, sequence, column, num_domains):
  with_tokens = lambda x: jnp.concatenate([x, jnp.take_along_axis(x, column, axis=1)], axis=1)  # noqa: E731
  is_event = jnp.arange(sequence.shape[1], dtype=jnp.int32)[None] < batch.item_id.shape[1]
  kind = jnp.broadcast_to((~is_event).astype(jnp.int32), sequence.shape)
  order = Permutation(*sort_by_segment(sequence, kind))
  position, time = order(with_tokens(batch.position)), order(with_tokens(batch.timestamp))
  is_token = order(sequence != 0)
  return AttentionContext(
    mask=IntervalMask.full(order(sequence)),
    query_position=position,
    key_position=position,
    query_time=time,
    key_time=time,
    is_real=is_token,
    is_token=is_token,
    group=order(jnp.where(is_event, with_tokens(batch.domain_id), num_domains + 1)),
    num_groups=num_domains + 2,
    target_domain=order(with_tokens(batch.target_domain)),
    order=order,
  )
