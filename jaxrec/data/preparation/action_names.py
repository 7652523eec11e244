"""Actions written as text, such as "view" and "buy": their numbers, and the names that are kept with the data.

The names are in alphabetical order. Those of the column `action` are numbered from 1, because 0 stands for none, those
of a multi_class action from 0. Where new events come onto prepared data, known names keep their numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import polars as pl

from jaxrec.batches import MULTI_CLASS
from jaxrec.data import event_values
from jaxrec.data.action_columns import ACTION, PREFIX, first_number
from jaxrec.data.sources import InteractionLog

MOST_NAMES = 1000
Names = Mapping[str, tuple[str, ...]]


def with_numbers(log: InteractionLog) -> InteractionLog:
  """Returns the log with numbers in place of the texts of its actions, and `action_names`.

  Raises:
    ValueError: a text is empty, two look the same, or there are so many that they are no actions.

  >>> log = InteractionLog(pl.DataFrame({"user": [1, 1, 2], "item": [1, 2, 1], "action": ["view", "buy", "view"]}))
  >>> found = with_numbers(log)
  >>> found.events["action"].to_list(), found.action_names
  ([2, 1, 2], {'action': ('buy', 'view')})
  """
  columns = [ACTION] if ACTION in log.events.columns else []
  columns += [PREFIX + name for name, kind in log.action_kinds.items() if kind == MULTI_CLASS]
  events, names = log.events, dict(log.action_names)
  for column in columns:
    if isinstance(events.schema[column], pl.String | pl.Categorical | pl.Enum):
      values, names[column] = _numbered(events[column])
      events = events.with_columns(values)
  return dataclasses.replace(log, events=events, action_names=names)


def united(known: Names, events: pl.DataFrame, new: Names, used: Mapping[str, bool]) -> tuple[pl.DataFrame, Names]:
  """Returns new events with the numbers that known names have, and the names of both, known ones first.

  Args:
    known: names of the actions of the earlier data.
    events: with numbers as in `new`.
    new: names of the actions of the events.
    used: column -> whether the earlier data have such actions at all, named or not.

  Raises:
    ValueError: actions that have names in one of both only.

  >>> events = pl.DataFrame({"action": [0, 1, 2]})
  >>> united({"action": ("buy", "view")}, events, {"action": ("cart", "view")}, {"action": True})[0]["action"].to_list()
  [0, 3, 2]
  """
  names = {}
  for column in {**known, **new}:
    has_new = column in events.columns and (column in new or bool((events[column] != 0).any()))
    if has_new and used.get(column, False) and (column in known) != (column in new):
      named = "earlier data" if column in known else "new events"
      raise ValueError(f"column {column!r} has names of actions in the {named} only, numbers in the others")
    names[column] = tuple(dict.fromkeys((*known.get(column, ()), *new.get(column, ()))))
    if column in new:
      first = first_number(column)
      numbers = np.arange(first + len(new[column]), dtype=np.int32)
      numbers[first:] = [names[column].index(name) + first for name in new[column]]
      events = events.with_columns(pl.Series(column, numbers[events[column].to_numpy()]))
  return events, names


def _numbered(values: pl.Series) -> tuple[pl.Series, tuple[str, ...]]:
  """Returns numbers and names; the number of an event without an action, as of another source of a merge, is 0."""
  column, texts = values.name, values.cast(pl.String)
  names = texts.drop_nulls().unique().sort()
  if len(names) > MOST_NAMES:
    raise ValueError(
      f"column {column!r} holds {len(names):,} different texts such as {names[0]!r}, more than {MOST_NAMES:,}; does it"
      " hold actions?"
    )
  if column != ACTION and texts.null_count():
    raise ValueError(f"events: row {texts.is_null().arg_max() + 1}: column {column!r} is empty, needs the action")
  event_values.check_names(names, "action")
  numbers = texts.cast(pl.Enum(names)).to_physical().cast(pl.Int32) + first_number(column)
  return numbers.fill_null(0).alias(column), tuple(names)
