"""The check that a log and its catalogue belong together."""

from __future__ import annotations

import pathlib

import polars as pl


def check_catalogue(
  events: pl.DataFrame,
  items: pl.DataFrame,
  events_path: pathlib.Path,
  items_path: pathlib.Path,
  *,
  lines_above: int = 0,
) -> None:
  """Raises ValueError if the catalogue holds an item twice, or lacks one of the events; it names file and item.

  Args:
    events, items: with a column `item`.
    events_path, items_path: where they come from.
    lines_above: lines above the first row of each file.
  """
  if repeated := _first(items["item"].is_duplicated() & ~items["item"].is_first_distinct(), lines_above):
    raise ValueError(f"{items_path}: line {repeated[0]}: item {items['item'][repeated[1]]} has a line above already")
  known = items["item"].unique()
  if unknown := _first(~events["item"].is_in(known.implode()), lines_above):
    raise ValueError(f"{events_path}: line {unknown[0]}: item {events['item'][unknown[1]]} is not in {items_path.name}")


def _first(bad: pl.Series, lines_above: int) -> tuple[int, int] | None:
  """Returns line and row of the first True."""
  return (bad.arg_max() + lines_above + 1, bad.arg_max()) if bad.any() else None
