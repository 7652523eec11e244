"""Part files of events, read by the workers of Spark with the reader of one machine."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from jaxrec.data import action_columns, event_values
from jaxrec.data.sources import parquet_parts
from jaxrec.data.sources.tabular import TableColumns, check_actions
from jaxrec.data.sources.text_format import Column
from jaxrec.data.spark.scratch import PREFIX

if TYPE_CHECKING:
  import pyarrow as pa
  from pyspark.sql import DataFrame, SparkSession

PLACE, RATED = "place", "is_rated"
_ROW_BITS = 40  # Of a place; the others are the index of the file.
_SPARK_TYPES = {pl.String: "string", pl.Int64: "long", pl.Int32: "int", pl.Float32: "float", pl.Boolean: "boolean"}


@dataclasses.dataclass(frozen=True)
class EventPieces:
  """Pieces of part files, and how to read them.

  pieces: part (the index of the file), path, first (index of the first row) and rows of each.
  table: meanings of the columns.
  columns: name -> how to read it; actions that the files hold as text are read as text.
  time_unit: of the times that are read.
  min_rating: events with a lower rating are marked; None marks none.
  """

  pieces: pl.DataFrame
  table: TableColumns
  columns: Mapping[str, Column]
  time_unit: str
  min_rating: float | None

  @classmethod
  def of(cls, parts: Sequence[pathlib.Path], table: TableColumns, min_rating: float | None) -> EventPieces:
    """Returns the pieces of part files.

    Raises:
      ValueError: a file is damaged, or its columns are missing or of other types; no rows; or no ratings.
    """
    types = parquet_parts.check_schemas(parts, table.columns)
    columns, time_unit = dict(table.columns), "s"
    for name, column in table.columns.items():
      if column.unit:
        time_unit = event_values.kept_unit(types[name], column.unit)
      elif column.numbers is not None and isinstance(types[name], pl.String | pl.Categorical | pl.Enum):
        columns[name] = dataclasses.replace(column, numbers=None)
    found = [
      (index, str(part), first, rows)
      for index, part in enumerate(parts)
      for first, rows in parquet_parts.rows_of_pieces(part)
    ]
    if not found:
      raise ValueError(f"{parts[0]} and {len(parts) - 1} more files: has no rows")
    if min_rating is not None and "rating" not in table.name_of:
      raise ValueError(f"{min_rating=} needs ratings, but the source has none")
    pieces = pl.DataFrame(found, ["part", "path", "first", "rows"], orient="row")
    return cls(pieces, table, columns, time_unit, min_rating)

  @property
  def names_of_actions(self) -> list[str]:
    """The columns in Spark of actions that are read as text."""
    numbered = {meaning for meaning, name in self.table.name_of.items() if self.table.columns[name].numbers is not None}
    return [_in_spark(m) for m in numbered if self.columns[self.table.name_of[m]].numbers is None]

  def read(self, session: SparkSession) -> DataFrame:
    """Returns the events: a column for each meaning but `rating`, `place` (file and row) and `is_rated`."""
    schema = self._schema()
    pieces = session.createDataFrame(self.pieces.rows(), "part long, path string, first long, rows long")
    text = ", ".join(f"`{name}` {_SPARK_TYPES[dtype]}" for name, dtype in schema.items())
    # One piece in a partition: its rows are some hundred megabytes.
    return pieces.repartition(len(self.pieces)).mapInArrow(functools.partial(_read, self, list(schema)), text)

  def _schema(self) -> dict[str, Any]:
    found = {}
    for meaning, name in self.table.name_of.items():
      column = self.columns[name]
      found[_in_spark(meaning)] = pl.Int64 if column.unit else column.numbers or column.dtype
    found.pop("rating", None)
    return {**found, PLACE: pl.Int64, RATED: pl.Boolean}


def in_polars(name: str) -> str:
  """Returns the name of a column of Spark as events have it in this process."""
  return action_columns.PREFIX + name.removeprefix(PREFIX) if name.startswith(PREFIX) else name


def _in_spark(meaning: str) -> str:
  return PREFIX + meaning.removeprefix(action_columns.PREFIX) if meaning.startswith(action_columns.PREFIX) else meaning


def _read(source: EventPieces, names: list[str], batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
  """Reads on a worker the pieces that come as rows."""
  for batch in batches:
    for piece in batch.to_pylist():
      yield from arrow_batches(_events(source, **piece).select(names))


def _events(source: EventPieces, part: int, path: str, first: int, rows: int) -> pl.DataFrame:
  file, table = pathlib.Path(path), source.table
  events, _ = parquet_parts.read_piece(file, source.columns, first, rows)
  events = events.rename({name: meaning for meaning, name in table.name_of.items()})
  check_actions(events, table.kinds, file, first + 1)
  events = events.with_columns(pl.int_range(first, first + len(events)).alias(PLACE) + (part << _ROW_BITS))
  is_rated = pl.lit(True)
  if source.min_rating is not None:
    is_rated = (pl.col("rating") >= source.min_rating) & pl.col("rating").is_not_nan()
  events = events.with_columns(is_rated.alias(RATED))
  if "timestamp" in events.columns:
    events = events.filter(pl.col("timestamp") >= 0)
  if "title" in events.columns:
    blank = event_values.unusable(events["title"])
    events = events.with_columns(title=pl.when(~blank).then("title"))
  return events.rename(_in_spark)


def arrow_batches(table: pl.DataFrame, rows: int = 1 << 16) -> Iterator[pa.RecordBatch]:
  """Yields a table as batches whose types Spark knows."""
  import pyarrow as pa

  found = table.to_arrow()
  types = [pa.string() if pa.types.is_large_string(field.type) else field.type for field in found.schema]
  schema = pa.schema([pa.field(name, kind) for name, kind in zip(found.column_names, types, strict=True)])
  yield from found.cast(schema).to_batches(max_chunksize=rows)
