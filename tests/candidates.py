"""Small batches of candidates for the tests."""

import numpy as np

from jaxrec.batches import CandidateBatch

NUM_ITEMS, NUM_CATEGORIES = 9, 4


def category_of(item):
  """The category of an item: 1..4, and 0 for padding."""
  return np.where(item > 0, (item - 1) % NUM_CATEGORIES + 1, 0).astype(np.int32)


def candidate_batch(histories, items, labels=None, length=6):
  """A batch from lists of items, each padded on the left to `length`."""
  item = np.array([[0] * (length - len(history)) + list(history) for history in histories], np.int32)
  candidate = np.array(items, np.int32)
  labels = np.arange(len(items)) % 2 if labels is None else labels
  return CandidateBatch(
    history_item=item,
    history_category=category_of(item),
    history_age=np.where(item > 0, np.arange(length, 0, -1), 0).astype(np.int32),
    item=candidate,
    category=category_of(candidate),
    label=np.array(labels, np.float32),
    user_id=np.arange(len(items), dtype=np.int32),
  )
