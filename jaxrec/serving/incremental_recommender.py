"""A `Recommender` that keeps the state of each named user, so that new events of a returning user cost O(new).

recommender = with_states(jaxrec.load("runs/shop"), capacity_bytes=1 << 30)
recommender.recommend(histories={"ann": events})          # encodes all events
recommender.recommend(histories={"ann": events + [new]})  # encodes one
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxrec.data.batches.evaluation import padded_length
from jaxrec.serving.incremental import IncrementalModel, ServingState
from jaxrec.serving.recommender import Recommender
from jaxrec.serving.state_store import StateStore


class _Kept(NamedTuple):
  """The state of one user, and the events it holds: item, domain, and seconds since the first, as rows [3, E]."""

  state: ServingState
  events: Int[np.ndarray, "3 E"]


@dataclasses.dataclass(frozen=True, eq=False)
class IncrementalRecommender(Recommender):
  """Answers as its base class does, from the states of users where that is possible.

  A state is used if its events are the first ones of the history that is given, so that a history that was corrected
  is encoded anew. Users without a name, and histories longer than `config.data.max_length`, whose positions move with
  each event, are encoded in one pass. The states belong to these parameters: another checkpoint is another
  `IncrementalRecommender`, which begins without.

  capacity_bytes: of the arrays of all states.
  """

  capacity_bytes: int = 1 << 30

  def __post_init__(self):
    if not hasattr(self.model, "next_event"):
      raise ValueError("the model is an exported program, or another one without states; use the recommender itself")
    self._incremental.start(1, 1)  # Refuses models that read in both directions.
    self.states.get(None)  # Refuses a budget that is none.

  @functools.cached_property
  def states(self) -> StateStore:
    """The states, by the names of users."""
    return StateStore(self.capacity_bytes)

  @functools.cached_property
  def _incremental(self) -> IncrementalModel:
    return IncrementalModel(self.model, self.params, self.config.data.request_time)

  def _queries(self, batch, users):
    whole = batch.seen_items.astype(bool).sum(axis=1) <= self.config.data.max_length
    kept = [row for row, user in enumerate(users) if user is not None and whole[row]]
    if len(kept) < len(users):
      queries = np.array(super()._queries(batch, users))
    else:
      queries = np.zeros((len(batch.user), self._vectors.shape[1]), np.float32)
    for row in kept:
      queries[row] = self._query(users[row], batch.batch, row)
    return queries

  def _query(self, user, batch, row):
    """Returns the query vector of a row. A model of one domain does not read the domains of the data."""
    last = int(np.argmax(batch.target_weight[row]))
    times = batch.timestamp[row]
    domains, target = (np.minimum(x[row], self.model.num_domains) for x in (batch.domain_id, batch.target_domain))
    state = self._state(user, np.stack([batch.item_id[row], domains, times - times[0]])[:, : last + 1])
    request = target[last : last + 1], batch.target_time[row, last : last + 1] - times[0]
    return np.asarray(self._incremental.query(state, *request))[0]

  def _state(self, user, events) -> ServingState:
    """Returns the state after the events, which is kept."""
    kept = self.states.get(user)
    if kept is not None and np.array_equal(kept.events, events[:, : kept.events.shape[1]]):
      self.states.counters.hits += 1
      state, new = kept.state, events[:, kept.events.shape[1] :]
    else:
      self.states.counters.misses += 1
      state, new = None, events
    if state is not None and not new.size:
      return state
    state = self._extended(state, new, self._capacity(events))
    self.states.put(user, _Kept(state, events))
    return state

  def _capacity(self, events) -> int:
    """Returns the room that a state needs for its events: one of a few sizes, each of which is a program."""
    groups = self.model.num_cache_groups
    most = np.bincount(events[1]).max() if groups > 1 else events.shape[1]
    return min(padded_length(int(most)), self.config.data.max_length)

  def _extended(self, state, events, capacity):
    state = self._incremental.start(1, capacity) if state is None else self._incremental.grow(state, capacity)
    padded = np.zeros((3, 1, _power_of_four(events.shape[1])), np.int32)
    padded[:, 0, : events.shape[1]] = events
    return self._incremental.observe_all(state, *padded)


def with_states(recommender: Recommender, capacity_bytes: int) -> IncrementalRecommender:
  """Returns the recommender with room for the states of users.

  Args:
    recommender: of a causal model without bottleneck tokens.
    capacity_bytes: of the arrays of all states; those least recently used are dropped beyond it.

  Raises:
    NotImplementedError: a model that cannot read a history event by event.
    ValueError: an exported program, which has no states; or no bytes.
  """
  return IncrementalRecommender(
    recommender.model, recommender.params, recommender.data, recommender.config, capacity_bytes
  )


def _power_of_four(count):
  size = 1
  while size < count:
    size *= 4
  return size
