"""Answers of a recommender to a batch of requests, which may be of different kinds and of different users."""

from __future__ import annotations

import collections
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrec.serving.event_attention import event_attention, why_no_attention
from jaxrec.serving.histories import Histories, joined
from jaxrec.serving.recommendation import MODEL, POPULARITY
from jaxrec.serving.recommender import Recommender
from jaxrec.serving.server.forms import EventsForm, RecommendForm, ScoreForm
from jaxrec.serving.server.posted_events import PostedEvents
from jaxrec.serving.server.refusals import RefusedRequest, refusal
from jaxrec.serving.server.requested_histories import RequestedHistories

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
    self.recommender, self.version = recommender, version
    self.histories = RequestedHistories(recommender.data, posted, version)

  def run(self, forms: Sequence[Form]) -> list[dict | Exception]:
    """Returns the answer to each form, or the error that it gets."""
    answers: list[dict | Exception | None] = [None] * len(forms)
    groups = collections.defaultdict(list)
    for index, form in enumerate(forms):
      try:
        if isinstance(form, EventsForm):
          answers[index] = self.histories.post(form)
        else:
          request = _Request(index, form, self.histories.of(form), _key(form))
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
    answer = self.histories.about(request.history, POPULARITY if best.is_popular[row] else MODEL)
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
      return {**self.histories.about(request.history, None), "scores": None}
    scores = self.recommender.item_vectors()[index - 1] @ vector
    return {**self.histories.about(request.history, MODEL), "scores": scores.tolist()}

  def _shown(self, request, count):
    """Returns the latest events, latest first, each with its share of attention if that is asked for."""
    shown = self.histories.latest(request.history, count)
    if not request.form.show_attention:
      return shown
    return [event | {"attention": share} for event, share in zip(shown, self._attention(request)[::-1], strict=False)]

  def _attention(self, request) -> list[float | None]:
    """Returns the share of attention of each event; None for those that the model does not read."""
    if reason := why_no_attention(self.recommender.model):
      raise RefusedRequest(422, "show_attention", f"the server does not know what this model attends to: {reason}")
    form = request.form
    (shares,) = event_attention(self.recommender, request.history, domain=form.domain, at=form.at)
    return [None if np.isnan(share) else float(share) for share in shares]


def _key(form):
  if isinstance(form, ScoreForm):
    return "score", form.domain
  return "recommend", form.domain, form.exclude_seen, json.dumps(form.allowed)
