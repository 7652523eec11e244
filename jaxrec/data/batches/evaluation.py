"""Evaluation batches: one user per row, one target per user, in a few fixed shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import flax.struct
import numpy as np
from absl import logging
from jaxtyping import Array, Int

from jaxrec.batches import SequenceBatch
from jaxrec.data.batches import rows
from jaxrec.data.prepared import PreparedData

_SHORTEST = 64  # Row lengths are this number times a power of four.


@flax.struct.dataclass
class EvaluationBatch:
  """B users to recommend to, and the item that each of them chose.

  batch: most recent events; target_weight is 1 at the last real position of each row and 0 elsewhere.
  user: 0-based indices of the users; -1 on padding rows.
  target_item: the item that the user chose next; 0 on padding rows.
  target_domain: the domain of that item; 0 on padding rows.
  seen_items: all earlier items of the user, cropped ones included, padded with 0.
  """

  batch: SequenceBatch
  user: Int[Array, " B"]
  target_item: Int[Array, " B"]
  target_domain: Int[Array, " B"]
  seen_items: Int[Array, "B S"]


def evaluation_batches(
  data: PreparedData,
  split: int,
  batch_size: int,
  max_length: int,
  task: str = "next_item",
  *,
  users: Sequence[int] | None = None,
  request_time: str = "target",
  reveal_domain: bool = False,
  shard_index: int = 0,
  shard_count: int = 1,
) -> EvaluationBatches:
  """Returns the validation or test users, as a sequence of `EvaluationBatch`es sorted by length of the history.

  The target is the user's *first* event of the split, the input all events before it. Users without such an event, or
  without an event before it, are left out (counted in the log).

  Args:
    data: prepared columns.
    split: 1 for validation, 2 for test.
    batch_size: users in a global batch; this host gets batch_size / shard_count rows of it.
    max_length: most recent positions that the model reads; in masked_item the last of them is the mask token.
    task: "next_item" predicts at the last event; "masked_item" appends the mask token V + 1 and predicts there.
    users: indices of the users to evaluate; None for all.
    request_time: whether the model knows the time of the target event ("target", the published HSTU) or only that of
      the last event ("last_event").
    reveal_domain: masked_item only: whether the mask token has the domain of the target.
    shard_index, shard_count: this host's shard of each batch.

  Raises:
    ValueError: an unknown option, or no user to evaluate.
  """
  return EvaluationBatches(
    data, split, batch_size, max_length, task, users, request_time, reveal_domain, shard_index, shard_count
  )


class EvaluationBatches(Sequence):
  """The batches that `evaluation_batches` returns. `users` lists their users, in order."""

  def __init__(
    self, data, split, batch_size, max_length, task, users, request_time, reveal_domain, shard_index, shard_count
  ):
    _check(split, batch_size, max_length, task, request_time, shard_index, shard_count)
    self._data, self._columns = data, rows.EventColumns(data)
    self._task, self._request_time, self._reveal_domain = task, request_time, reveal_domain
    self._batch_size, self._shard = batch_size, (shard_index, shard_count)
    self._history = rows.prefix_lengths(data, split - 1)
    self.users = self._sorted_users(rows.prefix_lengths(data, split), users)
    if not len(self.users):
      raise ValueError(f"no user has an event with {split=} and one before it; check the split of the data")
    self._inputs = np.minimum(self._history, max_length - (task == "masked_item"))
    self._batches = self._plan(max_length)

  def __len__(self) -> int:
    return len(self._batches)

  def __iter__(self) -> Iterator[EvaluationBatch]:
    return (self[i] for i in range(len(self)))

  def __getitem__(self, index: int) -> EvaluationBatch:
    users, row_length = self._batches[index]
    widest = padded_length(int(self._history[users].max()))
    num_rows = self._batch_size // self._shard[1]
    users = users[self._shard[0] * num_rows : (self._shard[0] + 1) * num_rows]
    target = self._data.offsets[:-1][users] + self._history[users]
    return EvaluationBatch(
      batch=self._rows(users, (num_rows, row_length)),
      user=_padded(users, num_rows, -1),
      target_item=_padded(self._data.item_id[target], num_rows, 0),
      target_domain=_padded(self._data.domain_id[target], num_rows, 0),
      seen_items=self._seen(users, (num_rows, widest)),
    )

  def _sorted_users(self, with_target, users):
    eligible = (with_target > self._history) & (self._history > 0)
    requested = np.ones_like(eligible) if users is None else np.isin(np.arange(len(eligible)), users)
    left_out = int((requested & ~eligible).sum())
    if left_out:
      logging.info("%d users without a target or without an event before it are left out", left_out)
    chosen = np.flatnonzero(eligible & requested)
    return chosen[np.argsort(self._history[chosen], kind="stable")]

  def _plan(self, max_length):
    """Returns users and row length of each batch; all users of a batch need the same row length."""
    needed = self._inputs[self.users] + (self._task == "masked_item")
    lengths = np.array([min(padded_length(int(n)), max_length) for n in needed])
    batches = []
    for row_length in np.unique(lengths):
      users = self.users[lengths == row_length]
      batches += [(users[i : i + self._batch_size], int(row_length)) for i in range(0, len(users), self._batch_size)]
    return batches

  def _rows(self, users, shape):
    spans = self._spans(users, self._inputs[users] + (self._task == "masked_item"))
    is_last = np.arange(int(spans.length.sum())) + 1 == np.repeat(np.cumsum(spans.length), spans.length)
    if self._task == "next_item":
      batch = rows.next_item_rows(self._columns, spans, shape, self._request_time)
      weight = np.zeros(shape, np.float32)
      weight[spans.row, spans.length - 1] = 1
      return batch.replace(target_weight=weight)
    batch = rows.masked_item_rows(self._columns, spans, shape, is_last, self._reveal_domain)
    if self._request_time == "last_event":
      for times in (batch.timestamp, batch.target_time):
        times[spans.row, spans.length - 1] = times[spans.row, spans.length - 2]
    return batch

  def _spans(self, users, length):
    """Returns the spans of the most recent inputs; in masked_item the target event follows them and is masked."""
    first = self._data.offsets[:-1][users] + self._history[users] - self._inputs[users]
    return rows.spans_in_separate_rows(first, length)

  def _seen(self, users, shape):
    spans = rows.spans_in_separate_rows(self._data.offsets[:-1][users], self._history[users])
    return rows.item_grid(self._columns, spans, shape)


def padded_length(length: int) -> int:
  """Returns the smallest of 64, 256, 1,024, ... that is at least `length`: each shape is a program to be compiled.

  >>> [padded_length(n) for n in (1, 64, 65, 300)]
  [64, 64, 256, 1024]
  """
  padded = _SHORTEST
  while padded < length:
    padded *= 4
  return padded


def _check(split, batch_size, max_length, task, request_time, shard_index, shard_count):
  for name, value, allowed in (
    ("split", split, (1, 2)), ("task", task, rows.TASKS), ("request_time", request_time, rows.REQUEST_TIMES)
  ):  # fmt: skip
    if value not in allowed:
      raise ValueError(f"{name}={value!r} is unknown; use one of {allowed}")
  if max_length < 1 + (task == "masked_item"):
    raise ValueError(f"{max_length=} is too short for {task=}; it must be at least {1 + (task == 'masked_item')}")
  if not 0 <= shard_index < shard_count:
    raise ValueError(f"{shard_index=} must be between 0 and {shard_count=} - 1")
  if batch_size < 1 or batch_size % shard_count:
    raise ValueError(f"{batch_size=} must be a positive multiple of {shard_count=}")


def _padded(values, num_rows, fill):
  result = np.full(num_rows, fill, np.int32)
  result[: len(values)] = values
  return result
