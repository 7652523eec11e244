"""From flat event columns to `SequenceBatch` rows, by index arithmetic alone (no loop over users or events)."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Int

from jaxrec.batches import SequenceBatch
from jaxrec.data.prepared import PreparedData

REQUEST_TIMES = ("target", "last_event")
TASKS = ("next_item", "masked_item")


@dataclasses.dataclass(frozen=True)
class Spans:
  """K runs of consecutive events and where they go in a grid of rows.

  row, column, number: place of each run's first event in the grid, and its 1, 2, ... inside the row.
  first: flat index of its first event in the event columns.
  length: how many events it has, at least 1.
  """

  row: Int[np.ndarray, " K"]
  column: Int[np.ndarray, " K"]
  number: Int[np.ndarray, " K"]
  first: Int[np.ndarray, " K"]
  length: Int[np.ndarray, " K"]


class EventColumns:
  """The columns of a `PreparedData` as batches need them.

  Times are int32 seconds since the first event of the data set; there is no action column if all actions are 0.

  Raises:
    ValueError: the events span more seconds than int32 holds (68 years).
  """

  def __init__(self, data: PreparedData):
    self.item_id, self.domain_id, self._timestamp = data.item_id, data.domain_id, data.timestamp
    self.num_items = data.num_items
    self.action = data.action if np.any(data.action) else None
    self.first_second = int(data.timestamp.min()) if data.has_timestamps else 0
    span = int(data.timestamp.max()) - self.first_second if data.has_timestamps else 0
    if span > np.iinfo(np.int32).max:
      raise ValueError(
        f"timestamp spans {span} seconds, int32 holds 2147483647 (68 years); are they milliseconds, or are some 0?"
      )
    self._has_timestamps = data.has_timestamps

  def seconds(self, events: Int[np.ndarray, " E"]) -> Int[np.ndarray, " E"]:
    """Returns the times of events; 0 where the data has none."""
    if not self._has_timestamps:
      return np.zeros(len(events), np.int32)
    return (self._timestamp[events] - self.first_second).astype(np.int32)


def prefix_lengths(data: PreparedData, last_split: int) -> Int[np.ndarray, " U"]:
  """Returns how many events each user has before the first one whose split is above `last_split` (-1: none).

  Raises:
    ValueError: some user has an earlier split after a later one.
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
  """Returns rows whose inputs are the spans' events and whose targets are the events right after each of them.

  Args:
    columns: event columns.
    spans: the *input* events; the event after the last one must belong to the same user.
    shape: rows and row length of the grid.
    request_time: "target": target_time is the time of the target event; "last_event": the time of the input event
      itself.
  """
  place, event = _places(spans, shape[1])
  put = _Putter(place, shape)
  return SequenceBatch(
    **_inputs(columns, spans, place, event, put),
    target_item=put(columns.item_id[event + 1]),
    target_domain=put(columns.domain_id[event + 1]),
    target_time=put(columns.seconds(event + 1 if request_time == "target" else event)),
    target_weight=put(np.ones(len(event), np.float32)),
  )


def masked_item_rows(
  columns: EventColumns, spans: Spans, shape: tuple[int, int], masked: Bool[np.ndarray, " E"], reveal_domain: bool
) -> SequenceBatch:
  """Returns rows with some events replaced by the mask token V + 1, and these as the targets.

  At a masked position the action is hidden as well, and so is the domain (0) unless `reveal_domain`; the time stays.
  Positions count back from the latest event: what is asked for in serving is always at 0, whatever the length.

  Source: arXiv 1904.06690, whose sequences of one length are padded on the left.

  Args:
    columns: event columns.
    spans: the events of each sequence.
    shape: rows and row length of the grid.
    masked: for each event of the spans, one span after another, whether it is masked.
    reveal_domain: whether a masked position tells the domain of the hidden item.
  """
  place, event = _places(spans, shape[1])
  put = _Putter(place, shape)
  inputs = _inputs(columns, spans, place, event, put)
  hidden = put(masked)
  inputs["item_id"] = np.where(hidden, np.int32(columns.num_items + 1), inputs["item_id"])
  inputs["action"] = None if columns.action is None else np.where(hidden, 0, inputs["action"])
  last = put(np.repeat(spans.length - 1, spans.length).astype(np.int32))
  inputs["position"] = last - inputs["position"]
  inputs["domain_id"] = inputs["domain_id"] if reveal_domain else np.where(hidden, 0, inputs["domain_id"])
  return SequenceBatch(
    **inputs,
    target_item=put(np.where(masked, columns.item_id[event], 0)),
    target_domain=put(np.where(masked, columns.domain_id[event], 0)),
    target_time=inputs["timestamp"].copy(),
    target_weight=put(masked.astype(np.float32)),
  )


def item_grid(columns: EventColumns, spans: Spans, shape: tuple[int, int]) -> Int[np.ndarray, "B S"]:
  """Returns the items of the spans in a grid, 0 elsewhere."""
  place, event = _places(spans, shape[1])
  return _Putter(place, shape)(columns.item_id[event])


def random_masks(
  spans: Spans, probability: float, last_only_probability: float, seed: tuple[int, ...]
) -> Bool[np.ndarray, " E"]:
  """Returns which events of the spans to mask: each with `probability`, at least one in each span.

  The draw of an event depends on the seed and on its place in the data set only, so that it is the same in whatever
  row, batch or host the event lies.

  Args:
    spans: the sequences.
    probability: of each event to be masked.
    last_only_probability: of a span to have its last event masked and no other, as at prediction time.
    seed: integers.
  """
  starts = np.cumsum(spans.length) - spans.length
  of_span = np.repeat(np.arange(len(spans.length)), spans.length)
  event = spans.first[of_span] + np.arange(len(of_span)) - starts[of_span]
  draw = _uniform(event, (*seed, 0))
  lowest = np.minimum.reduceat(draw, starts) if len(starts) else draw
  masked = (draw < probability) | (draw == lowest[of_span])
  last_only = (_uniform(spans.first, (*seed, 1)) < last_only_probability)[of_span]
  is_last = np.arange(len(of_span)) == (starts + spans.length - 1)[of_span]
  return np.where(last_only, is_last, masked)


def _check_split_order(data):
  falls = np.flatnonzero(data.split[1:] < data.split[:-1]) + 1
  inside = falls[~np.isin(falls, data.offsets)]
  if len(inside):
    user = int(np.searchsorted(data.offsets, inside[0], side="right") - 1)
    raise ValueError(
      f"split of user {user} falls from {data.split[inside[0] - 1]} to {data.split[inside[0]]} at event {inside[0]};"
      " training events must come before validation events and these before test events; prepare the data again"
    )


def _places(spans, row_length):
  """Flat grid index and flat event index of every event of the spans."""
  starts = np.cumsum(spans.length) - spans.length
  within = np.arange(int(spans.length.sum())) - np.repeat(starts, spans.length)
  place = np.repeat(spans.row * row_length + spans.column, spans.length) + within
  return place, np.repeat(spans.first, spans.length) + within


def _inputs(columns, spans, place, event, put):
  within = np.arange(len(event)) - np.repeat(np.cumsum(spans.length) - spans.length, spans.length)
  return {
    "item_id": put(columns.item_id[event]),
    "domain_id": put(columns.domain_id[event]),
    "timestamp": put(columns.seconds(event)),
    "sequence_id": put(np.repeat(spans.number, spans.length).astype(np.int32)),
    "position": put(within.astype(np.int32)),
    "action": None if columns.action is None else put(columns.action[event]),
  }


@dataclasses.dataclass(frozen=True)
class _Putter:
  place: np.ndarray
  shape: tuple[int, int]

  def __call__(self, values):
    grid = np.zeros(self.shape, values.dtype)
    grid.reshape(-1)[self.place] = values
    return grid


def _uniform(index, seed):
  """Numbers in [0, 1) that depend on (seed, index) only. Source: the finaliser of SplitMix64, Steele et al. 2014."""
  state = np.uint64(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
  with np.errstate(over="ignore"):
    mixed = (index.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + state
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
      mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
  return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
