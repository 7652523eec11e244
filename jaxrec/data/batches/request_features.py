"""Features of the request that an event answers: what is known before the user acts, such as the hour or the page."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from jaxrec.batches import REGRESSION
from jaxrec.data.prepared import PreparedData

CLOCK = {"hour": (3600, 24), "weekday": (86400, 7)}
"""Features that the time has: seconds of a unit, and how many units follow each other before they repeat; UTC."""


def request_categories(data: PreparedData, name: str) -> tuple[Int[np.ndarray, " E"], int]:
  """Returns the category of each event in a feature of its request, from 1, and their number.

  Args:
    data: prepared columns.
    name: "hour" (of the day) or "weekday" (the first is that of 1 January 1970, a Thursday), or a binary or multi_class
      column of the events that says something of the request, such as the page.

  Raises:
    ValueError: there is no such column, it is a number, or a time is asked for and the data has none.

  >>> data = PreparedData.from_columns(user=[0, 0], item_id=[1, 2], timestamp=[3600, 90000])
  >>> request_categories(data, "hour")[0].tolist(), request_categories(data, "weekday")[0].tolist()
  ([2, 2], [1, 2])
  """
  if name in CLOCK:
    if not data.has_timestamps:
      raise ValueError(f"the feature {name!r} of the request needs times, but the data has none")
    return clock_category(name, np.asarray(data.timestamp)), CLOCK[name][1]
  known = [action for action in data.actions if data.action_meta[action]["kind"] != REGRESSION]
  if name not in known:
    raise ValueError(f"the feature {name!r} of the request is none of {[*CLOCK, *known]}")
  return np.asarray(data.actions[name]).astype(np.int32) + 1, data.action_meta[name]["classes"]


def clock_category(name: str, seconds: Int[np.ndarray, " E"]) -> Int[np.ndarray, " E"]:
  """Returns the category of times in a feature of `CLOCK`.

  >>> clock_category("hour", np.array([0, 90000])).tolist()
  [1, 2]
  """
  unit, count = CLOCK[name]
  return (seconds // unit % count + 1).astype(np.int32)
