"""Answers of a ranking model: what users would do with items, and the items ranked by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrec.serving.item_ranker import ItemRanker
from jaxrec.serving.recommendation import MODEL
from jaxrec.serving.server.forms import EventsForm, RecommendForm, ScoreForm
from jaxrec.serving.server.posted_events import PostedEvents
from jaxrec.serving.server.refusals import RefusedRequest, refusal
from jaxrec.serving.server.requested_histories import RequestedHistories

Form = EventsForm | RecommendForm | ScoreForm


class RankingAnswers:
  """A ranking model in place of `Answers`; its events end with a mapping of their actions: `[item, time, {"like": 1}]`.

  A score is the weighted sum of predicted actions that `ItemRanker.rank` sorts by, with its default weights.

  recommender: the ranker, in the name that the application uses.
  posted: outlives the ranker.
  version: names the checkpoint in each answer.
  """

  def __init__(self, ranker: ItemRanker, posted: PostedEvents, version: str):
    self.recommender, self.version = ranker, version
    self.histories = RequestedHistories(ranker.data, posted, version, ranker.read_actions)

  def run(self, forms: Sequence[Form]) -> list[dict | Exception]:
    """Returns the answer to each form, or the error that it gets."""
    return [self._answer(form) for form in forms]

  def warm(self) -> None:
    """Compiles the programs, by ranking for the first user that has an event, or for a new one where there is none."""
    ranker, data = self.recommender, self.recommender.data
    users = np.flatnonzero(np.diff(data.offsets))
    if len(users):
      ranker.rank(data.user_raw_id(int(users[0])), k=1)
    else:
      item, domain = data.items["raw_id"][0], data.domain_names[int(data.items["domain_id"][0]) - 1]
      ranker.rank_history(ranker.histories([[(item, 0, domain, dict.fromkeys(ranker.read_actions, 0))]]), k=1)

  def _answer(self, form) -> dict | Exception:
    try:
      if isinstance(form, EventsForm):
        return self.histories.post(form)
      history = self.histories.of(form)
      return self._score(form, history) if isinstance(form, ScoreForm) else self._recommend(form, history)
    except RefusedRequest as error:
      return error
    except ValueError as error:
      return refusal(error)
    except Exception as error:  # Of any kind: the other requests are answered.
      return error

  def _score(self, form, history) -> dict[str, Any]:
    if form.domain is not None:
      raise RefusedRequest(422, "domain", "the items of a ranking model have domains of their own")
    items = self._items(form.items, "items")
    if not history.lengths[0]:
      return {**self.histories.about(history, None), "scores": None, "actions": None}
    values = self.recommender.values_after(history, items[None], form.at)
    score = sum(weight * values[name][0] for name, weight in self.recommender.check_weights(None).items())
    actions = {name: value[0].tolist() for name, value in values.items()}
    return {**self.histories.about(history, MODEL), "scores": score.tolist(), "actions": actions}

  def _recommend(self, form, history) -> dict[str, Any]:
    if form.show_attention:
      raise RefusedRequest(422, "show_attention", "the server does not know what a ranking model attends to")
    candidates = self.recommender.items_of(form.domain)
    if form.allowed is not None:
      candidates = np.intersect1d(candidates, self._items(form.allowed, "allowed"))
    options = {"candidates": candidates, "k": form.k, "exclude_seen": form.exclude_seen, "at": form.at}
    ranked = self.recommender.rank_history(history, **options)
    answer = self.histories.about(history, MODEL if history.lengths[0] else None)
    answer["items"] = [item._asdict() for item in ranked]
    if form.show_history:
      answer["history"] = self.histories.latest(history, form.show_history)
    return answer

  def _items(self, raw_ids, field) -> np.ndarray:
    try:
      return np.array([self.recommender.data.item_index(item) for item in raw_ids], np.int64)
    except ValueError as error:
      raise refusal(error, field) from None
