"""A table of events in memory -> prepared data."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import polars as pl

from jaxrec.data.preparation.prepare import prepare
from jaxrec.data.prepared import PreparedData


def from_events(events: pl.DataFrame | Any, **options: Any) -> PreparedData:
  """Returns prepared data of a table with a row for each event, in memory.

  Args:
    events: a Polars frame, or anything that `polars.DataFrame` accepts, such as a pandas frame or a list of dicts.
    **options: as of `--source=table`: `user`, `item`, `timestamp`, `domain`, ... name columns (by default "user",
      "item", "timestamp"); filters and `split` are those of `jaxrec.data.preparation.filters.PrepareOptions`.

  Raises:
    ValueError: a column is missing, or a value is not of its type.

  >>> data = from_events({"user": ["ann", "ann", "bob"], "item": ["tea", "jam", "tea"], "timestamp": [1, 2, 3]})
  >>> data.num_users, data.num_items, data.item_index("jam")
  (2, 2, 1)
  """
  frame = events if isinstance(events, pl.DataFrame) else pl.DataFrame(events)
  with tempfile.TemporaryDirectory() as folder:  # As a file it is read and checked as every table is.
    path = os.path.join(folder, "events.parquet")
    frame.write_parquet(path)
    try:
      return prepare("table", path, **options)
    except ValueError as error:
      raise ValueError(str(error).replace(path, "events")) from error
