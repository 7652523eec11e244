"""Answers of a recommender to a batch of requests, which may be of different kinds and of different users."""

from __future__ import annotations

import collections
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrec.serving.event_attention import event_attention, why_no_attention
from jaxrec.serving.histories import COLUMNS, Histories, histories_of_events, histories_of_users, joined
from jaxrec.serving.recommendation import MODEL, POPULARITY
from jaxrec.serving.recommender import Recommender
from jaxrec.serving.server.forms import EventsForm, RecommendForm, ScoreForm
from jaxrec.serving.server.posted_events import PostedEvents
from jaxrec.serving.server.refusals import RefusedRequest, refusal

_FEWEST = 16  # Numbers of recommended items are rounded up to this number times a power of two: each is a program.

Form = EventsForm | RecommendForm | ScoreForm


class _Request(NamedTuple):
  """A form whose history is read. Those with the same key are answered together."""

  index: int
  form: RecommendForm | ScoreForm
  history: Histories
  key: Any


class Answers:
  """A recommender and the events that were posted.

  recommender: of `jaxrec.load`, `with_states` or `load_artifact`.
  posted: outlives the recommender.
  version: names the checkpoint in each answer.
  """

  def __init__(self, recommender: Recommender, posted: PostedEvents, version: str):
    self.recommender, self.posted, self.version = recommender, posted, version

  def run(self, forms: Sequence[Form]) -> list[dict | Exception]:
    """Returns the answer to each form, or the error that it gets."""
    answers: list[dict | Exception | None] = [None] * len(forms)
    groups = collections.defaultdict(list)
    for index, form in enumerate(forms):
      try:
        if isinstance(form, EventsForm):
          answers[index] = self._post(form)
        else:
          request = _Request(index, form, self._history(form), _key(form))
          groups[request.key].append(request)
      except Exception as error:  # Of any kind: the other requests are answered.
        answers[index] = error
    for group in groups.values():
      for request, answer in zip(group, self._together(group), strict=True):
        answers[request.index] = answer
    return answers

  def _together(self, group) -> list[dict | Exception]:
    """Answers requests in one call of the model, or, if it refuses one of them, each on its own."""
    answer = self._recommend if isinstance(group[0].form, RecommendForm) else self._score
    try:
      return answer(group)
    except Exception as error:
      if len(group) > 1:
        return [self._together([request])[0] for request in group]
      return [refusal(error) if isinstance(error, ValueError) else error]

  def _recommend(self, group):
    form, histories = group[0].form, joined([request.history for request in group])
    most = max(request.form.k for request in group)
    k = _FEWEST << max(0, (most - 1).bit_length() - 4)
    best = self.recommender.best_items(
      histories, k, domain=form.domain, at=[request.form.at for request in group], exclude_seen=form.exclude_seen,
      allowed=form.allowed,
    )  # fmt: skip
    return [self._recommended(request, best, row) for row, request in enumerate(group)]

  def _recommended(self, request, best, row):
    form = request.form
    items = self.recommender._named(best.items[row][: form.k], best.scores[row][: form.k])
    answer = self._about(request, POPULARITY if best.is_popular[row] else MODEL)
    answer["items"] = [item._asdict() for item in items]
    if form.show_history:
      answer["history"] = self._shown(request, form.show_history)
    return answer

  def _score(self, group):
    form, histories = group[0].form, joined([request.history for request in group])
    vectors = self.recommender.vectors_of(histories, domain=form.domain, at=[request.form.at for request in group])
    return [self._scored(request, vector) for request, vector in zip(group, vectors, strict=True)]

  def _scored(self, request, vector):
    try:
      index = np.array([self.recommender._item(item) for item in request.form.items])
    except ValueError as error:
      return refusal(error, "items")
    if not request.history.lengths[0]:
      return {**self._about(request, None), "scores": None}
    scores = self.recommender.item_vectors()[index - 1] @ vector
    return {**self._about(request, MODEL), "scores": scores.tolist()}

  def _about(self, request, ranked_by):
    history = request.history
    return {
      "user": history.user[0], "ranked_by": ranked_by, "known": int(history.lengths[0]),
      "unknown": int(history.unknown[0]), "version": self.version,
    }  # fmt: skip

  def _shown(self, request, count):
    """Returns the latest events, latest first, each with its share of attention if that is asked for."""
    data, titles, history = self.recommender.data, self.recommender.data.items, request.history
    rows = range(len(history.item_id) - 1, max(len(history.item_id) - count, 0) - 1, -1)
    shown = [
      {
        "item": titles["raw_id"][int(history.item_id[row]) - 1],
        "title": titles["title"][int(history.item_id[row]) - 1],
        "domain": data.domain_names[history.domain_id[row] - 1],
        "time": int(history.timestamp[row]) if data.has_timestamps else None,
      }
      for row in rows
    ]
    if request.form.show_attention:
      shares = self._attention(request)
      shown = [{**event, "attention": shares[row]} for event, row in zip(shown, rows, strict=True)]
    return shown

  def _attention(self, request) -> list[float | None]:
    """Returns the share of attention of each event; None for those that the model does not read."""
    if reason := why_no_attention(self.recommender.model):
      raise RefusedRequest(422, "show_attention", f"the server does not know what this model attends to: {reason}")
    form = request.form
    (shares,) = event_attention(self.recommender, request.history, domain=form.domain, at=form.at)
    return [None if np.isnan(share) else float(share) for share in shares]

  def _post(self, form):
    user = str(form.user)
    before = self._of_user(user)
    new = self._read(form.events, user, form.unknown, "events")
    if before is not None and len(new.timestamp) and len(before.timestamp):
      if new.timestamp[0] < before.timestamp[-1]:
        last = int(before.timestamp[-1])
        raise RefusedRequest(422, "events", f"event 0 is earlier than the last event of the user, at {last}")
    self.posted.add(user, form.events)
    total = int(new.lengths[0]) + (0 if before is None else int(before.lengths[0]))
    return {"user": user, "added": int(new.lengths[0]), "unknown": int(new.unknown[0]), "known": total}

  def _history(self, form) -> Histories:
    """Returns the history that a form gives, or that of its user."""
    user = None if form.user is None else str(form.user)
    if form.history is not None:
      return self._read(form.history, user, form.unknown, "history")
    if user is None:
      raise RefusedRequest(422, "user", "give user or history")
    found = self._of_user(user)
    if found is None:
      reason = f"user {user!r} is neither in the data nor has posted events; give history, or post events first"
      raise RefusedRequest(404, "user", reason)
    return found

  def _of_user(self, user) -> Histories | None:
    """Returns the events of a user in the data and those posted after them; None if there are neither."""
    data, posted = self.recommender.data, self.posted.of(user)
    found = []
    index = data.find_user(user)
    if index is not None and data.offsets[index + 1] > data.offsets[index]:
      found.append(histories_of_users(data, np.array([index])))
    if posted:
      found.append(self._read(posted, user, "skip", "events"))
    if len(found) == 2:
      return _continued(*found, data.has_timestamps)
    return found[0] if found else None

  def _read(self, events, user, unknown, field) -> Histories:
    try:
      given = [events] if user is None else {user: events}
      return histories_of_events(self.recommender.data, given, unknown)
    except ValueError as error:
      raise refusal(error, field) from None


def _continued(before, posted, has_times) -> Histories:
  """Returns two parts of a history as one. The data of a later checkpoint may hold events that were posted before."""
  last, is_new = before.timestamp[-1], np.ones(len(posted.timestamp), bool)
  if has_times:
    at_last = before.item_id[before.timestamp == last]
    is_new = (posted.timestamp > last) | ((posted.timestamp == last) & ~np.isin(posted.item_id, at_last))
  columns = {name: np.concatenate([getattr(before, name), getattr(posted, name)[is_new]]) for name in COLUMNS}
  return Histories(before.user, np.array([0, len(columns["item_id"])]), **columns, unknown=posted.unknown)


def _key(form):
  if isinstance(form, ScoreForm):
    return "score", form.domain
  return "recommend", form.domain, form.exclude_seen, json.dumps(form.allowed)
