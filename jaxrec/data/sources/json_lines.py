"""JSON lines, parsed by polars in chunks, with errors that name file, line and field."""

from __future__ import annotations

import functools
import io
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import polars as pl

from jaxrec.data import event_values
from jaxrec.data.sources.reading import Chunk, line_chunks
from jaxrec.data.sources.row_parser import shown
from jaxrec.data.sources.text_format import PARSER_ERRORS


def read_json_lines(
  path: pathlib.Path, schema: Mapping[str, Any], optional: tuple[str, ...] = ()
) -> Iterator[tuple[pl.DataFrame, Callable[[str, int], str]]]:
  """Yields the fields of a file with one JSON object per line, as tables, and what names the place of a field and row.

  Args:
    path: the file, plain or gzip. Blank lines are left out.
    schema: polars type by name of the fields to read.
    optional: those that a line may lack.

  Raises:
    ValueError: a line is not one JSON object, lacks a field, or holds one of another type; or there is no line.
  """
  required = {name: dtype for name, dtype in schema.items() if name not in optional}
  found = False
  for chunk in line_chunks(path):
    if chunk.data.strip():
      found = True
      yield _parse(chunk, schema, required), functools.partial(_place, chunk)
  if not found:
    raise ValueError(f"{path}: has no rows")


def json_object(line: bytes, where: str) -> dict:
  """Returns the JSON object that a line holds.

  Raises:
    ValueError: it is none; the message begins with `where`.
  """
  try:
    fields = json.loads(line)
  except (ValueError, RecursionError):
    fields = None
  if not isinstance(fields, dict):
    raise ValueError(f"{where}: not a JSON object: {shown(line.decode('utf-8', errors='surrogateescape'))}")
  return fields


def _parse(chunk: Chunk, schema: Mapping[str, Any], required: Mapping[str, Any]) -> pl.DataFrame:
  try:
    table = pl.read_ndjson(io.BytesIO(chunk.data), schema=dict(schema))
    problem = None
    if len(table) != sum(1 for _ in _lines(chunk)):
      problem = f"is read as {len(table)} objects"
    elif empty := [name for name in required if event_values.unusable(table[name]).any()]:
      problem = f"fields {empty} are empty or not finite"
  except PARSER_ERRORS as error:
    problem = str(error)
  if problem is not None:
    _explain(chunk, required, problem)
  return table


def _lines(chunk: Chunk) -> Iterator[tuple[int, bytes]]:
  """Yields the lines that are not blank, with their number in the file."""
  for index, line in enumerate(chunk.data.split(b"\n")):
    if line.strip():
      yield chunk.first_line + index, line


def _place(chunk: Chunk, name: str, row: int) -> str:
  line = [number for number, _ in _lines(chunk)][row]
  return f"{chunk.path}: line {line}: column {name!r}"


def _explain(chunk: Chunk, required: Mapping[str, Any], problem: str) -> None:
  """Raises ValueError for the first bad line of a chunk that the fast parser rejected."""
  for number, line in _lines(chunk):
    _check_line(line, required, f"{chunk.path}: line {number}")
  raise ValueError(f"{chunk.path}: in or after line {chunk.first_line}: {problem}")


def _check_line(line: bytes, required: Mapping[str, Any], where: str) -> None:
  fields = json_object(line, where)
  for name, dtype in required.items():
    if fields.get(name) is None:
      raise ValueError(f"{where}: lacks the field {name!r}: {shown(line.decode('utf-8', errors='surrogateescape'))}")
    if not _is_usable(fields[name], dtype):
      needs = "text" if dtype == pl.String else "an integer" if dtype == pl.Int64 else "a number"
      raise ValueError(f"{where}: field {name!r} holds {fields[name]!r}, needs {needs}")


def _is_usable(value: object, dtype: Any) -> bool:
  if dtype == pl.String:
    return isinstance(value, str) and bool(value.strip())
  if isinstance(value, bool) or not isinstance(value, int | float):
    return False
  return math.isfinite(value) if dtype != pl.Int64 else isinstance(value, int) and abs(value) < 2**63
