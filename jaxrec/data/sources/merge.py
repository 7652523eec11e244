"""Several sources as the domains of one data set; users with the same raw id are one user.

Or unrelated persons are made one user, as a control: what the other domain says about them is then noise, and
attention across domains can only hurt (`pair_users="by_number"`). For instance two halves of the users of a data set:

    python -m experiments.prepare --source=merge --out=data/halves --pair_users=by_number --pair_times=relative \\
      --sources='a=movielens-1m:ml-1m?part=1/2' --sources='b=movielens-1m:ml-1m?part=2/2'
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl
from absl import logging

from jaxrec.data import event_values
from jaxrec.data.action_columns import PREFIX
from jaxrec.data.sources.registry import InteractionLog

PAIR_USERS = ("by_id", "by_number")
PAIR_TIMES = ("given", "relative")
_RELATIVE_END = 1_000_000


def read_merge(
  sources: Sequence[Mapping[str, Any]],
  *,
  read: Callable[[Mapping[str, Any]], InteractionLog],
  pair_users: str = "by_id",
  pair_times: str = "given",
) -> InteractionLog:
  """Returns the concatenated events of all sources.

  A source with one domain becomes the domain `name`, one with several domains becomes `name/domain`, ... Items of
  different sources are different items, whatever their raw ids. Typed actions are those that all sources have; others
  are left out, which is logged.

  Args:
    sources: a mapping per source with `source`, `raw`, a unique `name`, the options of its reader, and perhaps `part`:
      "2/3" keeps every third user, from the second on, in the order of their ids.
    read: reads the log of one mapping.
    pair_users: "by_id", or "by_number": the n-th users of all sources, in the order of their ids, are one user. Users
      whose number not all sources have are dropped, and their events counted.
    pair_times: "given", or "relative": the time of a user's k-th of n events in a source is (k - 1/2) / n of 1,000,000
      seconds, so that persons who were active at different times have histories that mix.

  Raises:
    ValueError: fewer than two sources, a repeated name, two domains whose names become the same, actions as text in
      one source and as numbers in another, or of two kinds, a source without times, which give the common order, or
      another part or way of pairing.
  """
  if pair_users not in PAIR_USERS or pair_times not in PAIR_TIMES:
    raise ValueError(f"{pair_users=} must be one of {PAIR_USERS}, and {pair_times=} one of {PAIR_TIMES}")
  if isinstance(sources, str | Mapping) or len(sources) < 2:
    raise ValueError("merge needs sources: two or more mappings with source, raw and name")
  names = [entry.get("name") for entry in sources]
  if None in names or len(set(names)) < len(names):
    raise ValueError(f"the sources need different names, not {names}")
  logs = [_named(_part(_read_entry(read, entry), entry), entry["name"]) for entry in sources]
  if pair_users == "by_number":
    logs = _paired_by_number(logs)
  logs = [_with_relative_times(log) for log in logs] if pair_times == "relative" else _in_one_unit(logs)
  shared = [name for name in ("action", "rating") if any(name in log.events.columns for log in logs)]
  shared = [name for name in shared if name == "action" or all(name in log.events.columns for log in logs)]
  action = _type_of_actions(logs, names)
  kinds = _shared_kinds(logs, names)
  columns = [*shared, *(PREFIX + name for name in kinds)]
  events = pl.concat([_columns(log, columns, action) for log in logs], how="vertical_relaxed")
  items = None
  if any(log.items is not None for log in logs):
    items = pl.concat([_items(log) for log in logs], how="diagonal_relaxed")
  dropped = {
    f"{name}: {reason}": count for name, log in zip(names, logs, strict=True) for reason, count in log.dropped.items()
  }
  domains = tuple(domain for log in logs for domain in log.domains or ())
  if repeated := sorted({domain for domain in domains if domains.count(domain) > 1}):
    raise ValueError(f"the domains {repeated} of two sources get the same name; give the sources other names")
  return InteractionLog(
    events,
    items=items,
    domains=domains,
    raw_rows=sum(log.raw_rows for log in logs),
    dropped=dropped,
    time_unit=logs[0].time_unit,
    action_kinds=kinds,
  )


def _read_entry(read, entry) -> InteractionLog:
  return read({key: value for key, value in entry.items() if key != "part"})


def _part(log: InteractionLog, entry: Mapping[str, Any]) -> InteractionLog:
  """Returns the log with the users of the entry's part."""
  text = str(entry.get("part", "1/1"))
  first, slash, count = text.partition("/")
  if not (slash and first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
    raise ValueError(f"part={text!r} of source {entry['name']!r} must be such as '1/2': the first of two parts")
  if int(count) == 1:
    return log
  chosen = _user_number(log) % int(count) == int(first) - 1
  events = log.events.filter(chosen)
  return dataclasses.replace(log, events=events, users=None)


def _user_number(log: InteractionLog) -> pl.Expr:
  """Returns the number of each event's user, from 0, in the order of the ids."""
  return pl.col("user").rank("dense").cast(pl.Int64) - 1


def _paired_by_number(logs: Sequence[InteractionLog]) -> list[InteractionLog]:
  shared = min(log.events["user"].n_unique() for log in logs)
  paired = []
  for log in logs:
    events = log.events.with_columns(user=_user_number(log))
    kept = events.filter(pl.col("user") < shared)
    dropped = {**log.dropped, "of users without a partner": len(events) - len(kept)}
    paired.append(dataclasses.replace(log, events=kept, dropped=dropped))
  return paired


def _with_relative_times(log: InteractionLog) -> InteractionLog:
  place = pl.col("timestamp").rank("ordinal").over("user") - 0.5
  time = (place / pl.len().over("user") * _RELATIVE_END).cast(pl.Int64)
  return dataclasses.replace(log, events=log.events.with_columns(timestamp=time), time_unit="s")


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
    events, domains = events.with_columns(domain=pl.lit(name)), (name,)
  else:
    prefixed = pl.concat_str(pl.lit(f"{name}/"), pl.col("domain"))
    found = log.domains or tuple(sorted(events["domain"].unique().to_list()))
    items = items.with_columns(domain=prefixed) if items is not None and "domain" in items.columns else None
    events, domains = events.with_columns(domain=prefixed), tuple(f"{name}/{domain}" for domain in found)
  return dataclasses.replace(log, events=events, items=items, users=None, domains=domains, in_order=False)


def _in_one_unit(logs: Sequence[InteractionLog]) -> list[InteractionLog]:
  """Returns the logs with times in the finest of their units."""
  unit = max((log.time_unit for log in logs), key=event_values.UNITS.get)
  return [dataclasses.replace(log, events=_in_unit(log, unit), time_unit=unit) for log in logs]


def _in_unit(log: InteractionLog, unit: str) -> pl.DataFrame:
  factor = event_values.UNITS[unit] // event_values.UNITS[log.time_unit]
  latest = log.events["timestamp"].max()
  if latest * factor >= 2**63:
    raise ValueError(f"the time {latest} in {log.time_unit} is too late to be compared with times in {unit}")
  return log.events.with_columns(pl.col("timestamp").cast(pl.Int64) * factor)


def _type_of_actions(logs: Sequence[InteractionLog], names: Sequence[str]) -> Any:
  """Returns text where sources name their actions, else the type of numbers."""
  found = {name: log.events.schema.get("action") for name, log in zip(names, logs, strict=True)}
  numbers = [name for name, dtype in found.items() if dtype is not None and dtype.is_numeric()]
  texts = [name for name, dtype in found.items() if dtype is not None and not dtype.is_numeric()]
  if numbers and texts:
    raise ValueError(f"the actions of {texts} are text, those of {numbers} numbers; write them alike or leave them out")
  return pl.String if texts else pl.Int32


def _shared_kinds(logs: Sequence[InteractionLog], names: Sequence[str]) -> dict[str, str]:
  """Returns the kinds of the typed actions that all sources have."""
  every = {name for log in logs for name in log.action_kinds}
  shared = [name for name in logs[0].action_kinds if all(name in log.action_kinds for log in logs)]
  if lacking := sorted(every - set(shared)):
    logging.warning("merge: the actions %s are left out; not all sources have them", lacking)
  for action in shared:
    found = {name: log.action_kinds[action] for name, log in zip(names, logs, strict=True)}
    if len(set(found.values())) > 1:
      raise ValueError(f"the action {action!r} has several kinds: {found}; read it as one kind")
    text = [name for name, log in zip(names, logs, strict=True) if not log.events.schema[PREFIX + action].is_numeric()]
    if text and len(text) < len(logs):
      raise ValueError(f"the action {action!r} is text in {text} and a number elsewhere; write it alike")
  return {name: logs[0].action_kinds[name] for name in shared}


def _columns(log: InteractionLog, shared: Sequence[str], action: Any) -> pl.DataFrame:
  events = log.events
  if "action" in shared:
    found = pl.col("action") if "action" in events.columns else pl.lit(None if action == pl.String else 0)
    events = events.with_columns(action=found.cast(action))
  return events.select(pl.col("user", "item").cast(pl.String), "domain", pl.col("timestamp").cast(pl.Int64), *shared)


def _items(log: InteractionLog) -> pl.DataFrame:
  items = log.items if log.items is not None else log.events.select("item", "domain").unique().sort("domain", "item")
  return items.with_columns(pl.col("item").cast(pl.String))
