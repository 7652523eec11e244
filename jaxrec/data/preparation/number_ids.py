"""Integer ids for the users, items and domains of an interaction log, with the tables that map them back."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl

from jaxrec.data import action_columns, event_values
from jaxrec.data.sources import InteractionLog


@dataclasses.dataclass(frozen=True)
class NumberedEvents:
  """Events whose users, items and domains are integers.

  events: columns `user` and `item` (rows of the tables below, from 0), `domain` (1..C), and `timestamp`, `action`,
    `split` if the source has them.
  users, items: one row per user and per item, in the order of their ids, with the source's ids and further columns.
  domain_names: the names of domains 1..C.
  action_kinds: the kinds of the columns `action.<name>` of the events.
  action_names: column of the events -> names of its actions, where they have names.
  known_users, known_items: so many users (items), the first ones, stay whatever filters do: they have ids already.
  """

  events: pl.DataFrame
  users: pl.DataFrame
  items: pl.DataFrame
  domain_names: tuple[str, ...]
  action_kinds: Mapping[str, str] = dataclasses.field(default_factory=dict)
  action_names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  known_users: int = 0
  known_items: int = 0


def number_ids(events: pl.DataFrame, log: InteractionLog, items_per_domain: bool) -> NumberedEvents:
  """Returns the events with integer ids.

  Args:
    events: those of the log, or what filters left of them.
    log: names the domains, and the users and items if the source lists them; otherwise they are those of the events,
      sorted.
    items_per_domain: whether the same raw item id in two domains is two items.

  Raises:
    ValueError: domains, users or items of the events that the log does not list, or lists twice; names that are blank,
      or that would be taken for each other.
  """
  events, domain_names = _number_domains(events, log)
  users, items = id_tables(lambda keys: events.select(keys).unique(), log, domain_names, items_per_domain)
  events = _number_column(_number_column(events, users, "user"), items, "item")
  if events["domain"].null_count():
    row = events["domain"].is_null().arg_max()
    raise ValueError(f"item {items['item'][events['item'][row]]!r} has no domain, but other items have one")
  optional = [name for name in ("timestamp", "action", "split") if name in events.columns]
  optional += [action_columns.PREFIX + name for name in log.action_kinds]
  kept = events.select("user", "item", "domain", *optional)
  return NumberedEvents(kept, users, items, domain_names, log.action_kinds, log.action_names)


def id_tables(
  distinct: Callable[[list[str]], pl.DataFrame],
  log: InteractionLog,
  domain_names: tuple[str, ...],
  items_per_domain: bool,
) -> tuple[pl.DataFrame, pl.DataFrame]:
  """Returns the tables of users and of items, in the order of their ids.

  Args:
    distinct: returns the distinct values that some columns of the events have together, domains as 1..C.
    log: lists users and items, or does not.
    domain_names: of domains 1..C.
    items_per_domain: whether the same raw item id in two domains is two items.

  Raises:
    ValueError: as `number_ids`.
  """
  users = _table_of(distinct, ["user"], log.users)
  items = _table_of(distinct, ["item", "domain"] if items_per_domain else ["item"], _listed_items(log, domain_names))
  for table, name in ((users, "user"), (items, "item")):
    names = table[name].unique(maintain_order=True) if items_per_domain else table[name]
    event_values.check_names(names.cast(pl.String) if isinstance(names.dtype, pl.Categorical) else names, name)
  if "raw_id" in users.columns and (repeated := users["raw_id"].filter(users["raw_id"].is_duplicated())).len():
    raise ValueError(f"the raw id {repeated[0]!r} names {(repeated == repeated[0]).sum()} users")
  return users, items


def raw_ids(table: pl.DataFrame, name: str) -> pl.Series:
  """Returns the raw ids of a table of users or items as text: its column `raw_id`, else the one of this name."""
  return table["raw_id" if "raw_id" in table.columns else name].cast(pl.String)


def _number_domains(events: pl.DataFrame, log: InteractionLog) -> tuple[pl.DataFrame, tuple[str, ...]]:
  """Returns the events with `domain` as 1..C, and the C names."""
  if "domain" not in events.columns and log.items is not None and "domain" in log.items.columns:
    events = events.join(log.items.select("item", "domain"), on="item", how="left", maintain_order="left")
  if "domain" not in events.columns:
    names = log.domains or ("all",)
    return events.with_columns(domain=pl.lit(1, pl.Int32)), names
  names = domains_in_order(events["domain"].unique().drop_nulls().to_list(), log)
  return with_domain_ids(events, names), names


def domains_in_order(found: Sequence[str], log: InteractionLog) -> tuple[str, ...]:
  """Returns the names of domains 1..C: those that the log expects, else the ones found, sorted.

  Raises:
    ValueError: expected ones are not found or others are; names that are blank, or that would be taken for each other.
  """
  names = log.domains or tuple(sorted(found, key=_integers_first))
  if len(set(names)) < len(names):
    raise ValueError(f"domains={list(names)} must be different names")
  event_values.check_names(pl.Series(names, dtype=pl.String), "domain")
  empty, unknown = sorted(set(names) - set(found)), sorted(set(found) - set(names))
  if empty or unknown:
    raise ValueError(f"domains must be {list(names)}: {empty} have no events, {unknown} are not expected")
  return names


def _integers_first(name: str) -> tuple[int, int, str]:
  return (0, int(name), name) if re.fullmatch(r"-?\d+", name) else (1, 0, name)


def with_domain_ids(table: pl.DataFrame, names: tuple[str, ...]) -> pl.DataFrame:
  """Returns a table with `domain` as 1..C in place of names; null for names that are not listed."""
  ids = pl.DataFrame({"domain": list(names), "__id": np.arange(1, len(names) + 1, dtype=np.int32)})
  ids = ids.with_columns(pl.col("domain").cast(table.schema["domain"]))
  return table.join(ids, on="domain", how="left", maintain_order="left").drop("domain").rename({"__id": "domain"})


def _listed_items(log: InteractionLog, domain_names: tuple[str, ...]) -> pl.DataFrame | None:
  """Returns the items that the source lists; those of a domain without events are assigned to domain 1."""
  if log.items is None or "domain" not in log.items.columns:
    return log.items
  return with_domain_ids(log.items, domain_names).with_columns(pl.col("domain").fill_null(1))


def _table_of(
  distinct: Callable[[list[str]], pl.DataFrame], keys: list[str], listed: pl.DataFrame | None
) -> pl.DataFrame:
  """Returns one row per distinct value of `keys`, in the order of the ids: as listed, else sorted."""
  name = keys[0]
  if listed is None:
    return distinct(keys).sort(keys[::-1])
  if "domain" in keys and "domain" not in listed.columns:
    listed = distinct(keys).sort(keys[::-1]).join(listed, on=name, how="left", maintain_order="left")
  repeated = listed.filter(pl.struct(keys).is_duplicated()).head(1)
  if len(repeated):
    raise ValueError(f"the catalogue holds {name} {repeated[name][0]!r} twice")
  missing = distinct(keys).join(listed, on=keys, how="anti").sort(keys)
  if len(missing):
    raise ValueError(
      f"{len(missing)} {name}(s) of the events are not in the catalogue, such as {missing[name].head(3).to_list()}"
    )
  return listed


def _number_column(events: pl.DataFrame, table: pl.DataFrame, name: str) -> pl.DataFrame:
  """Returns the events with rows of `table` in place of raw ids; the domain is a key only if raw ids are ambiguous."""
  needs_domain = "domain" in table.columns and len(table) != table[name].n_unique()
  keys = [name, "domain"] if needs_domain else [name]
  ids = table.select(keys).with_columns(__id=np.arange(len(table), dtype=np.int32))
  return events.join(ids, on=keys, how="left", maintain_order="left").drop(name).rename({"__id": name})
