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
from jaxrec.data.batches.request_features import CLOCK
from jaxrec.data.prepared import PreparedData
from jaxrec.models.ranking import RankingModel
from jaxrec.serving.given_events import request_seconds
from jaxrec.serving.histories import Histories, histories_of_events, histories_of_users
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
  """Ranks the items of a catalogue, or given candidates, for users of prepared data and after given histories.

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

  @property
  def read_actions(self) -> tuple[str, ...]:
    """The names of the typed actions that the model reads of an event: what given events must have."""
    of_requests = (name for name in self.columns.request_features if name not in CLOCK)
    return tuple(dict.fromkeys((*(action.name for action in self.model.actions), *of_requests)))

  def rank(
    self,
    user: str | int,
    *,
    candidates: Int[np.ndarray, " K"] | None = None,
    weights: Mapping[str, float] | None = None,
    k: int = 10,
    exclude_seen: bool = True,
    at: Any = None,
  ) -> list[RankedItem]:
    """Returns the k items with the highest weighted sum of actions, after the whole history of a user of the data.

    Fewer where there are fewer candidates, as for a user who has seen every item.

    Args:
      user: id in the raw data.
      candidates: item ids to rank; None: all items.
      weights: action -> weight of its value: the probability of a binary action, or a number; "reaction:like" (or
        "reaction:2" where the data have no names) is the probability of a class of a multi_class action. None: 1 for
        each binary action, or else for each number.
      k: length of the list.
      exclude_seen: whether items of the history are left out.
      at: time of the request in seconds since 1970, or a datetime; None: that of the last event.

    Raises:
      ValueError: an unknown user or action, a user without an event, or a time before the last event.
    """
    history = histories_of_users(self.data, np.array([self.data.user_index(user)]), actions=self.read_actions)
    options = {"candidates": candidates, "weights": weights, "k": k, "exclude_seen": exclude_seen, "at": at}
    return self.rank_history(history, **options)

  def histories(
    self, histories: Sequence[Sequence[Any]] | Mapping[str, Sequence[Any]], unknown: str = "skip"
  ) -> Histories:
    """Returns given events as histories, such as those of new users, or events since the training.

    Args:
      histories: for each user the events `(item, time[, domain], actions)`, oldest first, such as `("f6", 1700000000,
        {"like": 1})`; with the actions of `read_actions`. See `histories_of_events`.
      unknown: "skip" leaves events of unknown items out and counts them; "raise" refuses them.

    Raises:
      ValueError: as `histories_of_events`.
    """
    return histories_of_events(self.data, histories, unknown, self.read_actions)

  def rank_history(
    self,
    history: Histories,
    *,
    candidates: Int[np.ndarray, " K"] | None = None,
    weights: Mapping[str, float] | None = None,
    k: int = 10,
    exclude_seen: bool = True,
    at: Any = None,
  ) -> list[RankedItem]:
    """Returns what `rank` does, after one history; without a known event in it nothing is ranked: [].

    Args:
      history: of one user; `histories` makes it of given events.
      candidates, weights, k, exclude_seen, at: as in `rank`.

    Raises:
      ValueError: as `rank`, and for a user who is not in the data where the model reads `config.data.context`.
    """
    items = self.items_of(None) if candidates is None else np.asarray(candidates)
    if exclude_seen:
      items = items[~np.isin(items, history.item_id)]
    weights = self.check_weights(weights)
    if not len(items) or not history.lengths[0]:
      return []
    values = self.values_after(history, items[None], at)
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

  def items_of(self, domain: str | None) -> Int[np.ndarray, " K"]:
    """Returns the ids of the items of a domain, by its name; None: of all items.

    Raises:
      ValueError: an unknown domain.
    """
    if domain is None:
      return np.arange(1, self.data.num_items + 1)
    if domain not in self.data.domain_names:
      raise ValueError(f"{domain=} is unknown; the data has {', '.join(map(repr, self.data.domain_names))}")
    return np.flatnonzero(self.data.item_domain() == self.data.domain_names.index(domain) + 1)

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
    """Returns the predicted value of each action for K items of each user of the data; see `values_after`.

    Args:
      users: 0-based, each with an event.
      items: item ids.
    """
    return self.values_after(histories_of_users(self.data, users, actions=self.read_actions), items)

  def values_after(
    self, histories: Histories, items: Int[np.ndarray, "B K"], at: Any = None
  ) -> dict[str, Float[np.ndarray, "B K"]]:
    """Returns the predicted value of each action for K items after each history, in a request like its last event.

    Probabilities of binary actions and of each class ("reaction:like") of multi_class ones; numbers of regression ones.

    Args:
      histories: each with an event.
      items: item ids.
      at: time of the requests in seconds since 1970, or a datetime; None: that of each last event.

    Raises:
      ValueError: a history without an event, a time before its last one, or a user who is not in the data where the
        model reads `config.data.context`.
    """
    if not histories.lengths.all():
      empty = int(histories.lengths.argmin())
      raise ValueError(f"history {empty} has no event of a known item; a ranking model needs one")
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
