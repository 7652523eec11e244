"""What happens to an interaction log on the way to prepared columns: filters, k-core, order, split."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import polars as pl

from jaxrec.data import prepared


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
  """What happens to a log once it is read. Times are seconds.

  min_user_events, min_item_events: keep users (items) with at least so many events, repeated until both hold (k-core);
    0 = all. With `min_item_events` the catalogue shrinks to the items that are left, otherwise it keeps the never-seen
    candidates.
  min_domain_events: keep users with at least so many events in every domain.
  min_rating: drop events rated below this.
  duplicates: "keep"; "first" or "last" keeps one event for a user and an item.
  item_identity: "raw" = an item is its raw id; "per_domain" = the same raw id in two domains is two items.
  split: "leave_one_out" = a user's last event is test, the second-last validation (users with under 3 events train
    only); "by_time" = test is what happens from `test_time` on, validation from `validation_time` on; "given" = the
    source says.
  validation_time, test_time: for "by_time"; where not given, the times after which 10% and 5% of the events lie.
  """

  min_user_events: int = 0
  min_item_events: int = 0
  min_domain_events: int = 0
  min_rating: float | None = None
  duplicates: str = "keep"
  item_identity: str = "raw"
  split: str = "leave_one_out"
  validation_time: int | None = None
  test_time: int | None = None

  def __post_init__(self):
    choices = {
      "duplicates": ("keep", "first", "last"),
      "item_identity": ("raw", "per_domain"),
      "split": ("leave_one_out", "by_time", "given"),
    }
    for name, allowed in choices.items():
      if getattr(self, name) not in allowed:
        raise ValueError(f"{name}={getattr(self, name)!r} is not known; give one of {', '.join(allowed)}")
    for name in ("min_user_events", "min_item_events", "min_domain_events"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name}={getattr(self, name)} must not be negative")
    if self.split != "by_time" and (self.validation_time is not None or self.test_time is not None):
      raise ValueError(f"validation_time and test_time need split='by_time', not split={self.split!r}")


def drop_events(events: pl.DataFrame, in_order: bool, todo: PrepareOptions, counts: dict[str, Any]) -> pl.DataFrame:
  """Returns the events without low ratings and repeated pairs, as the options say; counts what goes."""
  if todo.min_rating is not None:
    if "rating" not in events.columns:
      raise ValueError(f"min_rating={todo.min_rating} needs ratings, but the source has none")
    events = _count(events, events.filter(pl.col("rating") >= todo.min_rating), "rated below min_rating", counts)
  if todo.duplicates != "keep":
    by_time = "timestamp" in events.columns and not in_order
    ordered = events.sort("timestamp", maintain_order=True) if by_time else events
    key = ["user", "item"] + (["domain"] if todo.item_identity == "per_domain" and "domain" in events.columns else [])
    events = _count(events, ordered.unique(key, keep=todo.duplicates, maintain_order=True), "duplicate", counts)
  return events


def _count(before: pl.DataFrame, after: pl.DataFrame, reason: str, counts: dict[str, Any]) -> pl.DataFrame:
  counts["dropped"][reason] = counts["dropped"].get(reason, 0) + len(before) - len(after)
  if after.is_empty():
    raise ValueError(f"no event is left: {len(before)} were dropped because {reason}")
  return after


def core(events: pl.DataFrame, todo: PrepareOptions, num_domains: int, counts, report) -> pl.DataFrame:
  """Returns the events of the iterated k-core. A round is a few `bincount`s on the dense numbers."""
  user, item, domain = (events[name].to_numpy() for name in ("user", "item", "domain"))
  rows, rounds = np.arange(len(user)), 0
  limits = (
    ("users with too few events", user, todo.min_user_events),
    ("items with too few events", item, todo.min_item_events),
  )
  while True:
    left = len(rows)
    for reason, ids, least in limits:
      rows = _keep(rows, np.bincount(ids[rows])[ids[rows]] >= least, reason, counts)
    if todo.min_domain_events:
      per_domain = np.bincount(
        user[rows] * np.int64(num_domains) + domain[rows] - 1, minlength=(user.max() + 1) * num_domains
      )
      enough = (per_domain.reshape(-1, num_domains) >= todo.min_domain_events).all(axis=1)
      rows = _keep(rows, enough[user[rows]], "users with too few events in a domain", counts)
    rounds += 1
    if len(rows) == left:
      break
  if rounds > 1:
    report(f"{rounds - 1} round(s) of filtering leave {len(rows):,} events")
  return events if len(rows) == len(events) else events[rows]


def _keep(rows: np.ndarray, keep: np.ndarray, reason: str, counts: dict[str, Any]) -> np.ndarray:
  lost = int(len(rows) - keep.sum())
  if lost:
    counts["dropped"][reason] = counts["dropped"].get(reason, 0) + lost
    rows = rows[keep]
  if not len(rows):
    raise ValueError(f"no event is left after filtering; dropped: {counts['dropped']}; lower the limits")
  return rows


def sort(events: pl.DataFrame, in_order: bool, counts: dict[str, Any]) -> pl.DataFrame:
  """Returns the events user by user in time order, ties as in the file.

  Choice: where the source's own order is kept, its few decreasing times are raised to the latest one before them, so
  that times never fall inside a user; the number of raised times is counted.
  """
  if not in_order and "timestamp" in events.columns:
    return events.sort("user", "timestamp", maintain_order=True)
  events = events if events["user"].is_sorted() else events.sort("user", maintain_order=True)
  if "timestamp" in events.columns:
    raised = events.with_columns(pl.col("timestamp").cum_max().over("user"))
    counts["times_raised_to_keep_the_order"] = int((raised["timestamp"] != events["timestamp"]).sum())
    events = raised
  return events


def split(events: pl.DataFrame, offsets: np.ndarray, todo: PrepareOptions) -> tuple[np.ndarray, dict[str, Any]]:
  """Returns the part of each event (0 training, 1 validation, 2 test) and the description for `meta.json`."""
  if todo.split == "leave_one_out":
    return prepared.leave_one_out(offsets), {"kind": "leave_one_out"}
  if todo.split == "given":
    if "split" not in events.columns:
      raise ValueError(
        "split='given' needs a source that says which events are for validation and test; this one does not"
      )
    return events["split"].to_numpy().astype(np.uint8), {"kind": "given"}
  if "timestamp" not in events.columns:
    raise ValueError("split='by_time' needs times, but the source has none; use split='leave_one_out'")
  times = events["timestamp"].to_numpy()
  early = int(np.quantile(times, 0.90, method="higher")) if todo.validation_time is None else todo.validation_time
  late = int(np.quantile(times, 0.95, method="higher")) if todo.test_time is None else todo.test_time
  split = (times >= early).astype(np.uint8) + (times >= late).astype(np.uint8)
  if early >= late or len(np.unique(split)) < 3:
    raise ValueError(
      f"split='by_time' with validation_time={early}, test_time={late} leaves a part empty; the events lie "
      f"between {times.min()} and {times.max()}, and validation_time must lie before test_time"
    )
  return split, {"kind": "by_time", "validation_time": early, "test_time": late}
