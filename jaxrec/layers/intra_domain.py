"""Attention inside a domain: tokens are sorted by sequence and domain, so that a layer costs the sum of n_d^2.

Source: Loureiro et al. 2025, arXiv 2508.20945: token i reads token j where j <= i and their domains agree.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxrec.batches import SequenceBatch
from jaxrec.layers.context import AttentionContext, DomainStates, Permutation
from pallas_kernels import IntervalMask, sort_by_segment
from pallas_kernels.integers import as_arrays

BLOCK = 32  # Tokens whose states are looked up together; changes speed, never results.


def intra_domain_context(batch: SequenceBatch, num_domains: int, causal: bool = True) -> AttentionContext:
  """Returns a context in which each token reads itself and earlier tokens of its sequence and domain.

  With `causal=False` it reads later ones too, and masked events, whose domain is hidden, count to that of their target.
  Its tokens are sorted: apply `context.order(x)` to the layers' input and `context.order.undo(y)` to their output.

  >>> from jaxrec.batches import next_item_batch
  >>> batch = next_item_batch(jnp.array([[5, 3, 8]]), domain_id=jnp.array([[1, 2, 1]]))
  >>> context = intra_domain_context(batch, num_domains=2)
  >>> context.order(batch.item_id).tolist(), context.mask.to_dense(3)[0].astype(int).tolist()
  ([[5, 8, 3]], [[1, 0, 0], [1, 1, 0], [0, 0, 1]])
  """
  batch = as_arrays("batch", batch)
  if not causal:
    batch = batch.replace(domain_id=jnp.where(batch.domain_id == 0, batch.target_domain, batch.domain_id))
  order = Permutation(*sort_by_segment(batch.sequence_id, batch.domain_id))
  states = domain_states(batch.sequence_id, batch.domain_id, batch.target_domain, num_domains)
  batch = jax.tree.map(order, batch)
  return AttentionContext(
    mask=IntervalMask.intra_domain(batch.sequence_id, batch.domain_id) if causal else _both_ways(batch),
    query_position=batch.position,
    key_position=batch.position,
    query_time=batch.target_time if causal else batch.timestamp,
    key_time=batch.timestamp,
    is_real=batch.item_id != 0,
    is_token=batch.sequence_id != 0,
    group=batch.domain_id,
    num_groups=num_domains + 1,
    target_domain=batch.target_domain,
    order=order,
    states=states,
  )


def _both_ways(batch):
  """The mask of tokens sorted by sequence and domain that read all tokens of both."""
  changes = (jnp.diff(batch.sequence_id, axis=1) != 0) | (jnp.diff(batch.domain_id, axis=1) != 0)
  segment = jnp.pad(jnp.cumsum(changes, axis=1, dtype=jnp.int32), ((0, 0), (1, 0))) + 1  # [B, N]
  return IntervalMask.full(jnp.where(batch.sequence_id != 0, segment, 0))


def domain_states(
  sequence_id: Int[Array, "B N"],
  domain_id: Int[Array, "B N"],
  target_domain: Int[Array, "B N"],
  num_domains: int,
  block: int = BLOCK,
) -> DomainStates:
  """Returns which states each token may read: the latest event of each other domain; see `DomainStates`.

  Gathering C states for each of N tokens takes N C rows. A block of T tokens shares its T own states and the C from
  before it, which takes only (C / T + 1) N rows.

  Args:
    sequence_id, domain_id, target_domain: in the order of the batch; 0 on padding.
    num_domains: C.
    block: T.
  """
  padding = ((0, 0), (0, -sequence_id.shape[1] % block))
  sequence_id, domain_id, target_domain = (jnp.pad(x, padding) for x in (sequence_id, domain_id, target_domain))
  blocks = lambda x: x.reshape(x.shape[0], x.shape[1] // block, block, *x.shape[2:])  # noqa: E731  # [B, X, T, ...]
  latest = blocks(latest_events(sequence_id, domain_id, num_domains))  # [B, X, T, C]
  index = jnp.arange(sequence_id.shape[1], dtype=jnp.int32)
  domains = jnp.arange(1, num_domains + 1, dtype=jnp.int32).reshape(1, 1, -1)
  last = jax.lax.cummax(
    jnp.where(domain_id[..., None] == domains, index[None, :, None], -1), axis=1
  )  # In any sequence.
  before = jnp.pad(last, ((0, 0), (1, 0), (0, 0)), constant_values=-1)[:, :-1:block]  # [B, X, C]
  own = blocks(domain_id)  # [B, X, T]
  key_index = jnp.broadcast_to(jnp.maximum(own - 1, 0)[:, :, None], (*own.shape, block))  # [B, X, T, T] domain of a key
  is_latest = jnp.take_along_axis(latest, key_index, axis=3) == index.reshape(1, -1, 1, block)
  is_carried = (latest == before[:, :, None]) & (latest >= 0)
  may_read = jnp.concatenate([is_latest & (own != 0)[:, :, None], is_carried], axis=3)  # [B, X, T, T + C]
  key_domain = jnp.concatenate([own, jnp.broadcast_to(domains, before.shape)], axis=2)[:, :, None]  # [B, X, 1, T + C]
  return DomainStates(
    carried=jnp.maximum(before, 0),
    may_read=may_read & (key_domain != own[..., None]),
    is_target_domain=key_domain == blocks(target_domain)[..., None],
  )


def latest_events(
  sequence_id: Int[Array, "B N"], domain_id: Int[Array, "B N"], num_domains: int
) -> Int[Array, "B N C"]:
  """Returns the column of the latest event of each domain in a token's sequence, up to the token; -1 if none.

  >>> one = jnp.array([[1, 1, 1, 2, 0]])
  >>> latest_events(one, jnp.array([[2, 1, 2, 1, 0]]), 2)[0].tolist()
  [[-1, 0], [1, 0], [1, 2], [3, -1], [-1, -1]]
  """
  index = jnp.arange(sequence_id.shape[1], dtype=jnp.int32)[None]  # [1, N]
  is_domain = (domain_id[..., None] == jnp.arange(1, num_domains + 1, dtype=jnp.int32).reshape(1, 1, -1)) & (
    sequence_id != 0
  )[..., None]  # [B, N, C]
  last = jax.lax.cummax(jnp.where(is_domain, index[..., None], -1), axis=1)
  changes = jnp.pad(sequence_id[:, 1:] != sequence_id[:, :-1], ((0, 0), (1, 0)))
  first = jax.lax.cummax(jnp.where(changes, index, 0), axis=1)  # [B, N] first column of the sequence
  is_seen = (last >= first[..., None]) & (sequence_id != 0)[..., None]
  return jnp.where(is_seen, last, -1).astype(jnp.int32)
