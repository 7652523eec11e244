"""Histories of users who need not be in the data, read from a CSV or Parquet file."""

from __future__ import annotations

from typing import Any

from jaxrec.data.preparation import filters
from jaxrec.data.preparation.prepare import reader_parameters
from jaxrec.data.prepared import PreparedData
from jaxrec.data.sources.tabular import read_table

_TABLE = "table"
_UNUSED = ("action", "actions", "rating", "title")


def read_histories(path: str, data: PreparedData) -> dict[str, list[tuple[Any, ...]]]:
  """Returns user -> events `(item, time[, domain])`, oldest first, as `Recommender.recommend` takes them.

  The file is read with the options with which the data was prepared by `--source=table`. Of other sources it has the
  columns user, item, and timestamp where the data has times.

  Args:
    path: of the file.
    data: that of the recommender.

  Raises:
    ValueError: the file cannot be read with these options.
  """
  given = data.meta["options"] if data.meta["source"] == _TABLE else {}
  options = {name: value for name, value in given.items() if name in reader_parameters(_TABLE) and name not in _UNUSED}
  if not data.has_timestamps:
    options["timestamp"] = None
  log = read_table(path, **options)
  events = log.events
  if data.has_timestamps:
    events = filters.in_seconds(events.sort("timestamp", maintain_order=True), log.time_unit)
  names = [name for name in ("item", "timestamp", "domain") if name in events.columns]
  groups = events.group_by("user", maintain_order=True).agg(names).sort("user")
  return {str(user): list(zip(*columns, strict=True)) for user, *columns in groups.select("user", *names).iter_rows()}
