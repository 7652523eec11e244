"""Ranks items with the model of a run of generative ranking."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxrec.batches import BINARY, MULTI_CLASS, REGRESSION, ActionType
from jaxrec.data.action_columns import PREFIX
from jaxrec.data.batches.ranking_batches import history_batch
from jaxrec.data.batches.ranking_rows import RankingColumns, num_tokens
from jaxrec.data.batches.request_features import CLOCK
from jaxrec.data.prepared import PreparedData
from jaxrec.models.ranking import RankingModel
from jaxrec.serving.given_events import request_seconds
from jaxrec.serving.histories import Histories
from jaxrec.serving.item_ranker import ItemRanker, check_filled
from jaxrec.serving.mfalcon import MFalcon, plan_microbatch


@dataclasses.dataclass(frozen=True)
class ActionRanker(ItemRanker):
  """Ranks with the model of a ranking run.

  model, params: of a ranking run.
  data, columns: of the same run.
  layout, max_length: `config.data` of the run.
  """

  model: RankingModel
  params: Any
  data: PreparedData
  columns: RankingColumns
  layout: str
  max_length: int

  @property
  def value_names(self) -> tuple[str, ...]:
    """See `ItemRanker`."""
    return tuple(name for head in self.model.heads for name in value_names(head, self._classes(head)))

  @property
  def read_actions(self) -> tuple[str, ...]:
    """See `ItemRanker`."""
    of_requests = (name for name in self.columns.request_features if name not in CLOCK)
    return tuple(dict.fromkeys((*(action.name for action in self.model.actions), *of_requests)))

  def values_after(
    self, histories: Histories, items: Int[np.ndarray, "B K"], at: Any = None
  ) -> dict[str, Float[np.ndarray, "B K"]]:
    """See `ItemRanker`."""
    check_filled(histories)
    columns = self.columns.of_other_events(self._prepared(histories), self._users_of_context(histories))
    end = histories.offsets[1:]
    first = np.maximum(histories.offsets[:-1], end - (self.max_length - 1))
    most = np.full(1, self.max_length - 1)
    capacity = int(num_tokens(self.layout, columns.num_context, most, 0 * most)[0])
    scorer = MFalcon(self.model, self.params, capacity, plan_microbatch(self.model, capacity, items.shape[1], len(end)))
    encoded = scorer.encode(history_batch(columns, self.layout, first, end, capacity))
    times = np.array([request_seconds(self.data, at, int(last)) for last in histories.timestamp[end - 1]])
    features = columns.candidate_features(items, end - 1, times)
    found = scorer.score(encoded, items, times - columns.events.first_second, features)
    values = [action_values(head, found[head.name], self._classes(head)) for head in self.model.heads]
    return {name: value for one in values for name, value in one.items()}

  def _prepared(self, histories: Histories) -> PreparedData:
    """Returns histories as prepared data, whose first event is the origin of times."""
    times = histories.timestamp
    sizes = {"num_users": len(histories), "num_events": len(times), "times": (int(times.min()), int(times.max()))}
    return PreparedData(
      **histories.events, split=np.zeros(len(times), np.uint8), offsets=histories.offsets,
      meta={**self.data.meta, **sizes}, item_table=self.data.items,
    )  # fmt: skip

  def _users_of_context(self, histories: Histories) -> Int[np.ndarray, " B"]:
    if not self.columns.num_context:
      return np.zeros(len(histories), np.int64)
    users = [None if name is None else self.data.find_user(name) for name in histories.user]
    if None in users:
      raise ValueError(
        f"user {histories.user[users.index(None)]!r} is not in the data, and the model reads the features"
        " config.data.context of users: name a user of the data, or train without them"
      )
    return np.array(users, np.int64)

  def _classes(self, head: ActionType) -> tuple[str, ...]:
    return self.data.action_names.get(PREFIX + head.name, ())

  def default_weights(self) -> dict[str, float]:
    """See `ItemRanker`."""
    kinds = {head.kind for head in self.model.heads}
    kind = BINARY if BINARY in kinds else REGRESSION if REGRESSION in kinds else None
    if kind is None:
      raise ValueError(f"weights must name classes of an action, such as {self.value_names[0]!r}")
    return {head.name: 1.0 for head in self.model.heads if head.kind == kind}


def action_values(head: ActionType, prediction: np.ndarray, classes: Sequence[str] = ()) -> dict[str, np.ndarray]:
  """Returns predictions of a head as probabilities or numbers, by name; `classes` are the names of classes, if any.

  >>> action_values(ActionType("seconds", "regression", mean=30.0, scale=10.0), np.array([0.5]))["seconds"].tolist()
  [35.0]
  """
  if head.kind == BINARY:
    return {head.name: 1 / (1 + np.exp(-prediction))}
  if head.kind == REGRESSION:
    return {head.name: prediction * head.scale + head.mean}
  probabilities = np.asarray(jax.nn.softmax(prediction, axis=-1))
  return {name: probabilities[..., i] for i, name in enumerate(value_names(head, classes))}


def value_names(head: ActionType, classes: Sequence[str] = ()) -> tuple[str, ...]:
  """Returns the names of a head's values: the action, or each class of it, by its name if `classes` has one.

  >>> value_names(ActionType("stars", "multi_class", classes=2))
  ('stars:0', 'stars:1')
  >>> value_names(ActionType("reaction", "multi_class", classes=2), ["buy", "view"])
  ('reaction:buy', 'reaction:view')
  """
  if head.kind == MULTI_CLASS:
    return tuple(f"{head.name}:{classes[i] if i < len(classes) else i}" for i in range(head.classes))
  return (head.name,)
