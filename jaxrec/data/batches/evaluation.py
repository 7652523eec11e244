"""Evaluation batches: one user a row, one target each, in a few fixed shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import flax.struct
import numpy as np
from absl import logging
from jaxtyping import Array, Int

from jaxrec.batches import SequenceBatch
from jaxrec.data.batches import rows
from jaxrec.data.prepared import PreparedData

_SHORTEST = 64  # Rows are padded to this length or to a doubling of it.


@flax.struct.dataclass
class EvaluationBatch:
  """B users to recommend to, and what each chose.

  batch: their most recent events; target_weight is 1 at one position of each row, its last real one, and 0 elsewhere.
  user: user numbers; -1 on rows that only fill up the batch.
  target_item: what the user chose next; 0 on filling rows.
  target_domain: its domain.
  seen_items: all earlier items of the user, the cropped ones too, padded with 0.
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
  """Returns the validation or test users, as a sequence of `EvaluationBatch` sorted by the length of the history.

  The target is the user's *first* event of that split, the input everything before it. Users without such an event, or
  without an event before it, are left out (counted in the log).

  Args:
    data: prepared columns.
    split: 1 validation, 2 test.
    batch_size: users in a global batch; every host gets batch_size / shard_count rows of each.
    max_length: most recent positions that the model reads; in masked_item the last one is the mask token.
    task: "next_item" asks at the last event; "masked_item" appends the mask token V + 1 and asks there.
    users: which users; None takes all.
    request_time: whether the time of the target event is known ("target", the published HSTU) or not ("last_event").
    reveal_domain: masked_item only: whether the mask token tells the domain of the target.
    shard_index, shard_count: this host's part.

  Raises:
    ValueError: an unknown option, or no user to evaluate.
  """
  return EvaluationBatches(
    data, split, batch_size, max_length, task, users, request_time, reveal_domain, shard_index, shard_count
  )


class EvaluationBatches(Sequence):
  """See `evaluation_batches`. `users` lists the users in the order in which they come."""

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
      user=_filled(users, num_rows, -1),
      target_item=_filled(self._data.item_id[target], num_rows, 0),
      target_domain=_filled(self._data.domain_id[target], num_rows, 0),
      seen_items=self._seen(users, (num_rows, widest)),
    )

  def _sorted_users(self, with_target, users):
    wanted = (with_target > self._history) & (self._history > 0)
    asked = np.ones_like(wanted) if users is None else np.isin(np.arange(len(wanted)), users)
    left_out = int((asked & ~wanted).sum())
    if left_out:
      logging.info("%d users without a target or without an event before it are left out", left_out)
    chosen = np.flatnonzero(wanted & asked)
    return chosen[np.argsort(self._history[chosen], kind="stable")]

  def _plan(self, max_length):
    """Users and row length of each batch; a batch holds users of one row length."""
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
    """Spans of the most recent inputs; in masked_item the target event follows them and is masked."""
    first = self._data.offsets[:-1][users] + self._history[users] - self._inputs[users]
    row = np.arange(len(users))
    return rows.Spans(row=row, column=np.zeros_like(row), number=np.ones_like(row), first=first, length=length)

  def _seen(self, users, shape):
    row = np.arange(len(users))
    first, length = self._data.offsets[:-1][users], self._history[users]
    spans = rows.Spans(row=row, column=np.zeros_like(row), number=np.ones_like(row), first=first, length=length)
    return rows.item_grid(self._columns, spans, shape)


def padded_length(length: int) -> int:
  """Returns the smallest of 64, 128, 256, ... that is at least `length`, so that few shapes are compiled.

  >>> [padded_length(n) for n in (1, 64, 65, 300)]
  [64, 64, 128, 512]
  """
  return max(_SHORTEST, 1 << max(0, length - 1).bit_length())


def _check(split, batch_size, max_length, task, request_time, shard_index, shard_count):
  for name, value, allowed in (
    ("split", split, (1, 2)), ("task", task, rows.TASKS), ("request_time", request_time, rows.REQUEST_TIMES)
  ):  # fmt: skip
    if value not in allowed:
      raise ValueError(f"{name}={value!r} is unknown; use one of {allowed}")
  if max_length < 1 + (task == "masked_item"):
    raise ValueError(f"{max_length=} is too short for {task=}; it must be at least {1 + (task == 'masked_item')}")
  if not 0 <= shard_index < shard_count:
    raise ValueError(f"{shard_index=} must lie between 0 and {shard_count=} - 1")
  if batch_size < 1 or batch_size % shard_count:
    raise ValueError(f"{batch_size=} must be a positive multiple of {shard_count=}")


def _filled(values, num_rows, fill):
  result = np.full(num_rows, fill, np.int32)
  result[: len(values)] = values
  return result
