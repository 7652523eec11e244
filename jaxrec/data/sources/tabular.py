"""Any CSV or Parquet file with named columns."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import polars as pl

from jaxrec.data.sources.reading import Column, read_columns, require_file, seconds
from jaxrec.data.sources.registry import InteractionLog

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
  title: str | None = None,
  ids: str = "string",
  time_unit: str = "s",
  separator: str = ",",
  header: bool = True,
  names: str | Sequence[str] | None = None,
) -> InteractionLog:
  """Returns the named columns of a CSV (plain or .gz) or `.parquet` file.

  Args:
    raw: the file.
    user, item: names of the id columns.
    timestamp, domain, action, rating, title: names of further columns; None or "" if the file has no such column.
      Without `timestamp` the order of the file is the order of time.
    ids: "string" or "int"; integers are smaller, faster and checked.
    time_unit: "s" or "ms" since 1970; Parquet columns of dates need none.
    separator: column separator of a CSV; "\\t" for tabs.
    header: whether the first line of a CSV names its columns.
    names: the columns of a CSV without a header, in order, as a sequence or separated by commas.

  Raises:
    ValueError: a column is missing, a value is empty or not of its type, a time has another unit.
  """
  path = require_file(raw)
  named = {"user": user, "item": item, "timestamp": timestamp, "domain": domain}
  name_of = _names(named | {"action": action, "rating": rating, "title": title})
  columns = {name: _column(meaning, ids, time_unit) for meaning, name in name_of.items()}
  if path.suffix == ".parquet":
    rows = _read_parquet(path, columns)
  else:
    rows = _read_csv(path, columns, separator, header, names)
  return _log(rows.rename({name: meaning for meaning, name in name_of.items()}))


def log_of_table(
  table: pl.DataFrame,
  *,
  user: str = "user",
  item: str = "item",
  timestamp: str | None = "timestamp",
  domain: str | None = None,
  action: str | None = None,
  rating: str | None = None,
  title: str | None = None,
  ids: str = "string",
  time_unit: str = "s",
) -> InteractionLog:
  """Returns the named columns of a table in memory; the arguments are those of `read_table`.

  Raises:
    ValueError: a column is missing, a value is empty or not of its type, a time has another unit.
  """
  named = {"user": user, "item": item, "timestamp": timestamp, "domain": domain}
  name_of = _names(named | {"action": action, "rating": rating, "title": title})
  columns = {name: _column(meaning, ids, time_unit) for meaning, name in name_of.items()}
  rows = _selected(table, columns, pathlib.Path("events"))
  return _log(rows.rename({name: meaning for meaning, name in name_of.items()}))


def _names(name_of: dict[str, str | None]) -> dict[str, str]:
  """Returns meaning -> column for the columns that are named."""
  given = {meaning: name for meaning, name in name_of.items() if name}
  if missing := [meaning for meaning in _REQUIRED if meaning not in given]:
    raise ValueError(f"{missing} must name columns of the file")
  if len(set(given.values())) < len(given):
    raise ValueError(f"a column is given for two purposes: {given}")
  return given


def _column(meaning: str, ids: str, time_unit: str) -> Column:
  if ids not in ("string", "int"):
    raise ValueError(f"{ids=} is not known; give 'string' or 'int'")
  kinds = {
    "timestamp": Column(pl.Int64, unit=time_unit),
    "domain": Column(pl.String),
    "action": Column(pl.Int32),
    "rating": Column(pl.Float32),
    "title": Column(pl.String, optional=True),
  }
  return kinds.get(meaning, Column(pl.Int64 if ids == "int" else pl.String))


def _read_csv(path: pathlib.Path, columns: dict[str, Column], separator: str, header: bool, names) -> pl.DataFrame:
  separator = {"\\t": "\t", "tab": "\t"}.get(separator, separator)
  if header:
    if names is not None:
      raise ValueError(f"{names=} is only for a file without a header (header=False)")
    return read_columns(path, columns, separator=separator, header=True, quote='"')
  if names is None:
    raise ValueError("header=False needs names: every column of the file, in order")
  names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
  missing = [name for name in columns if name not in names]
  if missing or len(set(names)) < len(names):
    raise ValueError(f"{names=} must be unique and include {missing or 'each column once'}")
  return read_columns(path, {name: columns.get(name) for name in names}, separator=separator, quote='"').select(
    list(columns)
  )


def _read_parquet(path: pathlib.Path, columns: dict[str, Column]) -> pl.DataFrame:
  try:
    lazy = pl.scan_parquet(path)
    schema = lazy.collect_schema()
    _check_columns(columns, list(schema), path)
    table = lazy.select(list(columns)).collect(engine="streaming")
  except pl.exceptions.PolarsError as error:
    raise ValueError(f"{path}: cannot be read as Parquet: {error}") from error
  return _selected(table, columns, path)


def _check_columns(columns, present, path):
  if missing := [name for name in columns if name not in present]:
    raise ValueError(f"{path}: no column {missing}; it has {present}")


def _selected(table: pl.DataFrame, columns: dict[str, Column], path: pathlib.Path) -> pl.DataFrame:
  """Returns columns of a table with the dtypes that they are read with."""
  _check_columns(columns, table.columns, path)
  if table.is_empty():
    raise ValueError(f"{path}: has no rows")
  return table.select(_cast(table[name], column, path) for name, column in columns.items())


def _cast(series: pl.Series, column: Column, path: pathlib.Path) -> pl.Series:
  if column.unit and series.dtype.is_temporal():
    series, column = series.dt.epoch("s").rename(series.name), Column(pl.Int64, unit="s")
  cast = series.cast(column.dtype, strict=False)
  bad = cast.is_null() if not column.optional else cast.is_null() & series.is_not_null()
  if bad.any():
    row = bad.arg_max()
    raise ValueError(f"{path}: row {row + 1}: column {series.name!r} holds {series[row]!r}, needs {column.dtype}")
  return seconds(cast, column.unit, path) if column.unit else cast


def _log(rows: pl.DataFrame) -> InteractionLog:
  items = None
  if "title" in rows.columns:
    items = rows.select("item", "title").unique("item", keep="first", maintain_order=True).sort("item")
  return InteractionLog(
    rows.drop("title", strict=False), items=items, raw_rows=len(rows), in_order="timestamp" not in rows.columns
  )
