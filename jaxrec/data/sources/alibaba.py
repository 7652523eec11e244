"""Two logs of Alibaba: Taobao's UserBehavior.csv and Tmall's user_log_format1.csv.

Both need a login at Tianchi to download.

Terms: research use. Source: https://tianchi.aliyun.com/dataset/649 (Taobao) and https://tianchi.aliyun.com/dataset/42
(Tmall).
"""

from __future__ import annotations

import datetime
import pathlib
from collections.abc import Sequence

import polars as pl

from jaxrec.data.sources.reading import find_file, read_columns
from jaxrec.data.sources.registry import InteractionLog
from jaxrec.data.sources.text_format import Column, TextFormat

BEHAVIORS = ("pv", "buy", "cart", "fav")
ACTIONS = ("click", "cart", "purchase", "favourite")
FIRST_SECOND, LAST_SECOND = 1511539200, 1512316799
"""2017-11-25 00:00:00 to 2017-12-03 23:59:59, Beijing time: the nine days of Taobao's log, as published."""
_TMALL_YEAR = 2014


def read_taobao(
  raw: str | pathlib.Path,
  *,
  behaviors: str | Sequence[str] = BEHAVIORS,
  domain: str = "one",
  outside_period: str = "drop",
  quote: str | None = None,
  encoding: str = "utf-8",
) -> InteractionLog:
  """Returns Taobao's rows `user,item,category,behavior,unix`. The action is 1 for pv, 2 buy, 3 cart, 4 fav.

  Typed actions: `behavior` (multi_class, from 0 in the order above), and `buy`, `cart` and `fav` (binary): whether the
  event is one.

  Args:
    raw: UserBehavior.csv (which has no header) or its folder.
    behaviors: those to keep, as a sequence or separated by commas.
    domain: "one", "behavior" or "category" (thousands of domains).
    outside_period: "drop" drops and counts the few rows with a time outside the nine days (some are before 1970);
      "keep" keeps them.
    quote, encoding: of the file, as in `TextFormat`.

  Raises:
    ValueError: an unknown option, a bad row, or no row inside the nine days.
  """
  path = find_file(raw, "UserBehavior.csv", "UserBehavior.csv.gz")
  _check_choice("domain", domain, ("one", "behavior", "category"))
  _check_choice("outside_period", outside_period, ("drop", "keep"))
  columns = {
    "user": Column(pl.Int64),
    "item": Column(pl.Int64),
    "category": Column(pl.Int64),
    "behavior": Column(pl.Enum(BEHAVIORS)),
    "timestamp": Column(pl.Int64),
  }
  rows = read_columns(path, columns, TextFormat(",", quote, encoding))
  kept = rows.filter(pl.col("behavior").is_in(_chosen("behaviors", behaviors, BEHAVIORS)))
  dropped = {"another behavior": len(rows) - len(kept)}
  if outside_period == "drop":
    inside = kept.filter(pl.col("timestamp").is_between(FIRST_SECOND, LAST_SECOND))
    dropped["outside the nine days of the log"] = len(kept) - len(inside)
    if inside.is_empty():
      raise ValueError(
        f"{path}: no time is in {FIRST_SECOND}..{LAST_SECOND}; the first is {rows['timestamp'][0]}: are these seconds?"
        " outside_period='keep' keeps all times"
      )
    kept = inside
  events = kept.with_columns(action=kept["behavior"].to_physical().cast(pl.Int32) + 1)
  return _log(events, len(rows), dropped, domain, BEHAVIORS, extra=("category",))


def read_tmall(
  raw: str | pathlib.Path,
  *,
  actions: str | Sequence[str] = ACTIONS,
  domain: str = "one",
  quote: str | None = None,
  encoding: str = "utf-8",
) -> InteractionLog:
  """Returns Tmall's rows. The action is 1 for a click, 2 cart, 3 purchase, 4 favourite.

  Typed actions: `behavior` (multi_class, from 0 in the order above), and `cart`, `purchase` and `favourite` (binary):
  whether the event is one.

  Times are those of days: the file writes the 11th of November 2014 as `1111`.

  Args:
    raw: user_log_format1.csv or its folder.
    actions: those to keep of click, cart, purchase, favourite, as a sequence or separated by commas.
    domain: "one", "action" or "category".
    quote, encoding: of the file, as in `TextFormat`.

  Raises:
    ValueError: an unknown option or a bad row.
  """
  path = find_file(raw, "user_log_format1.csv", "*/user_log_format1.csv")
  _check_choice("domain", domain, ("one", "action", "category"))
  columns = {
    "user_id": Column(pl.Int64),
    "item_id": Column(pl.Int64),
    "cat_id": Column(pl.Int64),
    "seller_id": Column(pl.Int64),
    "time_stamp": Column(pl.Int64),
    "action_type": Column(pl.Int64),
  }
  rows = read_columns(path, columns, TextFormat(",", quote, encoding), header=True)
  rows = rows.with_columns(_day_seconds(rows["time_stamp"], path))
  bad = ~rows["action_type"].is_between(0, len(ACTIONS) - 1)
  if bad.any():
    row = bad.arg_max()
    raise ValueError(
      f"{path}: line {row + 2}: column 'action_type': {rows['action_type'][row]} is not one of 0, 1, 2, 3"
    )
  chosen = [ACTIONS.index(name) for name in _chosen("actions", actions, ACTIONS)]
  kept = rows.filter(pl.col("action_type").is_in(chosen))
  names = {"user_id": "user", "item_id": "item", "cat_id": "category", "seller_id": "seller"}
  events = kept.rename(names).with_columns(action=(pl.col("action_type") + 1).cast(pl.Int32)).drop("time_stamp")
  if domain == "action":
    events = events.with_columns(behavior=pl.col("action_type").replace_strict(list(range(4)), list(ACTIONS)))
  return _log(
    events,
    len(rows),
    {"another action": len(rows) - len(kept)},
    "behavior" if domain == "action" else domain,
    ACTIONS,
    extra=("category", "seller"),
  )


def _log(
  events: pl.DataFrame, raw_rows: int, dropped: dict[str, int], domain: str, names: Sequence[str], extra: Sequence[str]
) -> InteractionLog:
  items = events.select("item", *extra).unique("item", keep="first", maintain_order=True).sort("item")
  events, kinds = _with_behaviors(events, names)
  keep = ["user", "item", "timestamp", "action", *(f"action.{name}" for name in kinds)]
  common = {"raw_rows": raw_rows, "dropped": dropped, "action_kinds": kinds}
  if domain == "one":
    return InteractionLog(events.select(keep), items=items, domains=("items",), **common)
  events = events.select(*keep, domain=pl.col(domain).cast(pl.String))
  return InteractionLog(events, items=items, **common)


def _with_behaviors(events: pl.DataFrame, names: Sequence[str]) -> tuple[pl.DataFrame, dict[str, str]]:
  """Returns the events with their kind of behaviour as typed actions: `names[action - 1]`, the first a mere view."""
  code = pl.col("action") - 1
  flags = [(code == i).cast(pl.UInt8).alias(f"action.{name}") for i, name in enumerate(names) if i]
  kinds = {"behavior": "multi_class"} | dict.fromkeys(names[1:], "binary")
  return events.with_columns(code.alias("action.behavior"), *flags), kinds


def _day_seconds(days: pl.Series, path: pathlib.Path) -> pl.Series:
  known = {}
  for day in days.unique().to_list():
    try:
      date = datetime.datetime(_TMALL_YEAR, day // 100, day % 100, tzinfo=datetime.UTC)
    except (ValueError, OverflowError):
      row = (days == day).arg_max()
      raise ValueError(
        f"{path}: line {row + 2}: column 'time_stamp': {day} is not a day written as month and day (mmdd)"
      ) from None
    known[day] = int(date.timestamp())
  return days.replace_strict(known, return_dtype=pl.Int64).alias("timestamp")


def _chosen(name: str, value: str | Sequence[str], allowed: Sequence[str]) -> list[str]:
  names = [part.strip() for part in value.split(",")] if isinstance(value, str) else list(value)
  unknown = sorted(set(names) - set(allowed))
  if unknown or not names:
    raise ValueError(f"{name}={value!r}: {unknown} are not known; choose from {', '.join(allowed)}")
  return names


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
  if value not in allowed:
    raise ValueError(f"{name}={value!r} is not known; give one of {', '.join(allowed)}")
