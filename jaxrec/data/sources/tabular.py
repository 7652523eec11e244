"""Any CSV file, and any Parquet files, with named columns."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl

from jaxrec.batches import MULTI_CLASS
from jaxrec.data import action_columns, event_values
from jaxrec.data.sources import cleaning
from jaxrec.data.sources.parquet_parts import find_parts, read_parts
from jaxrec.data.sources.reading import read_columns, require_file
from jaxrec.data.sources.registry import InteractionLog
from jaxrec.data.sources.text_format import Column, TextFormat

_REQUIRED = ("user", "item")


def read_table(
  raw: str | pathlib.Path,
  *,
  user: str = "user",
  item: str = "item",
  timestamp: str | None = "timestamp",
  domain: str | None = None,
  action: str | None = None,
  rating: str | None = None,
  actions: str | Mapping[str, str] = "",
  title: str | None = None,
  ids: str = "string",
  time_unit: str = "s",
  outside_period: str = "refuse",
  separator: str = ",",
  quote: str | None = None,
  encoding: str = "utf-8",
  header: bool = True,
  names: str | Sequence[str] | None = None,
  report: Callable[[str], None] | None = None,
) -> InteractionLog:
  """Returns the named columns of a CSV (plain or .gz), or of Parquet files.

  Args:
    raw: the file; of Parquet also a folder or a pattern of part files, as engines write them.
    user, item: names of the id columns.
    timestamp, domain, action, rating, title: names of further columns; None or "" if the file has no such column.
      Without `timestamp` the order of the file is the order of time. Actions are whole numbers, 0 for none, or text
      such as "view" and "buy", whose numbers are printed and kept.
    actions: further columns as typed actions, with their kinds: a mapping, or text such as
      "like=binary,watched=regression"; see `jaxrec.data.action_columns`. Those of kind multi_class may be text too.
    ids: "string" or "int"; integers are smaller, faster and checked.
    time_unit: "s", "ms", "us" or "ns" since 1970; "float_s": seconds with decimals; "iso": ISO 8601 text, UTC if it
      names no time zone. Parquet columns of dates need none. Events are ordered by the full precision.
    outside_period: "refuse" times before 1970, or "drop" and count these events.
    separator: of the columns of a CSV, one or more characters; "\\t" for tabs.
    quote, encoding: of a CSV, as in `TextFormat`; quote="" if quotation marks are text.
    header: whether the first line of a CSV names its columns.
    names: the columns of a CSV without a header, in order, as a sequence or separated by commas.
    report: called with a line of text after each part file.

  Raises:
    ValueError: a column is missing, a value is empty or not of its type, a time has another unit, or a part file has
      another schema than the first one.
  """
  table = TableColumns.of(
    {"user": user, "item": item, "timestamp": timestamp, "domain": domain, "action": action, "rating": rating,
     "title": title},
    actions, ids, time_unit, outside_period,
  )  # fmt: skip
  parts = find_parts(raw)
  if parts:
    path = pathlib.Path(raw)
    rows, time_unit = read_parts(parts, table.columns, report)
  else:
    path = require_file(raw)
    form = TextFormat({"\\t": "\t", "tab": "\t"}.get(separator, separator), quote, encoding)
    rows = _read_csv(path, table.columns, form, header, names)
    time_unit = event_values.stored_unit(time_unit)
  rows = rows.rename({name: meaning for meaning, name in table.name_of.items()})
  check_actions(rows, table.kinds, path, 1 + int(header and not parts))
  return _log(rows, time_unit, path, table.kinds)


@dataclasses.dataclass(frozen=True)
class TableColumns:
  """What the columns of a table mean, and how to read them.

  name_of: meaning -> name of the column; a typed action is `action.<name>`.
  columns: name -> how to read it.
  kinds: of the typed actions.
  """

  name_of: Mapping[str, str]
  columns: Mapping[str, Column]
  kinds: Mapping[str, str]

  @classmethod
  def of(
    cls,
    name_of: Mapping[str, str | None],
    actions: str | Mapping[str, str],
    ids: str,
    time_unit: str,
    outside_period: str,
  ) -> TableColumns:
    """Returns the columns that the options of `read_table` describe; a meaning without a name has none.

    Raises:
      ValueError: no column for users or items, a column for two purposes, or an option that is not known.
    """
    kinds = action_columns.parse_kinds(actions)
    name_of = {**name_of, **{action_columns.PREFIX + name: name for name in kinds}}
    name_of = {meaning: name for meaning, name in name_of.items() if name}
    if missing := [meaning for meaning in _REQUIRED if meaning not in name_of]:
      raise ValueError(f"{missing} must name columns of the file")
    early = cleaning.keeps_before_1970(outside_period)
    columns = {name: _column(meaning, ids, time_unit, early, kinds) for meaning, name in name_of.items()}
    if len(columns) < len(name_of):
      raise ValueError(f"a column is given for two purposes: {name_of}")
    return cls(name_of, columns, kinds)


def _column(meaning: str, ids: str, time_unit: str, early: bool, action_kinds: Mapping[str, str]) -> Column:
  if ids not in ("string", "int"):
    raise ValueError(f"{ids=} is not known; give 'string' or 'int'")
  kinds = {
    "timestamp": Column(event_values.written_type(time_unit), unit=time_unit, before_1970=early),
    "domain": Column(pl.String),
    "action": Column(pl.String, numbers=pl.Int32),
    "rating": Column(pl.Float32),
    "title": Column(pl.String, optional=True),
  }
  if meaning.startswith(action_columns.PREFIX):
    is_class = action_kinds[meaning.removeprefix(action_columns.PREFIX)] == MULTI_CLASS
    return Column(pl.String, numbers=pl.Float32) if is_class else Column(pl.Float32)
  return kinds.get(meaning, Column(pl.Int64 if ids == "int" else pl.String))


def _read_csv(path: pathlib.Path, columns: dict[str, Column], form: TextFormat, header: bool, names) -> pl.DataFrame:
  if header:
    if names is not None:
      raise ValueError(f"{names=} is only for a file without a header (header=False)")
    return read_columns(path, columns, form, header=True)
  if names is None:
    raise ValueError("header=False needs names: every column of the file, in order")
  names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
  missing = [name for name in columns if name not in names]
  if missing or len(set(names)) < len(names):
    raise ValueError(f"{names=} must be unique and include {missing or 'each column once'}")
  rows = read_columns(path, {name: columns.get(name) for name in names}, form).select(list(columns))
  if rows.row(0) == tuple(columns):
    raise ValueError(f"{path}: line 1: holds the names of the columns; give header=True without names")
  return rows


def _log(rows: pl.DataFrame, time_unit: str, path: pathlib.Path, kinds: Mapping[str, str]) -> InteractionLog:
  kept, dropped = cleaning.drop_before_1970(rows, path)
  return InteractionLog(
    kept.drop("title", strict=False),
    items=cleaning.first_texts(kept, "item", "title") if "title" in kept.columns else None,
    raw_rows=len(rows),
    dropped=dropped,
    in_order="timestamp" not in kept.columns,
    time_unit=time_unit,
    action_kinds=kinds,
  )


def check_actions(rows: pl.DataFrame, kinds: Mapping[str, str], path: pathlib.Path, first_row: int) -> None:
  """Raises where a typed action is a number that its kind does not allow; names the row, the first of which is given.

  Raises:
    ValueError: a wrong value.
  """
  for name, kind in kinds.items():
    column = rows[action_columns.PREFIX + name]
    if not column.dtype.is_numeric():  # Names of classes.
      continue
    values = column.to_numpy()
    bad = np.flatnonzero(action_columns.wrong_values(values, kind))
    if len(bad):
      where = "line" if first_row > 1 else "row"
      raise ValueError(
        f"{path}: {where} {bad[0] + first_row}: column {name!r} holds {values[bad[0]]}, which is no {kind} action"
      )
