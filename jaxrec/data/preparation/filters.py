"""Filters, k-core, order and split of an interaction log."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl

from jaxrec.data import event_values, prepared

_CHOICES = {
  "duplicates": ("keep", "first", "last"),
  "item_identity": ("raw", "per_domain"),
  "split": ("leave_one_out", "by_time", "given"),
}


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
  """How a log becomes prepared data. Times are seconds.

  min_user_events, min_item_events: keep users (items) with at least this many events, repeated until both hold
    (k-core); 0 keeps all. With `min_item_events` the catalogue shrinks to the remaining items, without it the catalogue
    keeps items that nobody chose.
  min_domain_events: keep users with at least this many events in every domain.
  min_rating: drop events with a lower rating, or with none.
  duplicates: "keep"; "first" or "last" keeps one event per user and item.
  item_identity: "raw": an item is a raw id; "per_domain": the same raw id in two domains is two items.
  split: "leave_one_out": a user's last event is for test, the second-to-last for validation (users with fewer than 3
    events are for training only); "by_time": events from `test_time` on are for test, those from `validation_time` on
    for validation; "given": the source defines the split.
  held_out_events: for "leave_one_out": so many of a user's last events are for test, and as many before them for
    validation (users with no more than twice as many are for training only). `config.eval.targets=all` predicts all of
    them.
  validation_time, test_time: for "by_time", in seconds; None takes a quantile of the times.
  validation_quantile, test_quantile: for "by_time": the quantiles that `validation_time` and `test_time` are, unless
    they are given; None: 0.90 and 0.95.
  """

  min_user_events: int = 0
  min_item_events: int = 0
  min_domain_events: int = 0
  min_rating: float | None = None
  duplicates: str = "keep"
  item_identity: str = "raw"
  split: str = "leave_one_out"
  held_out_events: int = 1
  validation_time: int | None = None
  test_time: int | None = None
  validation_quantile: float | None = None
  test_quantile: float | None = None

  def __post_init__(self):
    for name, allowed in _CHOICES.items():
      if getattr(self, name) not in allowed:
        raise ValueError(f"{name}={getattr(self, name)!r} is not known; give one of {', '.join(allowed)}")
    for name in ("min_user_events", "min_item_events", "min_domain_events"):
      if not isinstance(getattr(self, name), numbers.Integral) or getattr(self, name) < 0:
        raise ValueError(f"{name}={getattr(self, name)} must be an integer and must not be negative")
    if self.min_rating is not None and not math.isfinite(self.min_rating):
      raise ValueError(f"min_rating={self.min_rating} must be a finite number")
    if not isinstance(self.held_out_events, numbers.Integral) or not 1 <= self.held_out_events < 2**31:
      raise ValueError(f"held_out_events={self.held_out_events} must be an integer of at least 1")
    if self.held_out_events > 1 and self.split != "leave_one_out":
      raise ValueError(f"held_out_events={self.held_out_events} needs split='leave_one_out', not {self.split!r}")
    self._check_times()

  def _check_times(self):
    given = [name for split in ("validation", "test") for name in (f"{split}_time", f"{split}_quantile")]
    given = [name for name in given if getattr(self, name) is not None]
    if self.split != "by_time" and given:
      raise ValueError(f"{' and '.join(given)} need split='by_time', not split={self.split!r}")
    for split in ("validation", "test"):
      quantile = getattr(self, f"{split}_quantile")
      if quantile is not None and not 0 < quantile < 1:
        raise ValueError(f"{split}_quantile={quantile} must be between 0 and 1")
      if {f"{split}_time", f"{split}_quantile"} <= {*given}:
        raise ValueError(f"{split}_time and {split}_quantile are two ways to say the same; give one of them")


def drop_events(events: pl.DataFrame, in_order: bool, options: PrepareOptions, counts: dict[str, Any]) -> pl.DataFrame:
  """Returns the events without low ratings and duplicates, as the options say; adds the dropped events to `counts`.

  Raises:
    ValueError: `min_rating` without ratings, or no event is left.
  """
  if options.min_rating is not None:
    if "rating" not in events.columns:
      raise ValueError(f"min_rating={options.min_rating} needs ratings, but the source has none")
    rating = pl.col("rating")
    rated = events.filter((rating >= options.min_rating) & rating.is_not_nan())  # To polars NaN is the largest number.
    events = _count_dropped(events, rated, "rated below min_rating", counts)
  if options.duplicates != "keep":
    by_time = "timestamp" in events.columns and not in_order
    ordered = events.sort("timestamp", maintain_order=True) if by_time else events
    per_domain = options.item_identity == "per_domain" and "domain" in events.columns
    key = ["user", "item", "domain"] if per_domain else ["user", "item"]
    unique = ordered.unique(key, keep=options.duplicates, maintain_order=True)
    events = _count_dropped(events, unique, "duplicate", counts)
  return events


def _count_dropped(before: pl.DataFrame, after: pl.DataFrame, reason: str, counts: dict[str, Any]) -> pl.DataFrame:
  counts["dropped"][reason] = counts["dropped"].get(reason, 0) + len(before) - len(after)
  if after.is_empty():
    raise ValueError(f"no event is left: {len(before)} were dropped because {reason}")
  return after


def k_core(
  events: pl.DataFrame,
  num_domains: int,
  options: PrepareOptions,
  counts: dict[str, Any],
  report: Callable[[str], None],
  known: tuple[int, int] = (0, 0),
) -> pl.DataFrame:
  """Returns the events of users and items with enough events, removed in rounds until none has too few.

  A round is a few `bincount`s over the integer ids. The first `known` users and items stay, however few events they
  have.

  Raises:
    ValueError: no event is left.
  """
  user, item, domain = (events[name].to_numpy() for name in ("user", "item", "domain"))
  rows, rounds = np.arange(len(user)), 0
  limits = (
    ("users with too few events", user, options.min_user_events, known[0]),
    ("items with too few events", item, options.min_item_events, known[1]),
  )
  while True:
    before = len(rows)
    for reason, ids, minimum, stay in limits:
      enough = np.bincount(ids[rows]) >= minimum
      enough[:stay] = True
      rows = _keep(rows, enough[ids[rows]], reason, counts)
    if options.min_domain_events:
      per_domain = np.bincount(
        user[rows] * np.int64(num_domains) + domain[rows] - 1, minlength=(user.max() + 1) * num_domains
      )
      enough = (per_domain.reshape(-1, num_domains) >= options.min_domain_events).all(axis=1)
      enough[: known[0]] = True
      rows = _keep(rows, enough[user[rows]], "users with too few events in a domain", counts)
    rounds += 1
    if len(rows) == before:
      break
  if rounds > 1:
    report(f"{rounds - 1} round(s) of filtering leave {len(rows):,} events")
  return events if len(rows) == len(events) else events[rows]


def _keep(rows: np.ndarray, keep: np.ndarray, reason: str, counts: dict[str, Any]) -> np.ndarray:
  dropped = int(len(rows) - keep.sum())
  if dropped:
    counts["dropped"][reason] = counts["dropped"].get(reason, 0) + dropped
    rows = rows[keep]
  if not len(rows):
    raise ValueError(f"no event is left after filtering; dropped: {counts['dropped']}; lower the limits")
  return rows


def sort_events(events: pl.DataFrame, in_order: bool, counts: dict[str, Any]) -> pl.DataFrame:
  """Returns the events by user and then by time; events with the same time keep the order of the file.

  Choice: if the source defines the order (`in_order`), a time below an earlier one of the same user is raised to it, so
  that times never decrease inside a user; `counts` gets the number of raised times.
  """
  if not in_order and "timestamp" in events.columns:
    return events.sort(_user_and_time(events), maintain_order=True)
  events = events if events["user"].is_sorted() else events.sort("user", maintain_order=True)
  if "timestamp" in events.columns:
    raised = events.with_columns(pl.col("timestamp").cum_max().over("user"))
    counts["times_raised_to_keep_the_order"] = int((raised["timestamp"] != events["timestamp"]).sum())
    events = raised
  return events


def _user_and_time(events: pl.DataFrame) -> list[pl.Expr]:
  """Returns the columns to sort by: one integer for both where it fits into 64 bits, which sorts four times as fast."""
  first, last = events["timestamp"].min(), events["timestamp"].max()
  span = last - first + 1
  if (events["user"].max() + 1) * span >= 2**63:
    return [pl.col("user"), pl.col("timestamp")]
  return [pl.col("user").cast(pl.Int64) * span + (pl.col("timestamp") - first)]


def in_seconds(events: pl.DataFrame, time_unit: str) -> pl.DataFrame:
  """Returns sorted events with their times cut to whole seconds."""
  if "timestamp" not in events.columns or time_unit == "s":
    return events
  return events.with_columns(pl.col("timestamp") // event_values.UNITS[time_unit])


def split_events(
  events: pl.DataFrame, offsets: np.ndarray, options: PrepareOptions
) -> tuple[np.ndarray, dict[str, Any]]:
  """Returns the split of each event (0 training, 1 validation, 2 test), and its description for `meta.json`.

  Raises:
    ValueError: the events lack the column that the split needs, or a split is empty.
  """
  if options.split == "leave_one_out":
    return prepared.leave_one_out(offsets, options.held_out_events), described_split(options)
  check_split(events.columns, options)
  if options.split == "given":
    return events["split"].to_numpy().astype(np.uint8), described_split(options)
  return _split_by_time(events["timestamp"].to_numpy(), options)


def check_split(columns: Sequence[str], options: PrepareOptions) -> None:
  """Raises where the events have not the column that their split needs.

  Raises:
    ValueError: names what is missing.
  """
  if options.split == "given" and "split" not in columns:
    raise ValueError(
      "split='given' needs a source that says which events are for validation and test; this one does not"
    )
  if options.split == "by_time" and "timestamp" not in columns:
    raise ValueError("split='by_time' needs times, but the source has none; use split='leave_one_out'")


def described_split(options: PrepareOptions, cuts: tuple[int, int] | None = None) -> dict[str, Any]:
  """Returns what `meta` says of a split, of which `cuts` are the times if it is by time."""
  if cuts is not None:
    return {"kind": "by_time", "validation_time": cuts[0], "test_time": cuts[1]}
  held_out = {"held_out_events": options.held_out_events} if options.held_out_events > 1 else {}
  return {"kind": options.split, **held_out}


def quantiles_of_split(options: PrepareOptions) -> tuple[float, float]:
  """Returns the quantiles of the times at which validation and test begin, unless their times are given."""
  return options.validation_quantile or 0.90, options.test_quantile or 0.95


def _split_by_time(times: np.ndarray, options: PrepareOptions) -> tuple[np.ndarray, dict[str, Any]]:
  quantiles = quantiles_of_split(options)
  cuts = _cut(times, options.validation_time, quantiles[0]), _cut(times, options.test_time, quantiles[1])
  split = split_at(times, *cuts)
  check_cuts(cuts, np.bincount(split, minlength=3).tolist(), (int(times.min()), int(times.max())))
  return split, described_split(options, cuts)


def check_cuts(cuts: tuple[int, int], events: Sequence[int], times: tuple[int, int]) -> None:
  """Raises where a split by time is empty.

  Args:
    cuts: where validation and test begin.
    events: of training, validation and test.
    times: of the first and the last event.

  Raises:
    ValueError: names the times.
  """
  if cuts[0] >= cuts[1] or not all(events):
    raise ValueError(
      f"split='by_time' with validation_time={cuts[0]}, test_time={cuts[1]} leaves a split empty; the times of the"
      f" events are {times[0]} to {times[1]}, and validation_time must be before test_time"
    )


def split_at(times: np.ndarray, validation: int, test: int) -> np.ndarray:
  """Returns the split of events at their times: 1 from `validation` on, 2 from `test` on, else 0."""
  return (times >= validation).astype(np.uint8) + (times >= test).astype(np.uint8)


def _cut(times, time, quantile):
  return int(np.quantile(times, quantile, method="higher")) if time is None else time
