"""Training batches from prepared data: cropped, shuffled, packed, sharded over hosts, and resumable at any batch.

A whole epoch is planned up front from (seed, epoch): which user lies where in which row. A batch is then a pure
function of its number, which is what makes random access, resuming and sharding simple.
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

_ENDLESS = 2**40  # Batches that a run without num_epochs may draw.


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
  """How events become training batches.

  max_length: input events of a user, the most recent ones; next_item needs one more as the last target.
  row_length: positions in a row, at least max_length.
  rows_per_batch: rows of a *global* batch, all hosts together; `rows_for` derives it from a number of users.
  task: "next_item": each position predicts the event after it; "masked_item": hidden positions predict themselves.
  packing: several users in a row; otherwise one.
  last_split: 0 trains on the training events, 1 on the validation events too (the final run, after the epoch has been
    chosen).
  request_time: what target_time says in next_item: "target", the time of the target event (the published HSTU), or
    "last_event", the time of the input event, where the time of the request is not known.
  mask_probability: of each event in masked_item; at least one is masked.
  mask_last_probability: share of the sequences in which the last event alone is masked (BERT4Rec trains on such ones as
    well).
  reveal_domain: whether a masked position tells the domain of the hidden item.
  seed: the same seed gives the same batches.
  num_epochs: None never ends.
  shard_index, shard_count: this host takes rows_per_batch / shard_count rows of each global batch; what the global
    batch holds does not depend on shard_count.
  only_users: user numbers to train on; None takes all.
  """

  max_length: int
  row_length: int
  rows_per_batch: int
  task: str = "next_item"
  packing: bool = True
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


def training_batches(data: PreparedData, options: TrainingOptions, prefetch: int = 4) -> grain.IterDataset:
  """Returns an iterable of numpy `SequenceBatch` of shape [rows_per_batch / shard_count, row_length].

  Each epoch holds every user exactly once, in another order; the last batch of an epoch is filled up with empty rows.
  Users with fewer than two events are left out (counted in the log). Its iterators have `get_state()` and
  `set_state(state)`; a resumed iterator goes on with the very next batch, value for value.

  Args:
    data: prepared columns.
    options: see `TrainingOptions`.
    prefetch: batches that a thread prepares ahead; 0 prepares each when asked for.

  Raises:
    ValueError: options that contradict each other, or data without a user to train on.
  """
  batches = grain.MapDataset.source(TrainingBatches(data, options))
  return batches.to_iter_dataset(grain.ReadOptions(num_threads=min(1, prefetch), prefetch_buffer_size=prefetch))


def batches_per_epoch(data: PreparedData, options: TrainingOptions) -> int:
  """Returns the number of batches in which every user appears once; the same in all epochs."""
  return TrainingBatches(data, options).batches_per_epoch


def users_per_epoch(data: PreparedData, options: TrainingOptions) -> int:
  """Returns the number of users that have enough events to train on."""
  return len(_trained_users(data, options)[0])


def packing_efficiency(data: PreparedData, options: TrainingOptions) -> float:
  """Returns the filled share of the positions of one epoch, rows without a user not counted."""
  users, lengths = _trained_users(data, options)
  return float(lengths.sum() / (_pack(lengths, options).num_rows * options.row_length)) if len(users) else 0.0


def rows_for(data: PreparedData, options: TrainingOptions, users_per_batch: int, multiple_of: int = 1) -> int:
  """Returns a `rows_per_batch` whose batches hold about `users_per_batch` users.

  The number of batches is the nearest to users / users_per_batch; the rows are then spread so that the last batch is as
  full as the others can make it. `options.rows_per_batch` is not read.

  Args:
    data: prepared columns.
    options: length, packing and shards of the rows.
    users_per_batch: users wanted in a global batch (128 in the published HSTU experiments).
    multiple_of: of devices, say; the result is also a multiple of `options.shard_count`.
  """
  if users_per_batch < 1:
    raise ValueError(f"{users_per_batch=} must be at least 1")
  users, lengths = _trained_users(data, options)
  num_rows = _pack(lengths, options).num_rows
  batches = max(1, round(len(users) / users_per_batch))
  unit = int(np.lcm(multiple_of, options.shard_count))
  return max(1, -(-num_rows // (batches * unit))) * unit


class TrainingBatches:
  """Random access to the batches of a run: `self[step]` is the batch of that step, for this host.

  users_per_epoch: users with enough events to train on.
  users_left_out: users without.
  batches_per_epoch: batches in which every user appears once; step // batches_per_epoch is the epoch.
  """

  def __init__(self, data: PreparedData, options: TrainingOptions):
    _check_options(options)
    self._options = options
    self._columns = rows.EventColumns(data)
    self._users, self._lengths = _trained_users(data, options)
    if not len(self._users):
      raise ValueError(f"no user has two events with split <= {options.last_split=}; check the split of the data")
    ends = data.offsets[:-1][self._users] + rows.prefix_lengths(data, options.last_split)[self._users]
    self._first = ends - self._lengths - (options.task == "next_item")
    self._packing = _pack(self._lengths, options)
    self._plans: dict[int, tuple] = {}
    self.users_per_epoch = len(self._users)
    self.users_left_out = _num_asked_for(data, options) - len(self._users)
    self.batches_per_epoch = -(-self._packing.num_rows // options.rows_per_batch)
    if self.users_left_out:
      logging.info("%d users with fewer than two training events are left out", self.users_left_out)

  def __len__(self) -> int:
    return _ENDLESS if self._options.num_epochs is None else self._options.num_epochs * self.batches_per_epoch

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
    """Returns the users in the global batch of a step, row by row (to name them when a loss is not finite)."""
    return self._spans(step, 0, self._options.rows_per_batch)[2]

  def _spans(self, step, first_row, num_rows):
    """Epoch, spans and users of `num_rows` rows of a batch."""
    epoch, batch = divmod(int(step), self.batches_per_epoch)
    places, sequence = self._plan(epoch)
    start = batch * self._options.rows_per_batch + first_row
    low, high = np.searchsorted(places.row, (start, start + num_rows))
    chosen = sequence[low:high]
    spans = rows.Spans(
      row=places.row[low:high] - start,
      column=places.column[low:high],
      number=places.number[low:high],
      first=self._first[chosen],
      length=self._lengths[chosen],
    )
    return epoch, spans, self._users[chosen]

  def _plan(self, epoch):
    plan = self._plans.get(epoch)
    if plan is None:
      plan = packing_lib.reshuffle(self._packing, self._lengths, (self._options.seed, epoch))
      self._plans = {epoch: plan, **{k: v for k, v in self._plans.items() if k == epoch - 1}}
    return plan


def _check_options(options):
  for name, allowed in (("task", rows.TASKS), ("request_time", rows.REQUEST_TIMES), ("last_split", (0, 1))):
    if getattr(options, name) not in allowed:
      raise ValueError(f"{name}={getattr(options, name)!r} is unknown; use one of {allowed}")
  for name in ("max_length", "rows_per_batch", "shard_count"):
    if getattr(options, name) < 1:
      raise ValueError(f"{name}={getattr(options, name)} must be at least 1")
  if options.num_epochs is not None and options.num_epochs < 1:
    raise ValueError(f"num_epochs={options.num_epochs} must be at least 1, or None for no end")
  for name in ("mask_probability", "mask_last_probability"):
    if not 0 <= getattr(options, name) <= 1:
      raise ValueError(f"{name}={getattr(options, name)} must lie between 0 and 1")
  if not 0 <= options.shard_index < options.shard_count:
    raise ValueError(f"shard_index={options.shard_index} must lie between 0 and shard_count={options.shard_count} - 1")
  if options.rows_per_batch % options.shard_count:
    raise ValueError(f"rows_per_batch={options.rows_per_batch} must be divisible by shard_count={options.shard_count}")


def _trained_users(data, options):
  """Users with at least two visible events, and the positions that each needs in a row."""
  if options.row_length < options.max_length:
    raise ValueError(
      f"row_length={options.row_length} is shorter than max_length={options.max_length}; a row must hold a whole"
      " sequence: use longer rows or crop more"
    )
  visible = rows.prefix_lengths(data, options.last_split)
  wanted = visible >= 2
  if options.only_users is not None:
    wanted &= np.isin(np.arange(data.num_users), options.only_users)
  users = np.flatnonzero(wanted)
  return users, np.minimum(visible[users] - (options.task == "next_item"), options.max_length)


def _num_asked_for(data, options):
  return data.num_users if options.only_users is None else len(set(options.only_users))


def _pack(lengths, options):
  """Packs in an order of its own, so that neighbours in the file don't end up as neighbours in a row."""
  if not options.packing:
    return packing_lib.separate_rows(lengths, options.row_length)
  order = np.random.default_rng(options.seed).permutation(len(lengths))
  packed = packing_lib.pack(lengths[order], options.row_length)
  back = np.argsort(order)
  return packing_lib.Packing(packed.row[back], packed.column[back], packed.number[back], packed.num_rows)
