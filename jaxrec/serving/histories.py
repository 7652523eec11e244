"""Histories to recommend for, as columns of a model's ids: of users in prepared data, or given as lists of events."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, Shaped

from jaxrec.data.prepared import TEST, PreparedData
from jaxrec.serving.given_events import EventReader

UNKNOWN_ITEMS = ("skip", "raise")
COLUMNS = ("item_id", "domain_id", "timestamp", "action")
"""Of the events of `Histories`."""


@dataclasses.dataclass(frozen=True)
class Histories:
  """The events of B users, oldest first, as columns; those of user b are the entries `offsets[b]:offsets[b + 1]`.

  user: [B] ids of the users; None for new users without a name.
  item_id, domain_id: ids of the model, from 1.
  timestamp: seconds; 0 where the data has no times.
  action: what the user did, as in `PreparedData.action`; 0 for none.
  unknown: events that were skipped because the model does not know their item.
  actions: name -> values of the typed actions that were asked for.
  """

  user: Sequence[str | None]
  offsets: Int[np.ndarray, " B1"]
  item_id: Int[np.ndarray, " E"]
  domain_id: Int[np.ndarray, " E"]
  timestamp: Int[np.ndarray, " E"]
  action: Int[np.ndarray, " E"]
  unknown: Int[np.ndarray, " B"]
  actions: Mapping[str, Shaped[np.ndarray, " E"]] = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    return len(self.user)

  @property
  def lengths(self) -> Int[np.ndarray, " B"]:
    """Number of known events of each history."""
    return np.diff(self.offsets)

  @property
  def events(self) -> dict[str, Any]:
    """The columns of the events by their names; those of `actions` are a dict of their own."""
    return {name: getattr(self, name) for name in COLUMNS} | {"actions": dict(self.actions)}

  def span(self, index: int) -> slice:
    """Returns the slice of the columns that holds one history."""
    return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

  def take(self, index: Int[np.ndarray, " K"]) -> Histories:
    """Returns some of the histories, in the order of `index`."""
    events = _concatenated(self.offsets[:-1][index], self.lengths[index])
    offsets = np.concatenate([[0], np.cumsum(self.lengths[index])])
    columns = jax.tree.map(lambda x: x[events], self.events)
    return Histories([self.user[i] for i in index], offsets, **columns, unknown=self.unknown[index])


def histories_of_users(
  data: PreparedData, users: Int[np.ndarray, " B"], hold_out: bool = False, actions: Sequence[str] = ()
) -> Histories:
  """Returns the histories of users of the data: all of their events, or with `hold_out` those before the test event.

  Args:
    data: prepared columns.
    users: 0-based indices.
    hold_out: whether the histories end before the user's first test event.
    actions: names of the typed actions to keep.

  Raises:
    ValueError: a user without a test event to hold out, or without an event before it.
  """
  users = np.asarray(users, np.int64)
  first, length = data.offsets[:-1][users], np.diff(data.offsets)[users]
  if hold_out:
    length = test_events(data, users) - first
  if len(users) and not length.all():
    raw_id = data.user_raw_id(int(users[length.argmin()]))
    raise ValueError(f"user {raw_id!r} has no event before the target; choose a user with a history")
  events = _concatenated(first, length)
  columns = (np.asarray(getattr(data, name)[events]) for name in COLUMNS)
  typed = {name: np.asarray(data.actions[name][events]) for name in actions}
  names = data.users["raw_id"].gather(users).to_list()
  return Histories(names, np.concatenate([[0], np.cumsum(length)]), *columns, np.zeros(len(users), np.int64), typed)


def test_events(data: PreparedData, users: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
  """Returns the index of each user's first test event.

  Raises:
    ValueError: a user has none.
  """
  held_out = np.flatnonzero(np.asarray(data.split) == TEST)
  found = np.append(held_out, data.num_events)[np.searchsorted(held_out, data.offsets[:-1][users])]
  missing = found >= data.offsets[1:][users]
  if missing.any():
    raw_id = data.user_raw_id(int(np.asarray(users)[missing.argmax()]))
    raise ValueError(f"user {raw_id!r} has no test event to hold out; use hold_out=False")
  return found


def histories_of_events(
  data: PreparedData,
  histories: Sequence[Sequence[Any]] | Mapping[str, Sequence[Any]],
  unknown: str = "skip",
  actions: Sequence[str] = (),
) -> Histories:
  """Returns histories that are given as lists of events, such as those of users who are not in the data.

  Args:
    data: prepared columns; names items and domains.
    histories: for each user the events, oldest first: `(item, time)`, `(item, time, domain)` or `(item, time, domain,
      action)`, with the raw id of the item, seconds since 1970 or a datetime, the name of the domain (None: that of the
      item), and the name or number of the action (None: none). Where the data has no times, plain items will do. A
      mapping names the users.
    unknown: "skip" leaves events of unknown items out and counts them; "raise" refuses them.
    actions: names of the typed actions that each event has in a mapping, its last entry: `(item, time, {"like": 1})`.
      Classes are given by name or number; other actions of the data may be there too.

  Raises:
    ValueError: an event of another form, times that fall, an unknown domain or action, or an unknown item with
      unknown="raise".

  >>> data = PreparedData.from_columns(user=[0, 0], item_id=[1, 2], raw_items=["tea", "jam"])
  >>> found = histories_of_events(data, [["jam", "gin"], []])
  >>> found.item_id.tolist(), found.offsets.tolist(), found.unknown.tolist()
  ([2], [0, 1, 1], [1, 0])
  """
  if unknown not in UNKNOWN_ITEMS:
    raise ValueError(f"{unknown=} must be one of {UNKNOWN_ITEMS}")
  if isinstance(histories, str | bytes):
    raise ValueError(f"{histories=} must be a list of histories, each a list of events")
  users = [str(name) for name in histories] if isinstance(histories, Mapping) else [None] * len(histories)
  given = list(histories.values()) if isinstance(histories, Mapping) else list(histories)
  read = EventReader(data, actions)
  rows, lengths, skipped = [], [], []
  for index, events in enumerate(given):
    if isinstance(events, str | bytes) or not isinstance(events, Sequence):
      raise ValueError(f"history {index} is {events!r}; it must be a list of events (item, time)")
    found = [read.event(event, f"history {index}, event {place}") for place, event in enumerate(events)]
    _check_order(found, index)
    known = [event for event in found if event.item]
    if unknown == "raise" and len(known) < len(found):
      place = next(place for place, event in enumerate(found) if not event.item)
      raise ValueError(f"history {index}, event {place}: item {events[place]!r} is not in the data")
    rows += known
    lengths.append(len(known))
    skipped.append(len(found) - len(known))
  *plain, typed = zip(*rows, strict=True) if rows else [()] * 5
  columns = (np.array(x, dtype) for x, dtype in zip(plain, (np.int32, np.int32, np.int64, np.int32), strict=True))
  values = np.array(typed, np.float64).reshape(len(rows), len(actions)).T  # [actions, E]
  named = {name: x.astype(data.actions[name].dtype) for name, x in zip(actions, values, strict=True)}
  offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
  return Histories(users, offsets, *columns, np.array(skipped, np.int64), named)


def joined(histories: Sequence[Histories]) -> Histories:
  """Returns histories of several users as one."""
  if len(histories) == 1:
    return histories[0]
  columns = jax.tree.map(lambda *x: np.concatenate(x), *(one.events | {"unknown": one.unknown} for one in histories))
  lengths = np.concatenate([one.lengths for one in histories])
  return Histories([user for one in histories for user in one.user], np.append(0, np.cumsum(lengths)), **columns)


def _check_order(events, index):
  for place in range(1, len(events)):
    if events[place].seconds < events[place - 1].seconds:
      raise ValueError(f"history {index}, event {place} is earlier than event {place - 1}; give events oldest first")


def _concatenated(first, length):
  """Returns the indices first[0], first[0] + 1, ... of K runs, one after the other."""
  ends = np.cumsum(length)
  total = int(ends[-1]) if len(ends) else 0
  return np.arange(total) + np.repeat(np.asarray(first) - (ends - length), length)
