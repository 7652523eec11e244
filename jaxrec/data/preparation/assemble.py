"""Numbered and sorted events -> `PreparedData`: columns, id tables and `meta`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from jaxrec.data import action_columns, prepared, prepared_files
from jaxrec.data.preparation import filters
from jaxrec.data.preparation.filters import PrepareOptions
from jaxrec.data.preparation.number_ids import NumberedEvents, raw_ids
from jaxrec.data.prepared import PreparedData


def assemble(
  numbered: NumberedEvents,
  options: PrepareOptions,
  counts: dict[str, Any],
  source: str,
  reader_options: Mapping[str, Any],
) -> PreparedData:
  """Returns prepared data in memory.

  Args:
    numbered: events sorted by user and time; users without events, and with `min_item_events` items without events, are
      removed from the tables, unless they are known.
    options: the split, and what `meta` records.
    counts: raw rows and dropped events; counts of users are added.
    source: name of the source, for `meta`.
    reader_options: options of the source's reader, for `meta`.
  """
  events, items, domain_names = numbered.events, numbered.items, numbered.domain_names
  kept_users, user = _kept(events["user"].to_numpy(), len(numbered.users), numbered.known_users)
  item = events["item"].to_numpy()
  if options.min_item_events:
    kept_items, item = _kept(item, len(items), numbered.known_items)
    items = items[kept_items]
  offsets = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=len(kept_users)))]).astype(np.int64)
  columns = event_columns(events.with_columns(item=item))
  columns["split"], split = filters.split_events(events, offsets, options)
  tally = tally_of_users(offsets, columns["split"], columns["domain_id"], len(domain_names))
  counts |= counts_of_users(np.diff(offsets), tally, domain_names)
  actions, action_meta = typed_actions(events, numbered.action_kinds)
  meta = {
    "format": prepared_files.FORMAT,
    "source": source,
    "options": recorded(reader_options, options),
    "num_users": len(kept_users),
    "num_items": len(items),
    "num_domains": len(domain_names),
    "num_events": len(item),
    "domain_names": list(domain_names),
    "split": split,
    "has_timestamps": "timestamp" in events.columns,
    "counts": counts,
    "actions": action_meta,
  }
  if numbered.action_names:
    meta["action_names"] = {name: list(names) for name, names in numbered.action_names.items()}
  domain = prepared.first_domain(columns["item_id"], columns["domain_id"], len(items))[1:]
  tables = {"item_table": item_table(items, domain), "user_table": user_table(numbered.users[kept_users])}
  return PreparedData(**columns, offsets=offsets, meta=meta, actions=actions, **tables)


def _kept(ids: np.ndarray, size: int, known: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the ids of `size` that are known or have an event, and for each event the index of its id among them."""
  is_kept = np.arange(size) < known
  is_kept[ids] = True
  return np.flatnonzero(is_kept), (np.cumsum(is_kept) - 1)[ids]


def event_columns(events: pl.DataFrame) -> dict[str, np.ndarray]:
  """Returns the columns of prepared data but the split, of events whose `item` is an index from 0."""
  events = events.with_columns(item_id=pl.col("item") + 1, domain_id="domain")
  return {name: _column(events, name) for name in ("item_id", "domain_id", "timestamp", "action")}


def _column(events: pl.DataFrame, name: str) -> np.ndarray:
  if name not in events.columns:
    return np.zeros(len(events), prepared.COLUMNS[name])
  return events[name].to_numpy().astype(prepared.COLUMNS[name])


def typed_actions(events: pl.DataFrame, kinds: Mapping[str, str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Returns the columns of typed actions, and what `meta` says of them."""
  values = {name: events[action_columns.PREFIX + name].to_numpy() for name in kinds}
  return action_columns.describe(values, kinds, "event {1} by user and time".format)


def tally_of_users(offsets: np.ndarray, split, domain_id, num_domains: int) -> dict[str, Any]:
  """Returns counts of users that add up over groups of users.

  >>> tally_of_users(np.array([0, 2, 3]), np.array([0, 2, 0]), np.array([1, 2, 2]), 2)
  {'train_only': 1, 'in_several_domains': 1, 'events_of_domains': [1, 2]}
  """
  held_out = np.concatenate([[0], np.cumsum(split > 0)])[offsets]
  several = 0
  if num_domains > 1:
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    pairs = np.unique(user * num_domains + domain_id - 1)
    several = int((np.bincount(pairs // num_domains) > 1).sum())
  events = np.bincount(domain_id, minlength=num_domains + 1)[1:].tolist()
  train_only = int((np.diff(held_out) == 0).sum())
  return {"train_only": train_only, "in_several_domains": several, "events_of_domains": events}


def counts_of_users(lengths: np.ndarray, tally: Mapping[str, Any], domain_names: tuple[str, ...]) -> dict[str, Any]:
  """Returns what `meta["counts"]` says of the users with histories of these lengths; `tally` is of all of them."""
  counts: dict[str, Any] = {"users_train_only": tally["train_only"]}
  counts["events_per_user"] = {
    "least": int(lengths.min()),
    "median": float(np.median(lengths)),
    "most": int(lengths.max()),
  }
  if len(domain_names) > 1:
    counts["users_in_several_domains"] = tally["in_several_domains"]
    empty = [name for name, events in zip(domain_names, tally["events_of_domains"], strict=True) if not events]
    counts["domains_emptied_by_filters"] = empty
  return counts


def recorded(reader_options: Mapping[str, Any], options: PrepareOptions) -> dict[str, Any]:
  """Returns the options of a preparation as `meta.json` records them."""
  return json_values({**reader_options, **dataclasses.asdict(options)})


def json_values(options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns options as `meta.json` records them: what JSON cannot hold, as text."""
  return {
    name: value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)
    for name, value in options.items()
  }


def item_table(items: pl.DataFrame, domain: np.ndarray) -> pl.DataFrame:
  """Returns the table of items as prepared data has it; `domain` is that of each item, unless `items` says it."""
  if "domain" in items.columns:
    domain = items["domain"].to_numpy().astype(np.int32)
  title = pl.col("title").fill_null("") if "title" in items.columns else pl.lit("")
  extra = [name for name in items.columns if name not in ("item", "raw_id", "title", "domain")]
  return items.with_columns(
    item_id=np.arange(1, len(items) + 1, dtype=np.int32), raw_id=raw_ids(items, "item"), title=title, domain_id=domain
  ).select("item_id", "raw_id", "title", "domain_id", *extra)


def user_table(users: pl.DataFrame) -> pl.DataFrame:
  """Returns the table of users as prepared data has it."""
  return (
    users.select(raw_id=raw_ids(users, "user"))
    .with_columns(user=np.arange(len(users), dtype=np.int64))
    .select("user", "raw_id")
  )
