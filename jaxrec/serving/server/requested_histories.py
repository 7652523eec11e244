"""The histories that requests ask for: given ones, and those of users, with the events that they posted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxrec.data.prepared import PreparedData
from jaxrec.serving.histories import Histories, histories_of_events, histories_of_users
from jaxrec.serving.server.forms import EventsForm, RecommendForm, ScoreForm
from jaxrec.serving.server.posted_events import PostedEvents
from jaxrec.serving.server.refusals import RefusedRequest, refusal


class RequestedHistories:
  """The users of the data, and the events that were posted after those.

  data: of the model in use.
  posted: outlives the model.
  actions: typed actions that the model reads of each event.
  version: names the checkpoint in each answer.
  """

  def __init__(self, data: PreparedData, posted: PostedEvents, version: str, actions: Sequence[str] = ()):
    self.data, self.posted, self.version, self.actions = data, posted, version, tuple(actions)

  def post(self, form: EventsForm) -> dict[str, Any]:
    """Adds the events of a form, and returns the answer.

    Raises:
      RefusedRequest: events that cannot be read, or that are earlier than those of the user.
    """
    user = str(form.user)
    before = self.of_user(user)
    new = self._read(form.events, user, form.unknown, "events")
    if before is not None and len(new.timestamp) and len(before.timestamp):
      if new.timestamp[0] < before.timestamp[-1]:
        last = int(before.timestamp[-1])
        raise RefusedRequest(422, "events", f"event 0 is earlier than the last event of the user, at {last}")
    self.posted.add(user, form.events)
    total = int(new.lengths[0]) + (0 if before is None else int(before.lengths[0]))
    return {"user": user, "added": int(new.lengths[0]), "unknown": int(new.unknown[0]), "known": total}

  def of(self, form: RecommendForm | ScoreForm) -> Histories:
    """Returns the history that a form gives, or that of its user.

    Raises:
      RefusedRequest: neither is given, events that cannot be read, or an unknown user.
    """
    user = None if form.user is None else str(form.user)
    if form.history is not None:
      return self._read(form.history, user, form.unknown, "history")
    if user is None:
      raise RefusedRequest(422, "user", "give user or history")
    found = self.of_user(user)
    if found is None:
      reason = f"user {user!r} is neither in the data nor has posted events; give history, or post events first"
      raise RefusedRequest(404, "user", reason)
    return found

  def about(self, history: Histories, ranked_by: str | None) -> dict[str, Any]:
    """Returns what each answer says of its history."""
    return {
      "user": history.user[0], "ranked_by": ranked_by, "known": int(history.lengths[0]),
      "unknown": int(history.unknown[0]), "version": self.version,
    }  # fmt: skip

  def latest(self, history: Histories, count: int) -> list[dict[str, Any]]:
    """Returns the latest events of a history with their titles, latest first."""
    titles, rows = self.data.items, np.arange(len(history.item_id))[::-1][:count]
    return [
      {
        "item": titles["raw_id"][int(history.item_id[row]) - 1],
        "title": titles["title"][int(history.item_id[row]) - 1],
        "domain": self.data.domain_names[history.domain_id[row] - 1],
        "time": int(history.timestamp[row]) if self.data.has_timestamps else None,
      }
      for row in rows
    ]

  def of_user(self, user: str) -> Histories | None:
    """Returns the events of a user in the data and those posted after them; None if there are neither."""
    posted, index, found = self.posted.of(user), self.data.find_user(user), []
    if index is not None and self.data.offsets[index + 1] > self.data.offsets[index]:
      found.append(histories_of_users(self.data, np.array([index]), actions=self.actions))
    if posted:
      found.append(self._read(posted, user, "skip", "events"))
    if len(found) == 2:
      return _continued(*found, self.data.has_timestamps)
    return found[0] if found else None

  def _read(self, events, user, unknown, field) -> Histories:
    try:
      return histories_of_events(self.data, [events] if user is None else {user: events}, unknown, self.actions)
    except ValueError as error:
      raise refusal(error, field) from None


def _continued(before, posted, has_times) -> Histories:
  """Returns two parts of a history as one. The data of a later checkpoint may hold events that were posted before."""
  last, is_new = before.timestamp[-1], np.ones(len(posted.timestamp), bool)
  if has_times:
    at_last = before.item_id[before.timestamp == last]
    is_new = (posted.timestamp > last) | ((posted.timestamp == last) & ~np.isin(posted.item_id, at_last))
  columns = jax.tree.map(lambda x, y: np.concatenate([x, y[is_new]]), before.events, posted.events)
  return Histories(before.user, np.array([0, len(columns["item_id"])]), **columns, unknown=posted.unknown)
