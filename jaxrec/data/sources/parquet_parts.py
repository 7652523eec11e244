"""Parquet files with the events of a log: one, or the part files that Spark, BigQuery, Ray or Polars write.

They are read in pieces of some million rows. Ids are kept as codes of four bytes, so that a log needs about 20 bytes an
event however long its ids are.
"""

from __future__ import annotations

import contextlib
import glob
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from jaxrec.data import event_values
from jaxrec.data.sources.file_blocks import is_parquet
from jaxrec.data.sources.text_format import PARSER_ERRORS, Column

PIECE_ROWS = 1 << 22
_HIDDEN = ("_", ".")  # Files that are no parts: _SUCCESS, _metadata, .part-0.parquet.crc.


def find_parts(raw: str | os.PathLike) -> list[pathlib.Path]:
  """Returns the Parquet files of a file, a folder or a pattern, in the order of their names; [] where there are none.

  Files and folders whose name begins with "_" or "." are left out.

  Args:
    raw: a file; a folder, read with those in it; or a pattern such as "log/part-*" ("**" stands for any folders).

  Raises:
    ValueError: some files are Parquet and some are not; names one.
  """
  path = pathlib.Path(raw)
  if path.is_file():
    return [path] if is_parquet(path) else []
  if path.is_dir():
    found = [file for file in path.rglob("*") if not any(p.startswith(_HIDDEN) for p in file.relative_to(path).parts)]
  else:
    found = [pathlib.Path(name) for name in glob.glob(os.fspath(raw), recursive=True)]
    found = [file for file in found if not file.name.startswith(_HIDDEN)]
  files = sorted(file for file in found if file.is_file())
  others = [file for file in files if not is_parquet(file)]
  if others and len(others) < len(files):
    raise ValueError(
      f"{others[0]}: is no Parquet file, but {raw} has others that are; move it, or name them by a pattern"
    )
  return [] if others else files


def read_parts(
  parts: Sequence[pathlib.Path], columns: Mapping[str, Column], report: Callable[[str], None] | None = None
) -> tuple[pl.DataFrame, str]:
  """Returns the columns of all files, one after another, and the unit of the times; texts are categories.

  Args:
    parts: Parquet files.
    columns: name -> how to read it.
    report: called with a line of text after each file, where there are several.

  Raises:
    ValueError: a file is damaged, lacks a column, or holds one in another type than the first file; there are no rows;
      a value is empty, not of its type, or a time in another unit. It names the file, the column and the row.
  """
  check_schemas(parts, columns)
  texts = [name for name, column in columns.items() if column.dtype == pl.String and not column.unit]
  codes = {name: pl.Categorical(pl.Categories.random()) for name in texts}
  pieces, time_unit, rows = [], "s", 0
  for number, part in enumerate(parts, 1):
    for first, number_of_rows in rows_of_pieces(part):
      table, unit = read_piece(part, columns, first, number_of_rows)
      time_unit = unit or time_unit
      is_text = {name for name in texts if table.schema[name] == pl.String}
      pieces.append(table.with_columns(pl.col(name).cast(dtype) for name, dtype in codes.items() if name in is_text))
      rows += len(table)
    if report and len(parts) > 1:
      report(f"{number} of {len(parts)} files read, {rows:,} events")
  if not rows:
    raise ValueError(f"{parts[0]}{f' and {len(parts) - 1} more files' if parts[1:] else ''}: has no rows")
  return pl.concat(pieces), time_unit


def check_schemas(parts: Sequence[pathlib.Path], columns: Mapping[str, Column]) -> Mapping[str, Any]:
  """Returns the types that the columns of all files have, before the first row is read.

  Raises:
    ValueError: they differ, or a column is missing; names the file.
  """
  first = _schema(parts[0], columns)
  for part in parts[1:]:
    schema = _schema(part, columns)
    for name in columns:
      if schema[name] != first[name]:
        raise ValueError(
          f"{part}: column {name!r} holds {schema[name]}, in {parts[0].name} it holds {first[name]}; write all part"
          " files with one schema"
        )
  return first


def _schema(path: pathlib.Path, columns: Mapping[str, Column]) -> Mapping[str, Any]:
  with _naming(path):
    schema = pl.read_parquet_schema(path)
  if missing := [name for name in columns if name not in schema]:
    raise ValueError(f"{path}: no column {missing}; it has {list(schema)}")
  return schema


def rows_of_pieces(path: pathlib.Path) -> list[tuple[int, int]]:
  """Returns the index of the first row, and the number of rows, of each piece of a file."""
  with _naming(path):
    number = pl.scan_parquet(path, glob=False).select(pl.len()).collect().item()
  return [(first, min(PIECE_ROWS, number - first)) for first in range(0, number, PIECE_ROWS)]


def read_piece(
  path: pathlib.Path, columns: Mapping[str, Column], first: int, rows: int
) -> tuple[pl.DataFrame, str | None]:
  """Returns some rows of a file with the columns in their types, and the unit of the times; None without times.

  Args:
    path: the file.
    columns: name -> how to read it.
    first, rows: index of the first row, and how many.

  Raises:
    ValueError: the file is damaged, or a value is empty or not of its type; names the file, the column and the row.
  """
  with _naming(path):
    table = pl.scan_parquet(path, glob=False).select(list(columns)).slice(first, rows).collect(engine="streaming")
  time_unit = None
  for name, column in columns.items():
    place = event_values.at_rows(path, name, first + 1)
    if column.unit:
      values, time_unit = event_values.times(table[name], column.unit, place, before_1970=column.before_1970)
    else:
      values = _values(table[name], column, place)
    table = table.with_columns(values.alias(name))
  return table, time_unit


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
  """Names the file in the errors of the parser."""
  try:
    yield
  except PARSER_ERRORS as error:
    raise ValueError(f"{path}: damaged, or not Parquet: {error}") from error


def _values(values: pl.Series, column: Column, place: event_values.Place) -> pl.Series:
  if column.numbers is not None:
    values = values.cast(pl.Int8) if values.dtype == pl.Boolean else values  # An action such as "clicked".
    return event_values.numbers_or_names(values, column.numbers, place)
  if column.dtype == pl.String:
    return event_values.texts(values, place, optional=column.optional)
  if column.dtype == pl.Float32:
    return event_values.ratings(values, place)
  return event_values.integers(values, column.dtype, place)
