"""Answers of a ranking model: what users of the data would do with items, and the items ranked by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrec.serving.action_ranker import ActionRanker
from jaxrec.serving.recommendation import MODEL
from jaxrec.serving.server.forms import EventsForm, RecommendForm, ScoreForm
from jaxrec.serving.server.refusals import RefusedRequest, refusal

Form = EventsForm | RecommendForm | ScoreForm


class RankingAnswers:
  """A ranking model in place of `Answers`; it knows users of the data only, whose events have actions.

  A score is the weighted sum of predicted actions that `ActionRanker.rank` sorts by, with its default weights.

  recommender: the ranker, in the name that the application uses.
  version: names the checkpoint in each answer.
  """

  def __init__(self, ranker: ActionRanker, version: str):
    self.recommender, self.version = ranker, version

  def run(self, forms: Sequence[Form]) -> list[dict | Exception]:
    """Returns the answer to each form, or the error that it gets."""
    return [self._answer(form) for form in forms]

  def warm(self) -> None:
    """Compiles the programs, by ranking for the first user that has an event."""
    data = self.recommender.data
    users = np.flatnonzero(np.diff(data.offsets))
    if len(users):
      self.recommender.rank(data.user_raw_id(int(users[0])), k=1)

  def _answer(self, form) -> dict | Exception:
    try:
      user = self._user(form)
      return self._score(form, user) if isinstance(form, ScoreForm) else self._recommend(form, user)
    except RefusedRequest as error:
      return error
    except ValueError as error:
      return refusal(error)
    except Exception as error:  # Of any kind: the other requests are answered.
      return error

  def _user(self, form) -> str:
    if isinstance(form, EventsForm):
      raise RefusedRequest(422, "events", "a ranking model reads events with actions; these are added by a training")
    for field in ("history", "domain", "at"):
      if getattr(form, field) is not None:
        raise RefusedRequest(422, field, f"a ranking model takes no {field}: it ranks for users of the data, now")
    if form.user is None:
      raise RefusedRequest(422, "user", "give user")
    user, data = str(form.user), self.recommender.data
    index = data.find_user(user)
    if index is None or data.offsets[index + 1] == data.offsets[index]:
      raise RefusedRequest(404, "user", f"user {user!r} is not in the data, or has no event")
    return user

  def _score(self, form, user) -> dict[str, Any]:
    items = self._items(form.items, "items")
    data = self.recommender.data
    values = self.recommender.values(np.array([data.user_index(user)]), items[None])
    score = sum(weight * values[name][0] for name, weight in self.recommender.check_weights(None).items())
    actions = {name: value[0].tolist() for name, value in values.items()}
    return {**self._about(user), "scores": score.tolist(), "actions": actions}

  def _recommend(self, form, user) -> dict[str, Any]:
    allowed = None if form.allowed is None else np.unique(self._items(form.allowed, "allowed"))
    ranked = self.recommender.rank(user, candidates=allowed, k=form.k, exclude_seen=form.exclude_seen)
    return {**self._about(user), "items": [item._asdict() for item in ranked]}

  def _items(self, raw_ids, field) -> np.ndarray:
    try:
      return np.array([self.recommender.data.item_index(item) for item in raw_ids], np.int64)
    except ValueError as error:
      raise refusal(error, field) from None

  def _about(self, user) -> dict[str, Any]:
    data = self.recommender.data
    events = data.user_slice(data.user_index(user))
    return {
      "user": user, "ranked_by": MODEL, "known": events.stop - events.start, "unknown": 0, "version": self.version
    }  # fmt: skip
