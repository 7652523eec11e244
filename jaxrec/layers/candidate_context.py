"""What candidates read of a history whose keys and values are cached: the history and themselves, never each other."""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxrec.batches import SequenceBatch
from jaxrec.layers.cache import CachedRows
from jaxrec.layers.context import AttentionContext, DomainStates
from pallas_kernels import IntervalMask


@flax.struct.dataclass
class KeptHistory:
  """Where the events of B cached histories are, all but the latest event of each. G is 1, or the number of domains.

  position, time: of the keys, `[B, L]`.
  count: events of each group of keys, which lie one behind another.
  num_seen: events of each domain.
  """

  position: Int[Array, "B L"]
  time: Int[Array, "B L"]
  count: Int[Array, "B G"]
  num_seen: Int[Array, "B C"]


def candidate_context(
  batch: SequenceBatch, kept: KeptHistory, num_copies: int, num_domains: int, num_states: int
) -> AttentionContext:
  """Returns the context of T copies of the latest event followed by Q candidates, in the last T + Q places of the keys.

  How a model encodes an event may depend on the domain that it has to predict next, so that candidates of different
  domains read different copies.

  Args:
    batch: `[B, T + Q]`; a row without an event has copies with sequence 0.
    kept: the events before.
    num_copies: T: 1, or C: copy t is for candidates of domain t + 1.
    num_domains: C.
    num_states: K, states of each other domain that a token reads.
  """
  capacity, size = kept.position.shape[1], batch.item_id.shape[1]
  place = jnp.broadcast_to(capacity - size + jnp.arange(size, dtype=jnp.int32), batch.item_id.shape)  # [B, X]
  slot, is_real = CachedRows(place, capacity), batch.sequence_id != 0
  is_candidate = jnp.arange(size, dtype=jnp.int32)[None] >= num_copies  # [1, X]
  group = jnp.maximum(batch.domain_id - 1, 0) if kept.count.shape[1] > 1 else jnp.zeros_like(batch.domain_id)
  copy = jnp.maximum(batch.domain_id - 1, 0) if num_copies > 1 else jnp.zeros_like(batch.domain_id)
  reads_copy = is_candidate & is_real & is_real[:, :1] & (group == group[:, :1])
  end = jnp.take_along_axis(jnp.cumsum(kept.count, axis=1), group, axis=1)
  start = end - jnp.take_along_axis(kept.count, group, axis=1)
  start_b = capacity - size + copy
  mask = IntervalMask(
    start, jnp.where(is_real, end, start), start_b, start_b + reads_copy.astype(jnp.int32), is_real, place
  )
  states = _states(batch, kept, copy, is_candidate, num_copies, num_domains, num_states)
  return AttentionContext(
    mask, batch.position, slot.insert(kept.position, batch.position), batch.target_time,
    slot.insert(kept.time, batch.timestamp), batch.item_id != 0, is_real, batch.domain_id, num_domains + 1,
    batch.target_domain, states=states, slot=slot,
  )  # fmt: skip


def _states(batch, kept, copy, is_candidate, num_copies, num_domains, num_states) -> DomainStates:
  """Returns which states tokens read: the kept ones, the latest of each domain first, and then those of the copies."""
  kept_domain = jnp.tile(jnp.arange(1, num_domains + 1, dtype=jnp.int32), num_states).reshape(1, 1, -1)
  age = jnp.repeat(jnp.arange(num_states, dtype=jnp.int32), num_domains).reshape(1, 1, -1)  # [1, 1, C K]
  own, newest = batch.domain_id[..., None], batch.domain_id[:, :1, None]
  has_newest = (batch.sequence_id[:, :1] != 0)[..., None]  # [B, 1, 1]
  one_later = is_candidate[..., None] & has_newest & (kept_domain == newest)
  is_there = age < jnp.minimum(
    jnp.tile(kept.num_seen, (1, num_states))[:, None], num_states - one_later.astype(jnp.int32)
  )
  reads_copy = is_candidate[..., None] & has_newest & (own != newest)
  may_read_copy = reads_copy & (copy[..., None] == jnp.arange(num_copies, dtype=jnp.int32).reshape(1, 1, -1))
  is_real = (batch.sequence_id != 0)[..., None]
  may_read = jnp.concatenate([is_there & (kept_domain != own), may_read_copy], axis=2) & is_real  # [B, X, C K + T]
  key_domain = jnp.concatenate(
    [jnp.broadcast_to(kept_domain, (*newest.shape[:2], kept_domain.shape[2])), jnp.repeat(newest, num_copies, axis=2)],
    axis=2,
  )
  return DomainStates(None, may_read[:, None], (key_domain == batch.target_domain[..., None])[:, None])
