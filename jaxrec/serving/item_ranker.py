"""Ranks items by what a user would do with them, whatever predicts it: a weighted sum of predicted actions."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxrec.data.prepared import PreparedData
from jaxrec.serving.histories import Histories, histories_of_events, histories_of_users


class RankedItem(NamedTuple):
  """An item of the raw data, its rank from 1, its score, and the predicted value of each action."""

  rank: int
  item: str
  title: str
  domain: str
  score: float
  actions: dict[str, float]


class ItemRanker(abc.ABC):
  """Ranks the items of a catalogue, or given candidates, for users of prepared data and after given histories.

  data: names items, users and actions.
  max_length: events that the model reads, and one more, the candidate.
  """

  data: PreparedData
  max_length: int

  @property
  @abc.abstractmethod
  def value_names(self) -> tuple[str, ...]:
    """The names of the predicted values: actions, and classes such as "reaction:like" ("reaction:2" without names)."""

  @property
  @abc.abstractmethod
  def read_actions(self) -> tuple[str, ...]:
    """The names of the typed actions that the model reads of an event: what given events must have."""

  @abc.abstractmethod
  def default_weights(self) -> Mapping[str, float]:
    """Returns the weights of a score: 1 for each binary action, or else for each number.

    Raises:
      ValueError: the model predicts classes alone, which have no weights of their own.
    """

  @abc.abstractmethod
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

  def rank(self, user: str | int, **options: Any) -> list[RankedItem]:
    """Returns the items that `rank_history` ranks after the whole history of a user of the data.

    Args:
      user: id in the raw data.
      **options: as of `rank_history`.

    Raises:
      ValueError: an unknown user, a user without an event, and as `rank_history`.
    """
    return self.rank_history(self.history_of(user), **options)

  def history_of(self, user: str | int) -> Histories:
    """Returns the events of a user of the data.

    Raises:
      ValueError: an unknown user, or a user without an event.
    """
    return histories_of_users(self.data, np.array([self.data.user_index(user)]), actions=self.read_actions)

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
    """Returns the k items with the highest weighted sum of actions after a history.

    Fewer where there are fewer candidates, as for a user who has seen every item, and none after a history without an
    event of a known item.

    Args:
      history: of one user; `histories` makes it of given events.
      candidates: item ids to rank; None: all items.
      weights: action -> weight of its value: the probability of a binary action, or a number; "reaction:like" (or
        "reaction:2" where the data have no names) is the probability of a class of a multi_class action. None: 1 for
        each binary action, or else for each number.
      k: length of the list.
      exclude_seen: whether items of the history are left out.
      at: time of the request in seconds since 1970, or a datetime; None: that of the last event.

    Raises:
      ValueError: an unknown action, a time before the last event, or a user who is not in the data where the model
        reads `config.data.context`.
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
    """Returns the weights of `rank_history`, those for None too.

    Raises:
      ValueError: an unknown action.
    """
    if weights is None:
      return self.default_weights()
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


def check_filled(histories: Histories) -> None:
  """Raises: ValueError for a history without an event of a known item."""
  if not histories.lengths.all():
    empty = int(histories.lengths.argmin())
    raise ValueError(f"history {empty} has no event of a known item; a ranking model needs one")
