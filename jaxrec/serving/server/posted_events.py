"""The events that clients have posted since the server was started, by user, in memory and bounded."""

from __future__ import annotations

import collections
from typing import Any


class PostedEvents:
  """The latest events of the latest users, as they were posted: raw ids outlast a reload of the model.

  >>> posted = PostedEvents(max_users=2, max_events=2)
  >>> for user, item in (("ann", "tea"), ("bob", "jam"), ("ann", "gin"), ("ann", "rum"), ("cyd", "tea")):
  ...   posted.add(user, [(item, 5)])
  >>> posted.of("ann"), posted.of("bob"), len(posted), posted.dropped
  ((('gin', 5), ('rum', 5)), (), 2, 1)
  """

  def __init__(self, max_users: int, max_events: int):
    """Makes an empty store.

    Args:
      max_users: users beyond it are dropped, least recently used first, and counted in `dropped`.
      max_events: of a user; older ones are dropped.
    """
    self._max_users, self._max_events = max_users, max_events
    self._of: collections.OrderedDict[str, tuple[Any, ...]] = collections.OrderedDict()
    self.dropped = 0

  def __len__(self) -> int:
    return len(self._of)

  def of(self, user: str) -> tuple[Any, ...]:
    """Returns the events of a user, oldest first."""
    if user not in self._of:
      return ()
    self._of.move_to_end(user)
    return self._of[user]

  def add(self, user: str, events: list[Any]) -> None:
    """Appends events."""
    self._of[user] = (*self.of(user), *events)[-self._max_events :]
    self._of.move_to_end(user)
    while len(self._of) > self._max_users:
      self._of.popitem(last=False)
      self.dropped += 1
