"""Attention inside a domain: tokens sorted by sequence and domain, so that a layer costs the sum of n_d^2 over domains.

Source: Loureiro et al. 2025, arXiv 2508.20945: token i reads token j where j <= i and their domains agree.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxrec.layers.context import AttentionContext, Permutation
from jaxrec.types import SequenceBatch
from pallas_kernels import IntervalMask, sort_by_segment


def intra_domain_context(batch: SequenceBatch, num_domains: int) -> AttentionContext:
  """Each token reads itself and the earlier tokens of its sequence and domain; tokens are in the context's `order`.

  `context.order(x)` brings what layers read into that order, and `context.order.undo(y)` what they return back from it.
  """
  batch = jax.tree.map(jnp.asarray, batch)
  order = Permutation(*sort_by_segment(batch.sequence_id, batch.domain_id))
  column = latest_events(batch.sequence_id, batch.domain_id, num_domains)  # [B, N, C]
  place = jax.vmap(lambda inverse, index: inverse[jnp.maximum(index, 0)])(order.inverse, column)
  batch, latest = jax.tree.map(order, (batch, jnp.where(column >= 0, place, -1)))
  return AttentionContext(
    mask=IntervalMask.intra_domain(batch.sequence_id, batch.domain_id),
    query_position=batch.position,
    key_position=batch.position,
    query_time=batch.target_time,
    key_time=batch.timestamp,
    is_real=batch.item_id != 0,
    group=batch.domain_id,
    num_groups=num_domains + 1,
    next_domain=batch.target_domain,
    order=order,
    latest=latest,
  )


def latest_events(
  sequence_id: Int[Array, "B N"], domain_id: Int[Array, "B N"], num_domains: int
) -> Int[Array, "B N C"]:
  """The column of the latest event of each domain up to each token of the same sequence, or -1 where there is none.

  >>> one = jnp.array([[1, 1, 1, 2, 0]])
  >>> latest_events(one, jnp.array([[2, 1, 2, 1, 0]]), 2)[0].tolist()
  [[-1, 0], [1, 0], [1, 2], [3, -1], [-1, -1]]
  """
  index = jnp.arange(sequence_id.shape[1], dtype=jnp.int32)[None]  # [1, N]
  is_domain = (domain_id[..., None] == jnp.arange(1, num_domains + 1)) & (sequence_id != 0)[..., None]  # [B, N, C]
  last = jax.lax.cummax(jnp.where(is_domain, index[..., None], -1), axis=1)
  changes = jnp.pad(sequence_id[:, 1:] != sequence_id[:, :-1], ((0, 0), (1, 0)))
  first = jax.lax.cummax(jnp.where(changes, index, 0), axis=1)  # [B, N] first column of the sequence
  is_seen = (last >= first[..., None]) & (sequence_id != 0)[..., None]
  return jnp.where(is_seen, last, -1).astype(jnp.int32)
