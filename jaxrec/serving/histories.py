"""Histories to recommend for, as columns of a model's ids: of users in prepared data, or given as lists of events."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxrec.data.action_columns import ACTION, first_number
from jaxrec.data.event_values import LATEST_SECOND
from jaxrec.data.prepared import TEST, PreparedData

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
  """

  user: Sequence[str | None]
  offsets: Int[np.ndarray, " B1"]
  item_id: Int[np.ndarray, " E"]
  domain_id: Int[np.ndarray, " E"]
  timestamp: Int[np.ndarray, " E"]
  action: Int[np.ndarray, " E"]
  unknown: Int[np.ndarray, " B"]

  def __len__(self) -> int:
    return len(self.user)

  @property
  def lengths(self) -> Int[np.ndarray, " B"]:
    """Number of known events of each history."""
    return np.diff(self.offsets)

  def span(self, index: int) -> slice:
    """Returns the slice of the columns that holds one history."""
    return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

  def take(self, index: Int[np.ndarray, " K"]) -> Histories:
    """Returns some of the histories, in the order of `index`."""
    events = _concatenated(self.offsets[:-1][index], self.lengths[index])
    offsets = np.concatenate([[0], np.cumsum(self.lengths[index])])
    columns = (getattr(self, name)[events] for name in COLUMNS)
    return Histories([self.user[i] for i in index], offsets, *columns, self.unknown[index])


def histories_of_users(data: PreparedData, users: Int[np.ndarray, " B"], hold_out: bool = False) -> Histories:
  """Returns the histories of users of the data: all of their events, or with `hold_out` those before the test event.

  Args:
    data: prepared columns.
    users: 0-based indices.
    hold_out: whether the histories end before the user's first test event.

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
  names = data.users["raw_id"].gather(users).to_list()
  return Histories(names, np.concatenate([[0], np.cumsum(length)]), *columns, np.zeros(len(users), np.int64))


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
) -> Histories:
  """Returns histories that are given as lists of events, such as those of users who are not in the data.

  Args:
    data: prepared columns; names items and domains.
    histories: for each user the events, oldest first: `(item, time)`, `(item, time, domain)` or `(item, time, domain,
      action)`, with the raw id of the item, seconds since 1970 or a datetime, the name of the domain (None: that of the
      item), and the name or number of the action (None: none). Where the data has no times, plain items will do. A
      mapping names the users.
    unknown: "skip" leaves events of unknown items out and counts them; "raise" refuses them.

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
  read = _EventReader(data)
  rows, lengths, skipped = [], [], []
  for index, events in enumerate(given):
    if isinstance(events, str | bytes) or not isinstance(events, Sequence):
      raise ValueError(f"history {index} is {events!r}; it must be a list of events (item, time)")
    found = [read.event(event, f"history {index}, event {place}") for place, event in enumerate(events)]
    _check_order(found, index)
    known = [event for event in found if event[0]]
    if unknown == "raise" and len(known) < len(found):
      place = next(place for place, event in enumerate(found) if not event[0])
      raise ValueError(f"history {index}, event {place}: item {events[place]!r} is not in the data")
    rows += known
    lengths.append(len(known))
    skipped.append(len(found) - len(known))
  item_id, domain_id, timestamp, action = np.array(rows, np.int64).reshape(-1, 4).T  # [E] each
  offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
  item_id, domain_id, action = (x.astype(np.int32) for x in (item_id, domain_id, action))
  return Histories(users, offsets, item_id, domain_id, timestamp, action, np.array(skipped, np.int64))


def joined(histories: Sequence[Histories]) -> Histories:
  """Returns histories of several users as one."""
  if len(histories) == 1:
    return histories[0]
  columns = {name: np.concatenate([getattr(one, name) for one in histories]) for name in (*COLUMNS, "unknown")}
  lengths = np.concatenate([one.lengths for one in histories])
  return Histories([user for one in histories for user in one.user], np.append(0, np.cumsum(lengths)), **columns)


def raw_id(value: Any, where: str) -> str:
  """Returns an id as text.

  Raises:
    ValueError: neither text nor a whole number.
  """
  if isinstance(value, str) and value:
    return value
  if isinstance(value, int | np.integer) and not isinstance(value, bool):
    return str(int(value))
  raise ValueError(f"{where}: {value!r} must be an id of the raw data, as text or a whole number")


def seconds(value: Any, where: str) -> int:
  """Returns a time in seconds since 1970, cut to a whole number.

  Args:
    value: seconds, or a datetime (UTC where it names no time zone).
    where: for the error.

  Raises:
    ValueError: neither, or a number that must be milliseconds.
  """
  if isinstance(value, datetime.datetime):
    value = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
    return math.floor(value.timestamp())
  is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
  if not is_number or not (isinstance(value, int) or math.isfinite(value)):
    raise ValueError(f"{where}: time {value!r} must be seconds since 1970 or a datetime")
  if abs(value) >= LATEST_SECOND:
    raise ValueError(f"{where}: time {value!r} is after the year 2286; give seconds, not milliseconds")
  return math.floor(value)


class _EventReader:
  """Reads one event: (item id or 0, domain id, seconds, action)."""

  def __init__(self, data: PreparedData):
    self._data, self._item_domain = data, data.item_domain()
    self._domains = {name: index for index, name in enumerate(data.domain_names, 1)}
    self._actions = {name: index for index, name in enumerate(data.action_names.get(ACTION, ()), first_number(ACTION))}

  def event(self, event: Any, where: str) -> tuple[int, int, int, int]:
    if isinstance(event, str | int | np.integer):
      event = (event,)
    if not isinstance(event, Sequence) or not 1 <= len(event) <= 4:
      raise ValueError(f"{where}: {event!r} must be (item, time), (item, time, domain) or (item, time, domain, action)")
    if len(event) < 2 and self._data.has_timestamps:
      raise ValueError(f"{where}: {event!r} has no time; the model was trained with times: give (item, seconds)")
    domain = event[2] if len(event) > 2 else None
    if domain is not None and not (isinstance(domain, str) and domain in self._domains):
      raise ValueError(f"{where}: domain {domain!r} is unknown; the data has {', '.join(map(repr, self._domains))}")
    item = self._data.raw_items.find(raw_id(event[0], where), domain)
    time = seconds(event[1], where) if self._data.has_timestamps else 0
    domain = int(self._item_domain[item]) if domain is None else self._domains[domain]
    return item, domain, time, self._action(event[3], where) if len(event) == 4 else 0

  def _action(self, action: Any, where: str) -> int:
    """Returns the number of an action that is given by name or number; 0 for None."""
    if isinstance(action, str) and action in self._actions:
      return self._actions[action]
    is_number = isinstance(action, int | np.integer) and not isinstance(action, bool)
    if action is not None and not (is_number and 0 <= action < 2**31):
      known = f"one of {', '.join(map(repr, self._actions))}, or " if self._actions else ""
      raise ValueError(f"{where}: action {action!r} must be {known}a whole number, 0 for none")
    return int(action or 0)


def _check_order(events, index):
  for place in range(1, len(events)):
    if events[place][2] < events[place - 1][2]:
      raise ValueError(f"history {index}, event {place} is earlier than event {place - 1}; give events oldest first")


def _concatenated(first, length):
  """Returns the indices first[0], first[0] + 1, ... of K runs, one after the other."""
  ends = np.cumsum(length)
  total = int(ends[-1]) if len(ends) else 0
  return np.arange(total) + np.repeat(np.asarray(first) - (ends - length), length)
