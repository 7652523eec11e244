"""The names of the data sources, and what each of them has to produce: an `InteractionLog`."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  import polars as pl

  from jaxrec.data.prepared import PreparedData

SOURCES: Mapping[str, str] = {
  "movielens-100k": "movielens:read_100k",
  "movielens-1m": "movielens:read_1m",
  "movielens-20m": "movielens:read_csv",
  "movielens-25m": "movielens:read_csv",
  "movielens-32m": "movielens:read_csv",
  "amazon-ratings": "amazon:read_ratings",
  "amazon-reviews": "amazon:read_reviews",
  "amazon-5core": "amazon:read_5core",
  "kuairand-csv": "kuairand:read_logs",
  "kuairand-1k": "kuairand:read_shards",
  "taobao": "alibaba:read_taobao",
  "tmall": "alibaba:read_tmall",
  "abxi": "abxi:read_abxi",
  "table": "table:read_table",
}
"""Source name -> module:function. `merge` is put together by `jaxrec.data.preparation.prepare` itself."""

GENERATED: Mapping[str, str] = {
  "synthetic": "jaxrec.data.generators.synthetic:synthetic_data",
  "planted": "jaxrec.data.generators.planted_transfer:planted_transfer",
  "planted_interest": "jaxrec.data.generators.planted_interest:planted_interest",
}
"""Source name -> module:function that needs no raw data and returns `PreparedData`."""


@dataclasses.dataclass(frozen=True)
class InteractionLog:
  """What a source reads: one row an event, in file order.

  events: columns `user`, `item` (integers or strings); optional `domain` (string), `timestamp` (int64 seconds),
    `action` (int32, 0 = none), `rating` (float, only to filter by), `split` (uint8, where the source itself says so).
  items: the catalogue with the never-seen candidates: `item`, optional `raw_id`, `title`, `domain` and further columns;
    None = the items of the events. Its order is the order of the item ids.
  users: `user`, `raw_id` in the order wanted; None = the users of the events, sorted.
  domains: the names in the order of their ids; None = the names met, sorted. With one name, no `domain` column is
    needed.
  raw_rows: rows of the files. dropped: rows left out by the source, by reason.
  in_order: each user's events are in order of time as they stand, and `timestamp` (if any) must not reorder them.
  """

  events: pl.DataFrame
  items: pl.DataFrame | None = None
  users: pl.DataFrame | None = None
  domains: tuple[str, ...] | None = None
  raw_rows: int = 0
  dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
  in_order: bool = False


def source_names() -> tuple[str, ...]:
  """Returns every name that `prepare` accepts."""
  return (*SOURCES, "merge", *GENERATED)


def source_reader(name: str) -> Callable[..., InteractionLog]:
  """Returns the function that reads the source `name`: `reader(raw_path, **options)`.

  Raises:
    ValueError: there is no such source.
  """
  if name not in SOURCES:
    raise ValueError(f"source={name!r} is not known; known: {', '.join(source_names())}")
  module, function = SOURCES[name].split(":")
  return getattr(importlib.import_module(f"jaxrec.data.sources.{module}"), function)


def generator(name: str) -> Callable[..., PreparedData]:
  """Returns the function that makes the data of the source `name`, one of `GENERATED`, from its options."""
  module, function = GENERATED[name].split(":")
  return getattr(importlib.import_module(module), function)
