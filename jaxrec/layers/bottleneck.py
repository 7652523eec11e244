"""AutoCDSR+: items attend to their own domain only; domains exchange information through bottleneck tokens.

Each sequence gets T bottleneck tokens after every `stride` events. In each layer

    a bottleneck token attends, separately in each domain, to the events of that domain and to the bottleneck tokens
      up to its own insertion point; its output is the mean over the domains that have such an event;
    an item attends to the events of its own domain up to itself and to the bottleneck tokens before it.

Items therefore read what the previous layer wrote into the bottlenecks: with one layer, nothing crosses between
domains. Sequences shorter than `stride` have no bottleneck tokens, and their domains exchange nothing.

Source: AutoCDSR+, arXiv 2505.21811; bottleneck tokens from Nagrani et al. 2021, arXiv 2107.00135.
Choice: the published tokens are inserted once, before a sequence that is read in both directions. A causal model would
  see the future through them; here new ones are inserted at each `stride` and attend to earlier tokens only. All
  domains share the layers' parameters, and no encoder with full attention follows.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.batches import SequenceBatch
from jaxrec.layers.context import AttentionContext, Bottlenecks, Permutation
from jaxrec.layers.intra_domain import domain_intervals
from pallas_kernels import IntervalMask, sort_by_segment
from pallas_kernels.integers import as_arrays


class BottleneckTokens(nn.Module):
  """The learned input vectors of T bottleneck tokens, the same at every insertion point.

  num_tokens: T.
  width: M.

  >>> tokens, params = BottleneckTokens(num_tokens=2, width=4).init_with_output(jax.random.key(0))
  >>> tokens.shape
  (2, 4)
  """

  num_tokens: int
  width: int

  @nn.compact
  def __call__(self) -> Float[Array, "T M"]:
    init = nn.initializers.truncated_normal(math.sqrt(1 / self.width))
    return self.param("table", init, (self.num_tokens, self.width), jnp.float32)


def with_bottlenecks(
  items: Float[Array, "B N M"],
  tokens: Float[Array, "T M"],
  batch: SequenceBatch,
  num_domains: int,
  stride: int,
  causal: bool,
) -> tuple[Float[Array, "B S M"], AttentionContext]:
  """Returns the embedded events followed by bottleneck tokens, and the context that layers need for both.

  There are S = N + N // stride * T tokens.

  Args:
    items: embedded events.
    tokens: embedded bottleneck tokens, from `BottleneckTokens`.
    batch: sequences packed from the first column on, with rising ids; an event of a hidden domain (0) attends to all
      domains.
    num_domains: C.
    stride: events between two insertion points of bottleneck tokens.
    causal: False: tokens attend to their whole sequence, not only to what comes before them.

  Raises:
    ValueError: a stride below 1 or longer than a row.

  >>> from jaxrec.batches import next_item_batch
  >>> batch = next_item_batch(jnp.array([[5, 3, 8, 0]]), domain_id=jnp.array([[1, 2, 1, 0]]))
  >>> items, tokens = jnp.zeros((1, 4, 8)), jnp.ones((3, 8))
  >>> x, context = with_bottlenecks(items, tokens, batch, num_domains=2, stride=2, causal=True)
  >>> x.shape, context.is_real[0].astype(int).tolist()  # One insertion point, after the second event.
  ((1, 10, 8), [1, 1, 1, 0, 1, 1, 1, 0, 0, 0])
  """
  if not 1 <= stride <= items.shape[1]:
    raise ValueError(f"{stride=} must be between 1 and the {items.shape[1]} positions of a row")
  batch = as_arrays("batch", batch)
  layout = _Layout(batch, num_domains, stride, tokens.shape[0], causal)
  bottlenecks = layout.bottlenecks()
  position, time = layout.with_tokens(batch.position), layout.with_tokens(batch.timestamp)
  query_time = layout.with_tokens(batch.target_time) if causal else time
  context = AttentionContext(
    mask=jax.tree.map(bottlenecks.queries, layout.mask(bottlenecks.keys)),
    query_position=bottlenecks.queries(layout.per_domain(position)),
    key_position=bottlenecks.keys(position),
    query_time=bottlenecks.queries(layout.per_domain(query_time)),
    key_time=bottlenecks.keys(time),
    is_real=layout.with_tokens(batch.item_id != 0) & layout.is_token,
    is_token=layout.is_token,
    group=jnp.where(layout.is_item, layout.with_tokens(batch.domain_id), num_domains + 1),
    num_groups=num_domains + 2,
    target_domain=layout.with_tokens(batch.target_domain),
    bottlenecks=bottlenecks,
  )
  repeated = jnp.tile(tokens.astype(items.dtype), (items.shape[0], layout.column.shape[1], 1))  # [B, P T, M]
  x = jnp.concatenate([items, repeated], axis=1)  # [B, S, M]
  return jnp.where(context.is_real[..., None], x, 0), context


class _Layout:
  """Token order: `P = N // stride` insertion points of T bottleneck tokens, and the intervals of keys to attend to.

  Keys are sorted by sequence; within one, the events of each domain come first, then the bottleneck tokens. A sequence
  at columns [first, end) of the batch, with `j` insertion points before it, has its events at keys
  [first + j T, end + j T), and the tokens of its insertion point `p` start at key `end + p T`.
  """

  def __init__(self, batch, num_domains, stride, num_tokens, causal):
    self.batch, self.causal = batch, causal
    self.num_domains, self.num_tokens, self.num_items = num_domains, num_tokens, batch.item_id.shape[1]
    is_event = batch.sequence_id != 0
    whole = IntervalMask.full(batch.sequence_id)
    self.first, self.end = whole.start_a, whole.end_a  # [B, N] first and one past the last column of the sequence
    ends_here = is_event & ((batch.position + 1) % stride == 0)
    self.points_before = _count_before(ends_here.astype(jnp.int32))  # [B, N + 1]
    self.starts, self.ends = domain_intervals(batch.sequence_id, batch.domain_id, num_domains, causal)  # [B, N, 1 + C]
    find = jax.vmap(lambda here: jnp.nonzero(here, size=self.num_items // stride, fill_value=self.num_items)[0])
    column = find(ends_here)  # [B, P]
    self.is_point = column < self.num_items
    self.column = jnp.minimum(column, self.num_items - 1)
    is_token = jnp.repeat(self.is_point, num_tokens, axis=1)
    self.is_token = jnp.concatenate([is_event, is_token], axis=1)  # [B, S]
    self.reads_at_points = self._reads(self.column)
    self.is_item = jnp.arange(self.is_token.shape[1])[None] < self.num_items  # [1, S]

  def with_tokens(self, x):
    """`[B, N]` -> `[B, S]`: bottleneck tokens take the value of the event before them."""
    return jnp.concatenate([x, jnp.repeat(_take(x, self.column), self.num_tokens, axis=1)], axis=1)

  def per_domain(self, x):
    """`[B, S]` -> `[B, Q]`: one query per event, C per bottleneck token."""
    return jnp.concatenate([x[:, : self.num_items], jnp.repeat(x[:, self.num_items :], self.num_domains, axis=1)], 1)

  def bottlenecks(self) -> Bottlenecks:
    sequence = jnp.where(self.is_token, self.with_tokens(self.batch.sequence_id), 0)
    group = jnp.where(self.is_item, self.with_tokens(self.batch.domain_id), self.num_domains + 1)
    keys = Permutation(*sort_by_segment(sequence, group))
    queries = Permutation(*sort_by_segment(self.per_domain(sequence), self.per_domain(group)))
    start, end, *_ = self.reads_at_points
    is_read = (end > start)[..., 1:] & self.is_point[..., None]  # [B, P, C]
    is_read = is_read.astype(jnp.float32)
    weight = is_read / jnp.maximum(is_read.sum(axis=-1, keepdims=True), 1)
    return Bottlenecks(keys, queries, jnp.repeat(weight, self.num_tokens, axis=1))

  def mask(self, keys: Permutation) -> IntervalMask:
    """The mask over sorted keys: a query per event, then one per bottleneck token and domain."""
    parts = zip(self._item_intervals(), self._token_intervals(), strict=True)
    start_a, end_a, start_b, end_b = (jnp.concatenate(part, axis=1).astype(jnp.int32) for part in parts)
    is_query = self.per_domain(self.is_token)
    end_a, end_b = jnp.where(is_query, end_a, start_a), jnp.where(is_query, end_b, start_b)
    own_key = self.per_domain(keys.inverse)
    return IntervalMask(start_a, end_a, start_b, end_b, jnp.zeros(start_a.shape, bool), own_key)

  def _item_intervals(self):
    """Intervals of events: their own domain, then bottlenecks. An event of a hidden domain reads its whole sequence."""
    starts, ends, start_b, end_b = self._reads(
      jnp.broadcast_to(jnp.arange(self.num_items, dtype=jnp.int32)[None], self.first.shape)
    )
    domain = self.batch.domain_id[..., None]
    start_a, end_a = (jnp.take_along_axis(x, domain, axis=2)[..., 0] for x in (starts, ends))
    reads_all = (self.batch.domain_id == 0) & (not self.causal)
    shift = _take(self.points_before, self.first) * self.num_tokens
    start_a = jnp.where(reads_all, self.first + shift, start_a)
    return start_a, jnp.where(reads_all, self.end + shift, end_a), start_b, end_b

  def _token_intervals(self):
    starts, ends, start_b, end_b = self.reads_at_points
    shape = (*starts.shape[:2], self.num_domains)
    each = (starts[..., 1:], ends[..., 1:], *(jnp.broadcast_to(x[..., None], shape) for x in (start_b, end_b)))
    return tuple(jnp.repeat(x, self.num_tokens, axis=1).reshape(shape[0], -1) for x in each)  # [B, P T C]

  def _reads(self, column):
    """Intervals for the event at each column: [start, end) of domains 0..C `[B, X, 1 + C]`, then of bottlenecks."""
    first, end = _take(self.first, column), _take(self.end, column)  # [B, X]
    stop = column + 1 if self.causal else end
    shift = _take(self.points_before, first) * self.num_tokens
    start, stop_of_domain = (_take(x, column) + shift[..., None] for x in (self.starts, self.ends))
    return start, stop_of_domain, end + shift, end + _take(self.points_before, stop) * self.num_tokens


def _count_before(x):
  """`[B, N, ...]` -> `[B, N + 1, ...]`: the sum of all earlier columns."""
  return jnp.pad(jnp.cumsum(x, axis=1), ((0, 0), (1, 0), *((0, 0),) * (x.ndim - 2)))


def _take(x, column):
  return jnp.take_along_axis(x, column.reshape(*column.shape, *(1,) * (x.ndim - 2)), axis=1)
