"""Events as clients give them, tuples or lists of item, time, domain and actions, read as numbers of the data."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrec.batches import MULTI_CLASS
from jaxrec.data.action_columns import ACTION, PREFIX, first_number, wrong_values
from jaxrec.data.event_values import LATEST_SECOND
from jaxrec.data.prepared import PreparedData


class GivenEvent(NamedTuple):
  """An event that was read.

  item: id of the model, 0 for an item that is not in the data.
  domain: id of the model.
  seconds: since 1970; 0 where the data has no times.
  action: as in `PreparedData.action`; 0 for none.
  actions: values of the typed actions that were asked for.
  """

  item: int
  domain: int
  seconds: int
  action: int
  actions: tuple[float, ...]


class EventReader:
  """Reads events; see `jaxrec.serving.histories.histories_of_events`."""

  def __init__(self, data: PreparedData, actions: Sequence[str] = ()):
    """Makes a reader.

    Args:
      data: names items, domains and actions.
      actions: names of the typed actions that each event has in a mapping, its last entry.

    Raises:
      ValueError: the data have no such action.
    """
    if missing := sorted(set(actions) - set(data.actions)):
      raise ValueError(f"the data have no actions {missing}; they have {sorted(data.actions)}")
    self._data, self._item_domain, self._typed = data, data.item_domain(), tuple(actions)
    self._domains = {name: index for index, name in enumerate(data.domain_names, 1)}
    self._numbers = {column: _numbers_of(data, column) for column in (ACTION, *(PREFIX + name for name in actions))}

  def event(self, event: Any, where: str) -> GivenEvent:
    """Returns one event.

    Args:
      event: as the client gave it.
      where: which one it is, for the error.

    Raises:
      ValueError: an event of another form, or an unknown domain or action.
    """
    if isinstance(event, str | int | np.integer):
      event = (event,)
    plain, actions = self._split(event, where)
    if not 1 <= len(plain) <= 4:
      raise ValueError(f"{where}: {event!r} must be (item, time), (item, time, domain) or (item, time, domain, action)")
    if len(plain) < 2 and self._data.has_timestamps:
      raise ValueError(f"{where}: {event!r} has no time; the model was trained with times: give (item, seconds)")
    domain = plain[2] if len(plain) > 2 else None
    if domain is not None and not (isinstance(domain, str) and domain in self._domains):
      raise ValueError(f"{where}: domain {domain!r} is unknown; the data has {', '.join(map(repr, self._domains))}")
    item = self._data.raw_items.find(raw_id(plain[0], where), domain)
    time = seconds(plain[1], where) if self._data.has_timestamps else 0
    domain = int(self._item_domain[item]) if domain is None else self._domains[domain]
    return GivenEvent(item, domain, time, self._action(plain[3], where) if len(plain) == 4 else 0, actions)

  def _split(self, event, where) -> tuple[Sequence[Any], tuple[float, ...]]:
    """Returns an event without its mapping of actions, and their values."""
    if not isinstance(event, Sequence):
      return (), ()
    if not self._typed:
      return event, ()
    given = event[-1] if event else None
    if not isinstance(given, Mapping):
      wanted = ", ".join(f'"{name}": ...' for name in self._typed)
      raise ValueError(f"{where}: {event!r} has no actions; the model reads them: end the event with {{{wanted}}}")
    if unknown := sorted(set(given) - set(self._data.actions), key=str):
      raise ValueError(f"{where}: actions {unknown} are unknown; the data have {sorted(self._data.actions)}")
    if missing := sorted(set(self._typed) - set(given)):
      raise ValueError(f"{where}: {dict(given)!r} lacks {missing}, which the model reads")
    return event[:-1], tuple(self._typed_action(name, given[name], where) for name in self._typed)

  def _typed_action(self, name: str, value: Any, where: str) -> float:
    """Returns the number of a typed action, which may be given by the name of its class."""
    about, names = self._data.action_meta[name], self._numbers[PREFIX + name]
    if isinstance(value, str) and value in names:
      return names[value]
    is_number = isinstance(value, bool | int | float | np.integer | np.floating | np.bool)
    if not is_number or wrong_values(np.array([value], np.float64), about["kind"])[0]:
      named = f", one of {', '.join(map(repr, names))}" if names else ""
      raise ValueError(f"{where}: action {name!r} is {value!r}, which is no {about['kind']} action{named}")
    if about["kind"] == MULTI_CLASS and value >= about["classes"]:
      raise ValueError(f"{where}: action {name!r} is {value!r}; the data have the classes 0 to {about['classes'] - 1}")
    return float(value)

  def _action(self, action: Any, where: str) -> int:
    """Returns the number of an action that is given by name or number; 0 for None."""
    names = self._numbers[ACTION]
    if isinstance(action, str) and action in names:
      return names[action]
    is_number = isinstance(action, int | np.integer) and not isinstance(action, bool)
    if action is not None and not (is_number and 0 <= action < 2**31):
      known = f"one of {', '.join(map(repr, names))}, or " if names else ""
      raise ValueError(f"{where}: action {action!r} must be {known}a whole number, 0 for none")
    return int(action or 0)


def _numbers_of(data, column) -> dict[str, int]:
  """Returns name -> number of the actions of a column, where they have names."""
  return {name: number for number, name in enumerate(data.action_names.get(column, ()), first_number(column))}


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


def request_seconds(data: PreparedData, at: Any, last: int) -> int:
  """Returns the time of a request in seconds since 1970.

  Args:
    data: whether there are times.
    at: seconds or a datetime; None: that of the last event.
    last: the time of the last event.

  Raises:
    ValueError: no time, one before the last event, or the data has no times.
  """
  if at is None:
    return last
  if not data.has_timestamps:
    raise ValueError(f"{at=} is given, but the data has no times")
  at = seconds(at, "at")
  if at < last:
    raise ValueError(f"{at=} is earlier than the last event of a history, at {last}")
  return at
