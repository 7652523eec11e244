"""What every attention layer of a model shares for one batch: the mask, inputs of the relative bias, domains."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrec.batches import SequenceBatch
from jaxrec.layers.cache import CachePlace
from pallas_kernels import IntervalMask, permute


@flax.struct.dataclass
class AttentionContext:
  """The mask and the O(N) inputs of the relative bias. There are Q queries for S tokens; Q = S = N without bottlenecks.

  mask: which tokens each query reads.
  query_position, key_position: index of a token in its own sequence.
  query_time: when its prediction is asked for, in seconds.
  key_time: when it happened, in seconds.
  is_real: whether a token is one, and not padding (nor an event whose item is unknown).
  group: what kind of key a token is: its domain 1..C, C + 1 for a bottleneck token, 0 for one whose domain is hidden.
  num_groups: C + 1, or C + 2 with bottlenecks.
  next_domain: the domain that a token's prediction is asked for; 0 = not known.
  bottlenecks: how tokens make queries and items are told from bottlenecks; None where there are items only.
  order: the order that everything here is in, where it isn't that of the batch.
  states: which domain states tokens may read.
  place: of the one new token of each row, where earlier ones come from a cache.
  attention_input: of what queries and keys are made; None: of the tokens that the layer is given, as values are.
  """

  mask: IntervalMask
  query_position: Int[Array, "B Q"]
  key_position: Int[Array, "B S"]
  query_time: Int[Array, "B Q"]
  key_time: Int[Array, "B S"]
  is_real: Bool[Array, "B S"]
  group: Int[Array, "B S"]
  num_groups: int = flax.struct.field(pytree_node=False)
  next_domain: Int[Array, "B S"]
  bottlenecks: Bottlenecks | None = None
  order: Permutation | None = None
  states: DomainStates | None = None
  place: CachePlace | None = None
  attention_input: Float[Array, "B S A"] | None = None


@flax.struct.dataclass
class Permutation:
  """An order of the columns of each row, and the way back."""

  order: Int[Array, "B X"]
  inverse: Int[Array, "B X"]

  def __call__(self, x: Array) -> Array:
    """`[B, X, ...]` in this order."""
    return permute(x, self.order, self.inverse)

  def undo(self, x: Array) -> Array:
    """`[B, X, ...]` back from it."""
    return permute(x, self.inverse, self.order)


@flax.struct.dataclass
class Bottlenecks:
  """Tokens are the N events and then Z bottleneck tokens; each of the latter asks once in each domain.

  keys, queries: the orders in which attention sees them, so that what is read together lies together.
  share: of each domain in what a bottleneck token takes on; sums to 1 over the domains that have an event before it.
  """

  keys: Permutation
  queries: Permutation
  share: Float[Array, "B Z C"]

  def asked(self, x: Array) -> Array:
    """Tokens `[B, N + Z, ...]` as sorted queries."""
    num_items = x.shape[1] - self.share.shape[1]
    per_domain = jnp.repeat(x[:, num_items:], self.share.shape[2], axis=1)
    return self.queries(jnp.concatenate([x[:, :num_items], per_domain], axis=1))

  def answered(self, y: Array) -> Array:
    """What sorted queries found, as the tokens' `[B, N + Z, ...]`: of a bottleneck token the mean over domains."""
    y = self.queries.undo(y)
    num_items = y.shape[1] - self.share.shape[1] * self.share.shape[2]
    of_domains = y[:, num_items:].reshape(*self.share.shape, *y.shape[2:])  # [B, Z, C, ...]
    mean = jnp.einsum("bzc,bzc...->bz...", self.share.astype(y.dtype), of_domains)  # [B, Z, ...]
    return jnp.concatenate([y[:, :num_items], mean], axis=1)


@flax.struct.dataclass
class DomainStates:
  """Which states may be read by tokens in the order of the batch, cut into X blocks of T tokens.

  A block has T states of its own, those of its tokens, and C that come from before it.

  carried: column of the latest event of each domain before the block, 0 where there is none; None: those C are all
    there is, and come from a cache.
  may_read: whether the state is that of the latest event of its domain, in the same sequence, and of another domain.
  is_asked: whether its domain is the one that the token's prediction is asked for.
  """

  carried: Int[Array, "B X C"] | None
  may_read: Bool[Array, "B X T S"]
  is_asked: Bool[Array, "B X T S"]


def causal_context(batch: SequenceBatch, num_domains: int = 1) -> AttentionContext:
  """Each token reads itself and earlier tokens of its sequence; the query's time is that of the event to be predicted.

  Choice: the published HSTU compares the *next* event's time with the times of the keys; data pipelines decide whether
  `target_time` is that (`request_time="target"`) or the token's own time (`"last_event"`).
  """
  batch = jax.tree.map(jnp.asarray, batch)  # Data pipelines make NumPy arrays.
  return _plain(batch, IntervalMask.causal(batch.sequence_id), batch.target_time, num_domains)


def bidirectional_context(batch: SequenceBatch, num_domains: int = 1) -> AttentionContext:
  """Each token reads its whole sequence."""
  batch = jax.tree.map(jnp.asarray, batch)
  return _plain(batch, IntervalMask.full(batch.sequence_id), batch.timestamp, num_domains)


def cached_context(
  batch: SequenceBatch,
  place: CachePlace,
  key_position: Int[Array, "B L"],
  key_time: Int[Array, "B L"],
  is_seen: Bool[Array, "B C"],
) -> AttentionContext:
  """One new token in each row: it reads itself and what is kept of the tokens before it in its group.

  Args:
    batch: `[B, 1]`; no event (sequence 0) reads nothing.
    place: where it goes.
    key_position, key_time: of the L tokens that are kept of its group, itself among them.
    is_seen: which domains have had an event, its own too.
  """
  zero = jnp.zeros_like(batch.position)
  end = jnp.where(batch.sequence_id != 0, place.index[:, None] + 1, 0).astype(jnp.int32)
  mask = IntervalMask(zero, end, zero, zero, jnp.zeros(end.shape, bool))
  return AttentionContext(
    mask, batch.position, key_position, batch.target_time, key_time, batch.item_id != 0, batch.domain_id,
    is_seen.shape[1] + 1, batch.target_domain, place=place, states=_cached_states(batch, is_seen),
  )  # fmt: skip


def _cached_states(batch, is_seen):
  domain = jnp.arange(1, is_seen.shape[1] + 1)
  may_read = is_seen & (domain != batch.domain_id)  # [B, C]
  return DomainStates(None, may_read[:, None, None], (domain == batch.target_domain)[:, None, None])


def _plain(batch, mask, query_time, num_domains):
  return AttentionContext(
    mask, batch.position, batch.position, query_time, batch.timestamp, batch.item_id != 0, batch.domain_id,
    num_domains + 1, batch.target_domain,
  )  # fmt: skip
