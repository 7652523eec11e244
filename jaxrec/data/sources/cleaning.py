"""What several readers do with the columns of a file: drop and count known flaws, take the first name of each item."""

from __future__ import annotations

import pathlib

import polars as pl

from jaxrec.data import event_values

_OUTSIDE_PERIOD = ("drop", "refuse")


def keeps_before_1970(outside_period: str) -> bool:
  """Returns whether times before 1970 are read, for `drop_before_1970` to drop; otherwise they are an error.

  Raises:
    ValueError: the option is neither "drop" nor "refuse".
  """
  if outside_period not in _OUTSIDE_PERIOD:
    raise ValueError(f"{outside_period=} is not known; give one of {', '.join(_OUTSIDE_PERIOD)}")
  return outside_period == "drop"


def drop_before_1970(events: pl.DataFrame, path: pathlib.Path) -> tuple[pl.DataFrame, dict[str, int]]:
  """Returns the events with a time since 1970, and the number of the others by reason.

  Raises:
    ValueError: no event is left.
  """
  if "timestamp" not in events.columns or (events["timestamp"].min() or 0) >= 0:
    return events, {}
  kept = events.filter(pl.col("timestamp") >= 0)
  if kept.is_empty():
    raise ValueError(f"{path}: all times are before 1970, such as {events['timestamp'][0]}; are they times?")
  return kept, {"before 1970": len(events) - len(kept)}


def first_texts(table: pl.DataFrame, key: str, text: str) -> pl.DataFrame:
  """Returns one row per distinct `key`, sorted, with the first `text` that is not blank; null if there is none.

  >>> first_texts(pl.DataFrame({"item": ["x", "y", "x"], "title": ["", None, "Ex"]}), "item", "title").rows()
  [('x', 'Ex'), ('y', None)]
  """
  pairs = table.select(key, text)
  if isinstance(
    pairs.schema[text], pl.Categorical
  ):  # Few of many rows are different, and the texts of all would be large.
    pairs = pairs.unique(maintain_order=True).with_columns(pl.col(text).cast(pl.String))
  named = pairs.filter(~event_values.unusable(pairs[text]))
  named = named.unique(key, keep="first", maintain_order=True)
  return table.select(pl.col(key).unique().sort()).join(named, on=key, how="left", maintain_order="left")
