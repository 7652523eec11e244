"""Ranks items for users by what they would do with them: a weighted sum of predicted actions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxrec.batches import BINARY, MULTI_CLASS, REGRESSION, ActionType
from jaxrec.data.action_columns import PREFIX
from jaxrec.data.batches.ranking_batches import history_batch
from jaxrec.data.batches.ranking_rows import RankingColumns, num_tokens
from jaxrec.data.prepared import PreparedData
from jaxrec.models.ranking import RankingModel
from jaxrec.serving.mfalcon import MFalcon, plan_microbatch


class RankedItem(NamedTuple):
  """An item of the raw data, its rank from 1, its score, and the predicted value of each action."""

  rank: int
  item: str
  title: str
  domain: str
  score: float
  actions: dict[str, float]


@dataclasses.dataclass(frozen=True)
class ActionRanker:
  """Ranks the items of a catalogue, or given candidates, for users of prepared data.

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
    """The names of the predicted values: actions, and classes such as "reaction:like" ("reaction:2" without names)."""
    return tuple(name for head in self.model.heads for name in value_names(head, self._classes(head)))

  def rank(
    self,
    user: str | int,
    *,
    candidates: Int[np.ndarray, " K"] | None = None,
    weights: Mapping[str, float] | None = None,
    k: int = 10,
    exclude_seen: bool = True,
  ) -> list[RankedItem]:
    """Returns the k items with the highest weighted sum of actions, after the whole history of a user.

    Fewer where there are fewer candidates, as for a user who has seen every item.

    Args:
      user: id in the raw data.
      candidates: item ids to rank; None: all items.
      weights: action -> weight of its value: the probability of a binary action, or a number; "reaction:like" (or
        "reaction:2" where the data have no names) is the probability of a class of a multi_class action. None: 1 for
        each binary action, or else for each number.
      k: length of the list.
      exclude_seen: whether items of the history are left out.

    Raises:
      ValueError: an unknown user or action, or a user without an event.
    """
    index = self.data.user_index(user)
    events = self.data.user_slice(index)
    items = np.arange(1, self.data.num_items + 1) if candidates is None else np.asarray(candidates)
    if exclude_seen:
      items = items[~np.isin(items, self.data.item_id[events])]
    weights = self.check_weights(weights)
    if not len(items):
      return []
    values = self.values(np.array([index]), items[None])
    score = sum(weight * values[name][0] for name, weight in weights.items())
    best = np.argsort(-score, kind="stable")[:k]
    found = self.data.items[items[best] - 1].iter_rows(named=True)
    return [
      RankedItem(
        rank, item["raw_id"], item["title"], self.data.domain_names[item["domain_id"] - 1], float(score[i]),
        {name: float(value[0, i]) for name, value in values.items()},
      )
      for rank, (i, item) in enumerate(zip(best, found, strict=True), 1)
    ]  # fmt: skip

  def check_weights(self, weights: Mapping[str, float] | None) -> Mapping[str, float]:
    """Returns the weights of `rank`, those for None too.

    Raises:
      ValueError: an unknown action.
    """
    if weights is None:
      return self._default_weights()
    if unknown := sorted(set(weights) - set(self.value_names)):
      raise ValueError(f"weights name {unknown}; the model predicts {sorted(self.value_names)}")
    return weights

  def values(self, users: Int[np.ndarray, " B"], items: Int[np.ndarray, "B K"]) -> dict[str, Float[np.ndarray, "B K"]]:
    """Returns the predicted value of each action for K items of each user, at the time of the user's last event
    and in a request like it.

    Probabilities of binary actions and of each class ("reaction:like") of multi_class ones; numbers of regression ones.

    Args:
      users: 0-based, each with an event.
      items: item ids.
    """
    end = self.data.offsets[1:][users]
    first = np.maximum(self.data.offsets[:-1][users], end - (self.max_length - 1))
    most = np.full(1, self.max_length - 1)
    capacity = int(num_tokens(self.layout, self.columns.num_context, most, 0 * most)[0])
    microbatch = plan_microbatch(self.model, capacity, items.shape[1], len(users))
    scorer = MFalcon(self.model, self.params, capacity, microbatch)
    histories = scorer.encode(history_batch(self.columns, self.layout, first, end, capacity))
    features = self.columns.candidate_features(items, end - 1)
    found = scorer.score(histories, items, self.columns.events.seconds(end - 1), features)
    values = [action_values(head, found[head.name], self._classes(head)) for head in self.model.heads]
    return {name: value for one in values for name, value in one.items()}

  def _classes(self, head: ActionType) -> tuple[str, ...]:
    return self.data.action_names.get(PREFIX + head.name, ())

  def _default_weights(self) -> dict[str, float]:
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
