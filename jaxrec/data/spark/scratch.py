"""Tables that Spark and this process exchange, and results of its stages, as Parquet in a folder that all see."""

from __future__ import annotations

import contextlib
import pathlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
  from pyspark.sql import DataFrame, SparkSession

PREFIX = "action__"
"""What the names of typed actions begin with in Spark, where a point has a meaning."""


class Scratch:
  """Parquet files by name; a name is used once."""

  def __init__(self, session: SparkSession, folder: pathlib.Path):
    self.session, self._folder, self._count = session, folder, 0

  def settled(self, frame: DataFrame) -> DataFrame:
    """Returns a frame written to disk, so that later stages read it and do not compute it again."""
    path = self._path()
    with spark_errors():
      frame.write.parquet(str(path))
      return self.session.read.schema(frame.schema).parquet(str(path))

  def collected(self, frame: DataFrame) -> pl.DataFrame:
    """Returns the rows of a frame, in no order; all of them are in the memory of this process."""
    path = self._path()
    with spark_errors():
      frame.write.parquet(str(path))
    return pl.read_parquet(sorted(path.glob("*.parquet")), glob=False)

  def frame(self, table: pl.DataFrame) -> DataFrame:
    """Returns the rows of a table of this process."""
    path = self._path()
    path.mkdir(parents=True)
    table.write_parquet(path / "table.parquet")
    with spark_errors():
      return self.session.read.parquet(str(path))

  def _path(self) -> pathlib.Path:
    self._count += 1
    return self._folder / f"{self._count:05}"


@contextlib.contextmanager
def spark_errors() -> Iterator[None]:
  """Turns a `ValueError` of a worker, which comes as the text of a traceback, into one of this process.

  Raises:
    ValueError: what the worker raised.
  """
  from py4j.protocol import Py4JError
  from pyspark.errors import PySparkException

  try:
    yield
  except (PySparkException, Py4JError) as error:
    if found := re.findall(r"^(?:\w+\.)*ValueError: (.*)$", str(error), re.MULTILINE):
      raise ValueError(found[0]) from None
    raise
