"""Data as they were at a time: what comes later is left out, and what came last is held out, for all users at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from absl import logging
from jaxtyping import Int

from jaxrec.data.event_selection import selected_events
from jaxrec.data.prepared import PreparedData


def time_window(data: PreparedData, cuts: Sequence[int]) -> PreparedData:
  """Returns the events before the last of three times, split at the other two; in memory.

  Events before the first time are for training, those from the first on for validation, those from the second on for
  test; those from the third on are dropped, and counted in `meta["counts"]`. Users, items and their ids stay.

  Args:
    data: with times; not changed.
    cuts: three times in seconds, each later than the one before.

  Raises:
    ValueError: data without times, other cuts, or one of the three parts has no event.

  >>> data = PreparedData.from_columns(user=[0] * 5, item_id=[1, 2, 3, 4, 5], timestamp=[10, 20, 30, 40, 50])
  >>> then = time_window(data, (20, 40, 50))
  >>> then.item_id.tolist(), then.split.tolist(), then.num_items
  ([1, 2, 3, 4], [0, 1, 1, 2], 5)
  """
  cuts = check_cuts(cuts)
  if not data.has_timestamps:
    raise ValueError(f"time_cuts={list(cuts)} need times, but the data has none")
  times = np.asarray(data.timestamp)
  split = np.searchsorted(cuts[:2], times, side="right").astype(np.uint8)
  keep = times < cuts[2]
  held = np.bincount(split[keep], minlength=3)
  if not held.all():
    raise ValueError(
      f"time_cuts={list(cuts)} leave {held.tolist()} events for training, validation and test; the times of the data"
      f" are {times.min()} to {times.max()}"
    )
  logging.info("time window %s: %d events kept, %d later ones dropped", list(cuts), keep.sum(), (~keep).sum())
  meta = {"split": {"kind": "by_time", "validation_time": cuts[0], "test_time": cuts[1]}, "time_cuts": list(cuts)}
  return selected_events(data, keep, meta, ("dropped_by_time_cuts", {"later": int((~keep).sum())}), split)


def check_cuts(cuts: Sequence[int]) -> tuple[int, int, int]:
  """Returns the cuts as integers.

  Raises:
    ValueError: anything but three whole numbers, each larger than the one before.
  """
  whole = all(isinstance(cut, int | np.integer) and not isinstance(cut, bool) for cut in cuts)
  if not whole or len(cuts) != 3 or not cuts[0] < cuts[1] < cuts[2]:
    raise ValueError(
      f"time_cuts={tuple(cuts)} must be three times in whole seconds, each later than the one before: the first of"
      " validation, of test, and of what is left out"
    )
  return tuple(int(cut) for cut in cuts)


def rolling_cuts(timestamp: Int[np.ndarray, " E"], count: int, first: float) -> list[tuple[int, int, int]]:
  """Returns the cuts of `count` windows whose test parts follow each other to the end of the data.

  The test parts hold about the same number of events. The validation part of a window is the test part of the one
  before it; that of the first has the same number of events.

  Args:
    timestamp: of all events, in seconds.
    count: windows, at least 1.
    first: share of the events before the first validation part, above 0 and below 1.

  Raises:
    ValueError: an argument out of range, or too few different times.

  >>> rolling_cuts(np.arange(100), count=2, first=0.7)
  [(70, 80, 90), (80, 90, 100)]
  """
  if count < 1 or not 0 < first < 1:
    raise ValueError(f"{count=} must be at least 1, and {first=} between 0 and 1")
  times = np.sort(timestamp)
  index = np.round(len(times) * np.linspace(first, 1, count + 2)).astype(int)[:-1]
  edges = [*(int(times[min(i, len(times) - 1)]) for i in index), int(times[-1]) + 1] if len(times) else [0, 0]
  if (np.diff(edges) <= 0).any():
    raise ValueError(f"{count=} windows from {first=} on need more different times than the data has: cuts {edges}")
  return [tuple(edges[i : i + 3]) for i in range(count)]
