"""Tables written in parts, so that a killed program continues where it was: Parquet, CSV or JSON lines."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import polars as pl

from jaxrec.train.writers import write_json

FORMATS = (".parquet", ".csv", ".jsonl")


class PartFiles:
  """A table that is written part by part and appears at `path` when all parts are there.

  Parts are kept in the folder `<path>.parts`, each complete or not at all; a second start with the same identity finds
  them. `finish` joins them and removes the folder.

  Args:
    path: the table; its suffix is its format.
    identity: what the rows depend on; parts of another identity are refused.

  Raises:
    ValueError: an unknown suffix, a table that exists, or parts of another identity.
  """

  def __init__(self, path: str | os.PathLike, identity: Mapping[str, Any]):
    self._path = pathlib.Path(path)
    self._folder = self._path.with_name(self._path.name + ".parts")
    if self._path.suffix not in FORMATS:
      raise ValueError(f"{str(path)!r} must end with one of {', '.join(FORMATS)}")
    if self._path.exists():
      raise ValueError(f"{path} exists already; delete it or give another name")
    self._check_identity(json.loads(json.dumps(dict(identity))))

  def has(self, index: int) -> bool:
    """Returns whether a part is there."""
    return self._part(index).exists()

  def write(self, index: int, table: pl.DataFrame) -> None:
    """Writes a part."""
    unfinished = self._folder / "unfinished"
    table.write_parquet(unfinished)
    _sync(unfinished)
    os.replace(unfinished, self._part(index))

  def finish(self, num_parts: int, column: str) -> tuple[int, int]:
    """Joins the parts to the table; returns its number of rows and how many values `column` has."""
    parts = [self._part(index) for index in range(num_parts)]
    unfinished = self._folder / f"table{self._path.suffix}"
    rows = pl.scan_parquet(parts)
    write = {".parquet": rows.sink_parquet, ".csv": rows.sink_csv, ".jsonl": rows.sink_ndjson}[self._path.suffix]
    write(unfinished)
    _sync(unfinished)
    count, values = rows.select(pl.len(), pl.col(column).n_unique().alias("values")).collect().row(0)
    os.replace(unfinished, self._path)
    shutil.rmtree(self._folder)
    return count, values

  def _part(self, index: int) -> pathlib.Path:
    return self._folder / f"{index:06}.parquet"

  def _check_identity(self, identity: dict[str, Any]) -> None:
    path = self._folder / "identity.json"
    if not path.exists():
      self._folder.mkdir(parents=True, exist_ok=True)
      write_json(str(path), identity)
      return
    before = json.loads(path.read_text(encoding="utf-8"))
    if changed := [f"{name} was {before.get(name)!r}, is {value!r}" for name, value in identity.items()
                   if before.get(name) != value]:  # fmt: skip
      raise ValueError(f"{self._folder} holds parts of another call: {'; '.join(changed)}. Delete it to start anew")


def _sync(path: pathlib.Path) -> None:
  with open(path, "rb") as file:
    os.fsync(file.fileno())
