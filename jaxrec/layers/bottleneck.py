"""AutoCDSR+: items read their own domain only, and hear of the others through bottleneck tokens.

Every `stride` events of a sequence end in `T` bottleneck tokens. In each layer

    a bottleneck token reads, in each domain by itself, the events of that domain up to its own place and the
      bottleneck tokens up to its own; what it takes on is the mean over the domains that have such an event;
    an item reads the events of its own domain up to its own and the bottleneck tokens before it.

So a layer's items read what the layer before wrote into the bottlenecks, and with one layer nothing crosses. Sequences
shorter than `stride` have no bottleneck tokens, and their domains don't hear of each other.

Source: AutoCDSR+, arXiv 2505.21811; bottleneck tokens from Nagrani et al. 2021, arXiv 2107.00135.
Choice: the published tokens stand once before a sequence that is read in both directions. One that looks back only
  would see the future through them; here there are new ones at each `stride`, which read what lies before them. Layers
  share their parameters among the domains, and no encoder with full attention follows.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.batches import SequenceBatch
from jaxrec.layers.context import AttentionContext, Bottlenecks, Permutation
from pallas_kernels import IntervalMask


class BottleneckTokens(nn.Module):
  """The learned input vectors of the T bottleneck tokens of a place."""

  num_tokens: int
  width: int

  @nn.compact
  def __call__(self) -> Float[Array, "T M"]:
    init = nn.initializers.truncated_normal(math.sqrt(1 / self.width))
    return self.param("table", init, (self.num_tokens, self.width))


def with_bottlenecks(
  items: Float[Array, "B N M"],
  tokens: Float[Array, "T M"],
  batch: SequenceBatch,
  num_domains: int,
  stride: int,
  causal: bool,
) -> tuple[Float[Array, "B S M"], AttentionContext]:
  """Returns the embedded events with the bottleneck tokens behind them, and what layers need to know of both.

  S is `N + N // stride * T`.

  Args:
    items: embedded events.
    tokens: embedded bottleneck tokens; those of a place, the same at all places.
    batch: sequences lie side by side from the first column on, with rising ids; a hidden domain (0) reads all domains.
    num_domains: C.
    stride: events from one place of bottleneck tokens to the next.
    causal: False: everything reads its whole sequence instead of what lies before it.

  Raises:
    ValueError: a stride below 1 or longer than a row.
  """
  if not 1 <= stride <= items.shape[1]:
    raise ValueError(f"{stride=} must be between 1 and the {items.shape[1]} positions of a row")
  batch = jax.tree.map(jnp.asarray, batch)
  layout = _Layout(batch, num_domains, stride, tokens.shape[0], causal)
  bottlenecks = layout.bottlenecks()
  position, time = layout.with_tokens(batch.position), layout.with_tokens(batch.timestamp)
  query_time = layout.with_tokens(batch.target_time) if causal else time
  context = AttentionContext(
    mask=jax.tree.map(bottlenecks.queries, layout.mask()),
    query_position=bottlenecks.queries(layout.per_domain(position)),
    key_position=bottlenecks.keys(position),
    query_time=bottlenecks.queries(layout.per_domain(query_time)),
    key_time=bottlenecks.keys(time),
    is_real=layout.with_tokens(batch.item_id != 0) & layout.is_token,
    group=jnp.where(layout.is_item, layout.with_tokens(batch.domain_id), num_domains + 1),
    num_groups=num_domains + 2,
    next_domain=layout.with_tokens(batch.target_domain),
    bottlenecks=bottlenecks,
  )
  added = jnp.tile(tokens.astype(items.dtype), (items.shape[0], layout.column.shape[1], 1))  # [B, P T, M]
  x = jnp.concatenate([items, added], axis=1)  # [B, S, M]
  return jnp.where(context.is_real[..., None], x, 0), context


class _Layout:
  """Where things lie: `P = N // stride` places of T bottleneck tokens, and the intervals of keys that may be read.

  Sorted keys are, sequence by sequence: the events of each domain in their order, then the bottleneck tokens. So a
  sequence that lies at the columns [first, end) of the batch, with `j` places before it, has its events at the keys
  [first + j T, end + j T), and the tokens of place `p`, one of its own, begin at key `end + p T`.
  """

  def __init__(self, batch, num_domains, stride, num_tokens, causal):
    self.batch, self.causal = batch, causal
    self.num_domains, self.num_tokens, self.num_items = num_domains, num_tokens, batch.item_id.shape[1]
    is_event = batch.sequence_id != 0
    whole = IntervalMask.full(batch.sequence_id)
    self.first, self.end = whole.start_a, whole.end_a  # [B, N] first and one past the last column of the sequence
    ends_here = is_event & ((batch.position + 1) % stride == 0)
    self.places_before = _count_before(ends_here.astype(jnp.int32))  # [B, N + 1]
    of_domain = jax.nn.one_hot(batch.domain_id, num_domains + 1, dtype=jnp.int32) * is_event[..., None]
    self.events_before = _count_before(of_domain)  # [B, N + 1, 1 + C]
    find = jax.vmap(lambda here: jnp.nonzero(here, size=self.num_items // stride, fill_value=self.num_items)[0])
    column = find(ends_here)  # [B, P]
    self.is_place = column < self.num_items
    self.column = jnp.minimum(column, self.num_items - 1)
    is_token = jnp.repeat(self.is_place, num_tokens, axis=1)
    self.is_token = jnp.concatenate([is_event, is_token], axis=1)  # [B, S]
    self.read_at_places = self._reads(self.column)
    self.is_item = jnp.arange(self.is_token.shape[1])[None] < self.num_items  # [1, S]

  def with_tokens(self, x):
    """`[B, N]` -> `[B, S]`: bottleneck tokens have the value of the event that they follow."""
    return jnp.concatenate([x, jnp.repeat(_take(x, self.column), self.num_tokens, axis=1)], axis=1)

  def per_domain(self, x):
    """`[B, S]` -> `[B, Q]`: a query for each event, and C for each bottleneck token."""
    return jnp.concatenate([x[:, : self.num_items], jnp.repeat(x[:, self.num_items :], self.num_domains, axis=1)], 1)

  def bottlenecks(self) -> Bottlenecks:
    sequence = jnp.where(self.is_token, self.with_tokens(self.batch.sequence_id), jnp.iinfo(jnp.int32).max)
    group = jnp.where(self.is_item, self.with_tokens(self.batch.domain_id), self.num_domains + 1)
    keys = _sorted_by(sequence, group)
    queries = _sorted_by(self.per_domain(sequence), self.per_domain(group))
    start, end, *_ = self.read_at_places
    is_read = (end > start)[..., 1:] & self.is_place[..., None]  # [B, P, C]
    share = is_read / jnp.maximum(is_read.sum(axis=-1, keepdims=True), 1)
    return Bottlenecks(keys, queries, jnp.repeat(share, self.num_tokens, axis=1))

  def mask(self) -> IntervalMask:
    """Of the events, and behind them of each bottleneck token in each domain, over sorted keys."""
    parts = zip(self._of_items(), self._of_tokens(), strict=True)
    start_a, end_a, start_b, end_b = (jnp.concatenate(part, axis=1).astype(jnp.int32) for part in parts)
    is_query = self.per_domain(self.is_token)
    end_a, end_b = jnp.where(is_query, end_a, start_a), jnp.where(is_query, end_b, start_b)
    return IntervalMask(start_a, end_a, start_b, end_b, jnp.zeros(start_a.shape, bool))

  def _of_items(self):
    """The own domain, then bottlenecks. An item whose domain is hidden reads all of its sequence."""
    starts, ends, start_b, end_b = self._reads(jnp.broadcast_to(jnp.arange(self.num_items), self.first.shape))
    domain = self.batch.domain_id[..., None]
    start_a, end_a = (jnp.take_along_axis(x, domain, axis=2)[..., 0] for x in (starts, ends))
    reads_all = (self.batch.domain_id == 0) & (not self.causal)
    shift = _take(self.places_before, self.first) * self.num_tokens
    start_a = jnp.where(reads_all, self.first + shift, start_a)
    return start_a, jnp.where(reads_all, self.end + shift, end_a), start_b, end_b

  def _of_tokens(self):
    starts, ends, start_b, end_b = self.read_at_places
    shape = (*starts.shape[:2], self.num_domains)
    each = (starts[..., 1:], ends[..., 1:], *(jnp.broadcast_to(x[..., None], shape) for x in (start_b, end_b)))
    return tuple(jnp.repeat(x, self.num_tokens, axis=1).reshape(shape[0], -1) for x in each)  # [B, P T C]

  def _reads(self, column):
    """What the event at each column may read: [start, end) of the domains 0..C `[B, X, 1 + C]`, and of bottlenecks."""
    first, end = _take(self.first, column), _take(self.end, column)  # [B, X]
    stop = column + 1 if self.causal else end
    before = _take(self.events_before, first)  # [B, X, 1 + C]
    in_sequence = _take(self.events_before, end) - before
    places = _take(self.places_before, first)
    start = (first + places * self.num_tokens)[..., None] + jnp.cumsum(in_sequence, axis=-1) - in_sequence
    read = _take(self.events_before, stop) - before
    bottlenecks = end + _take(self.places_before, stop) * self.num_tokens
    return start, start + read, end + places * self.num_tokens, bottlenecks


def _count_before(x):
  """`[B, N, ...]` -> `[B, N + 1, ...]`: the sum over the columns before each."""
  return jnp.pad(jnp.cumsum(x, axis=1), ((0, 0), (1, 0), *((0, 0),) * (x.ndim - 2)))


def _take(x, column):
  return jnp.take_along_axis(x, column.reshape(*column.shape, *(1,) * (x.ndim - 2)), axis=1)


def _sorted_by(sequence, group) -> Permutation:
  index = jnp.broadcast_to(jnp.arange(sequence.shape[1], dtype=jnp.int32), sequence.shape)
  order = jax.lax.sort((sequence, group, index), dimension=1, num_keys=3)[2]
  return Permutation(order, jnp.argsort(order, axis=1).astype(jnp.int32))
