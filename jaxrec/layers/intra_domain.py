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

OWN = ("query", "target")  # Whose domain counts as the own one: that of a token, or of its target.
BLOCK = 32  # Tokens whose states are looked up together; changes speed, never results.


def intra_domain_context(
  batch: SequenceBatch, num_domains: int, causal: bool = True, num_states: int = 1, own: str = "query"
) -> AttentionContext:
  """Returns a context in which each token reads itself and earlier tokens of its sequence and domain.

  With `causal=False` it reads later ones too, and masked events, whose domain is hidden, count to that of their target.
  With `own="target"` it reads itself and tokens of the domain of its target, where that is known.
  Of each other domain it may read the states of the `num_states` latest events.
  Its tokens are sorted: apply `context.order(x)` to the layers' input and `context.order.undo(y)` to their output.

  Raises:
    ValueError: another `own`.

  >>> from jaxrec.batches import next_item_batch
  >>> batch = next_item_batch(jnp.array([[5, 3, 8]]), domain_id=jnp.array([[1, 2, 1]]))
  >>> context = intra_domain_context(batch, num_domains=2)
  >>> context.order(batch.item_id).tolist(), context.mask.to_dense(3)[0].astype(int).tolist()
  ([[5, 8, 3]], [[1, 0, 0], [1, 1, 0], [0, 0, 1]])
  """
  if own not in OWN:
    raise ValueError(f"{own=} is not one of {OWN}")
  batch = as_arrays("batch", batch)
  if not causal:
    batch = batch.replace(domain_id=jnp.where(batch.domain_id == 0, batch.target_domain, batch.domain_id))
  order = Permutation(*sort_by_segment(batch.sequence_id, batch.domain_id))
  states = domain_states(batch.sequence_id, batch.domain_id, batch.target_domain, num_domains, num_states)
  mask = jax.tree.map(order, _of_target(batch, num_domains, causal)) if own == "target" else None
  batch = jax.tree.map(order, batch)
  if mask is None:
    mask = IntervalMask.intra_domain(batch.sequence_id, batch.domain_id) if causal else _both_ways(batch)
  return AttentionContext(
    mask=mask,
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


def domain_intervals(
  sequence_id: Int[Array, "B N"], domain_id: Int[Array, "B N"], num_domains: int, causal: bool
) -> tuple[Int[Array, "B N D"], Int[Array, "B N D"]]:
  """Returns where the events of each domain 0..C in each token's sequence start and end once sorted by both.

  Args:
    sequence_id, domain_id: in the order of the batch; sequences lie side by side, with rising ids.
    num_domains: C.
    causal: whether the ends count the events up to the token only.

  >>> start, end = domain_intervals(jnp.array([[1, 1, 1]]), jnp.array([[1, 2, 1]]), num_domains=2, causal=True)
  >>> start[0, 1].tolist(), end[0, 1].tolist()  # For the second event: one of domain 1 before it, and itself.
  ([0, 0, 2], [0, 1, 3])
  """
  whole = IntervalMask.full(sequence_id)
  is_of = jax.nn.one_hot(domain_id, num_domains + 1, dtype=jnp.int32) * (sequence_id != 0)[..., None].astype(jnp.int32)
  before = jnp.pad(jnp.cumsum(is_of, axis=1), ((0, 0), (1, 0), (0, 0)))  # [B, N + 1, 1 + C]
  until = lambda column: jnp.take_along_axis(before, column[..., None], axis=1)  # noqa: E731  # [B, N, 1 + C]
  earlier = until(whole.start_a)
  total = until(whole.end_a) - earlier
  start = whole.start_a[..., None] + jnp.cumsum(total, axis=-1) - total
  return start, start + (before[:, 1:] - earlier if causal else total)


def _of_target(batch, num_domains, causal):
  """The mask of tokens, not sorted yet, that read sorted ones: themselves, and those of the domain of their target."""
  wanted = jnp.where(batch.target_domain != 0, batch.target_domain, batch.domain_id)[..., None]
  intervals = domain_intervals(batch.sequence_id, batch.domain_id, num_domains, causal)
  start, end = (jnp.take_along_axis(x, wanted, axis=2)[..., 0] for x in intervals)
  is_token = batch.sequence_id != 0
  return IntervalMask(start, jnp.where(is_token, end, start), start, start, is_token)


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
  num_states: int = 1,
  block: int = BLOCK,
) -> DomainStates:
  """Returns which states each token may read: the K latest events of each other domain; see `DomainStates`.

  Gathering C K states for each of N tokens takes N C K rows. A block of T tokens shares its T own states and the C K
  from before it, which takes only (C K / T + 1) N rows.

  Args:
    sequence_id, domain_id, target_domain: in the order of the batch; 0 on padding.
    num_domains: C.
    num_states: K.
    block: T.
  """
  padding = ((0, 0), (0, -sequence_id.shape[1] % block))
  sequence_id, domain_id, target_domain = (jnp.pad(x, padding) for x in (sequence_id, domain_id, target_domain))
  blocks = lambda x: x.reshape(x.shape[0], x.shape[1] // block, block, *x.shape[2:])  # noqa: E731  # [B, X, T, ...]
  index = jnp.arange(sequence_id.shape[1], dtype=jnp.int32)
  seen, last = _seen_and_last(domain_id, num_domains)  # [B, N, C] each, in any sequence
  carried = _carried(last, domain_id, num_states, block)  # [B, X, K C]
  age = jnp.repeat(jnp.arange(num_states, dtype=jnp.int32), num_domains)  # [K C]
  own = blocks(domain_id)  # [B, X, T]
  carried_domain = jnp.tile(jnp.arange(1, num_domains + 1, dtype=jnp.int32), num_states).reshape(1, 1, -1)
  key_domain = jnp.concatenate([own, jnp.broadcast_to(carried_domain, carried.shape)], axis=2)  # [B, X, S]
  key_sequence = jnp.concatenate([blocks(sequence_id), jnp.where(carried >= 0, _at(sequence_id, carried), 0)], axis=2)
  key_index = jnp.concatenate([jnp.broadcast_to(blocks(index[None]), own.shape), carried], axis=2)
  # Events are numbered by domain: a token may read those whose number is one of the last K up to itself.
  own_number = jnp.take_along_axis(blocks(seen), jnp.maximum(own - 1, 0)[..., None], axis=3)[..., 0]  # [B, X, T]
  carried_number = jnp.tile(_before_blocks(seen, block, 0), (1, 1, num_states)) - age.reshape(1, 1, -1)
  key_number = jnp.concatenate([own_number, carried_number], axis=2)  # [B, X, S]
  shape = (*own.shape, key_domain.shape[2])  # [B, X, T, S]
  read_domain = jnp.broadcast_to(jnp.maximum(key_domain - 1, 0)[:, :, None], shape)
  number_of_last = jnp.take_along_axis(blocks(seen), read_domain, axis=3)
  key_domain = key_domain[:, :, None]  # [B, X, 1, S]
  is_other = (key_domain != own[..., None]) & (key_domain != 0)
  is_before = (key_sequence[:, :, None] == blocks(sequence_id)[..., None]) & (
    key_index[:, :, None] <= blocks(index[None])[..., None]
  )
  is_recent = key_number[:, :, None] > number_of_last - num_states
  return DomainStates(
    carried=jnp.maximum(carried, 0),
    may_read=is_other & is_before & is_recent & (own != 0)[..., None],
    is_target_domain=key_domain == blocks(target_domain)[..., None],
  )


def latest_events(domain_id: Int[Array, "B N"], num_domains: int, num_states: int = 1) -> Int[Array, "B R"]:
  """Returns the columns of the K latest events of each domain of a row, the latest of each domain first; 0 for none.

  >>> latest_events(jnp.array([[1, 2, 1, 0]]), num_domains=3).tolist()
  [[2, 1, 0]]
  """
  padded = jnp.pad(domain_id, ((0, 0), (0, 1)))
  _, last = _seen_and_last(padded, num_domains)
  return jnp.maximum(_carried(last, padded, num_states, domain_id.shape[1])[:, 1], 0)


def _seen_and_last(domain_id, num_domains):
  """Returns how many events of each domain the columns up to each one have, and the last of these, or -1."""
  index = jnp.arange(domain_id.shape[1], dtype=jnp.int32)
  is_domain = domain_id[..., None] == jnp.arange(1, num_domains + 1, dtype=jnp.int32).reshape(1, 1, -1)  # [B, N, C]
  last = jax.lax.cummax(jnp.where(is_domain, index[None, :, None], -1), axis=1)
  return jnp.cumsum(is_domain, axis=1, dtype=jnp.int32), last


def _carried(last, domain_id, num_states, block):
  """Returns the columns of the K latest events of each domain before each block, latest first, or -1: `[B, X, K C]`."""
  earlier = jnp.pad(last, ((0, 0), (1, 0), (0, 0)), constant_values=-1)[:, :-1]  # [B, N, C]
  previous = jnp.take_along_axis(earlier, jnp.maximum(domain_id - 1, 0)[..., None], axis=2)[..., 0]  # [B, N]
  carried = [_before_blocks(last, block, -1)]
  for _ in range(num_states - 1):
    carried.append(jnp.where(carried[-1] >= 0, _at(previous, carried[-1]), -1))
  return jnp.concatenate(carried, axis=2)


def _before_blocks(x, block, start):
  """`[B, N, C]` -> `[B, X, C]`: the values of the column before each block, `start` before the first."""
  return jnp.pad(x, ((0, 0), (1, 0), (0, 0)), constant_values=start)[:, :-1:block]


def _at(x, column):
  """`x[b, column]` of columns `[B, X, R]`; -1 reads the first."""
  return jax.vmap(lambda row, index: row.at[index].get(mode="promise_in_bounds"))(x, jnp.maximum(column, 0))
