"""Delimited text, plain or gzip, parsed by polars in chunks, with errors that name file, line, column and text.

Chunks bound the memory for any file size. The fast parser reads each chunk once; of a chunk that it rejects, it reads
halves until one row is left, which is then explained.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping

import polars as pl
from absl import logging

from jaxrec.data import event_values
from jaxrec.data.sources import records
from jaxrec.data.sources.file_blocks import text_blocks
from jaxrec.data.sources.records import BadRow, Rows
from jaxrec.data.sources.row_parser import parse_rows, shown
from jaxrec.data.sources.text_format import Column, TextFormat

CHUNK_BYTES = 1 << 26
_MAX_CHUNKS_PER_LINE = 4


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Complete lines of a file; `first_line` is the 1-based line number of the first one."""

  path: pathlib.Path
  data: bytes
  first_line: int


def read_columns(
  path: str | pathlib.Path,
  columns: Mapping[str, Column | None],
  form: TextFormat | None = None,
  *,
  header: bool = False,
) -> pl.DataFrame:
  """Returns the selected columns of a delimited file, in file order.

  Args:
    path: the file, plain or gzip.
    columns: with `header`: the columns to read. Without: every column of the file in order, None for those to skip.
    form: separator, quotation mark and encoding; None for those of CSV.
    header: whether the first row names the columns.

  Raises:
    ValueError: missing, damaged or packed file, wrong separator, missing column, a row with more or fewer fields,
      text in a numeric column, a number that is not finite, a time in another unit, text in another encoding, a
      quoted field that is not closed.
  """
  path, form = require_file(path), form or TextFormat()
  tables, breaks, layout = [], 0, None if header else dict(columns)
  for rows, line in _row_chunks(path, form):
    if layout is None:
      header, rows = rows.header()
      layout = _layout(path, header, columns, form)
      line += header.data.count(b"\n")
    if rows.data:
      table = parse_rows(path, rows, line, layout, form)
      tables.append(_with_values(table, layout, path, rows, line))
      breaks += rows.num_lines - len(table) if rows.quotations is not None else 0
  if not sum(map(len, tables)):
    raise ValueError(f"{path}: has no rows")
  if breaks:
    hint = "" if form.quote else "; give quote='' if quotation marks are text"
    logging.warning("%s: %d line breaks are inside quotation marks, so they end no row%s", path, breaks, hint)
  return pl.concat(tables).select([name for name, column in columns.items() if column is not None])


def require_file(path: str | pathlib.Path) -> pathlib.Path:
  """Returns the path of an existing file.

  Raises:
    ValueError: it is not a file; the message lists the folder.
  """
  path = pathlib.Path(path)
  if path.is_file():
    return path
  folder = path if path.is_dir() else path.parent
  names = sorted(p.name for p in folder.iterdir())[:12] if folder.is_dir() else []
  hint = f"the folder holds {', '.join(names)}" if names else "the folder is missing or empty"
  if path.is_dir():
    raise ValueError(f"{path}: is a folder, give one file (parts of a file can be joined first); {hint}")
  raise ValueError(f"{path}: {'is no regular file' if path.exists() else 'no such file'}; {hint}")


def find_file(raw: str | pathlib.Path, *names: str) -> pathlib.Path:
  """Returns `raw` itself if it is a file, else the first file of the folder `raw` that matches one of `names`.

  Args:
    raw: a file or a folder.
    *names: names or glob patterns, in order of preference.

  Raises:
    ValueError: no file matches.
  """
  raw = pathlib.Path(raw)
  if raw.is_file():
    return raw
  for name in names:
    found = sorted(raw.glob(name))
    if found:
      return found[0]
  return require_file(raw / names[0])


def line_chunks(path: pathlib.Path, *, chunk_bytes: int | None = None, encoding: str = "utf-8") -> Iterator[Chunk]:
  """Yields the file in chunks of complete lines as UTF-8, unpacked if it is gzip.

  Args:
    path: the file.
    chunk_bytes: approximate size of a chunk; None for `CHUNK_BYTES`.
    encoding: of the file.

  Raises:
    ValueError: a file that is damaged, truncated or not text, or a line of several chunks.
  """
  rest, line = b"", 1
  for block in text_blocks(path, chunk_bytes or CHUNK_BYTES, encoding):
    block = rest + block
    try:
      records.check_text(block)
    except BadRow as error:
      raise ValueError(f"{path}: line {line + error.lines_above(block)}: {error.problem}") from error
    cut = block.rfind(b"\n") + 1
    data, rest = block[:cut], block[cut:]
    if data:
      yield Chunk(path, data, line)
      line += data.count(b"\n")
    if len(rest) > _MAX_CHUNKS_PER_LINE * (chunk_bytes or CHUNK_BYTES):
      raise ValueError(f"{path}: line {line}: no line ends within {len(rest)} bytes")
  if rest:
    yield Chunk(path, rest, line)


def read_lines(path: pathlib.Path) -> pl.DataFrame:
  """Returns the lines of a small text file as `line`, and their number from 1 as `row`; blank lines at the end are
  left out.

  Raises:
    ValueError: no lines, or text that is not UTF-8.
  """
  data = b"".join(chunk.data for chunk in line_chunks(path)).rstrip(b"\r\n")
  try:
    text = data.decode()
  except UnicodeDecodeError as error:
    raise ValueError(f"{path}: line {1 + data.count(bytes([10]), 0, error.start)}: is not UTF-8: {error}") from error
  if not text.strip():
    raise ValueError(f"{path}: has no rows")
  lines = [line.removesuffix("\r") for line in text.split("\n")]
  return pl.DataFrame({"line": lines}).with_row_index("row", offset=1)


def _with_values(
  table: pl.DataFrame, layout: Mapping[str, Column | None], path: pathlib.Path, rows: Rows, line: int
) -> pl.DataFrame:
  """Returns the table with its times, and with the columns that are numbers or names."""
  for name, column in layout.items():
    place = functools.partial(_place, path, name, rows, line)
    if column is not None and column.unit:
      times, _ = event_values.times(table[name], column.unit, place, before_1970=column.before_1970)
      table = table.with_columns(times)
    elif column is not None and column.numbers is not None:
      table = table.with_columns(event_values.numbers_or_names(table[name], column.numbers, place).alias(name))
  return table


def _place(path: pathlib.Path, name: str, rows: Rows, line: int, row: int) -> str:
  return f"{path}: line {line + rows.line_of(row)}: column {name!r}"


def _row_chunks(path: pathlib.Path, form: TextFormat) -> Iterator[tuple[Rows, int]]:
  """Yields complete rows, whose separator is one byte, and the line of the first, without blank lines at the end."""
  rest, line = b"", 1
  blocks = text_blocks(path, CHUNK_BYTES, form.encoding)
  block = next(blocks, None)
  while block is not None:
    following = next(blocks, None)
    is_end = following is None
    rows, rest = _complete_rows(path, _without_blank_end(rest + block) if is_end else rest + block, line, form, is_end)
    if rows.data:
      yield rows, line
    if not is_end:
      line += rows.num_lines if rows.data else 0
      if len(rest) > _MAX_CHUNKS_PER_LINE * CHUNK_BYTES:
        _complete_rows(path, rest, line, form, is_end=True)  # Raises, if a quoted field is the reason.
        raise ValueError(f"{path}: line {line}: no row ends within {len(rest)} bytes")
    block = following


def _without_blank_end(data: bytes) -> bytes:
  """Returns a text without blank lines at its end; one that has none is not copied."""
  return data.rstrip(b"\r\n") if data.endswith((b"\n\n", b"\n\r\n", b"\r")) else data


def _complete_rows(path: pathlib.Path, data: bytes, line: int, form: TextFormat, is_end: bool) -> tuple[Rows, bytes]:
  """Returns the complete rows of a text, and the rest of it."""
  try:
    records.check_text(data)
    separator, written = form.separator.encode(), form.separator.encode()
    if len(written) > 1:
      separator = records.free_byte(data)
      data = data.replace(written, separator)
    marks, end = None, len(data) if is_end else data.rfind(b"\n") + 1
    if form.quote != "":
      marks, end = records.quotations(data, separator, is_end=is_end)
    rows = Rows(data[:end], separator, marks)
    if (at := rows.stray_carriage_return()) is not None:
      raise BadRow(at, r"holds a carriage return that ends no line; lines end in \n, in \r\n, or all of them in \r")
  except BadRow as error:
    raise ValueError(f"{path}: line {line + error.lines_above(data)}: {error.problem}") from error
  except ValueError as error:
    raise ValueError(f"{path}: in or after line {line}: {error}") from error
  return rows, data[end:].replace(separator, written) if len(written) > 1 else data[end:]


def _layout(path: pathlib.Path, header: Rows, columns, form: TextFormat) -> dict[str, Column | None]:
  """Returns every column of the file, in order, as its first row names them."""
  text = header.data.decode("utf-8", errors="replace").strip("\r\n")
  names = records.split_fields(text, header.separator.decode(), quoting=form.quote != "")
  text = text.replace(header.separator.decode(), form.separator)
  if missing := [name for name in columns if name not in names]:
    raise ValueError(f"{path}: line 1: no column {missing} in the header {shown(text)} (separator {form.separator!r})")
  if len(set(names)) < len(names):
    raise ValueError(f"{path}: line 1: a column name occurs twice in the header {shown(text)}")
  return {name: columns.get(name) for name in names}
