"""Events with actions -> `RankingBatch` rows, by index arithmetic alone: no loop over users or events.

Two layouts of the tokens of a history of n events, t of which are targets, after P tokens of context:

    interleaved  context | item 0, action 0, item 1, action 1, ...               P + 2 n tokens
    one_token    context | event 0, event 1, ... | the items of the t targets    P + n + t tokens

An item token of "interleaved" reads all tokens before it. In "one_token" an event holds its item and its actions and
reads itself and what is before; the item token of a target, whose actions are hidden, reads context, the events before
that target, and itself. Context reads earlier context only: what it read of events would tell earlier ones about later
ones.

Source: Zhai et al. 2024, arXiv 2402.17152, section 2.2 ("interleaved").
Choice: "one_token" has two streams in training, so that each event is a target and a piece of history at once.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int, Shaped

from jaxrec.batches import ACTION, CANDIDATE, CONTEXT, EVENT, RankingBatch
from jaxrec.data.batches.item_categories import item_categories
from jaxrec.data.batches.request_features import CLOCK, clock_category, request_categories
from jaxrec.data.batches.rows import EventColumns
from jaxrec.data.prepared import PreparedData

LAYOUTS = ("interleaved", "one_token")


@dataclasses.dataclass(frozen=True)
class Examples:
  """K histories: events `first..end - 1` of one user, of which those from `target` on are predicted."""

  first: Int[np.ndarray, " K"]
  target: Int[np.ndarray, " K"]
  end: Int[np.ndarray, " K"]

  def __len__(self) -> int:
    return len(self.first)

  def __getitem__(self, chosen: Shaped[np.ndarray, " J"]) -> Examples:
    return Examples(self.first[chosen], self.target[chosen], self.end[chosen])


@dataclasses.dataclass(frozen=True)
class TokenEvents:
  """E events of K histories, one history after another in order of time.

  event: index in the event columns.
  example: 0..K - 1.
  is_target: whether its actions are predicted.
  """

  event: Int[np.ndarray, " E"]
  example: Int[np.ndarray, " E"]
  is_target: Bool[np.ndarray, " E"]


def all_events(examples: Examples) -> TokenEvents:
  """Returns every event of the histories.

  >>> all_events(Examples(np.array([0, 3]), np.array([1, 3]), np.array([2, 4]))).is_target.tolist()
  [False, True, True]
  """
  length = examples.end - examples.first
  example = np.repeat(np.arange(len(length)), length)
  event = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length) + examples.first[example]
  return TokenEvents(event, example, event >= examples.target[example])


def num_tokens(
  layout: str, num_context: int, events: Int[np.ndarray, " K"], targets: Int[np.ndarray, " K"]
) -> Int[np.ndarray, " K"]:
  """Returns the tokens of histories with so many events and targets.

  >>> num_tokens("one_token", 1, np.array([3]), np.array([1]))
  array([5])
  """
  return num_context + (2 * events if layout == "interleaved" else events + targets)


class RankingColumns:
  """What tokens are filled with: items, requests and their features, times, actions, users as context.

  features: names of columns of the items, see `jaxrec.data.batches.item_categories`; each becomes a feature.
  context: names of columns of the users; "user" is the user itself.
  request: names of features of an event's request, see `jaxrec.data.batches.request_features`; each becomes a feature.
  item_features: name -> category of each item, `[V1]`.
  request_features: name -> category of each event, `[E]`.

  Raises:
    ValueError: the items or users have no such column, or it has missing values; the request has no such feature, or
      one with the name of a feature of the items.

  Choice: features of the request belong to the tokens of events and candidates. In the prefix, which all events of a
    history read, they would tell earlier events about later requests.
  """

  def __init__(
    self,
    data: PreparedData,
    features: Sequence[str] = (),
    context: Sequence[str] = (),
    request: Sequence[str] = (),
  ):
    self.events, self.actions = EventColumns(data), data.actions
    self._offsets = data.offsets
    categories = {name: item_categories(data, name) for name in features}
    self.item_features = {name: values for name, (values, _) in categories.items()}
    self.feature_sizes = {name: size for name, (_, size) in categories.items()}
    requests = {name: request_categories(data, name) for name in request}
    if repeated := sorted(set(features) & set(request)):
      raise ValueError(f"{repeated} are features of items and of requests")
    self.request_features = {name: values for name, (values, _) in requests.items()}
    self.feature_sizes |= {name: size for name, (_, size) in requests.items()}
    self._context, self.num_context_ids = _context_ids(data, context)  # [U, P]

  @property
  def num_context(self) -> int:
    """P, the tokens of context of each history."""
    return self._context.shape[1]

  def of_other_events(self, data: PreparedData, user: Int[np.ndarray, " U"]) -> RankingColumns:
    """Returns the columns of other events of the same items, such as those that came after training.

    Args:
      data: the events, with the features and actions that these columns have.
      user: for each user of `data`, the user of these columns whose context it has.
    """
    found = copy.copy(self)
    found.events, found.actions, found._offsets = EventColumns(data), data.actions, data.offsets
    found.request_features = {name: request_categories(data, name)[0] for name in self.request_features}
    found._context = self._context[user]
    return found

  def candidate_features(
    self, item: Int[np.ndarray, "B K"], event: Int[np.ndarray, " B"], at: Int[np.ndarray, " B"] | None = None
  ) -> dict[str, Int[np.ndarray, "B K"]]:
    """Returns name -> categories of candidates, where the request is like that of an event.

    Args:
      item: candidates of each user; 0 for none.
      event: of each user, whose request is taken.
      at: seconds since 1970 of each request; None: that of the event.
    """
    found = {name: values[item] for name, values in self.item_features.items()}
    for name, values in self.request_features.items():
      of_request = values[event] if at is None or name not in CLOCK else clock_category(name, at)
      found[name] = np.broadcast_to(of_request[:, None], item.shape)
    return found

  def batch(
    self,
    layout: str,
    examples: Examples,
    kept: TokenEvents,
    row: Int[np.ndarray, " K"],
    column: Int[np.ndarray, " K"],
    sequence_id: Int[np.ndarray, " K"],
    shape: tuple[int, int],
  ) -> RankingBatch:
    """Returns a batch of shape [rows, row length].

    Args:
      layout: of the tokens, one of `LAYOUTS`.
      examples: the histories.
      kept: the events of theirs that become tokens: all, or a subsequence.
      row, column: where each history starts.
      sequence_id: 1, 2, ... for the histories of a row.
      shape: of the batch.
    """
    first_place, user = row * shape[1] + column, np.searchsorted(self._offsets, examples.first, side="right") - 1
    arrangement = {"interleaved": _interleaved, "one_token": _one_token}[layout]
    groups = [self._context_tokens(examples, first_place, user)]
    groups += arrangement(kept, first_place + self.num_context, len(examples))
    grid = _Grid(shape)
    for tokens in groups:
      example, place = tokens.example, tokens.place
      grid.put("kind", place, tokens.kind)
      grid.put("sequence_id", place, sequence_id[example])
      grid.put("user_id", place, user[example])
      grid.put("start", place, column[example])
      grid.put("end", place, tokens.end - row[example] * shape[1])
      grid.put("timestamp", place, self.events.seconds(tokens.event))
      if tokens.kind == CONTEXT:
        grid.put(
          "context_id", place, self._context[user[example], np.repeat(np.arange(self.num_context), len(examples))]
        )
      else:
        self._put_event(grid, tokens, examples)
    return grid.batch(self.actions, self.feature_sizes)

  def _context_tokens(self, examples, first_place, user) -> _Tokens:
    example = np.tile(np.arange(len(examples)), self.num_context)
    place = first_place[example] + np.repeat(np.arange(self.num_context), len(examples))
    return _Tokens(CONTEXT, examples.first[example], example, place, place)

  def _put_event(self, grid, tokens: _Tokens, examples) -> None:
    event, example, place = tokens.event, tokens.example, tokens.place
    grid.put("position", place, event - examples.first[example])
    for name, values in self.actions.items():
      grid.put(f"actions/{name}", place, values[event], np.float32 if values.dtype == np.float32 else np.int32)
    if tokens.kind == ACTION:
      return
    item = self.events.item_id[event]
    grid.put("item_id", place, item)
    for name, values in self.item_features.items():
      grid.put(f"features/{name}", place, values[item])
    for name, values in self.request_features.items():
      grid.put(f"features/{name}", place, values[event])
    if tokens.kind == CANDIDATE:
      grid.put("weight", place, event >= examples.target[example], np.float32)


def _context_ids(data, names) -> tuple[Int[np.ndarray, "U P"], int]:
  """Returns rows of one table for all features of context, from 1, and their number."""
  columns, used = [], 0
  for name in names:
    if name == "user":
      values = np.arange(1, data.num_users + 1)
    elif name in data.users.columns:
      values = data.users[name].rank("dense").to_numpy()
    else:
      raise ValueError(f"context feature {name!r} is no column of the users; there are {['user', *data.users.columns]}")
    columns.append(values + used)
    used += int(values.max(initial=0))
  return np.stack(columns, axis=1) if columns else np.zeros((data.num_users, 0), np.int64), used


@dataclasses.dataclass(frozen=True)
class _Tokens:
  """Tokens of one kind: their events and histories, places in the flattened grid, and where their keys end there."""

  kind: int
  event: np.ndarray
  example: np.ndarray
  place: np.ndarray
  end: np.ndarray


def _interleaved(kept: TokenEvents, start, num_examples) -> list[_Tokens]:
  index, _ = _index_in_history(kept.example, num_examples)
  place = start[kept.example] + 2 * index
  return [_Tokens(kind, kept.event, kept.example, place + i, place + i) for i, kind in enumerate((CANDIDATE, ACTION))]


def _one_token(kept: TokenEvents, start, num_examples) -> list[_Tokens]:
  index, count = _index_in_history(kept.example, num_examples)
  place, target = start[kept.example] + index, kept.is_target
  example = kept.example[target]
  candidate = (start + count)[example] + _index_in_history(example, num_examples)[0]
  return [
    _Tokens(EVENT, kept.event, kept.example, place, place),
    _Tokens(CANDIDATE, kept.event[target], example, candidate, place[target]),
  ]


def _index_in_history(example, num_examples) -> tuple[np.ndarray, np.ndarray]:
  """Returns the index of each event among those of its history, and the number of events of each history."""
  count = np.bincount(example, minlength=num_examples)
  return np.arange(len(example)) - (np.cumsum(count) - count)[example], count


class _Grid:
  """The arrays of a batch by name, flattened; 0 where nothing was put."""

  def __init__(self, shape: tuple[int, int]):
    self._shape, self._arrays = shape, {}
    for name in ("kind", "sequence_id", "position", "item_id", "context_id", "timestamp", "start", "end", "user_id"):
      self._arrays[name] = np.zeros(shape[0] * shape[1], np.int32)
    self._arrays["weight"] = np.zeros(shape[0] * shape[1], np.float32)

  def put(self, name: str, place: np.ndarray, values: np.ndarray | int, dtype: type = np.int32) -> None:
    """Writes values at places of an array, which begins as zeros of the dtype."""
    self._arrays.setdefault(name, np.zeros(self._shape[0] * self._shape[1], dtype))[place] = values

  def batch(self, actions: Mapping, features: Mapping) -> RankingBatch:
    """Returns the arrays as a batch."""
    arrays = {name: values.reshape(self._shape) for name, values in self._arrays.items()}  # [B, N]
    groups = {
      group: {name: arrays.pop(f"{group}/{name}") for name in names}
      for group, names in (("actions", actions), ("features", features))
    }
    return RankingBatch(**arrays, **groups)
