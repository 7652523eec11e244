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
  events = events.with_columns(item_id=item + 1, domain_id="domain")
  columns = {name: _column(events, name) for name in ("item_id", "domain_id", "timestamp", "action")}
  columns["split"], split = filters.split_events(events, offsets, options)
  _count_users(counts, offsets, columns["split"], columns["domain_id"], domain_names)
  actions, action_meta = _actions(events, numbered.action_kinds)
  meta = {
    "format": prepared_files.FORMAT,
    "source": source,
    "options": json_values({**reader_options, **dataclasses.asdict(options)}),
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
  tables = {"item_table": _item_table(items, columns), "user_table": _user_table(numbered.users[kept_users])}
  return PreparedData(**columns, offsets=offsets, meta=meta, actions=actions, **tables)


def _kept(ids: np.ndarray, size: int, known: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the ids of `size` that are known or have an event, and for each event the index of its id among them."""
  is_kept = np.arange(size) < known
  is_kept[ids] = True
  return np.flatnonzero(is_kept), (np.cumsum(is_kept) - 1)[ids]


def _column(events: pl.DataFrame, name: str) -> np.ndarray:
  if name not in events.columns:
    return np.zeros(len(events), prepared.COLUMNS[name])
  return events[name].to_numpy().astype(prepared.COLUMNS[name])


def _actions(events: pl.DataFrame, kinds: Mapping[str, str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  values = {name: events[action_columns.PREFIX + name].to_numpy() for name in kinds}
  return action_columns.describe(values, kinds, "event {1} by user and time".format)


def _count_users(counts: dict[str, Any], offsets, split, domain_id, domain_names: tuple[str, ...]) -> None:
  lengths = np.diff(offsets)
  held_out = np.concatenate([[0], np.cumsum(split > 0)])[offsets]
  counts["users_train_only"] = int((np.diff(held_out) == 0).sum())
  counts["events_per_user"] = {
    "least": int(lengths.min()),
    "median": float(np.median(lengths)),
    "most": int(lengths.max()),
  }
  num_domains = len(domain_names)
  if num_domains > 1:
    user = np.repeat(np.arange(len(lengths)), lengths)
    pairs = np.unique(user * num_domains + domain_id - 1)
    counts["users_in_several_domains"] = int((np.bincount(pairs // num_domains) > 1).sum())
    is_empty = np.bincount(domain_id, minlength=num_domains + 1)[1:] == 0
    counts["domains_emptied_by_filters"] = [name for name, empty in zip(domain_names, is_empty, strict=True) if empty]


def json_values(options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns options as `meta.json` records them: what JSON cannot hold, as text."""
  return {
    name: value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)
    for name, value in options.items()
  }


def _item_table(items: pl.DataFrame, columns: Mapping[str, np.ndarray]) -> pl.DataFrame:
  domain = prepared.first_domain(columns["item_id"], columns["domain_id"], len(items))[1:]
  if "domain" in items.columns:
    domain = items["domain"].to_numpy().astype(np.int32)
  title = pl.col("title").fill_null("") if "title" in items.columns else pl.lit("")
  extra = [name for name in items.columns if name not in ("item", "raw_id", "title", "domain")]
  return items.with_columns(
    item_id=np.arange(1, len(items) + 1, dtype=np.int32), raw_id=raw_ids(items, "item"), title=title, domain_id=domain
  ).select("item_id", "raw_id", "title", "domain_id", *extra)


def _user_table(users: pl.DataFrame) -> pl.DataFrame:
  return (
    users.select(raw_id=raw_ids(users, "user"))
    .with_columns(user=np.arange(len(users), dtype=np.int64))
    .select("user", "raw_id")
  )
