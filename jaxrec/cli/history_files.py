"""Histories of users who need not be in the data, read from a CSV or Parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from jaxrec.data.action_columns import PREFIX
from jaxrec.data.preparation import filters
from jaxrec.data.preparation.prepare import reader_parameters
from jaxrec.data.prepared import PreparedData
from jaxrec.data.sources.tabular import read_table

_TABLE, _TYPED = "table", "typed actions"
_UNUSED = {"action", "actions", "rating", "title"}


def read_histories(
  path: str, data: PreparedData, with_actions: bool = False, typed: Sequence[str] = ()
) -> dict[str, list[tuple[Any, ...]]]:
  """Returns user -> events `(item, time[, domain[, action]])`, oldest first, as `Recommender.recommend` takes them.

  With `typed`, events end with the mapping of their actions instead, as `ActionRanker.histories` takes them.

  The file is read with the options with which the data was prepared by `--source=table`. Of other sources it has the
  columns user, item, timestamp where the data has times, and action where they are read.

  Args:
    path: of the file.
    data: that of the recommender.
    with_actions: whether the column of actions is read, which then must be there.
    typed: names of typed actions, whose columns are read, and then must be there.

  Raises:
    ValueError: the file cannot be read with these options.
  """
  given = data.meta["options"] if data.meta["source"] == _TABLE else {"action": "action"}
  unused = _UNUSED - {"action"} if with_actions else _UNUSED
  options = {name: value for name, value in given.items() if name in reader_parameters(_TABLE) and name not in unused}
  if not data.has_timestamps:
    options["timestamp"] = None
  log = read_table(path, **options, actions={name: data.action_meta[name]["kind"] for name in typed})
  events = log.events
  if data.has_timestamps:
    events = filters.in_seconds(events.sort("timestamp", maintain_order=True), log.time_unit)
  if "action" in events.columns:  # The fourth of an event, after what the file may lack.
    missing = [name for name in ("timestamp", "domain") if name not in events.columns]
    events = events.with_columns(pl.lit(None).alias(name) for name in missing)
  if typed:
    columns = [pl.col(PREFIX + name).alias(name) for name in typed]
    events = events.with_columns(pl.struct(columns).alias(_TYPED))
  names = [name for name in ("item", "timestamp", "domain", "action", _TYPED) if name in events.columns]
  groups = events.group_by("user", maintain_order=True).agg(names).sort("user")
  return {str(user): list(zip(*columns, strict=True)) for user, *columns in groups.select("user", *names).iter_rows()}
