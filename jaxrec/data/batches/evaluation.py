"""Evaluation batches: one user per row, one target per user, in a few fixed shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import flax.struct
import numpy as np
from absl import logging
from jaxtyping import Array, Int

from jaxrec import parallel
from jaxrec.batches import SequenceBatch
from jaxrec.data import prepared_shards
from jaxrec.data.batches import rows
from jaxrec.data.prepared import PreparedData

TARGETS = ("first", "all")
_SHORTEST = 64  # Row lengths are this number times a power of four.


@flax.struct.dataclass
class EvaluationBatch:
  """B requests of users for recommendations, and the item that the user of each chose.

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
  targets: str = "first",
  targets_per_user: int = 0,
) -> EvaluationBatches:
  """Returns the validation or test users, as a sequence of `EvaluationBatch`es sorted by length of the history.

  The target is the user's *first* event of the split, or each of them, the input all events before it. Targets without
  an event before them are left out, and so are users without a target (counted in the log).

  Args:
    data: prepared columns.
    split: 1 for validation, 2 for test.
    batch_size: users in a batch; every host gets all of them.
    max_length: most recent positions that the model reads; in masked_item the last of them is the mask token.
    task: "next_item" predicts at the last event; "masked_item" appends the mask token V + 1 and predicts there.
    users: indices of the users to evaluate; None for all.
    request_time: whether the model knows the time of the target event ("target", the published HSTU) or only that of
      the last event ("last_event").
    reveal_domain: masked_item only: whether the mask token has the domain of the target.
    targets: "first": the first event of each user in the split; "all": every event of the split, with the user's
      earlier events of the split in its history. In leave-one-out data there is one anyway.
    targets_per_user: of "all": at most so many of each user, evenly spaced, the last one among them; 0: no limit.

  Raises:
    ValueError: an unknown option, or no user to evaluate.

  >>> from jaxrec.data.generators.synthetic import synthetic_data
  >>> data = synthetic_data(num_users=8, num_items=24)
  >>> batches = evaluation_batches(data, split=2, batch_size=8, max_length=50)
  >>> len(batches), batches[0].target_item.shape
  (1, (8,))
  """
  _check(split, batch_size, max_length, task, request_time, targets)
  if targets_per_user < 0:
    raise ValueError(f"{targets_per_user=} must not be negative; 0 is no limit")
  how = task, request_time, reveal_domain, (targets, targets_per_user)
  return EvaluationBatches(data, split, batch_size, max_length, how, users)


class EvaluationBatches(Sequence):
  """The batches that `evaluation_batches` returns.

  users: the user of each request, in order.
  new_users: requests of users without an event before the split.
  without_history: targets that are left out because nothing precedes them.
  """

  def __init__(self, data, split, batch_size, max_length, how, users):
    self._data, self._columns = data, rows.EventColumns(data)
    self._task, self._request_time, self._reveal_domain, targets = how
    self._batch_size, self._is_partial = batch_size, prepared_shards.is_partial(data)
    self._list_requests(split, targets, users)
    if not len(self.users):
      raise ValueError(f"no user has an event with {split=} and one before it; check the split of the data")
    self._inputs = np.minimum(self._history, max_length - (self._task == "masked_item"))
    self._batches = self._plan(max_length)

  def __len__(self) -> int:
    return len(self._batches)

  def __iter__(self) -> Iterator[EvaluationBatch]:
    return (self[i] for i in range(len(self)))

  def __getitem__(self, index: int) -> EvaluationBatch:
    chosen, row_length = self._batches[index]
    widest = padded_length(int(self._history[chosen].max()))
    row = np.arange(len(chosen))
    if not self._is_partial:
      return self._batch(chosen, row, (self._batch_size, row_length), widest)
    here = np.flatnonzero(np.diff(self._data.offsets)[self.users[chosen]])  # Other hosts have the other users.
    batch = self._batch(chosen[here], row[here], (self._batch_size, row_length), widest)
    return parallel.max_over_hosts(batch)

  def _batch(self, chosen, row, shape, widest):
    """Returns the batch with requests in the given rows; other rows are padding."""
    target = self._data.offsets[:-1][self.users[chosen]] + self._history[chosen]
    return EvaluationBatch(
      batch=self._rows(chosen, row, shape),
      user=_placed(self.users[chosen], row, shape[0], -1),
      target_item=_placed(self._data.item_id[target], row, shape[0], 0),
      target_domain=_placed(self._data.domain_id[target], row, shape[0], 0),
      seen_items=self._seen(chosen, row, (shape[0], widest)),
    )

  def _list_requests(self, split, how_many, users):
    """Sets user and length of the history of each request, sorted by the latter, and what is left out."""
    before, number = rows.prefix_lengths(self._data, split - 1), rows.prefix_lengths(self._data, split)
    if self._is_partial:
      before, number = parallel.max_over_hosts((before, number))
    number = number - before
    requested = np.ones(len(number), bool) if users is None else np.isin(np.arange(len(number)), users)
    targets, limit = how_many
    number = np.where(requested, number if targets == "all" else np.minimum(number, 1), 0)
    asked = np.minimum(number, limit) if limit else number
    user = np.repeat(np.arange(len(number)), asked)
    place = np.arange(len(user)) - np.repeat(np.cumsum(asked) - asked, asked) + 1  # 1.. of each user
    history = before[user] + place * number[user] // asked[user] - 1
    chosen = np.flatnonzero(history > 0)
    chosen = chosen[np.argsort(history[chosen], kind="stable")]
    self.users, self._history = user[chosen], history[chosen]
    self.new_users = int((before[self.users] == 0).sum())
    self.without_history = len(user) - len(chosen)
    without_target = int((requested & (number == 0)).sum())
    if self.without_history or without_target:
      text = "left out: %d users without a target, and %d targets without an event before them"
      logging.info(text, without_target, self.without_history)

  def _plan(self, max_length):
    """Returns the requests and the row length of each batch; all requests of a batch need the same row length."""
    needed = self._inputs + (self._task == "masked_item")
    lengths = np.array([min(padded_length(int(n)), max_length) for n in needed])
    batches = []
    for row_length in np.unique(lengths):
      chosen = np.flatnonzero(lengths == row_length)
      batches += [(chosen[i : i + self._batch_size], int(row_length)) for i in range(0, len(chosen), self._batch_size)]
    return batches

  def _rows(self, chosen, row, shape):
    spans = self._spans(chosen, row, self._inputs[chosen] + (self._task == "masked_item"))
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

  def _spans(self, chosen, row, length):
    """Returns the spans of the most recent inputs; in masked_item the target event follows them and is masked."""
    first = self._data.offsets[:-1][self.users[chosen]] + self._history[chosen] - self._inputs[chosen]
    return dataclasses.replace(rows.spans_in_separate_rows(first, length), row=row)

  def _seen(self, chosen, row, shape):
    spans = rows.spans_in_separate_rows(self._data.offsets[:-1][self.users[chosen]], self._history[chosen])
    spans = dataclasses.replace(spans, row=row)
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


def _check(split, batch_size, max_length, task, request_time, targets):
  for name, value, allowed in (
    ("split", split, (1, 2)), ("task", task, rows.TASKS), ("request_time", request_time, rows.REQUEST_TIMES),
    ("targets", targets, TARGETS),
  ):  # fmt: skip
    if value not in allowed:
      raise ValueError(f"{name}={value!r} is unknown; use one of {allowed}")
  if max_length < 1 + (task == "masked_item"):
    raise ValueError(f"{max_length=} is too short for {task=}; it must be at least {1 + (task == 'masked_item')}")
  if batch_size < 1:
    raise ValueError(f"{batch_size=} must be at least 1")


def _placed(values, row, num_rows, fill):
  result = np.full(num_rows, fill, np.int32)
  result[row] = values
  return result
