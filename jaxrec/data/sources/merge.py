"""Several sources as the domains of one data set; users with the same raw id are one user."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from jaxrec.data.sources.registry import InteractionLog


def read_merge(
  sources: Sequence[Mapping[str, Any]], *, read: Callable[[Mapping[str, Any]], InteractionLog]
) -> InteractionLog:
  """Returns the concatenated events of all sources.

  A source with one domain becomes the domain `name`, one with several domains becomes `name/domain`, ... Items of
  different sources are different items, whatever their raw ids.

  Args:
    sources: a mapping per source with `source`, `raw`, a unique `name`, and the options of its reader.
    read: reads the log of one mapping.

  Raises:
    ValueError: fewer than two sources, a repeated name, or a source without times, which give the common order.
  """
  if isinstance(sources, str | Mapping) or len(sources) < 2:
    raise ValueError("merge needs sources: two or more mappings with source, raw and name")
  names = [entry.get("name") for entry in sources]
  if None in names or len(set(names)) < len(names):
    raise ValueError(f"the sources need different names, not {names}")
  logs = [_named(read(entry), entry["name"]) for entry in sources]
  shared = [name for name in ("action", "rating") if any(name in log.events.columns for log in logs)]
  shared = [name for name in shared if name == "action" or all(name in log.events.columns for log in logs)]
  events = pl.concat([_columns(log, shared) for log in logs])
  items = None
  if any(log.items is not None for log in logs):
    items = pl.concat([_items(log) for log in logs], how="diagonal_relaxed")
  dropped = {
    f"{name}: {reason}": count for name, log in zip(names, logs, strict=True) for reason, count in log.dropped.items()
  }
  domains = tuple(domain for log in logs for domain in log.domains or ())
  return InteractionLog(
    events, items=items, domains=domains, raw_rows=sum(log.raw_rows for log in logs), dropped=dropped
  )


def _named(log: InteractionLog, name: str) -> InteractionLog:
  events, items = log.events, log.items
  if "timestamp" not in events.columns:
    raise ValueError(f"source {name!r} has no times, so its events cannot be ordered among those of other sources")
  if log.in_order:
    events = events.with_columns(pl.col("timestamp").cum_max().over("user"))
  if "domain" not in events.columns and items is not None and "domain" in items.columns:
    events = events.join(items.select("item", "domain"), on="item", how="left", maintain_order="left")
  if "domain" not in events.columns:
    items = items.with_columns(domain=pl.lit(name)) if items is not None else None
    return InteractionLog(events.with_columns(domain=pl.lit(name)), items, None, (name,), log.raw_rows, log.dropped)
  prefixed = pl.concat_str(pl.lit(f"{name}/"), pl.col("domain"))
  domains = log.domains or tuple(sorted(events["domain"].unique().to_list()))
  items = items.with_columns(domain=prefixed) if items is not None and "domain" in items.columns else None
  return InteractionLog(
    events.with_columns(domain=prefixed), items, None, tuple(f"{name}/{d}" for d in domains), log.raw_rows, log.dropped
  )


def _columns(log: InteractionLog, shared: Sequence[str]) -> pl.DataFrame:
  events = log.events
  if "action" in shared and "action" not in events.columns:
    events = events.with_columns(action=pl.lit(0, pl.Int32))
  return events.select(pl.col("user", "item").cast(pl.String), "domain", pl.col("timestamp").cast(pl.Int64), *shared)


def _items(log: InteractionLog) -> pl.DataFrame:
  items = log.items if log.items is not None else log.events.select("item", "domain").unique().sort("domain", "item")
  return items.with_columns(pl.col("item").cast(pl.String))
