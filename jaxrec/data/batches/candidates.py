"""Candidates for click-through prediction: clicked items, and others by popularity, each with the user's history.

Nothing of the size [examples, positions] exists: an example is a number, and a batch is gathered from the item column
when it is asked for. Beside the columns, training needs about 8 bytes for each target and 4 for each example.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import grain
import jax
import numpy as np
from absl import logging
from jaxtyping import Bool, Int

from jaxrec.batches import CandidateBatch
from jaxrec.data.prepared import TEST, TRAIN, VALIDATION, PreparedData

AUTO = "auto"
_MOST_ATTEMPTS = 2000


@dataclasses.dataclass(frozen=True)
class CandidateOptions:
  """Which events are targets, what they are compared with, and how much history comes along.

  history_length: N, the latest events before the target.
  min_events: users with fewer are left out.
  min_history: events that must precede a target.
  first_target, target_stride, targets_per_user: training targets are the events number first_target, first_target +
    target_stride, ... from a user's end (the last event is number 1); so many of them at most.
  negatives: items that were not clicked, for each that was.
  category: column of the items table whose values are the categories; "auto" takes `category` or `genres` where the
    source has it, else the domain; "domain" takes the domain.
  seed: of the negatives; they stay the same in all epochs.
  """

  history_length: int = 200
  min_events: int = 210
  min_history: int = 1
  first_target: int = 3
  target_stride: int = 5
  targets_per_user: int = 19
  negatives: int = 2
  category: str = AUTO
  seed: int = 0


class CandidateData:
  """The examples of prepared data, by number: example `(1 + negatives) * k` is the k-th target, then its negatives.

  A user's last event is the test target, the one before it the validation target, and the training targets lie before
  both. A negative is the item of an event drawn uniformly from all events, so that an item comes in proportion to its
  clicks; one that the user ever clicked is drawn again. It keeps the history of its positive.

  Source: "Long-Sequence Recommendation Models Need Decoupled Embeddings" (arXiv 2410.02604), section 5 and its scripts:
    19 targets a user, every fifth event, 2 negatives each, users with at least 210 clicks.
  Choice: the split goes by place in the user's history, whatever `data.split` says. Ids are those of the data, which
    `prepare` numbers anew: tables are as large as the items that occur.

  num_items, num_categories: V and the number of categories; both count from 1.
  item_category: [V + 1] the category of each item, 0 of padding.
  counts: users and targets kept, and left out by reason.

  >>> data = PreparedData.from_columns(user=[0] * 6 + [1] * 6, item_id=[1, 2, 3, 4, 5, 6, 7, 8, 9, 7, 8, 9])
  >>> examples = CandidateData(data, CandidateOptions(history_length=3, min_events=5, negatives=1))
  >>> batch = examples.batch(TEST, np.arange(4))
  >>> batch.history_item.tolist()[0], batch.history_age.tolist()[0], batch.item.tolist()[::2], batch.label.tolist()
  ([3, 4, 5], [3, 2, 1], [6, 9], [1.0, 0.0, 1.0, 0.0])
  >>> examples.num_examples(TRAIN), bool(batch.item[1] > 6), bool(batch.item[3] <= 6)
  (4, True, True)
  """

  def __init__(self, data: PreparedData, options: CandidateOptions):
    """Finds the targets and counts what is left out.

    Raises:
      ValueError: an option out of its range, a column that the items don't have, or no user long enough.
    """
    _check(options)
    self._data, self._options = data, options
    self.item_category, self.num_categories = item_categories(data, options.category)
    self.num_items = data.num_items
    lengths = np.diff(data.offsets)
    users = np.flatnonzero(lengths >= max(options.min_events, options.min_history + 1))
    self.counts = {"users": len(users), "users_too_short": int((lengths > 0).sum()) - len(users)}
    if not len(users):
      raise ValueError(f"no user has {options.min_events=} events; the longest history has {lengths.max(initial=0)}")
    self._targets = {split: self._find_targets(users, split) for split in (TRAIN, VALIDATION, TEST)}
    wanted = len(users) * options.targets_per_user
    self.counts["training_targets"] = len(self._targets[TRAIN])
    self.counts["training_targets_without_history"] = wanted - len(self._targets[TRAIN])
    logging.info("candidates: %s", self.counts)

  def num_examples(self, split: int) -> int:
    """Returns how many candidates there are in TRAIN, VALIDATION or TEST."""
    return len(self._targets[split]) * (1 + self._options.negatives)

  def batch(self, split: int, examples: Int[np.ndarray, " B"]) -> CandidateBatch:
    """Returns the examples of a split with the given numbers, 0 .. num_examples - 1."""
    target, slot = np.divmod(np.asarray(examples, np.int64), 1 + self._options.negatives)
    event = self._targets[split][target]
    user = np.searchsorted(self._data.offsets, event, side="right") - 1
    history, age = self._history(event, user)
    item = np.where(slot == 0, self._data.item_id[event], 0).astype(np.int32)
    negative = np.flatnonzero(slot)
    item[negative] = self._negatives(event[negative], user[negative], slot[negative])
    return CandidateBatch(
      history_item=history,
      history_category=self.item_category[history],
      history_age=age,
      item=item,
      category=self.item_category[item],
      label=(slot == 0).astype(np.float32),
      user_id=user.astype(np.int32),
    )

  def _find_targets(self, users, split):
    options, ends = self._options, self._data.offsets[1:][users]
    places = options.first_target + options.target_stride * np.arange(options.targets_per_user)
    places = {TRAIN: places[::-1], VALIDATION: np.array([2]), TEST: np.array([1])}[split]
    events = ends[:, None] - places  # [U, targets]
    return events[events >= self._data.offsets[:-1][users, None] + options.min_history]

  def _history(self, event, user):
    age = np.arange(self._options.history_length, 0, -1)  # [N]
    place = event[:, None] - age  # [B, N]
    is_real = place >= self._data.offsets[user][:, None]
    item = np.where(is_real, self._data.item_id[np.maximum(place, 0)], 0).astype(np.int32)
    return item, np.where(is_real, age, 0).astype(np.int32)

  def _negatives(self, event, user, slot):
    """Draws for all, then again for those that were refused, from numbers that depend on the example alone."""
    item, left = np.zeros(len(event), np.int32), np.arange(len(event))
    for attempt in range(_MOST_ATTEMPTS):
      draw = _mix(self._options.seed, event[left], slot[left], attempt) % np.uint64(self._data.num_events)
      item[left] = self._data.item_id[draw.astype(np.int64)]
      left = left[_clicked(self._data, user[left], item[left])]
      if not len(left):
        return item
    raise ValueError(
      f"no item was found that user {user[left[0]]} never clicked in {_MOST_ATTEMPTS} draws; leave out users who"
      " clicked nearly everything, or set options.negatives=0"
    )


class TrainingCandidates:
  """Random access to the training batches of a run: `self[i]` is this host's part of batch i, in shuffled order.

  batches_per_epoch: full batches; the `examples_left_out` that don't fill one are others in each epoch.
  """

  def __init__(
    self,
    examples: CandidateData,
    batch_size: int,
    num_epochs: int,
    seed: int,
    splits: Sequence[int] = (TRAIN,),
    shard_index: int = 0,
    shard_count: int = 1,
  ):
    """Plans nothing before the first batch.

    Args:
      examples: candidates of all splits.
      batch_size: examples of a global batch, all hosts together.
      num_epochs: passes over the examples.
      seed: of the order.
      splits: which examples are trained on.
      shard_index, shard_count: this host takes batch_size / shard_count examples of each batch.

    Raises:
      ValueError: there are fewer examples than a batch holds, or the hosts do not divide a batch.
    """
    self._examples, self.batch_size, self._num_epochs, self._seed = examples, batch_size, num_epochs, seed
    self._splits, self._sizes = splits, [examples.num_examples(split) for split in splits]
    if batch_size % shard_count:
      raise ValueError(f"{batch_size=} must be divisible by the {shard_count} hosts")
    self._first, self._size = shard_index * (batch_size // shard_count), batch_size // shard_count
    total = sum(self._sizes)
    self.batches_per_epoch, self.examples_left_out = divmod(total, batch_size)
    if not self.batches_per_epoch:
      raise ValueError(f"{batch_size=} must be at most the {total} training examples")
    self._order = functools.lru_cache(maxsize=2)(self._new_order)

  def __len__(self) -> int:
    return self._num_epochs * self.batches_per_epoch

  def __getitem__(self, step: int) -> CandidateBatch:
    return self._batch(step, self._first, self._size)

  def whole(self, step: int) -> CandidateBatch:
    """Returns the global batch of all hosts."""
    return self._batch(step, 0, self.batch_size)

  def epoch(self, step: int) -> int:
    """Returns the epoch, from 1, that a step, from 1, belongs to."""
    return -(-step // self.batches_per_epoch)

  def _batch(self, step, first, size):
    epoch, batch = divmod(int(step), self.batches_per_epoch)
    start = batch * self.batch_size + first
    chosen = self._order(epoch)[start : start + size]
    if len(self._splits) == 1:
      return self._examples.batch(self._splits[0], chosen)
    is_second = chosen >= self._sizes[0]
    parts = [(self._splits[0], chosen[~is_second]), (self._splits[1], chosen[is_second] - self._sizes[0])]
    batches = [self._examples.batch(*part) for part in parts]
    order = np.argsort(np.concatenate([np.flatnonzero(~is_second), np.flatnonzero(is_second)]))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[order], *batches)

  def _new_order(self, epoch):
    numbers = np.arange(sum(self._sizes), dtype=np.int32)
    np.random.default_rng((self._seed, epoch)).shuffle(numbers)
    return numbers


def training_candidates(batches: TrainingCandidates, prefetch: int = 4) -> grain.IterDataset:
  """Returns the batches of a run as a Grain data set, whose iterators have `get_state()` and `set_state(state)`.

  Args:
    batches: of the run.
    prefetch: batches that a thread prepares ahead; 0 prepares each when asked for.
  """
  options = grain.ReadOptions(num_threads=min(1, prefetch), prefetch_buffer_size=prefetch)
  return grain.MapDataset.source(batches).to_iter_dataset(options)


def held_out_candidates(examples: CandidateData, split: int, batch_size: int) -> Iterator[CandidateBatch]:
  """Yields all examples of VALIDATION or TEST in order; the last batch may be smaller.

  Source: the published scripts drop what doesn't fill a batch. Choice: nothing is dropped.
  """
  total = examples.num_examples(split)
  for start in range(0, total, batch_size):
    yield examples.batch(split, np.arange(start, min(start + batch_size, total)))


def item_categories(data: PreparedData, column: str = AUTO) -> tuple[Int[np.ndarray, " V1"], int]:
  """Returns the category of each item, int32 [V + 1] with 0 for padding, and the number of categories.

  Args:
    data: prepared columns.
    column: see `CandidateOptions.category`. Different values of it are different categories.

  Raises:
    ValueError: the items have no such column, or no value in it for some item.

  >>> data = PreparedData.from_columns(user=[0, 0, 0], item_id=[1, 2, 3], domain_id=[2, 1, 2])
  >>> categories, number = item_categories(data)
  >>> categories.tolist(), number
  ([0, 2, 1, 2], 2)
  """
  known = [name for name in data.items.columns if name not in ("item_id", "raw_id", "title", "domain_id")]
  if column == AUTO:
    column = next((name for name in ("category", "genres") if name in known), "domain")
  if column == "domain":
    return data.item_domain(), data.num_domains
  if column not in known:
    raise ValueError(f"options.category={column!r} is no column of the items; there are {['domain', *known]}")
  values = data.items[column]
  if values.null_count():
    raise ValueError(f"{values.null_count()} of {len(values)} items have no {column!r}; use options.category='domain'")
  numbers = values.rank("dense").to_numpy()
  return np.concatenate([[0], numbers]).astype(np.int32), int(numbers.max(initial=0))


def _clicked(data, user, item) -> Bool[np.ndarray, " B"]:
  """Whether each user has an event with the item, at any time."""
  start = data.offsets[user]
  length = data.offsets[user + 1] - start
  first = np.cumsum(length) - length  # [B] where each user's events begin in the flat array
  flat = np.repeat(start - first, length) + np.arange(length.sum())  # [E] events of all of them
  same = data.item_id[flat] == np.repeat(item, length)
  return np.logical_or.reduceat(same, first) if len(first) else np.zeros(0, bool)


def _mix(seed, event, slot, attempt):
  """64 random bits for each event and slot: the finaliser of splitmix64, applied after each number."""
  with np.errstate(over="ignore"):
    bits = np.full(len(event), seed, np.uint64)
    for number in (event, slot, np.full(len(event), attempt)):
      bits = bits * np.uint64(0x9E3779B97F4A7C15) + number.astype(np.uint64) + np.uint64(1)
      bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
      bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
      bits ^= bits >> np.uint64(31)
  return bits


def _check(options):
  for name in ("history_length", "min_history", "target_stride", "targets_per_user"):
    if getattr(options, name) < 1:
      raise ValueError(f"{name}={getattr(options, name)} must be at least 1")
  if options.first_target < 3:
    raise ValueError(f"first_target={options.first_target} must be at least 3: 1 is the test event, 2 validation")
  if options.negatives < 0 or options.seed < 0:
    raise ValueError(f"{options.negatives=} and {options.seed=} must not be negative")
