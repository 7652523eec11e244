"""The names of the data sources, and the `InteractionLog` that each of them returns."""

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
  "table": "tabular:read_table",
}
"""Source name -> module:function of its reader. `merge` is not listed: it reads other sources."""

GENERATED: Mapping[str, str] = {
  "synthetic": "jaxrec.data.generators.synthetic:synthetic_data",
  "planted": "jaxrec.data.generators.planted_transfer:planted_transfer",
  "planted_interest": "jaxrec.data.generators.planted_interest:planted_interest",
  "planted_styles": "jaxrec.data.generators.planted_styles:planted_styles",
  "planted_actions": "jaxrec.data.generators.planted_actions:planted_actions",
  "streaming": "jaxrec.data.generators.streaming_vocabulary:streaming_vocabulary",
}
"""Source name -> module:function of a generator, which needs no raw data and returns `PreparedData`."""


@dataclasses.dataclass(frozen=True)
class InteractionLog:
  """The result of reading a source: one row per event, in file order.

  events: columns `user`, `item` (integers or strings); optional `domain` (string), `timestamp` (int64, in `time_unit`),
    `action` (int32, 0 for none, or text), `rating` (float, for filters only), `split` (uint8, if the source defines
    it), and `action.<name>` for each of `action_kinds`.
  items: the catalogue, including items without events, in the order of the item ids: `item`, optional `raw_id`,
    `title`, `domain` and further columns; None for the items of the events, sorted.
  users: `user`, `raw_id`, in the order of the user ids; None for the users of the events, sorted.
  domains: the names, in the order of the domain ids; None for the names in the events, sorted. A single name needs no
    column `domain`.
  raw_rows: number of rows in the files.
  dropped: number of rows that the reader left out, by reason.
  action_kinds: kinds of the typed actions; see `jaxrec.data.action_columns`. Those of kind multi_class may be text.
  action_names: column -> names of its actions where these are numbered texts; see
    `jaxrec.data.preparation.action_names`.
  in_order: whether each user's events are in order of time already, so that `timestamp` must not reorder them.
  time_unit: "s", "ms", "us" or "ns": events are ordered by their time in full precision, which is cut to seconds last.

  >>> import polars as pl
  >>> events = pl.DataFrame({"user": ["ann", "ann"], "item": ["tea", "jam"], "timestamp": [60, 120]})
  >>> InteractionLog(events, raw_rows=2).time_unit
  's'
  """

  events: pl.DataFrame
  items: pl.DataFrame | None = None
  users: pl.DataFrame | None = None
  domains: tuple[str, ...] | None = None
  raw_rows: int = 0
  dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
  in_order: bool = False
  time_unit: str = "s"
  action_kinds: Mapping[str, str] = dataclasses.field(default_factory=dict)
  action_names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


def source_names() -> tuple[str, ...]:
  """Returns every name that `prepare` accepts."""
  return (*SOURCES, "merge", *GENERATED)


def source_reader(name: str) -> Callable[..., InteractionLog]:
  """Returns the function that reads the source `name`: `reader(raw_path, **options)`.

  Raises:
    ValueError: there is no such source.

  >>> source_reader("movielens-1m").__module__
  'jaxrec.data.sources.movielens'
  """
  if name not in SOURCES:
    raise ValueError(f"source={name!r} is not known; known: {', '.join(source_names())}")
  module, function = SOURCES[name].split(":")
  return getattr(importlib.import_module(f"jaxrec.data.sources.{module}"), function)


def generator(name: str) -> Callable[..., PreparedData]:
  """Returns the function that generates the data of the source `name`, one of `GENERATED`, from its options."""
  module, function = GENERATED[name].split(":")
  return getattr(importlib.import_module(module), function)
