"""A bounded store of what a server keeps of each user: the least recently used are dropped first."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Hashable
from typing import Any

import jax


@dataclasses.dataclass
class StateCounters:
  """What has happened in a `StateStore`.

  hits, misses: requests that could and that could not continue from a state that was kept.
  evictions: states that were dropped for want of room.
  users, bytes: states that are kept now, and the bytes of their arrays.
  """

  hits: int = 0
  misses: int = 0
  evictions: int = 0
  users: int = 0
  bytes: int = 0


class StateStore:
  """Pytrees of arrays by key, with a budget of bytes. Not for several threads at once.

  >>> import numpy as np
  >>> store = StateStore(capacity_bytes=20)
  >>> for name in ("ann", "bob", "cyd"):
  ...   store.put(name, np.zeros(10, np.int8))
  >>> store.get("ann"), store.counters.users, store.counters.bytes, store.counters.evictions
  (None, 2, 20, 1)
  """

  def __init__(self, capacity_bytes: int):
    """Makes an empty store.

    Args:
      capacity_bytes: of all arrays together; a pytree that is larger is not kept.

    Raises:
      ValueError: not a positive number.
    """
    if capacity_bytes < 1:
      raise ValueError(f"{capacity_bytes=} must be at least 1")
    self.capacity_bytes, self.counters = capacity_bytes, StateCounters()
    self._kept: collections.OrderedDict[Hashable, tuple[Any, int]] = collections.OrderedDict()

  def get(self, key: Hashable) -> Any | None:
    """Returns what is kept for a key, now the most recently used; None if nothing is."""
    if key not in self._kept:
      return None
    self._kept.move_to_end(key)
    return self._kept[key][0]

  def put(self, key: Hashable, value: Any) -> None:
    """Keeps a pytree in place of the one before, and drops those least recently used until all fit."""
    self._drop(key)
    size = sum(x.nbytes for x in jax.tree.leaves(value))
    if size > self.capacity_bytes:
      self.counters.evictions += 1
      return
    while self.counters.bytes + size > self.capacity_bytes:
      self._drop(next(iter(self._kept)))
      self.counters.evictions += 1
    self._kept[key] = value, size
    self._count(size, 1)

  def _drop(self, key):
    if key in self._kept:
      self._count(-self._kept.pop(key)[1], -1)

  def _count(self, size, users):
    self.counters.bytes += size
    self.counters.users += users
