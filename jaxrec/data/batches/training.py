"""Training batches from prepared data: cropped, shuffled, packed, sharded over hosts, and resumable at any batch.

The seed and the epoch fix the row and position of every user of that epoch. A batch is then a pure function of its
index, which makes random access, resuming and sharding simple.
"""

from __future__ import annotations

import dataclasses

import grain
import numpy as np
from absl import logging
from jaxtyping import Int

from jaxrec.batches import SequenceBatch
from jaxrec.data.batches import packing as packing_lib
from jaxrec.data.batches import rows
from jaxrec.data.prepared import PreparedData
from jaxrec.data.seeds import check_seed

ORDERS = ("shuffled", "given")
ENDLESS = 2**40  # Batches of a run without num_epochs.


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
  """How events become training batches.

  max_length: most recent input events per user; next_item needs one more event as the last target.
  row_length: positions in a row, at least max_length.
  rows_per_batch: rows of a *global* batch, over all hosts; `rows_for` derives it from a number of users.
  task: "next_item": each position predicts the event after it; "masked_item": masked positions predict their own item.
  packing: whether several users share a row.
  order: "shuffled" in each epoch, or "given": users come in the order of the data, those that share a row with the
    first of them.
  last_split: 0 trains on the training events, 1 on the validation events too (the final run, after the number of epochs
    has been chosen).
  request_time: the meaning of target_time in next_item: "target", the time of the target event (the published HSTU); or
    "last_event", the time of the input event, for models that do not know the time of the request.
  mask_probability: masked_item only: probability that an event is masked; at least one per sequence is.
  mask_last_probability: masked_item only: share of the sequences with only the last event masked (BERT4Rec trains on
    such sequences too).
  reveal_domain: masked_item only: whether masked positions keep the domain of the hidden item.
  seed: the same seed gives the same batches.
  num_epochs: epochs after which the batches end; None for no end.
  shard_index, shard_count: this host takes rows_per_batch / shard_count rows of each global batch; the global batch
    does not depend on shard_count.
  only_users: indices of the users to train on; None for all.
  action_weights: pairs of an action and the weight of its events as targets; events with other actions are read, but
    are no targets. None: every event is a target of weight 1.

  >>> TrainingOptions(max_length=50, row_length=100, rows_per_batch=4).task
  'next_item'
  """

  max_length: int
  row_length: int
  rows_per_batch: int
  task: str = "next_item"
  packing: bool = True
  order: str = "shuffled"
  last_split: int = 0
  request_time: str = "target"
  mask_probability: float = 0.15
  mask_last_probability: float = 0.0
  reveal_domain: bool = False
  seed: int = 0
  num_epochs: int | None = None
  shard_index: int = 0
  shard_count: int = 1
  only_users: tuple[int, ...] | None = None
  action_weights: tuple[tuple[int, float], ...] | None = None


def training_batches(data: PreparedData, options: TrainingOptions, prefetch: int = 4) -> grain.IterDataset:
  """Returns an iterable of NumPy `SequenceBatch`es of shape [rows_per_batch / shard_count, row_length].

  Each epoch holds every user exactly once, in another order; the last batch of an epoch is padded with empty rows.
  Users with fewer than two events are left out (counted in the log). Iterators have `get_state()` and
  `set_state(state)`; a resumed iterator continues with the next batch, value for value.

  Args:
    data: prepared columns.
    options: see `TrainingOptions`.
    prefetch: batches that a thread prepares in advance; 0 prepares each batch on demand.

  Raises:
    ValueError: options that contradict each other, or no user to train on.

  >>> from jaxrec.data.generators.synthetic import synthetic_data
  >>> options = TrainingOptions(max_length=50, row_length=100, rows_per_batch=4)
  >>> batch = next(iter(training_batches(synthetic_data(num_users=8, num_items=24), options, prefetch=0)))
  >>> batch.item_id.shape
  (4, 100)
  """
  batches = grain.MapDataset.source(TrainingBatches(data, options))
  return batches.to_iter_dataset(grain.ReadOptions(num_threads=min(1, prefetch), prefetch_buffer_size=prefetch))


def batches_per_epoch(data: PreparedData, options: TrainingOptions) -> int:
  """Returns the number of batches in an epoch, in which every user appears once; the same for all epochs."""
  return TrainingBatches(data, options).batches_per_epoch


def users_per_epoch(data: PreparedData, options: TrainingOptions) -> int:
  """Returns the number of users with enough events to train on."""
  return len(_trained_users(data, options)[0])


def packing_efficiency(data: PreparedData, options: TrainingOptions) -> float:
  """Returns the share of an epoch's positions that hold an event, not counting rows without a user."""
  users, lengths = _trained_users(data, options)
  return float(lengths.sum() / (_pack(lengths, options).num_rows * options.row_length)) if len(users) else 0.0


def rows_for(data: PreparedData, options: TrainingOptions, users_per_batch: int, multiple_of: int = 1) -> int:
  """Returns the `rows_per_batch` for batches of about `users_per_batch` users.

  An epoch has users / users_per_batch batches, rounded; its rows are divided evenly among them, so that the last batch
  is nearly as full as the others.

  Args:
    data: prepared columns.
    options: length, packing and shards of the rows; `rows_per_batch` is not read.
    users_per_batch: mean number of users in a global batch (128 in the published HSTU experiments).
    multiple_of: the result is a multiple of this, such as a number of devices, and of `options.shard_count`.
  """
  if users_per_batch < 1:
    raise ValueError(f"{users_per_batch=} must be at least 1")
  users, num_rows = epoch_size(data, options)
  batches = max(1, round(users / users_per_batch))
  unit = int(np.lcm(multiple_of, options.shard_count))
  return max(1, -(-num_rows // (batches * unit))) * unit


def epoch_size(data: PreparedData, options: TrainingOptions) -> tuple[int, int]:
  """Returns the number of users that are trained on, and the number of rows that they need."""
  users, lengths = _trained_users(data, options)
  return len(users), _pack(lengths, options).num_rows


class TrainingBatches:
  """Random access to the batches of a run: `self[step]` is this host's share of the batch of a step.

  users_per_epoch: users with enough events to train on.
  users_left_out: users without enough events.
  batches_per_epoch: batches in which every user appears once; the epoch is step // batches_per_epoch.
  """

  def __init__(self, data: PreparedData, options: TrainingOptions):
    """Packs the users once; the order of an epoch is drawn at its first batch.

    Raises:
      ValueError: options that contradict each other, or no user to train on.
    """
    _check_options(options)
    self._options = options
    self._columns = rows.EventColumns(data, options.action_weights)
    self._users, self._lengths = _trained_users(data, options)
    if not len(self._users):
      raise ValueError(f"no user has two events with split <= {options.last_split=}; check the split of the data")
    ends = data.offsets[:-1][self._users] + rows.prefix_lengths(data, options.last_split)[self._users]
    self._first = ends - self._lengths - (options.task == "next_item")
    self._packing = _pack(self._lengths, options)
    self._plans: dict[int, tuple] = {}
    self.users_per_epoch = len(self._users)
    self.users_left_out = _num_requested(data, options) - len(self._users)
    self.batches_per_epoch = -(-self._packing.num_rows // options.rows_per_batch)
    if self.users_left_out:
      logging.info("%d users with fewer than two training events are left out", self.users_left_out)

  def __len__(self) -> int:
    return ENDLESS if self._options.num_epochs is None else self._options.num_epochs * self.batches_per_epoch

  def __getitem__(self, step: int) -> SequenceBatch:
    options = self._options
    num_rows = options.rows_per_batch // options.shard_count
    epoch, spans, _ = self._spans(step, options.shard_index * num_rows, num_rows)
    if options.task == "next_item":
      return rows.next_item_rows(self._columns, spans, (num_rows, options.row_length), options.request_time)
    seed = (options.seed, epoch)
    masked = rows.random_masks(spans, options.mask_probability, options.mask_last_probability, seed)
    return rows.masked_item_rows(self._columns, spans, (num_rows, options.row_length), masked, options.reveal_domain)

  def users(self, step: int) -> Int[np.ndarray, " K"]:
    """Returns the users in the global batch of a step, row by row, to name them if a loss is not finite."""
    return self._spans(step, 0, self._options.rows_per_batch)[2]

  def _spans(self, step, first_row, num_rows):
    """Returns epoch, spans and users of `num_rows` rows of a batch."""
    epoch, batch = divmod(int(step), self.batches_per_epoch)
    packing, sequence = self._plan(epoch)
    start = batch * self._options.rows_per_batch + first_row
    low, high = np.searchsorted(packing.row, (start, start + num_rows))
    chosen = sequence[low:high]
    spans = rows.Spans(
      row=packing.row[low:high] - start,
      column=packing.column[low:high],
      sequence_id=packing.sequence_id[low:high],
      first=self._first[chosen],
      length=self._lengths[chosen],
    )
    return epoch, spans, self._users[chosen]

  def _plan(self, epoch):
    """Returns the packing of an epoch and the sequence at each of its positions; keeps the two latest epochs."""
    plan = self._plans.get(epoch)
    if plan is None:
      if self._options.order == "given":
        plan = packing_lib.sorted_by_row(self._packing)
      else:
        plan = packing_lib.reshuffle(self._packing, self._lengths, (self._options.seed, epoch))
      self._plans = {epoch: plan, **{k: v for k, v in self._plans.items() if k == epoch - 1}}
    return plan


def _check_options(options):
  check_seed("seed", options.seed)
  known = {"task": rows.TASKS, "request_time": rows.REQUEST_TIMES, "order": ORDERS, "last_split": (0, 1)}
  for name, allowed in known.items():
    if getattr(options, name) not in allowed:
      raise ValueError(f"{name}={getattr(options, name)!r} is unknown; use one of {allowed}")
  for name in ("max_length", "rows_per_batch", "shard_count"):
    if getattr(options, name) < 1:
      raise ValueError(f"{name}={getattr(options, name)} must be at least 1")
  if options.num_epochs is not None and options.num_epochs < 1:
    raise ValueError(f"num_epochs={options.num_epochs} must be at least 1, or None for no end")
  for name in ("mask_probability", "mask_last_probability"):
    if not 0 <= getattr(options, name) <= 1:
      raise ValueError(f"{name}={getattr(options, name)} must be between 0 and 1")
  if not 0 <= options.shard_index < options.shard_count:
    raise ValueError(f"shard_index={options.shard_index} must be between 0 and shard_count={options.shard_count} - 1")
  if options.rows_per_batch % options.shard_count:
    raise ValueError(f"rows_per_batch={options.rows_per_batch} must be divisible by shard_count={options.shard_count}")


def _trained_users(data, options):
  """Returns the users with at least two visible events, and the number of positions that each needs in a row."""
  if options.row_length < options.max_length:
    raise ValueError(
      f"row_length={options.row_length} is shorter than max_length={options.max_length}; a row must hold a whole"
      " sequence: use longer rows or a smaller max_length"
    )
  visible = rows.prefix_lengths(data, options.last_split)
  eligible = visible >= 2
  if options.only_users is not None:
    eligible &= np.isin(np.arange(data.num_users), options.only_users)
  users = np.flatnonzero(eligible)
  return users, np.minimum(visible[users] - (options.task == "next_item"), options.max_length)


def _num_requested(data, options):
  return data.num_users if options.only_users is None else len(set(options.only_users))


def _pack(lengths, options):
  """Packs users in random order, so that neighbours in the file are not neighbours in a row, unless asked not to."""
  if not options.packing:
    return packing_lib.separate_rows(lengths, options.row_length)
  if options.order == "given":
    return packing_lib.pack(lengths, options.row_length)
  order = np.random.default_rng(options.seed).permutation(len(lengths))
  packed = packing_lib.pack(lengths[order], options.row_length)
  back = np.argsort(order)
  return packing_lib.Packing(packed.row[back], packed.column[back], packed.sequence_id[back], packed.num_rows)
