"""A table of events in memory -> prepared data."""

from __future__ import annotations

from typing import Any

import polars as pl

from jaxrec.data.preparation.prepare import prepare_log, split_options
from jaxrec.data.prepared import PreparedData
from jaxrec.data.sources.tabular import log_of_table

_SOURCE = "table"


def from_events(events: pl.DataFrame | Any, **options: Any) -> PreparedData:
  """Returns prepared data of a table with a row for each event, in memory.

  Args:
    events: a Polars frame, or anything that `polars.DataFrame` accepts, such as a pandas frame or a dict of columns.
    **options: as of `--source=table`: `user`, `item`, `timestamp`, `domain`, ... name columns (by default "user",
      "item", "timestamp"); filters and `split` are those of `jaxrec.data.preparation.filters.PrepareOptions`.

  Raises:
    ValueError: a column is missing, or a value is not of its type.

  >>> data = from_events({"user": ["ann", "ann", "bob"], "item": ["tea", "jam", "tea"], "timestamp": [1, 2, 3]})
  >>> data.num_users, data.num_items, data.item_index("jam")
  (2, 2, 1)
  """
  frame = events if isinstance(events, pl.DataFrame) else pl.DataFrame(events)
  prepare_options, reader_options = split_options(_SOURCE, options)
  log = log_of_table(frame, **reader_options)
  return prepare_log(log, prepare_options, source=_SOURCE, reader_options=reader_options)
