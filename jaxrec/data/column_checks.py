"""The columns of prepared data, and the check that they fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  from jaxrec.data.prepared import PreparedData

TRAIN, VALIDATION, TEST = 0, 1, 2
COLUMNS = {"item_id": np.int32, "domain_id": np.int32, "timestamp": np.int64, "action": np.int32, "split": np.uint8}


def check(data: PreparedData) -> None:
  """Raises unless the columns of prepared data have ids, splits and times that fit its sizes.

  Raises:
    ValueError: another number of entries, an id out of range, or times that fall inside a user; names the first.
  """
  where = str(data.path) if data.path is not None else "columns"
  check_lengths({name: getattr(data, name) for name in COLUMNS}, data.offsets, data.num_users, data.num_events, where)
  if len(data.domain_names) != data.num_domains:
    raise ValueError(f"{where}: {len(data.domain_names)} domain names for {data.num_domains} domains")
  for name, low, high in (("item_id", 1, data.num_items), ("domain_id", 1, data.num_domains), ("split", TRAIN, TEST)):
    column = getattr(data, name)
    bad = np.flatnonzero((column < low) | (column > high))
    if len(bad):
      raise ValueError(f"{where}: {name}[{bad[0]}] = {column[bad[0]]} is outside {low}..{high}")
  falls = np.flatnonzero(data.timestamp[1:] < data.timestamp[:-1]) + 1 if data.has_timestamps else []
  inside = np.setdiff1d(falls, data.offsets)
  if len(inside):
    event = inside[0]
    raise ValueError(
      f"{where}: timestamp[{event}] = {data.timestamp[event]} is before timestamp[{event - 1}] ="
      f" {data.timestamp[event - 1]} of the same user; sort the events of each user by time"
    )


def check_lengths(columns: Mapping[str, np.ndarray], offsets: np.ndarray, users: int, events: int, where: str) -> None:
  """Raises unless each column has an entry for each event, and `offsets` one for each user and one more.

  Args:
    columns: by name.
    offsets: where the events of each user begin.
    users, events: how many there are.
    where: what begins an error.

  Raises:
    ValueError: names the column, and its entries.
  """
  for name, column in columns.items():
    if len(column) != events:
      raise ValueError(f"{where}: {name} has {len(column)} entries, needs {events} (num_events)")
  if len(offsets) != users + 1 or offsets[:1].tolist() != [0] or offsets[-1] != events or (np.diff(offsets) < 0).any():
    raise ValueError(f"{where}: offsets must be {max(users, 0) + 1} integers from 0 to {events} that never decrease")
