"""Recommends while a history grows: one event at a time against cached keys, values and domain states.

The latest event of a user stays open: what the model makes of it depends on the domain and the time that are asked for
next. It is fixed only when the next event arrives. So

    state = serving.start(batch_size=2, capacity=200)
    state = serving.observe(state, item, domain, time)   # each [B]
    query = serving.query(state, wanted_domain, now)     # [B, M]; asks without changing the state

gives what the model returns for the whole history at once. A query reads one domain's keys and values and C states (all
keys and values, where attention is among all events).
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

from jaxrec.batches import SequenceBatch
from jaxrec.layers.cache import CACHE, CacheSlot
from jaxrec.models import SequentialModel

AnyArray = Array | np.ndarray
REQUEST_TIMES = ("target", "last_event")


@flax.struct.dataclass
class ServingState:
  """B histories. G parts of a history don't read each other: the domains, or 1.

  cache: keys, values and states of the events that are fixed: the Flax collection "cache".
  position, time: of those events.
  count: how many there are.
  num_events: how many events of each domain came, the open one too.
  item, domain, seen_at: the open event; item 0 = no event yet.
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
  """A causal model without bottleneck tokens, fed event by event.

  request_time: as in training: the model is told the time of the request ("target") or that of the last event.
  """

  model: SequentialModel
  params: Any
  request_time: str = "target"

  def __post_init__(self):
    if self.request_time not in REQUEST_TIMES:
      raise ValueError(f"request_time={self.request_time!r} is not one of {REQUEST_TIMES}")

  def start(self, batch_size: int, capacity: int) -> ServingState:
    """Returns B empty histories with room for `capacity` events in each domain (or in all, see the module)."""
    groups = self.model.num_cache_groups
    none = jnp.zeros(batch_size, jnp.int32)
    kept = jnp.zeros((batch_size, groups, capacity), jnp.int32)
    count = jnp.zeros((batch_size, groups), jnp.int32)
    num_events = jnp.zeros((batch_size, self.model.num_domains), jnp.int32)
    empty = ServingState({}, kept, kept, count, num_events, none, none, none)
    shapes = jax.eval_shape(functools.partial(_run, self.model), self.params, empty, none, none)[1]
    return empty.replace(cache=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))

  def observe(
    self, state: ServingState, item: Int[AnyArray, " B"], domain: Int[AnyArray, " B"], time: Int[AnyArray, " B"]
  ) -> ServingState:
    """Returns the histories with one more event each; item 0 leaves a row as it is.

    Args:
      state: histories.
      item, domain: ids from 1.
      time: seconds, as in training.

    Raises:
      ValueError: a domain outside 1..C where there is an item, or a history that has outgrown its capacity.
    """
    self._check_domains(np.asarray(domain), np.asarray(item) != 0)
    capacity = state.time.shape[2]
    if int(state.count.max()) >= capacity:
      raise ValueError(
        f"a history has all of its {capacity=} events; start with a larger capacity, or anew from its end"
      )
    asked = (jnp.asarray(x, jnp.int32) for x in (item, domain, time))
    return _observe(self.model, self.request_time == "target", self.params, state, *asked)

  def query(self, state: ServingState, domain: Int[AnyArray, " B"], time: Int[AnyArray, " B"]) -> Float[Array, "B M"]:
    """Returns query vectors for a domain each, asked for at a time; zero for an empty history.

    Args:
      state: histories.
      domain: wanted domains; models that don't ask for one ignore it.
      time: of the request, in seconds; ignored where `request_time` is "last_event".

    Raises:
      ValueError: a domain outside 1..C where it matters.
    """
    if self.model.needs_target_domain:
      self._check_domains(np.asarray(domain), np.asarray(state.item) != 0)
    asked = (jnp.asarray(x, jnp.int32) for x in (domain, time))
    return _query(self.model, self.request_time == "target", self.params, state, *asked)

  def _check_domains(self, domain, matters):
    outside = matters & ((domain < 1) | (domain > self.model.num_domains))
    if outside.any():
      row = int(outside.argmax())
      raise ValueError(f"row {row} has domain={int(domain[row])}; domains are 1..{self.model.num_domains}")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _query(model, knows_time, params, state, domain, time):
  return _run(model, params, state, domain, time if knows_time else state.seen_at)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _observe(model, knows_time, params, state, item, domain, time):
  """Fixes the open event, now that what followed it is known, and opens the new one."""
  _, cache = _run(model, params, state, domain, time if knows_time else state.seen_at)
  is_event = item != 0
  is_fixed = is_event & (state.item != 0)
  slot = _slot(model, state)
  row = jnp.arange(item.shape[0])
  cache = jax.tree.map(lambda new, old: jnp.where(_like(is_fixed, new), new, old), cache, state.cache)
  keep = lambda new, old: jnp.where(is_event, new, old)  # noqa: E731
  return ServingState(
    cache=cache,
    position=jnp.where(_like(is_fixed, state.position), slot.write(state.position, _position(state)), state.position),
    time=jnp.where(_like(is_fixed, state.time), slot.write(state.time, state.seen_at), state.time),
    count=state.count.at[row, slot.group].add(is_fixed),
    num_events=state.num_events.at[row, jnp.maximum(domain - 1, 0)].add(is_event),
    item=keep(item, state.item),
    domain=keep(domain, state.domain),
    seen_at=keep(time, state.seen_at),
  )


def _run(model, params, state, next_domain, target_time):
  """Query vectors of the open events, and the cache with them in it."""
  slot = _slot(model, state)
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
    {"params": params, CACHE: state.cache}, batch, slot, key_position, key_time, state.num_events > 0,
    method="next_event", mutable=[CACHE],
  )  # fmt: skip
  return queries[:, 0], variables[CACHE]


def _slot(model, state):
  groups, capacity = state.time.shape[1:]
  group = jnp.maximum(state.domain - 1, 0) if groups > 1 else jnp.zeros_like(state.domain)
  index = jnp.take_along_axis(state.count, group[:, None], axis=1)[:, 0]
  return CacheSlot(group, jnp.where(state.item != 0, index, capacity), groups, capacity)


def _position(state):
  return jnp.maximum(state.num_events.sum(axis=1, dtype=jnp.int32) - 1, 0)


def _like(mask, x):
  return mask.reshape(-1, *(1,) * (x.ndim - 1))
