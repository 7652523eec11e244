"""Incremental inference: encodes one event at a time against cached keys, values and domain states.

    state = serving.start(batch_size=2, capacity=200)
    state = serving.observe(state, item, domain, time)      # each [B]
    query = serving.query(state, target_domain, now)        # [B, M]; does not change the state

The query vectors equal those that the model returns for the whole history at once.

The latest event of a history stays open: its encoding depends on the target domain and the target time. It is added to
the cache when the next event arrives. A query reads the keys and values of one domain and C states, or all keys and
values if the model attends to the events of all domains.
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

from jaxrec.batches import AnyArray, SequenceBatch
from jaxrec.layers.cache import CACHE, CacheSlot
from jaxrec.models import SequentialModel

REQUEST_TIMES = ("target", "last_event")
_INT32 = -(2**31), 2**31 - 1


@flax.struct.dataclass
class ServingState:
  """The state of B histories (a pytree). G is the number of domains if attention stays inside a domain, else 1.

  cache: keys, values and states of the cached events: the Flax collection "cache".
  position, time: positions and times of the cached events.
  count: number of cached events.
  num_events: number of events of each domain, including the open one.
  item, domain, seen_at: item, domain and time of the open event; item 0 = no event yet.
  """

  cache: Any
  position: Int[Array, "B G L"]
  time: Int[Array, "B G L"]
  count: Int[Array, "B G"]
  num_events: Int[Array, "B C"]
  item: Int[Array, " B"]
  domain: Int[Array, " B"]
  seen_at: Int[Array, " B"]


@dataclasses.dataclass(frozen=True)
class IncrementalModel:
  """Event-by-event inference with a causal model without bottleneck tokens.

  model: a model of `jaxrec.models`.
  params: parameters of the model.
  request_time: as in training: "target" if the model is given the time of the request, "last_event" if it is given
    the time of the last event.
  """

  model: SequentialModel
  params: Any
  request_time: str = "target"

  def __post_init__(self):
    if self.request_time not in REQUEST_TIMES:
      raise ValueError(f"request_time={self.request_time!r} must be one of {REQUEST_TIMES}")

  def start(self, batch_size: int, capacity: int) -> ServingState:
    """Returns the state of B empty histories with room for `capacity` events per domain, the latest one included.

    If the model attends to the events of all domains, `capacity` is for all events together.
    """
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._empty(batch_size, capacity))

  def _empty(self, batch_size, capacity):
    """Returns a state without events, of arrays or their shapes and types."""
    if (batch_size, capacity) not in self._found:
      self._found[batch_size, capacity] = self._find_empty(batch_size, capacity)
    return self._found[batch_size, capacity]

  @functools.cached_property
  def _found(self) -> dict:
    return {}

  def _find_empty(self, batch_size, capacity):
    groups = self.model.num_cache_groups
    none = jnp.zeros(batch_size, jnp.int32)
    cached = jnp.zeros((batch_size, groups, capacity), jnp.int32)
    count = jnp.zeros((batch_size, groups), jnp.int32)
    num_events = jnp.zeros((batch_size, self.model.num_domains), jnp.int32)
    empty = ServingState({}, cached, cached, count, num_events, none, none, none)
    slot = _slot(self.model, empty, True)
    shapes = jax.eval_shape(functools.partial(_run, self.model), self.params, empty, slot, none, none)[1]
    return empty.replace(cache=shapes)

  def observe(
    self, state: ServingState, item: Int[AnyArray, " B"], domain: Int[AnyArray, " B"], time: Int[AnyArray, " B"]
  ) -> ServingState:
    """Returns the state after one more event per history; item 0 leaves a history unchanged.

    Args:
      state: state of B histories.
      item, domain: ids from 1.
      time: seconds, as in training.

    Raises:
      ValueError: an item outside 0..V, a domain outside 1..C or a time that does not fit int32 in a row with an event,
        or that event has no room; names the row. The other rows can be observed with item 0 there.
    """
    event = self._checked(state, item, domain, time)
    return _observe(self.model, self.request_time == "target", self.params, state, *event)

  def observe_all(
    self, state: ServingState, item: Int[AnyArray, "B N"], domain: Int[AnyArray, "B N"], time: Int[AnyArray, "B N"]
  ) -> ServingState:
    """Returns the state after N more events per history, oldest first, as N calls of `observe` do, by one program.

    Args:
      state: state of B histories.
      item, domain, time: as in `observe`; columns with item 0 are skipped.

    Raises:
      ValueError: as `observe`; before anything is appended.
    """
    events = self._checked(state, item, domain, time)
    return _observe_all(self.model, self.request_time == "target", self.params, state, *events)

  def grow(self, state: ServingState, capacity: int) -> ServingState:
    """Returns the same histories with room for more events.

    Raises:
      ValueError: there would be less room.
    """
    batch_size, _, before = state.time.shape
    if capacity < before:
      raise ValueError(f"{capacity=} is less than the {before} events that the state has room for")
    return jax.tree.map(_padded, state, self._empty(batch_size, capacity))

  def query(self, state: ServingState, domain: Int[AnyArray, " B"], time: Int[AnyArray, " B"]) -> Float[Array, "B M"]:
    """Returns one query vector per history, given its target domain and target time; zeros for an empty history.

    Args:
      state: state of B histories.
      domain: target domains; ignored by models that need no target domain.
      time: time of the request in seconds; ignored if `request_time` is "last_event".

    Raises:
      ValueError: the model needs a target domain, and one is outside 1..C; or a time does not fit int32.
    """
    has_events = np.asarray(state.item) != 0
    if self.model.needs_target_domain:
      self._check("domain", domain, has_events, 1, self.model.num_domains)
    if self.request_time == "target":
      self._check("time", time, has_events, *_INT32)
    target = (jnp.asarray(x, jnp.int32) for x in (domain, time))
    return _query(self.model, self.request_time == "target", self.params, state, *target)

  def _checked(self, state, item, domain, time):
    is_event = np.asarray(item) != 0
    self._check("item", item, is_event, 1, self.model.num_items)
    self._check("domain", domain, is_event, 1, self.model.num_domains)
    self._check("time", time, is_event, *_INT32)
    _check_room(state, np.asarray(domain), is_event)
    return [jnp.asarray(x, jnp.int32) for x in (item, domain, time)]

  def _check(self, name, values, is_read, low, high):
    values = np.asarray(values)
    if values.dtype.kind not in "iu":
      raise ValueError(f"{name} has dtype {values.dtype}, needs integers")
    outside = is_read & ((values < low) | (values > high))
    if outside.any():
      index = tuple(np.argwhere(outside)[0])
      raise ValueError(f"row {index[0]} has {name}={int(values[index])}; {name}s are {low}..{high}")


def _check_room(state, domain, is_event):
  """Raises for the first row whose new events would not fit: the open event takes a slot too when it is read."""
  groups, capacity = state.time.shape[1:]
  used = np.asarray(state.num_events)  # [B, C]
  new = np.zeros_like(used)
  row, *place = np.nonzero(is_event)
  np.add.at(new, (row, domain[(row, *place)] - 1), 1)
  if groups == 1:
    used, new = used.sum(axis=1, keepdims=True), new.sum(axis=1, keepdims=True)
  is_full = (new > 0) & (used + new > capacity)  # [B, G]
  if is_full.any():
    row, group = np.argwhere(is_full)[0]
    where = f"events of domain {group + 1}" if groups > 1 else "events"
    raise ValueError(
      f"row {row} has reached its {capacity=} {where}; start with a larger capacity, or again with its latest events"
    )


def _padded(x, like):
  """Returns an array with zeros appended to its axes, to have the shape of another one."""
  room = [(0, more - there) for there, more in zip(x.shape, like.shape, strict=True)]
  return jnp.pad(x, room) if x.shape != like.shape else x


@functools.partial(jax.jit, static_argnums=(0, 1))
def _query(model, reads_time, params, state, domain, time):
  slot = _slot(model, state, True)
  return _run(model, params, state, slot, domain, time if reads_time else state.seen_at)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _observe(model, reads_time, params, state, item, domain, time):
  """Adds the open event to the cache, now that its target is known, and makes the new event the open one."""
  is_event = item != 0
  slot = _slot(model, state, is_event)
  _, cache = _run(model, params, state, slot, domain, time if reads_time else state.seen_at)
  row = jnp.arange(item.shape[0])
  is_cached = is_event & (state.item != 0)
  keep = lambda new, old: jnp.where(is_event, new, old)  # noqa: E731
  return ServingState(
    cache=cache,
    position=slot.write(state.position, _position(state)),
    time=slot.write(state.time, state.seen_at),
    count=state.count.at[row, slot.group].add(is_cached.astype(jnp.int32)),
    num_events=state.num_events.at[row, jnp.maximum(domain - 1, 0)].add(is_event.astype(jnp.int32)),
    item=keep(item, state.item),
    domain=keep(domain, state.domain),
    seen_at=keep(time, state.seen_at),
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _observe_all(model, reads_time, params, state, item, domain, time):
  def step(state, event):
    return _observe(model, reads_time, params, state, *event), None

  return jax.lax.scan(step, state, (item.T, domain.T, time.T))[0]


def _run(model, params, state, slot, next_domain, target_time):
  """Returns the query vectors of the open events, and the cache including those that have a slot."""
  position = _position(state)
  one = lambda x: x[:, None]  # noqa: E731
  is_real = (state.item != 0).astype(jnp.int32)
  batch = SequenceBatch(
    item_id=one(state.item), domain_id=one(state.domain), timestamp=one(state.seen_at), sequence_id=one(is_real),
    position=one(position), target_item=one(state.item), target_domain=one(next_domain), target_time=one(target_time),
    target_weight=jnp.ones_like(one(position), jnp.float32),
  )  # fmt: skip
  key_position = slot.read_group(slot.write(state.position, position))
  key_time = slot.read_group(slot.write(state.time, state.seen_at))
  queries, variables = model.apply(
    {"params": params, CACHE: state.cache}, batch, slot, key_position, key_time, state.num_events,
    method="next_event", mutable=[CACHE],
  )  # fmt: skip
  return queries[:, 0], variables[CACHE]


def _slot(model, state, is_stored):
  """Returns the slots of the open events; in rows where `is_stored` is False nothing is written."""
  groups, capacity = state.time.shape[1:]
  group = jnp.maximum(state.domain - 1, 0) if groups > 1 else jnp.zeros_like(state.domain)
  index = jnp.take_along_axis(state.count, group[:, None], axis=1)[:, 0]
  return CacheSlot(group, jnp.where(is_stored & (state.item != 0), index, capacity), groups, capacity)


def _position(state):
  return jnp.maximum(state.num_events.sum(axis=1, dtype=jnp.int32) - 1, 0)
