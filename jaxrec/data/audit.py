"""What to know about prepared data before numbers on it are trusted: ties, duplicates, popularity, leakage of time."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Integer

from jaxrec.data.prepared import TEST, TRAIN, VALIDATION, PreparedData

SPLITS = {"training": TRAIN, "validation": VALIDATION, "test": TEST}
DOMAIN = "domain/"  # Before the name of a domain, in the figures of a held-out split.


def audit(data: PreparedData) -> dict[str, Any]:
  """Returns counts and shares that say how far results on prepared data depend on how it was made.

  Of all data: "users", "items", "events", "domains", "split", "has_timestamps", and

  - "neighbours_tied": share of the events whose predecessor in the history has the same time;
  - "duplicates": events that repeat user, item and time of another; "repeated_items": events with an item that the
    user had before;
  - "training_after_first_test", "training_after_median_test": share of the training events that happen after the
    earliest and after the median test event.

  Under "training", "validation" and "test": "events", "users", "items", and how many of these users and items have no
  training event ("users_not_in_training", "items_not_in_training"). Held-out events are targets; for all of them, and
  for those of each domain under "domain/<name>", counts of targets:

  - "targets";
  - "order_decides": another event with the same user and time, but another item and split, could stand in its place;
  - "tied": another event has the same user and time and another item, whatever its split: the history may change;
  - "seen_before": the user had the item before;
  - "top_1_percent", "top_10_percent": the item is among the most popular part of the catalogue, by training events;
  - "not_in_training": no training event has the item;
  - "item_only_later": training events have the item, but all of them happen after the target;
  - "later_training": mean share of the training events that happen after the target (of other users, therefore).

  What needs times is None where the data has none.

  Choice: the parts of the catalogue are rounded up to whole items, and of equally popular items the smaller id comes
  first. Training events are those of split 0, for test targets too.

  >>> data = PreparedData.from_columns(user=[0, 0, 0, 0, 1], item_id=[1, 2, 3, 4, 4], timestamp=[1, 1, 2, 2, 9])
  >>> audit(data)["test"]["order_decides"], audit(data)["test"]["item_only_later"], audit(data)["neighbours_tied"]
  (1, 1, 0.4)
  """
  columns = _Columns(data)
  figures = {"users": data.num_users, "items": data.num_items, "events": data.num_events, "domains": data.num_domains}
  figures |= {"split": dict(data.meta["split"]), "has_timestamps": data.has_timestamps}
  figures |= {"repeated_items": int(columns.seen_before.sum()), **_times(columns)}
  for name, split in SPLITS.items():
    figures[name] = _sizes(columns, split)
    if split != TRAIN:
      figures[name] |= _targets(columns, columns.split == split)
      for domain, domain_name in enumerate(data.domain_names if data.num_domains > 1 else (), 1):
        chosen = (columns.split == split) & (np.asarray(data.domain_id) == domain)
        figures[name][DOMAIN + domain_name] = _targets(columns, chosen)
  return figures


@dataclasses.dataclass(frozen=True, eq=False)
class _Columns:
  """What is known of each event."""

  data: PreparedData

  @functools.cached_property
  def item(self) -> Int[np.ndarray, " E"]:
    return np.asarray(self.data.item_id)

  @functools.cached_property
  def split(self) -> Integer[np.ndarray, " E"]:
    return np.asarray(self.data.split)

  @functools.cached_property
  def time(self) -> Int[np.ndarray, " E"]:
    return np.asarray(self.data.timestamp)

  @functools.cached_property
  def user(self) -> Int[np.ndarray, " E"]:
    return np.repeat(np.arange(self.data.num_users), np.diff(self.data.offsets))

  @functools.cached_property
  def group(self) -> Int[np.ndarray, " E"]:
    """Index of the run of events with the same user and time."""
    starts = np.r_[True, (np.diff(self.user) != 0) | (np.diff(self.time) != 0)][: len(self.user)]
    return np.cumsum(starts) - 1

  @functools.cached_property
  def seen_before(self) -> Bool[np.ndarray, " E"]:
    """Whether the user had the item before."""
    _, first = np.unique(self.user * np.int64(self.data.num_items + 1) + self.item, return_index=True)
    seen = np.ones(len(self.item), bool)
    seen[first] = False
    return seen

  def tied_with(self, split: int) -> Bool[np.ndarray, " E"]:
    """Returns whether an event of this split has the same user and time, and another item."""
    num_groups, chosen = int(self.group[-1]) + 1, self.split == split
    least, most = np.full(num_groups, np.iinfo(np.int32).max), np.zeros(num_groups, np.int32)
    np.minimum.at(least, self.group[chosen], self.item[chosen])
    np.maximum.at(most, self.group[chosen], self.item[chosen])
    least, most = least[self.group], most[self.group]
    return (most > 0) & ((least != self.item) | (most != self.item))

  @functools.cached_property
  def ties(self) -> tuple[Bool[np.ndarray, " E"], Bool[np.ndarray, " E"]]:
    """Whether each event is tied with one of another split, and whether with any."""
    ties = [(split, self.tied_with(split)) for split in SPLITS.values()]
    return (
      np.any([tied & (self.split != split) for split, tied in ties], axis=0), np.any([tied for _, tied in ties], axis=0)
    )  # fmt: skip

  @functools.cached_property
  def training_counts(self) -> Int[np.ndarray, " V1"]:
    return np.bincount(self.item[self.split == TRAIN], minlength=self.data.num_items + 1)

  @functools.cached_property
  def popularity_rank(self) -> Int[np.ndarray, " V1"]:
    """0 for the item with the most training events."""
    rank = np.zeros(self.data.num_items + 1, np.int64)
    rank[np.argsort(-self.training_counts[1:], kind="stable") + 1] = np.arange(self.data.num_items)
    return rank

  @functools.cached_property
  def first_training_time(self) -> Int[np.ndarray, " V1"]:
    first = np.full(self.data.num_items + 1, np.iinfo(np.int64).max)
    chosen = self.split == TRAIN
    np.minimum.at(first, self.item[chosen], self.time[chosen])
    return first

  @functools.cached_property
  def sorted_training_times(self) -> Int[np.ndarray, " E0"]:
    return np.sort(self.time[self.split == TRAIN])

  def share_of_training_after(self, times) -> np.ndarray:
    """Returns the share of the training events that happen after each of some times."""
    total = len(self.sorted_training_times)
    return (total - np.searchsorted(self.sorted_training_times, times, side="right")) / max(total, 1)


def _times(columns: _Columns) -> dict[str, Any]:
  names = ("neighbours_tied", "duplicates", "training_after_first_test", "training_after_median_test")
  if not columns.data.has_timestamps:
    return dict.fromkeys(names)
  follows = np.diff(columns.group) == 0
  triples = columns.group * np.int64(columns.data.num_items + 1) + columns.item
  test = columns.time[columns.split == TEST]
  after = columns.share_of_training_after([test.min(), np.median(test)]).tolist() if len(test) else (None, None)
  values = float(follows.sum() / max(len(columns.group), 1)), int(len(triples) - len(np.unique(triples))), *after
  return dict(zip(names, values, strict=True))


def _sizes(columns: _Columns, split: int) -> dict[str, int]:
  chosen, trained = columns.split == split, columns.split == TRAIN
  sizes = {"events": int(chosen.sum())}
  for name, ids in (("users", columns.user), ("items", columns.item)):
    sizes[name] = len(np.unique(ids[chosen]))
    if split != TRAIN:
      sizes[f"{name}_not_in_training"] = len(np.setdiff1d(ids[chosen], ids[trained]))
  return sizes


def _targets(columns: _Columns, chosen: Bool[np.ndarray, " E"]) -> dict[str, Any]:
  items, times = columns.item[chosen], columns.time[chosen]
  rank, num_items = columns.popularity_rank[items], columns.data.num_items
  is_new = columns.training_counts[items] == 0
  figures = {"targets": int(chosen.sum()), "seen_before": int(columns.seen_before[chosen].sum())}
  figures |= {f"top_{p}_percent": int((rank < math.ceil(p * num_items / 100)).sum()) for p in (1, 10)}
  figures |= {"not_in_training": int(is_new.sum())}
  if not columns.data.has_timestamps:
    return figures | dict.fromkeys(("order_decides", "tied", "item_only_later", "later_training"))
  decides, tied = columns.ties
  later = columns.share_of_training_after(times)
  return figures | {
    "order_decides": int(decides[chosen].sum()),
    "tied": int(tied[chosen].sum()),
    "item_only_later": int((~is_new & (columns.first_training_time[items] > times)).sum()),
    "later_training": float(later.mean()) if len(later) else None,
  }
