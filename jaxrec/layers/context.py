"""What all attention layers of a model share for one batch: the mask, the inputs of the relative bias, the domains."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxrec.batches import AnyArray, SequenceBatch, check_columns, check_instance
from jaxrec.layers.cache import CachedRows, CacheSlot, Prefill
from pallas_kernels import IntervalMask, permute
from pallas_kernels.integers import as_arrays


@flax.struct.dataclass
class AttentionContext:
  """The mask and the O(N) inputs of attention: Q queries over S tokens; Q = S = N without bottleneck tokens.

  mask: the tokens that each query reads.
  query_position, key_position: index of a token in its own sequence.
  query_time: the time of the event that the query predicts, in seconds.
  key_time: the time of the token's own event, in seconds.
  is_real: False on padding, and on events whose item is unknown.
  is_token: False on padding; None where nothing has to zero padding, because the model has done so.
  group: group of the token as a key: its domain 1..C, C + 1 for a bottleneck token, 0 if the domain is hidden.
  num_groups: C + 1, or C + 2 with bottleneck tokens.
  target_domain: the domain of the event that the token predicts; 0 = unknown.
  bottlenecks: how tokens become queries and keys; None if all tokens are events.
  order: the token order of this context; None if it is that of the batch.
  states: the domain states that each token may read.
  slot: what is kept of the tokens, or where those are that were kept before; None if the whole history is in the batch.
  attention_input: vectors that queries and keys are projected from; None: from the layer's input, as values are.
  is_scored: whether layers store what their tokens attend to, where that is asked for.
  """

  mask: IntervalMask
  query_position: Int[Array, "B Q"]
  key_position: Int[Array, "B S"]
  query_time: Int[Array, "B Q"]
  key_time: Int[Array, "B S"]
  is_real: Bool[Array, "B S"]
  is_token: Bool[Array, "B S"] | None
  group: Int[Array, "B S"]
  num_groups: int = flax.struct.field(pytree_node=False)
  target_domain: Int[Array, "B S"]
  bottlenecks: Bottlenecks | None = None
  order: Permutation | None = None
  states: DomainStates | None = None
  slot: CacheSlot | Prefill | CachedRows | None = None
  attention_input: Float[Array, "B S A"] | None = None
  is_scored: bool = flax.struct.field(pytree_node=False, default=True)

  @classmethod
  def causal(
    cls,
    sequence_id: Integer[AnyArray, "B N"],
    time: Integer[AnyArray, "B N"] | None = None,
    position: Integer[AnyArray, "B N"] | None = None,
    domain: Integer[AnyArray, "B N"] | None = None,
    num_domains: int = 1,
  ) -> AttentionContext:
    """Returns a context in which each token reads itself and earlier tokens of its sequence, to use a layer on its own.

    Args:
      sequence_id: 1, 2, ... for the sequences of a row, each in one piece; 0 on padding.
      time: of the tokens, in seconds; None: no times.
      position: index of a token in its sequence; None: counted.
      domain: 1..C; None: one domain.
      num_domains: C.

    Raises:
      ValueError: arrays of another shape or type.

    >>> context = AttentionContext.causal(jnp.array([[1, 1, 2, 0]]))
    >>> context.query_position.tolist(), context.mask.to_dense(4)[0].astype(int).tolist()
    ([[0, 1, 0, 0]], [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    """
    given = {"sequence_id": sequence_id, "time": time, "position": position, "domain": domain}
    columns = check_columns(given)
    sequence_id = columns["sequence_id"]
    is_token, zero = sequence_id != 0, jnp.zeros_like(sequence_id)
    if position is None:
      place = jnp.arange(sequence_id.shape[1], dtype=jnp.int32)[None]  # [1, N]
      starts = jnp.diff(sequence_id, axis=1, prepend=0) != 0  # [B, N]
      first = jax.lax.cummax(jnp.where(starts, place, 0), axis=1)
      columns["position"] = jnp.where(is_token, place - first, 0)
    time = columns.get("time", zero)
    batch = SequenceBatch(
      item_id=sequence_id, domain_id=columns.get("domain", is_token.astype(jnp.int32)), timestamp=time,
      sequence_id=sequence_id, position=columns["position"], target_item=zero, target_domain=zero, target_time=time,
      target_weight=jnp.zeros(sequence_id.shape),
    )  # fmt: skip
    return causal_context(batch, num_domains)

  def without_padding(self, x: Float[Array, "B S M"]) -> Float[Array, "B S M"]:
    """Returns vectors of tokens with zeros on padding.

    A layer starts with it: what stands on padding, NaN too, would reach the gradients of its kernels otherwise.
    """
    return x if self.is_token is None else jnp.where(self.is_token[..., None], x, 0)


def check_context(context: AttentionContext) -> None:
  """Raises ValueError unless a layer is given a context."""
  how = "causal_context(batch) makes one, or AttentionContext.causal(sequence_id) without a batch"
  check_instance("context", context, AttentionContext, how)


@flax.struct.dataclass
class Permutation:
  """A permutation of the columns of each row, and its inverse.

  >>> swap = Permutation(order=jnp.array([[2, 0, 1]]), inverse=jnp.array([[1, 2, 0]]))
  >>> x = jnp.array([[7, 8, 9]])
  >>> swap(x).tolist(), swap.undo(swap(x)).tolist()
  ([[9, 7, 8]], [[7, 8, 9]])
  """

  order: Int[Array, "B X"]
  inverse: Int[Array, "B X"]

  def __call__(self, x: Array) -> Array:
    """Returns `x [B, X, ...]` permuted."""
    return permute(x, self.order, self.inverse)

  def undo(self, x: Array) -> Array:
    """Returns `x [B, X, ...]` in its original order."""
    return permute(x, self.inverse, self.order)


@flax.struct.dataclass
class Bottlenecks:
  """How N events followed by Z bottleneck tokens become queries and keys: a bottleneck token has a query per domain.

  keys, queries: the sorted orders of keys and of queries, in which every query reads at most two intervals of keys.
  domain_weight: weight of each domain in the output of a bottleneck token; sums to 1 over the domains with an earlier
    event.
  """

  keys: Permutation
  queries: Permutation
  domain_weight: Float[Array, "B Z C"]

  def expand_queries(self, x: Array) -> Array:
    """Returns the sorted queries of tokens `[B, N + Z, ...]`: one for an event, C for a bottleneck token."""
    num_items = x.shape[1] - self.domain_weight.shape[1]
    per_domain = jnp.repeat(x[:, num_items:], self.domain_weight.shape[2], axis=1)
    return self.queries(jnp.concatenate([x[:, :num_items], per_domain], axis=1))

  def merge_outputs(self, y: Array) -> Array:
    """Returns the outputs of sorted queries by token, `[B, N + Z, ...]`: bottleneck tokens average over domains."""
    y = self.queries.undo(y)
    num_items = y.shape[1] - self.domain_weight.shape[1] * self.domain_weight.shape[2]
    per_domain = y[:, num_items:].reshape(*self.domain_weight.shape, *y.shape[2:])  # [B, Z, C, ...]
    mean = jnp.einsum("bzc,bzc...->bz...", self.domain_weight.astype(y.dtype), per_domain)  # [B, Z, ...]
    return jnp.concatenate([y[:, :num_items], mean], axis=1)


@flax.struct.dataclass
class DomainStates:
  """The domain states that tokens may read, for tokens in the order of the batch in X blocks of T tokens.

  The S = T + R states of a block are those of its own tokens, then K of each of the C domains from before the block.

  carried: columns of the R = K C latest events before the block, the latest one of each domain first, 0 if there is
    none; None: the states are the cached ones, and no others.
  may_read: whether the state is one of the K latest of its domain in the token's sequence, and of another domain than
    the token.
  is_target_domain: whether the state's domain is the target domain of the token.
  latest: columns of the R latest events of the rows, which `Prefill` keeps; None: nothing is kept.
  """

  carried: Int[Array, "B X R"] | None
  may_read: Bool[Array, "B X T S"]
  is_target_domain: Bool[Array, "B X T S"]
  latest: Int[Array, "B R"] | None = None


def causal_context(batch: SequenceBatch, num_domains: int = 1) -> AttentionContext:
  """Returns a context in which each token reads itself and earlier tokens of its sequence.

  Choice: the published HSTU compares the time of the *next* event with the times of the keys; the data pipeline decides
  whether `target_time` is that (`request_time="target"`) or the token's own time (`"last_event"`).

  >>> from jaxrec.batches import next_item_batch
  >>> causal_context(next_item_batch(jnp.array([[5, 3, 0]]))).mask.to_dense(3)[0].astype(int).tolist()
  [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
  """
  batch = as_arrays("batch", batch)  # Data pipelines make NumPy arrays.
  return _plain(batch, IntervalMask.causal(batch.sequence_id), batch.target_time, num_domains)


def bidirectional_context(batch: SequenceBatch, num_domains: int = 1) -> AttentionContext:
  """Returns a context in which each token reads its whole sequence.

  >>> from jaxrec.batches import next_item_batch
  >>> bidirectional_context(next_item_batch(jnp.array([[5, 3, 0]]))).mask.to_dense(3)[0].astype(int).tolist()
  [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
  """
  batch = as_arrays("batch", batch)
  return _plain(batch, IntervalMask.full(batch.sequence_id), batch.timestamp, num_domains)


def cached_context(
  batch: SequenceBatch,
  slot: CacheSlot,
  key_position: Int[Array, "B L"],
  key_time: Int[Array, "B L"],
  num_seen: Int[Array, "B C"],
  num_states: int = 1,
) -> AttentionContext:
  """Returns the context of one new token per row, which reads itself and the cached tokens of its group.

  Args:
    batch: `[B, 1]`; a row without an event (sequence 0) reads nothing.
    slot: cache slot of the new token.
    key_position, key_time: positions and times of the L cached tokens of its group, the new one included.
    num_seen: events that each domain has had, the new one included.
    num_states: K, states of each other domain that the token reads.
  """
  zero = jnp.zeros_like(batch.position)
  end = jnp.where(batch.sequence_id != 0, slot.index[:, None] + 1, 0).astype(jnp.int32)
  mask = IntervalMask(zero, end, zero, zero, jnp.zeros(end.shape, bool))
  return AttentionContext(
    mask, batch.position, key_position, batch.target_time, key_time, batch.item_id != 0, batch.sequence_id != 0,
    batch.domain_id, num_seen.shape[1] + 1, batch.target_domain, slot=slot,
    states=_cached_states(batch, num_seen, num_states),
  )  # fmt: skip


def token_context(
  mask: IntervalMask,
  position: Int[Array, "B Q"],
  time: Int[Array, "B Q"],
  is_real: Bool[Array, "B Q"],
  key_position: Int[Array, "B S"] | None = None,
  key_time: Int[Array, "B S"] | None = None,
  slot: Prefill | CachedRows | None = None,
) -> AttentionContext:
  """Returns the context of tokens that need no domains: a mask, positions and times.

  Args:
    mask: the keys that each token reads.
    position, time: of each token.
    is_real: False on padding.
    key_position, key_time: those of the keys, where other tokens are in a cache; None: as the tokens.
    slot: see `AttentionContext`.
  """
  none = jnp.zeros_like(position)
  key_position = position if key_position is None else key_position
  key_time = time if key_time is None else key_time
  return AttentionContext(mask, position, key_position, time, key_time, is_real, is_real, none, 1, none, slot=slot)


def _cached_states(batch, num_seen, num_states):
  """The cached states lie side by side by domain, the latest one first."""
  domain = jnp.repeat(jnp.arange(1, num_seen.shape[1] + 1, dtype=jnp.int32), num_states)[None]  # [1, C K]
  age = jnp.tile(jnp.arange(num_states, dtype=jnp.int32), num_seen.shape[1])[None]
  may_read = (age < jnp.repeat(num_seen, num_states, axis=1)) & (domain != batch.domain_id)  # [B, C K]
  return DomainStates(None, may_read[:, None, None], (domain == batch.target_domain)[:, None, None])


def _plain(batch, mask, query_time, num_domains):
  return AttentionContext(
    mask, batch.position, batch.position, query_time, batch.timestamp, batch.item_id != 0, batch.sequence_id != 0,
    batch.domain_id, num_domains + 1, batch.target_domain,
  )  # fmt: skip
