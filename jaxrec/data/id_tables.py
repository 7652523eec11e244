"""The tables that map items and users of prepared data in memory back to ids and titles of the raw data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from jaxrec.data import event_values


def check_distinct(what: str, names: Sequence[str]) -> None:
  """Raises unless names are different, also as people read them.

  Raises:
    ValueError: a name that occurs twice, or two that look the same.
  """
  if len(set(names)) < len(names):
    repeated = next(name for index, name in enumerate(names) if name in names[:index])
    raise ValueError(f"{what} must be different, but {repeated!r} occurs more than once")
  event_values.check_names(pl.Series(names, dtype=pl.String), what)


def item_table(
  num_items: int,
  num_domains: int,
  raw_items: Sequence[str] | None,
  titles: Sequence[str] | None,
  item_domain: Any,
) -> pl.DataFrame:
  """Returns a row for each item 1..V: item_id, raw_id, title, domain_id.

  Args:
    num_items, num_domains: V, C.
    raw_items, titles: [V]; None for the ids as text, and for no titles.
    item_domain: [V + 1] domain of every item, 0 first.

  Raises:
    ValueError: another number of entries, or a domain outside 0..C.
  """
  item_domain = event_values.integer_array("item_domain", item_domain, np.int32, low=0, high=num_domains)
  raw_items = [str(i) for i in range(1, num_items + 1)] if raw_items is None else [str(r) for r in raw_items]
  titles = [""] * num_items if titles is None else list(titles)
  for name, values, length in (
    ("raw_items", raw_items, num_items),
    ("titles", titles, num_items),
    ("item_domain", item_domain, num_items + 1),
  ):
    if len(values) != length:
      raise ValueError(f"{name} has {len(values)} entries, needs {length} for {num_items} items")
  return pl.DataFrame(
    {
      "item_id": np.arange(1, num_items + 1, dtype=np.int32),
      "raw_id": pl.Series(raw_items, dtype=pl.String),
      "title": pl.Series(titles, dtype=pl.String),
      "domain_id": item_domain[1:],
    }
  )


def user_table(num_users: int, raw_users: Sequence[str] | None) -> pl.DataFrame:
  """Returns a row for each user: user (0-based) and raw_id, by default the index as text.

  Raises:
    ValueError: another number of ids, or equal ones.
  """
  raw_users = [str(u) for u in range(num_users)] if raw_users is None else [str(r) for r in raw_users]
  if len(raw_users) != num_users:
    raise ValueError(f"raw_users has {len(raw_users)} entries, needs {num_users}")
  check_distinct("raw_users", raw_users)
  return pl.DataFrame({"user": np.arange(num_users, dtype=np.int64), "raw_id": pl.Series(raw_users, dtype=pl.String)})
