"""Training batches of click-through prediction whose rows hold several targets of one user and the events they share.

Histories of 200 events for 57 candidates of a user are 11,400 events; the 290 events that they cover are read once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from jaxrec.batches import PackedCandidates
from jaxrec.data.batches.candidates import CandidateData, latest_events
from jaxrec.data.prepared import TRAIN


class PackedTraining:
  """Random access to the training batches of a run: `self[i]` is this host's shard of batch i, in shuffled order.

  A row holds `targets_per_row` consecutive targets of one user. Where this does not divide a user's targets, each epoch
  leaves out others, at the beginning or at the end.

  batches_per_epoch: full batches per epoch.
  examples_left_out: examples per epoch that do not fill a row or a batch.

  >>> from jaxrec.data.batches.candidates import CandidateOptions
  >>> from jaxrec.data.prepared import PreparedData
  >>> data = PreparedData.from_columns(user=[0] * 8 + [1] * 8, item_id=np.arange(1, 17))
  >>> options = CandidateOptions(history_length=3, min_events=8, target_stride=2, targets_per_user=2, negatives=1)
  >>> batches = PackedTraining(CandidateData(data, options), batch_size=4, num_epochs=1, seed=0, targets_per_row=2)
  >>> row = batches[0]
  >>> len(batches), row.history_item.shape, row.end.tolist(), row.label.tolist()
  (2, (1, 5), [[3, 5]], [[1.0, 0.0, 1.0, 0.0]])
  """

  def __init__(
    self,
    examples: CandidateData,
    batch_size: int,
    num_epochs: int,
    seed: int,
    targets_per_row: int,
    splits: Sequence[int] = (TRAIN,),
    shard_index: int = 0,
    shard_count: int = 1,
  ):
    """Counts the rows; the order of an epoch is drawn at its first batch.

    Args:
      examples: candidates of all splits.
      batch_size: examples of a global batch, over all hosts.
      num_epochs: passes over the rows.
      seed: determines the order.
      targets_per_row: T.
      splits: the splits to train on.
      shard_index, shard_count: this host takes 1 / shard_count of the rows of each batch.

    Raises:
      ValueError: rows or hosts do not divide a batch, or there are fewer rows than a batch holds.
    """
    self._examples, self.batch_size, self._num_epochs, self._seed = examples, batch_size, num_epochs, seed
    self._targets, self._each = targets_per_row, 1 + examples.options.negatives
    per_row = targets_per_row * self._each
    if batch_size % (per_row * shard_count):
      raise ValueError(
        f"{batch_size=} must be divisible by {per_row} candidates of a row ({targets_per_row=} with {self._each} each)"
        f" x {shard_count} hosts"
      )
    self._rows_per_batch = batch_size // per_row
    self._size = self._rows_per_batch // shard_count
    self._first = shard_index * self._size
    self._event, self._split, self._counts = _ordered_targets(examples, splits)
    num_rows = int((self._counts // targets_per_row).sum())
    self.batches_per_epoch = num_rows // self._rows_per_batch
    if not self.batches_per_epoch:
      raise ValueError(
        f"{batch_size=} must be at most {num_rows * per_row}, the examples in rows of {targets_per_row} targets"
      )
    self.examples_left_out = len(self._event) * self._each - self.batches_per_epoch * batch_size
    self._num_columns = examples.options.history_length + self._widest_row()
    self._order = functools.lru_cache(maxsize=2)(self._shuffled_rows)

  def __len__(self) -> int:
    return self._num_epochs * self.batches_per_epoch

  def __getitem__(self, step: int) -> PackedCandidates:
    return self._batch(step, self._first, self._size)

  def whole(self, step: int) -> PackedCandidates:
    """Returns the global batch, over all hosts."""
    return self._batch(step, 0, self._rows_per_batch)

  def epoch(self, step: int) -> int:
    """Returns the epoch of a step; both count from 1."""
    return -(-step // self.batches_per_epoch)

  def _batch(self, step, first, size) -> PackedCandidates:
    epoch, batch = divmod(int(step), self.batches_per_epoch)
    start = batch * self._rows_per_batch + first
    target = self._order(epoch)[start : start + size, None] + np.arange(self._targets)  # [B, T]
    event, data = self._event[target], self._examples.data
    last = event[:, -1]
    user = np.searchsorted(data.offsets, last, side="right") - 1
    history, _ = latest_events(data, last, user, self._num_columns)  # [B, S]
    item = self._items(target, user)
    category = self._examples.item_category
    return PackedCandidates(
      history_item=history,
      history_category=category[history],
      end=(self._num_columns - (last[:, None] - event)).astype(np.int32),
      item=item,
      category=category[item],
      label=np.tile(np.arange(self._each) == 0, (size, self._targets)).astype(np.float32),
      user_id=user.astype(np.int32),
      history_length=self._examples.options.history_length,
    )

  def _items(self, target, user) -> Int[np.ndarray, "B P"]:
    """Returns the items of all candidates of each row, the positive of a target before its negatives."""
    shape = (*target.shape, self._each)  # [B, T, candidates of a target]
    event, split = (np.repeat(x[target].ravel(), self._each) for x in (self._event, self._split))
    users = np.repeat(user, target.shape[1] * self._each)
    candidate = np.broadcast_to(np.arange(self._each), shape).ravel()
    item = np.zeros(len(event), np.int32)
    for one in np.unique(split):
      rows = np.flatnonzero(split == one)
      item[rows] = self._examples.items_of(int(one), event[rows], users[rows], candidate[rows])
    return item.reshape(len(target), -1)  # [B, P]

  def _widest_row(self) -> int:
    """Returns the most events from the first to the last target of a row."""
    first = np.arange(len(self._event) - self._targets + 1)
    last = first + self._targets - 1
    user = np.repeat(np.arange(len(self._counts)), self._counts)
    span = self._event[last] - self._event[first]
    return int(span[user[last] == user[first]].max(initial=0))

  def _shuffled_rows(self, epoch) -> Int[np.ndarray, " rows"]:
    """Returns the index of the first target of every row, in the order of an epoch."""
    rng = np.random.default_rng((self._seed, epoch))
    rows, rest = np.divmod(self._counts, self._targets)
    first_of_user = np.cumsum(self._counts) - self._counts + rng.integers(rest + 1)
    before = np.repeat(np.cumsum(rows) - rows, rows)
    start = np.repeat(first_of_user, rows) + self._targets * (np.arange(rows.sum()) - before)
    return rng.permutation(start)


def _ordered_targets(examples, splits):
  """Returns the targets of some splits ascending, the split of each, and how many each user with targets has."""
  event = np.concatenate([examples.targets(split) for split in splits])
  split = np.repeat(list(splits), [len(examples.targets(split)) for split in splits])
  order = np.argsort(event, kind="stable")
  user = np.searchsorted(examples.data.offsets, event[order], side="right") - 1
  return event[order], split[order], np.unique(user, return_counts=True)[1]
