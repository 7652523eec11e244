"""New events onto prepared data: known users, items and domains keep their ids, new ones come after them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from jaxrec.data import event_values, prepared
from jaxrec.data.action_columns import ACTION, PREFIX
from jaxrec.data.preparation import action_names, filters
from jaxrec.data.preparation.filters import PrepareOptions
from jaxrec.data.preparation.number_ids import NumberedEvents, raw_ids
from jaxrec.data.prepared import PreparedData
from jaxrec.data.sources import GENERATED, InteractionLog

_TIMES = ("validation_time", "test_time")


def load_base(folder: str | os.PathLike, source: str) -> PreparedData:
  """Returns the prepared data that new events are to extend.

  Raises:
    ValueError: no prepared data or damaged ones, or a source that reads no events.
  """
  if source in GENERATED:
    raise ValueError(f"extends={os.fspath(folder)!r} needs a source of events; {source!r} generates all of its data")
  base = PreparedData.load(folder)
  base.check_content()
  return base


def inherited_options(base: PreparedData, source: str, options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the options with those of the earlier preparation where none are given; its times of a split are not taken.

  Args:
    base: data of the earlier preparation.
    source: of the new events; another one than the earlier one inherits the filters, not the options of the reader.
    options: given for the new events.

  Raises:
    ValueError: another `item_identity`, or a split at given times that are not given anew.
  """
  known = {field.name for field in dataclasses.fields(PrepareOptions)}
  recorded = {
    name: value
    for name, value in base.meta["options"].items()
    if name != "sources" and (name in known or source == base.meta["source"])
  }
  merged = {**{name: value for name, value in recorded.items() if name not in _TIMES}, **options}
  identity = recorded.get("item_identity", "raw")
  if merged.get("item_identity", "raw") != identity:
    raise ValueError(f"item_identity={merged['item_identity']!r}: {base.path} was prepared with {identity!r}")
  if merged.get("split") == "by_time":
    for name in _TIMES:
      quantile = name.replace("time", "quantile")
      if recorded.get(name) is not None and not {name, quantile} & {*options}:
        raise ValueError(
          f"{base.path} was split at {name}={recorded[name]}: give {name} or {quantile} for the events of both"
        )
      if name in options:
        merged.pop(quantile, None)
  return merged


def extended(
  base: PreparedData, numbered: NumberedEvents, log: InteractionLog, options: PrepareOptions, counts: dict[str, Any]
) -> NumberedEvents:
  """Returns the events of both, those of `base` first, with ids of which the first are those of `base`; in seconds.

  Titles and further columns of known items stay as they are.

  Args:
    base: the earlier data.
    numbered: the new events, numbered on their own.
    log: says in which order and unit the times of the new events are.
    options: how repeated events of a user and an item are treated.
    counts: dropped events are added to it.

  Raises:
    ValueError: only one of both has times, or names of actions; other typed actions; names that look like known ones.
  """
  new = filters.in_seconds(filters.sort_events(numbered.events, log.in_order, counts), log.time_unit)
  _check_columns(base, new, numbered.action_kinds)
  used = {ACTION: bool(np.any(base.action)), **{PREFIX + name: True for name in base.actions}}
  new, names = action_names.united(base.action_names, new, numbered.action_names, used)
  domain_names = tuple(dict.fromkeys((*base.domain_names, *numbered.domain_names)))
  event_values.check_names(pl.Series(domain_names, dtype=pl.String), "domain")
  domain_of = np.array([0, *(domain_names.index(name) + 1 for name in numbered.domain_names)], np.int32)
  known_users, known_items = base.users.select("raw_id"), _items_of(base)
  new_users = numbered.users.select(raw_id=raw_ids(numbered.users, "user"))
  new_items = _new_items(numbered, domain_of)
  keys = ["raw_id", "domain"] if options.item_identity == "per_domain" else ["raw_id"]
  user, users = _united(known_users, new_users, ["raw_id"], "user")
  item, items = _united(known_items, new_items, keys, "item")
  new = new.with_columns(
    user=user[new["user"].to_numpy()], item=item[new["item"].to_numpy()], domain=domain_of[new["domain"].to_numpy()]
  )
  events = _without_repeated(_concatenated(base, new, options), options, counts)
  _add_counts(counts, base.meta["counts"])
  known = {"known_users": base.num_users, "known_items": base.num_items}
  return NumberedEvents(events, users, items, domain_names, numbered.action_kinds, names, **known)


def description(base: PreparedData, data: PreparedData) -> dict[str, int]:
  """Returns how many users, items, domains and events `data` has that `base` does not have, for `meta`."""
  sizes = ("num_users", "num_items", "num_domains", "num_events")
  return {name.replace("num", "new"): getattr(data, name) - getattr(base, name) for name in sizes}


def _check_columns(base: PreparedData, new: pl.DataFrame, kinds: Mapping[str, str]) -> None:
  if base.has_timestamps != ("timestamp" in new.columns):
    has, lacks = (base.path, "the new events") if base.has_timestamps else ("the new events", base.path)
    raise ValueError(f"times: {has} have them, {lacks} have none; they cannot be brought into one order")
  before = {name: described["kind"] for name, described in base.action_meta.items()}
  if before != dict(kinds):
    raise ValueError(f"actions: {base.path} has {before}, the new events have {dict(kinds)}; they must be the same")


def _items_of(base: PreparedData) -> pl.DataFrame:
  return base.items.drop("item_id").rename({"domain_id": "domain"}).with_columns(pl.col("domain").cast(pl.Int32))


def _new_items(numbered: NumberedEvents, domain_of: np.ndarray) -> pl.DataFrame:
  """Returns the items of the new events with raw ids, and domains as ids of both."""
  items, events = numbered.items, numbered.events
  domain = prepared.first_domain(events["item"].to_numpy() + 1, events["domain"].to_numpy(), len(items))[1:]
  if "domain" in items.columns:
    domain = items["domain"].to_numpy()
  table = items.with_columns(raw_id=raw_ids(items, "item"), domain=pl.Series(domain_of[domain], dtype=pl.Int32))
  return table.drop("item")


def _united(known: pl.DataFrame, new: pl.DataFrame, keys: Sequence[str], what: str) -> tuple[np.ndarray, pl.DataFrame]:
  """Returns the row of each new name in the table of both, and that table: known rows first, as they are."""
  for table in (known, new):
    repeated = table.filter(pl.struct(keys).is_duplicated())["raw_id"]
    if len(repeated):
      raise ValueError(f"the raw id {repeated[0]!r} names several {what}s, so new events cannot say which they mean")
  rows = known.select(keys).with_columns(row=np.arange(len(known), dtype=np.int32))
  found = new.select(keys).join(rows, on=list(keys), how="left", maintain_order="left")["row"]
  added = new.filter(found.is_null())
  event_values.check_names(pl.concat([known["raw_id"], added["raw_id"]]).unique(maintain_order=True), what)
  try:
    table = pl.concat([known, added], how="diagonal_relaxed")
  except pl.exceptions.PolarsError as error:
    raise ValueError(f"columns of the new {what}s have other types than those of the known ones: {error}") from error
  row = found.fill_null(-1).to_numpy(writable=True)
  row[row < 0] = len(known) + np.arange(len(added))
  return row.astype(np.int32), table


def _concatenated(base: PreparedData, new: pl.DataFrame, options: PrepareOptions) -> pl.DataFrame:
  columns = {
    "user": np.repeat(np.arange(base.num_users, dtype=np.int32), np.diff(base.offsets)),
    "item": np.asarray(base.item_id) - np.int32(1),
    "domain": np.asarray(base.domain_id),
    "action": np.asarray(base.action),
  }
  columns |= {"timestamp": np.asarray(base.timestamp)} if base.has_timestamps else {}
  columns |= {"split": np.asarray(base.split)} if options.split == "given" else {}
  columns |= {PREFIX + name: np.asarray(values) for name, values in base.actions.items()}
  if "action" not in new.columns:
    new = new.with_columns(action=pl.lit(0, pl.Int32))
  if missing := sorted(set(columns) - set(new.columns)):
    raise ValueError(f"the new events have no {', '.join(missing)}, which those of {base.path} have")
  return pl.concat([pl.DataFrame(columns), new.select(list(columns))], how="vertical_relaxed")


def _without_repeated(events: pl.DataFrame, options: PrepareOptions, counts: dict[str, Any]) -> pl.DataFrame:
  """Returns the events of both without the repeated ones, as `duplicates` says."""
  if options.duplicates == "keep":
    return events
  by_time = events.sort("user", "timestamp", maintain_order=True) if "timestamp" in events.columns else events
  kept = by_time.unique(["user", "item"], keep=options.duplicates, maintain_order=True)
  counts["dropped"]["duplicate"] = counts["dropped"].get("duplicate", 0) + len(events) - len(kept)
  return kept


def _add_counts(counts: dict[str, Any], before: Mapping[str, Any]) -> None:
  counts["raw_rows"] += before.get("raw_rows", 0)
  for reason, number in before.get("dropped", {}).items():
    counts["dropped"][reason] = counts["dropped"].get(reason, 0) + number
