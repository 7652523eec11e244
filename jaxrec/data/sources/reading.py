"""Delimited text, plain or gzip, parsed by polars in chunks, with errors that name file, line, column and text.

Chunks bound the memory for any file size. The fast parser reads each chunk once; only a chunk that it rejects is
searched for its first bad line.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import pathlib
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from jaxrec.data import event_values

CHUNK_BYTES = 1 << 26
_MAX_SHOWN = 120  # Characters of a bad line in an error.
_MAX_CHUNKS_PER_LINE = 4


@dataclasses.dataclass(frozen=True)
class Column:
  """How to read one column.

  dtype: the polars type.
  optional: whether fields may be empty.
  unit: of a time, a key of `event_values.WRITTEN_TIMES`; it is kept in full precision. None: no time.
  before_1970: whether a time may be negative.
  """

  dtype: Any
  optional: bool = False
  unit: str | None = None
  before_1970: bool = False


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Complete lines of a file; `first_line` is the 1-based line number of the first one."""

  path: pathlib.Path
  data: bytes
  first_line: int


def read_columns(
  path: str | pathlib.Path,
  columns: Mapping[str, Column | None],
  *,
  separator: str = ",",
  header: bool = False,
  quote: str | None = None,
) -> pl.DataFrame:
  """Returns the selected columns of a delimited file, in file order.

  Args:
    path: the file, plain or .gz.
    columns: with `header`: the columns to read. Without: every column of the file in order, None for those to skip.
    separator: one character, or "::", which is read as ":" with empty columns in between.
    header: whether the first line names the columns.
    quote: the quoting character, or None if the format has none.

  Raises:
    ValueError: missing file, truncated gzip, wrong separator, missing column, text in a numeric column, time in another
      unit.
  """
  path = require_file(path)
  tables = []
  for chunk in line_chunks(path, quote=quote):
    if header and not tables:
      chunk, layout = _take_header(chunk, columns, separator, quote)
    elif not tables:
      layout = dict(columns)
    tables.append(_parse(chunk, layout, separator, quote))
  if not sum(map(len, tables)):
    raise ValueError(f"{path}: has no rows")
  return pl.concat(tables).select([name for name, column in columns.items() if column is not None])


def require_file(path: str | pathlib.Path) -> pathlib.Path:
  """Returns the path of an existing file.

  Raises:
    ValueError: it is not a file; the message lists the folder.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    names = sorted(p.name for p in path.parent.iterdir())[:12] if path.parent.is_dir() else []
    hint = f"the folder holds {', '.join(names)}" if names else "the folder is missing or empty"
    raise ValueError(f"{path}: no such file; {hint}")
  return path


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


def line_chunks(path: pathlib.Path, *, chunk_bytes: int | None = None, quote: str | None = None) -> Iterator[Chunk]:
  """Yields the file in chunks of complete lines, unpacked if the name ends in .gz.

  Args:
    path: the file.
    chunk_bytes: approximate size of a chunk; None for `CHUNK_BYTES`.
    quote: the quoting character; a chunk does not end at a quoted line break.

  Raises:
    ValueError: a gzip file is damaged or truncated, or a quotation is never closed.
  """
  rest, line = b"", 1
  for block in _blocks(path, chunk_bytes or CHUNK_BYTES):
    block = rest + block
    cut = _last_line_end(block, quote)
    data, rest = block[:cut], block[cut:]
    if data:
      yield Chunk(path, data, line)
      line += data.count(b"\n")
    if len(rest) > _MAX_CHUNKS_PER_LINE * (chunk_bytes or CHUNK_BYTES):
      raise ValueError(
        f"{path}: line {line}: no line ends within {len(rest)} bytes: is a quotation mark {quote} never closed?"
      )
  if rest:
    yield Chunk(path, rest, line)


def _blocks(path: pathlib.Path, size: int) -> Iterator[bytes]:
  read = 0
  try:
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
      while block := stream.read(size):
        read += len(block)
        yield block
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise ValueError(
      f"{path}: damaged or truncated after {read} unpacked bytes ({error}); get the file again"
    ) from error


def _last_line_end(block: bytes, quote: str | None) -> int:
  """Returns the end of the last line that does not end inside a quotation; 0 if there is none."""
  cut = block.rfind(b"\n") + 1
  if quote is None:
    return cut
  open_quotation = block.count(quote.encode(), 0, cut) % 2
  while cut and open_quotation:
    earlier = block.rfind(b"\n", 0, cut - 1) + 1
    open_quotation ^= block.count(quote.encode(), earlier, cut) % 2
    cut = earlier
  return cut


def _take_header(chunk: Chunk, columns, separator: str, quote: str | None) -> tuple[Chunk, dict[str, Column | None]]:
  head, _, body = chunk.data.partition(b"\n")
  text = head.decode("utf-8-sig", errors="replace").rstrip("\r")
  names = next(csv.reader([text], delimiter=separator, quotechar=quote or '"'), [])
  missing = [name for name in columns if name not in names]
  if missing:
    raise ValueError(
      f"{chunk.path}: line 1: no column {missing} in the header {_shown(text)} (separator {separator!r})"
    )
  if len(set(names)) < len(names):
    raise ValueError(f"{chunk.path}: line 1: a column name occurs twice in the header {_shown(text)}")
  return Chunk(chunk.path, body, chunk.first_line + 1), {name: columns.get(name) for name in names}


def _parse(chunk: Chunk, layout: Mapping[str, Column | None], separator: str, quote: str | None) -> pl.DataFrame:
  selected = {name: column for name, column in layout.items() if column is not None}
  chunk = dataclasses.replace(chunk, data=chunk.data.rstrip(b"\r\n"))
  if not chunk.data.strip():
    return pl.DataFrame(schema={n: pl.Int64 if column.unit else column.dtype for n, column in selected.items()})
  schema: dict[str, Any] = {}
  for position, (name, column) in enumerate(layout.items()):
    schema |= {name: column.dtype if column else pl.String}
    if separator == "::" and position < len(layout) - 1:
      schema |= {f"{name}::": pl.String}
  try:
    lazy = pl.scan_csv(chunk.data, has_header=False, separator=separator[0], quote_char=quote, schema=schema)
    table = _collect(lazy, chunk, layout, separator, quote).select(list(selected))
  except pl.exceptions.PolarsError as error:
    _explain(chunk, layout, separator, quote)
    raise ValueError(f"{chunk.path}: in or after line {chunk.first_line}: {error}") from error
  for name, column in selected.items():
    if not column.optional and (bad := event_values.unusable(table[name])).any():
      _explain(chunk, layout, separator, quote)
      held = f"holds {table[name][bad.arg_max()]!r}" if table[name].dtype.is_float() else "is empty"
      raise ValueError(f"{chunk.path}: near line {chunk.first_line + bad.arg_max()}: column {name!r} {held}")
  return _with_times(table, chunk, selected)


def _collect(lazy: pl.LazyFrame, chunk: Chunk, layout, separator: str, quote: str | None) -> pl.DataFrame:
  """Returns the parsed rows; checks separators first, because polars does not check columns it skips."""
  if quote and quote.encode() in chunk.data:
    return lazy.collect()
  lines = chunk.data.count(b"\n") + 1
  if chunk.data.count(separator.encode()) != lines * (len(layout) - 1):
    _explain(chunk, layout, separator, quote)
  return lazy.select([name for name, column in layout.items() if column is not None]).collect()


def _with_times(table: pl.DataFrame, chunk: Chunk, selected: Mapping[str, Column]) -> pl.DataFrame:
  for name, column in selected.items():
    if column.unit:
      place = event_values.at_rows(chunk.path, name, chunk.first_line, "line")
      times, _ = event_values.times(table[name], column.unit, place, before_1970=column.before_1970)
      table = table.with_columns(times)
  return table


def _explain(chunk: Chunk, layout: Mapping[str, Column | None], separator: str, quote: str | None) -> None:
  """Raises ValueError for the first bad line of a chunk; returns if it finds none. Skips lines with quotes."""
  text = chunk.data.decode("utf-8", errors="replace")
  lines = pl.DataFrame({"line": [line.rstrip("\r") for line in text.split("\n")]}).with_row_index("row")
  if quote:
    lines = lines.filter(~pl.col("line").str.contains(quote, literal=True))
  lines = lines.with_columns(fields=pl.col("line").str.split(separator))
  problems = [_wrong_count(lines, len(layout), separator)]
  for position, (name, column) in enumerate(layout.items()):
    if column is not None:
      problems.append(_wrong_value(lines, position, name, column))
  found = [problem for problem in problems if problem is not None]
  if found:
    row, problem, line = min(found)
    raise ValueError(f"{chunk.path}: line {chunk.first_line + row}: {problem}: {_shown(line)}")


def _wrong_count(lines: pl.DataFrame, num_fields: int, separator: str) -> tuple[int, str, str] | None:
  bad = lines.filter(pl.col("fields").list.len() != num_fields).head(1)
  if bad.is_empty():
    return None
  count = len(bad["fields"][0])
  return bad["row"][0], f"{count} column(s) separated by {separator!r}, needs {num_fields}", bad["line"][0]


def _wrong_value(lines: pl.DataFrame, position: int, name: str, column: Column) -> tuple[int, str, str] | None:
  field = pl.col("fields").list.get(position, null_on_oob=True)
  empty = field.fill_null("").str.strip_chars() == ""
  value = field.cast(column.dtype, strict=False)
  wrong = ~empty & (value.is_null() | ~value.is_finite() if column.dtype.is_float() else value.is_null())
  bad = lines.filter(wrong if column.optional else wrong | empty).with_columns(field=field).head(1)
  if bad.is_empty():
    return None
  kind = "text" if column.dtype == pl.String else str(column.dtype)
  return bad["row"][0], f"column {name!r} holds {_shown(bad['field'][0] or '')}, needs {kind}", bad["line"][0]


def _shown(text: str) -> str:
  return repr(text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…")
