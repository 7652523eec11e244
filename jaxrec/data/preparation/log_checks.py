"""The check of an interaction log before it is prepared, whichever reader or program made it."""

from __future__ import annotations

import dataclasses

import polars as pl

from jaxrec.data import event_values
from jaxrec.data.preparation import action_names
from jaxrec.data.sources import InteractionLog


def checked(log: InteractionLog) -> InteractionLog:
  """Returns the log with its columns in the types of `InteractionLog`, every value unchanged but actions as text, which
  become numbers.

  Raises:
    ValueError: no events, no column of users or items, or a value that is no id, time, action or split; names the row.
  """
  events = log.events
  if missing := [name for name in ("user", "item") if name not in events.columns]:
    raise ValueError(f"the events have no column {missing}, only {events.columns}")
  if events.is_empty():
    raise ValueError(f"the log has no events; raw rows: {log.raw_rows}, dropped: {dict(log.dropped)}")
  if log.time_unit not in event_values.UNITS:
    raise ValueError(f"time_unit={log.time_unit!r} is not known; give one of {', '.join(event_values.UNITS)}")
  log = action_names.with_numbers(log)
  tables = {name: _checked(getattr(log, name), name) for name in ("events", "items", "users")}
  return dataclasses.replace(log, **tables)


def _checked(table: pl.DataFrame | None, where: str) -> pl.DataFrame | None:
  if table is None:
    return None
  return table.with_columns(
    [_column(table[name], event_values.at_rows(where, name)) for name in table.columns if name in _KINDS]
  )


def _column(values: pl.Series, place: event_values.Place) -> pl.Series:
  return _KINDS[values.name](values, place).alias(values.name)


def _ids(values: pl.Series, place: event_values.Place) -> pl.Series:
  """Returns integers, texts or categories; that text is not blank is checked once per id, in `check_names`."""
  is_text = isinstance(values.dtype, pl.String | pl.Categorical)
  if values.null_count() == 0 and (is_text or values.dtype.is_integer()):
    return values
  return (
    event_values.integers(values, pl.Int64, place) if values.dtype.is_float() else event_values.texts(values, place)
  )


def _names(values: pl.Series, place: event_values.Place) -> pl.Series:
  return _ids(values, place) if isinstance(values.dtype, pl.Categorical) else event_values.texts(values, place)


_KINDS = {
  "user": _ids,
  "item": _ids,
  "domain": _names,
  "timestamp": lambda values, place: event_values.integers(values, pl.Int64, place),
  "action": lambda values, place: event_values.integers(values, pl.Int32, place),
  "split": lambda values, place: event_values.integers(values, pl.UInt8, place, low=0, high=2),
}
