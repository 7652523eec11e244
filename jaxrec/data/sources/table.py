"""Any CSV or Parquet file with named columns."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import polars as pl

from jaxrec.data.sources.reading import Column, read_columns, require_file, seconds
from jaxrec.data.sources.registry import InteractionLog

_NEEDED = ("user", "item")


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
    timestamp, domain, action, rating, title: names of further columns; None (or empty) = the file has none. Without
      `timestamp` the order of the file is the order of time.
    ids: "string" or "int"; integers are smaller, faster and checked.
    time_unit: "s" or "ms" since 1970; Parquet columns of dates are understood as they are.
    separator: of a CSV; "\\t" for tabs.
    header: the CSV's first line names its columns; if not, `names` does, in order, as a sequence or text with commas.

  Raises:
    ValueError: a column is missing, an id or a number is empty or not of its kind, a time is of another unit.
  """
  path = require_file(raw)
  wanted = {
    "user": user,
    "item": item,
    "timestamp": timestamp,
    "domain": domain,
    "action": action,
    "rating": rating,
    "title": title,
  }
  wanted = {ours: theirs for ours, theirs in wanted.items() if theirs}
  if missing := [name for name in _NEEDED if name not in wanted]:
    raise ValueError(f"{missing} need the name of a column")
  columns = {theirs: _column(ours, ids, time_unit) for ours, theirs in wanted.items()}
  if len(columns) < len(wanted):
    raise ValueError(f"one column cannot have two meanings: {wanted}")
  if path.suffix == ".parquet":
    rows = _read_parquet(path, columns)
  else:
    rows = _read_csv(path, columns, separator, header, names)
  return _log(rows.rename({theirs: ours for ours, theirs in wanted.items()}))


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
    raise ValueError(f"{names=} must be different and hold {missing or 'each column once'}")
  return read_columns(path, {name: columns.get(name) for name in names}, separator=separator, quote='"').select(
    list(columns)
  )


def _read_parquet(path: pathlib.Path, columns: dict[str, Column]) -> pl.DataFrame:
  try:
    lazy = pl.scan_parquet(path)
    schema = lazy.collect_schema()
    missing = [name for name in columns if name not in schema]
    if missing:
      raise ValueError(f"{path}: no column {missing}; it has {list(schema)}")
    table = lazy.select(list(columns)).collect(engine="streaming")
  except pl.exceptions.PolarsError as error:
    raise ValueError(f"{path}: cannot be read as Parquet: {error}") from error
  if table.is_empty():
    raise ValueError(f"{path}: has no rows")
  for name, column in columns.items():
    table = table.with_columns(_cast(table[name], column, path))
  return table


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
