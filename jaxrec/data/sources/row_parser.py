"""Rows of delimited text as columns: the fast parser, and the explanation of the first row that it rejects."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import polars as pl

from jaxrec.data import event_values
from jaxrec.data.sources.records import Rows, split_fields
from jaxrec.data.sources.text_format import PARSER_ERRORS, Column, TextFormat

_MAX_SHOWN = 120  # Characters of a bad line in an error.


def parse_rows(
  path: pathlib.Path, rows: Rows, line: int, layout: Mapping[str, Column | None], form: TextFormat
) -> pl.DataFrame:
  """Returns the selected columns of some rows.

  Args:
    path: the file, for errors.
    rows: those of a part of the file.
    line: where it begins.
    layout: every column of the file, in order; None for those to skip.
    form: separator, quotation mark and encoding, for errors and for what quotation marks mean.

  Raises:
    ValueError: a row has more or fewer fields than the layout, or a value is empty, not of its type, not finite, or
      not in the encoding; or lines that look like rows are quoted. It names the first such row.
  """
  table = _parse(rows, layout)
  if isinstance(table, str):
    row, problem = _first_problem(rows, layout, form, table)
  else:
    row, problem = 0, None
    if form.quote is None and rows.quotations is not None and rows.num_lines > len(table):
      row, problem = _first_swallowed_line(rows, layout, form)
  if problem is None:
    return _with_written_separator(table, rows, form)
  raise ValueError(f"{path}: line {line + rows.line_of(row)}: {problem}")


def _parse(rows: Rows, layout: Mapping[str, Column | None]) -> pl.DataFrame | str:
  """Returns the selected columns, or why there are none."""
  if (number := rows.count(len(layout))) is None:
    return "the number of columns differs"
  selected = {name: column for name, column in layout.items() if column is not None}
  text, mark = rows.plain_marks
  schema = {name: column.dtype if column else pl.String for name, column in layout.items()}
  try:
    lazy = pl.scan_csv(text, has_header=False, separator=rows.separator.decode(), quote_char=mark, schema=schema)
    table = lazy.select(list(selected)).collect()
  except PARSER_ERRORS as error:
    return f"cannot be read: {error}"
  if len(table) != number:
    return f"is read as {len(table)} rows"
  if mark is not None:
    table = _without_empty_text(table)
  return _empty_or_infinite(table, selected) or table


def _without_empty_text(table: pl.DataFrame) -> pl.DataFrame:
  """Returns the table with null for `""`, which is empty, as it is without quotation marks."""
  texts = [name for name, dtype in table.schema.items() if dtype == pl.String]
  empty = [name for name in texts if (table[name] == "").any()]
  return table.with_columns(pl.col(empty).replace("", None)) if empty else table


def _with_written_separator(table: pl.DataFrame, rows: Rows, form: TextFormat) -> pl.DataFrame:
  """Returns the table with the separator as it is written inside quoted fields, where a single byte stood for it."""
  if len(form.separator.encode()) == 1 or rows.quotations is None:
    return table
  return table.with_columns(pl.col(pl.String).str.replace_all(rows.separator.decode(), form.separator, literal=True))


def _empty_or_infinite(table: pl.DataFrame, selected: Mapping[str, Column]) -> str | None:
  required = [name for name, column in selected.items() if not column.optional]
  unusable = [name for name in required if event_values.unusable(table[name]).any()]
  return f"columns {unusable} are empty or not finite" if unusable else None


def _first_problem(rows: Rows, layout: Mapping[str, Column | None], form: TextFormat, reason: str) -> tuple[int, str]:
  """Returns the first row that the parser rejects, and what is wrong with it."""
  first, last = 0, len(rows.ends)
  while last - first > 1:
    middle = (first + last) // 2
    half = _parse(rows.between(first, middle), layout)
    if isinstance(half, str):
      last, reason = middle, half
    else:
      first = middle
  row = rows.between(first, last)
  return first, problem_of(row.data, row.separator, layout, form, quoting=row.quotations is not None) or reason


def _first_swallowed_line(rows: Rows, layout: Mapping[str, Column | None], form: TextFormat) -> tuple[int, str | None]:
  """Returns the first row that holds line breaks between lines each of which is a row on its own, and an error."""
  for row in rows.over_several_lines().tolist():
    lines = rows.between(row, row + 1).data.removesuffix(b"\n").split(b"\n")
    if all(problem_of(line, rows.separator, layout, form, quoting=False) is None for line in lines):
      problem = (
        f"a quotation mark opens a field that ends {len(lines) - 1} line(s) below, but each line is a row on its own"
      )
      return row, f"{problem}; give quote='' if quotation marks are text, quote='\"' if the lines are one row"
  return 0, None


def problem_of(
  row: bytes, separator: bytes, layout: Mapping[str, Column | None], form: TextFormat, *, quoting: bool
) -> str | None:
  """Returns what is wrong with a row, or None."""
  text = row.decode("utf-8", errors="surrogateescape").rstrip("\r\n")
  fields = split_fields(text, separator.decode(), quoting=quoting)
  line = shown(text.replace(separator.decode(), form.separator))
  if len(fields) != len(layout):
    return f"{len(fields)} column(s) separated by {form.separator!r}, needs {len(layout)}: {line}"
  for field, (name, column) in zip(fields, layout.items(), strict=True):
    problem = _problem_of_encoding(field)
    if problem is None and column is not None:
      problem = _problem_of_value(field, column)
    if problem is not None:
      return f"column {name!r} holds {shown(field)}, {problem}: {line}"
  return None


def _problem_of_encoding(field: str) -> str | None:
  try:
    field.encode()
  except UnicodeEncodeError:
    return "which is not UTF-8; give the encoding of the file, such as encoding='latin-1'"
  return None


def _problem_of_value(field: str, column: Column) -> str | None:
  if not field.strip():
    is_right = column.optional
  else:
    value = pl.Series([field.strip() if column.dtype.is_numeric() else field]).cast(column.dtype, strict=False)[0]
    is_right = value is not None and (not column.dtype.is_float() or abs(value) < float("inf"))
  return None if is_right else f"needs {'text' if column.dtype == pl.String else column.dtype}"


def shown(text: str) -> str:
  r"""Returns a text as an error shows it: quoted, cut, and with the bytes that are not UTF-8 as \xff."""
  short = text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"
  escaped = short.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="backslashreplace")
  return f"'{escaped}'" if escaped != short else repr(short)
