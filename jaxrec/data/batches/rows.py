"""Event columns -> `SequenceBatch` rows, by index arithmetic alone: no loop over users or events."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from jaxrec.batches import SequenceBatch
from jaxrec.data.batches.splitmix import GOLDEN_GAMMA, mix_bits
from jaxrec.data.prepared import PreparedData

REQUEST_TIMES = ("target", "last_event")
TASKS = ("next_item", "masked_item")


@dataclasses.dataclass(frozen=True)
class Spans:
  """K runs of consecutive events, and their positions in a grid of rows.

  row, column: position of a run's first event in the grid.
  sequence_id: 1, 2, ... for the runs of a row.
  first: index of a run's first event in the event columns.
  length: number of its events, at least 1.
  """

  row: Int[np.ndarray, " K"]
  column: Int[np.ndarray, " K"]
  sequence_id: Int[np.ndarray, " K"]
  first: Int[np.ndarray, " K"]
  length: Int[np.ndarray, " K"]


def spans_in_separate_rows(first: Int[np.ndarray, " K"], length: Int[np.ndarray, " K"]) -> Spans:
  """Returns spans of which each has a row of its own, in the given order."""
  row = np.arange(len(first))
  return Spans(row=row, column=np.zeros_like(row), sequence_id=np.ones_like(row), first=first, length=length)


class EventColumns:
  """The columns of a `PreparedData` with the types of a batch.

  Times are int32 seconds since the first event of the data set. `action` is None if all actions are 0.

  Args:
    data: prepared columns.
    action_weights: pairs of an action and the weight of its events as targets; other events are no targets. None: all
      events weigh 1.

  Raises:
    ValueError: the events span more seconds than an int32 can hold (68 years), or weights for data without actions.
  """

  def __init__(self, data: PreparedData, action_weights: Sequence[tuple[int, float]] | None = None):
    self.item_id, self.domain_id, self._timestamp = data.item_id, data.domain_id, data.timestamp
    self.num_items = data.num_items
    # A shard has the first second of all shards, and actions where any of them has one.
    has_actions = data.meta["has_actions"] if "has_actions" in data.meta else np.any(data.action)
    self.action = data.action if has_actions else None
    first, last = (0, 0) if not data.has_timestamps else data.meta.get("times") or _range(data.timestamp)
    self.first_second, duration = first, last - first
    if duration > np.iinfo(np.int32).max:
      raise ValueError(
        f"timestamp spans {duration} seconds, an int32 holds 2147483647 (68 years); are they milliseconds, or are some"
        " of them 0?"
      )
    self._has_timestamps = data.has_timestamps
    self._action_weights = action_weights or None
    if self._action_weights and self.action is None:
      raise ValueError(f"{action_weights=} is given, but the data has no actions; prepare it with an action column")

  def target_weights(self, events: Int[np.ndarray, " E"]) -> Float[np.ndarray, " E"]:
    """Returns the weights of events as targets."""
    if not self._action_weights:
      return np.ones(len(events), np.float32)
    weights = np.zeros(len(events), np.float32)
    for action, weight in self._action_weights:
      weights[self.action[events] == action] = weight
    return weights

  def seconds(self, events: Int[np.ndarray, " E"]) -> Int[np.ndarray, " E"]:
    """Returns the times of events, given by index; 0 if the data has no times."""
    if not self._has_timestamps:
      return np.zeros(len(events), np.int32)
    return (self._timestamp[events] - self.first_second).astype(np.int32)


def _range(values):
  return int(values.min()), int(values.max())


def prefix_lengths(data: PreparedData, last_split: int) -> Int[np.ndarray, " U"]:
  """Returns the number of events that each user has before the first one whose split is above `last_split`.

  Args:
    data: prepared columns.
    last_split: 0 counts training events, 1 validation events too, 2 all; -1 none.

  Raises:
    ValueError: the split decreases inside a user.
  """
  low, high = data.offsets[:-1].astype(np.int64), data.offsets[1:].astype(np.int64)
  _check_split_order(data)
  while np.any(low < high):  # Bisection, all users at once.
    middle = np.minimum((low + high) // 2, max(len(data.split) - 1, 0))
    inside = data.split[middle].astype(np.int64) <= last_split
    searching = low < high
    low, high = np.where(searching & inside, middle + 1, low), np.where(searching & ~inside, middle, high)
  return low - data.offsets[:-1]


def next_item_rows(columns: EventColumns, spans: Spans, shape: tuple[int, int], request_time: str) -> SequenceBatch:
  """Returns rows whose inputs are the events of the spans; the target of each is the event right after it.

  Args:
    columns: event columns.
    spans: the *input* events; the event after the last one must belong to the same user.
    shape: rows and row length of the grid.
    request_time: "target": target_time is the time of the target event; "last_event": the time of the input event.
  """
  position, event = _flat_indices(spans, shape[1])
  grid = _Grid(position, shape)
  return SequenceBatch(
    **_inputs(columns, spans, event, grid),
    target_item=grid.fill(columns.item_id[event + 1]),
    target_domain=grid.fill(columns.domain_id[event + 1]),
    target_time=grid.fill(columns.seconds(event + 1 if request_time == "target" else event)),
    target_weight=grid.fill(columns.target_weights(event + 1)),
  )


def masked_item_rows(
  columns: EventColumns, spans: Spans, shape: tuple[int, int], masked: Bool[np.ndarray, " E"], reveal_domain: bool
) -> SequenceBatch:
  """Returns rows in which the mask token V + 1 replaces some items, which are the targets.

  A masked position hides the action too, and the domain unless `reveal_domain`; its time stays. Positions count back
  from the latest event, so that position 0 is the one to predict in serving, whatever the length.

  Source: arXiv 1904.06690, whose sequences of one length are padded on the left.

  Args:
    columns: event columns.
    spans: the events of each sequence.
    shape: rows and row length of the grid.
    masked: whether an event is masked, for all events of the spans, one span after another.
    reveal_domain: whether masked positions keep the domain of the hidden item.
  """
  position, event = _flat_indices(spans, shape[1])
  grid = _Grid(position, shape)
  inputs = _inputs(columns, spans, event, grid)
  hidden = grid.fill(masked)
  inputs["item_id"] = np.where(hidden, np.int32(columns.num_items + 1), inputs["item_id"])
  inputs["action"] = None if columns.action is None else np.where(hidden, 0, inputs["action"])
  last = grid.fill(np.repeat(spans.length - 1, spans.length).astype(np.int32))
  inputs["position"] = last - inputs["position"]
  inputs["domain_id"] = inputs["domain_id"] if reveal_domain else np.where(hidden, 0, inputs["domain_id"])
  return SequenceBatch(
    **inputs,
    target_item=grid.fill(np.where(masked, columns.item_id[event], 0)),
    target_domain=grid.fill(np.where(masked, columns.domain_id[event], 0)),
    target_time=inputs["timestamp"].copy(),
    target_weight=grid.fill(masked * columns.target_weights(event)),
  )


def item_grid(columns: EventColumns, spans: Spans, shape: tuple[int, int]) -> Int[np.ndarray, "B S"]:
  """Returns the items of the spans in a grid, 0 elsewhere."""
  position, event = _flat_indices(spans, shape[1])
  return _Grid(position, shape).fill(columns.item_id[event])


def random_masks(
  spans: Spans, probability: float, last_only_probability: float, seed: tuple[int, ...]
) -> Bool[np.ndarray, " E"]:
  """Returns which events of the spans to mask: each with `probability`, and at least one per span.

  Whether an event is masked depends only on the seed and on its index in the data set, not on the row, batch or host it
  ends up in.

  Args:
    spans: the sequences.
    probability: probability that an event is masked.
    last_only_probability: probability that a span has only its last event masked, as at prediction time.
    seed: integers.
  """
  starts = np.cumsum(spans.length) - spans.length
  span = np.repeat(np.arange(len(spans.length)), spans.length)  # [E]
  event = spans.first[span] + _index_in_span(spans)
  draws = _uniform(event, (*seed, 0))
  lowest = np.minimum.reduceat(draws, starts) if len(starts) else draws
  masked = (draws < probability) | (draws == lowest[span])
  last_only = (_uniform(spans.first, (*seed, 1)) < last_only_probability)[span]
  is_last = np.arange(len(span)) == (starts + spans.length - 1)[span]
  return np.where(last_only, is_last, masked)


def _check_split_order(data):
  decreases = np.flatnonzero(data.split[1:] < data.split[:-1]) + 1
  inside_user = decreases[~np.isin(decreases, data.offsets)]
  if len(inside_user):
    event = inside_user[0]
    user = int(np.searchsorted(data.offsets, event, side="right") - 1)
    raise ValueError(
      f"split of user {user} falls from {data.split[event - 1]} to {data.split[event]} at event {event};"
      " training events must come before validation events and these before test events; prepare the data again"
    )


def _flat_indices(spans, row_length) -> tuple[Int[np.ndarray, " E"], Int[np.ndarray, " E"]]:
  """Returns the index in the flattened grid, and in the event columns, of every event of the spans."""
  index = _index_in_span(spans)
  position = np.repeat(spans.row * row_length + spans.column, spans.length) + index
  return position, np.repeat(spans.first, spans.length) + index


def _index_in_span(spans) -> Int[np.ndarray, " E"]:
  """Returns 0, 1, ... for the events of each span."""
  starts = np.cumsum(spans.length) - spans.length
  return np.arange(int(spans.length.sum())) - np.repeat(starts, spans.length)


def _inputs(columns, spans, event, grid):
  return {
    "item_id": grid.fill(columns.item_id[event]),
    "domain_id": grid.fill(columns.domain_id[event]),
    "timestamp": grid.fill(columns.seconds(event)),
    "sequence_id": grid.fill(np.repeat(spans.sequence_id, spans.length).astype(np.int32)),
    "position": grid.fill(_index_in_span(spans).astype(np.int32)),
    "action": None if columns.action is None else grid.fill(columns.action[event]),
  }


@dataclasses.dataclass(frozen=True)
class _Grid:
  """Rows to fill with one value per event; `position` holds the index of each event in the flattened grid."""

  position: Int[np.ndarray, " E"]
  shape: tuple[int, int]

  def fill(self, values) -> Shaped[np.ndarray, "B N"]:
    grid = np.zeros(self.shape, values.dtype)
    grid.reshape(-1)[self.position] = values
    return grid


def _uniform(index, seed) -> Float[np.ndarray, " K"]:
  """Returns numbers in [0, 1) that depend only on the seed and on an index."""
  offset = np.uint64(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
  with np.errstate(over="ignore"):
    bits = mix_bits((index.astype(np.uint64) + np.uint64(1)) * GOLDEN_GAMMA + offset)
  return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
