"""Click-through prediction of events with a label: each event is a candidate whose label is a typed action of it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from jaxrec.batches import BINARY, CandidateBatch
from jaxrec.data.batches.candidates import candidate_batch
from jaxrec.data.batches.item_categories import AUTO, item_categories
from jaxrec.data.prepared import TEST, TRAIN, VALIDATION, PreparedData


class LabelledEvents:
  """The events of each split by index, as `jaxrec.data.batches.candidates.CandidateExamples`.

  A history holds the items before an event, whatever was done with them.

  num_items, num_categories: the largest item id V and the largest category id; both start at 1.
  item_category: [V + 1] the category of each item, 0 for padding.
  counts: events of each split, and events left out because too few precede them.

  >>> columns = {"actions": {"like": [1, 0, 1]}, "action_kinds": {"like": "binary"}, "split": [0, 0, 2]}
  >>> examples = LabelledEvents(PreparedData.from_columns(user=[0] * 3, item_id=[5, 3, 8], **columns), "like", 2)
  >>> batch = examples.batch(TEST, np.array([0]))
  >>> batch.history_item.tolist(), batch.item.tolist(), batch.label.tolist(), examples.num_examples(TRAIN)
  ([[5, 3]], [8], [1.0], 1)
  """

  def __init__(self, data: PreparedData, label: str, history_length: int, min_history: int = 1, category: str = AUTO):
    """Finds the events.

    Args:
      data: prepared columns.
      label: name of a binary action.
      history_length: N, the latest events before each.
      min_history: events that must precede one.
      category: see `CandidateOptions.category`.

    Raises:
      ValueError: the data have no such binary action, or the items no such column.
    """
    kinds = {name: data.action_meta[name]["kind"] for name in data.actions}
    if kinds.get(label) != BINARY:
      binary = sorted(name for name, kind in kinds.items() if kind == BINARY)
      raise ValueError(f"{label=} must be a binary action of the data, which has {binary}")
    self._data, self._history_length = data, history_length
    self._label = np.asarray(data.actions[label])
    self.item_category, self.num_categories = item_categories(data, category)
    self.num_items = data.num_items
    before = np.arange(data.num_events) - np.repeat(data.offsets[:-1], np.diff(data.offsets))
    has_history, split = before >= min_history, np.asarray(data.split)
    self._events = {s: np.flatnonzero(has_history & (split == s)) for s in (TRAIN, VALIDATION, TEST)}
    sizes = {name: len(self._events[s]) for name, s in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST))}
    self.counts = sizes | {"without_history": int(np.count_nonzero(~has_history))}

  def num_examples(self, split: int) -> int:
    """Returns the number of events of a split: TRAIN, VALIDATION or TEST."""
    return len(self._events[split])

  def batch(self, split: int, examples: Int[np.ndarray, " B"]) -> CandidateBatch:
    """Returns the events of a split with the given indices, 0 .. num_examples - 1."""
    event = self._events[split][np.asarray(examples, np.int64)]
    user = np.searchsorted(self._data.offsets, event, side="right") - 1
    item, label = self._data.item_id[event].astype(np.int32), self._label[event]
    return candidate_batch(self._data, self.item_category, self._history_length, event, user, item, label)

  def training_clicks(self) -> Int[np.ndarray, " V1"]:
    """Returns [V + 1] the number of training events of each item, whatever their label."""
    is_training = np.asarray(self._data.split) == TRAIN
    return np.bincount(np.asarray(self._data.item_id)[is_training], minlength=self._data.num_items + 1)
