"""Candidates for click-through prediction: clicked items and negatives drawn by popularity, each with a user's history.

No array of size [examples, positions] exists: an example is an index, and each batch is gathered from the item column
on demand. In addition to the columns, training needs about 8 bytes per target and 4 bytes per example.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import grain
import jax
import numpy as np
from absl import logging
from jaxtyping import Bool, Int, Shaped, UInt64

from jaxrec.batches import CandidateBatch
from jaxrec.data.batches.item_categories import AUTO, item_categories
from jaxrec.data.batches.splitmix import GOLDEN_GAMMA, mix_bits
from jaxrec.data.prepared import TEST, TRAIN, VALIDATION, PreparedData
from jaxrec.data.seeds import check_seed

NEGATIVES_FROM = ("all", "split")
_MAX_ATTEMPTS = 2000


@dataclasses.dataclass(frozen=True)
class CandidateOptions:
  """Which events are targets, how many negatives they get, and how much history each example has.

  history_length: N, the latest events before the target.
  min_events: users with fewer events are left out; 0: those without a target.
  min_history: events that must precede a target.
  held_out_targets: K: a user's latest K events are targets of test, the K before them of validation. 1, as published,
    needs many users to tell models apart.
  first_target, target_stride, targets_per_user: training targets are at most targets_per_user events, counted from the
    user's last event, which is 1: first_target, first_target + target_stride, ...; the first is behind 2 K.
  negatives: number of negatives per target.
  exclude_clicked: draw items again that the user clicked at any time. As published; a model can then know a positive by
    the user having clicked the item before, and popular items are rarer among negatives than among positives.
  negatives_from: "all": the items of any events, as published. "split": the items of targets of the same split, so that
    clicked items and negatives are equally popular, and equally often without training event: an event that is held
    out is not counted in the popularity of its own item, those that negatives are drawn from otherwise are.
  category: column of the item table that holds the category; "domain" uses the domain; "auto" uses `category` or
    `genres` if the source has them, else the domain.
  seed: determines the negatives of training, which are the same in all epochs.
  held_out_seed: determines those of validation and test, so that trainings with other seeds have the same candidates.
  """

  history_length: int = 200
  min_events: int = 210
  min_history: int = 1
  held_out_targets: int = 1
  first_target: int = 3
  target_stride: int = 5
  targets_per_user: int = 19
  negatives: int = 2
  exclude_clicked: bool = True
  negatives_from: str = "all"
  category: str = AUTO
  seed: int = 0
  held_out_seed: int = 0


@runtime_checkable
class CandidateExamples(Protocol):
  """Candidates of all splits by index.

  num_items, num_categories: the largest item id V and the largest category id; both start at 1.
  """

  num_items: int
  num_categories: int

  def num_examples(self, split: int) -> int:
    """Returns the number of examples of a split: TRAIN, VALIDATION or TEST."""

  def batch(self, split: int, examples: Int[np.ndarray, " B"]) -> CandidateBatch:
    """Returns the examples of a split with the given indices, 0 .. num_examples - 1."""

  def training_clicks(self) -> Int[np.ndarray, " V1"]:
    """Returns [V + 1] the number of events of each item that are not held out."""


class CandidateData:
  """The examples of prepared data by index: `(1 + negatives) * k` is target k, and its negatives follow.

  A user's last event is the test target, the one before it the validation target (`held_out_targets` events each);
  training targets precede both. A negative is the item of an event drawn uniformly from all events (or from targets,
  see `CandidateOptions`), so that items are drawn in proportion to their clicks; items that the user clicked at any
  time are drawn again. A negative has the history of its positive.

  Source: "Long-Sequence Recommendation Models Need Decoupled Embeddings" (arXiv 2410.02604), section 5 and its scripts:
    19 targets per user, every fifth event, 2 negatives each, users with at least 210 clicks.
  Choice: the split depends on the position in the user's history; `data.split` is not read. Item ids are those of the
    prepared data, so that tables have a row for each item that occurs.

  num_items, num_categories: the largest item id V and the largest category id; both start at 1.
  item_category: [V + 1] the category of each item, 0 for padding.
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
    """Finds the targets and counts the users and targets that are left out.

    Raises:
      ValueError: an option out of range, a column that the items don't have, or no user with enough events.
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
    most = len(users) * options.targets_per_user
    self.counts["training_targets"] = len(self._targets[TRAIN])
    self.counts["training_targets_without_history"] = most - len(self._targets[TRAIN])
    logging.info("candidates: %s", self.counts)
    if self.counts["users_too_short"] > len(users):
      logging.warning(
        "%d of %d users have fewer than min_events=%d events and are left out; lower config.data.min_events for short"
        " histories", self.counts["users_too_short"], (lengths > 0).sum(), options.min_events,
      )  # fmt: skip

  @property
  def data(self) -> PreparedData:
    """The events."""
    return self._data

  @property
  def options(self) -> CandidateOptions:
    """Which events are targets."""
    return self._options

  def targets(self, split: int) -> Int[np.ndarray, " T"]:
    """Returns the indices of the targets of a split, ascending."""
    return self._targets[split]

  def num_examples(self, split: int) -> int:
    """Returns the number of examples of a split: TRAIN, VALIDATION or TEST."""
    return len(self._targets[split]) * (1 + self._options.negatives)

  def batch(self, split: int, examples: Int[np.ndarray, " B"]) -> CandidateBatch:
    """Returns the examples of a split with the given indices, 0 .. num_examples - 1."""
    # Candidate 0 of a target is the positive.
    target, candidate = np.divmod(np.asarray(examples, np.int64), 1 + self._options.negatives)
    event = self._targets[split][target]
    user = np.searchsorted(self._data.offsets, event, side="right") - 1
    item = self.items_of(split, event, user, candidate)
    length, label = self._options.history_length, candidate == 0
    return candidate_batch(self._data, self.item_category, length, event, user, item, label)

  def items_of(
    self, split: int, event: Int[np.ndarray, " B"], user: Int[np.ndarray, " B"], candidate: Int[np.ndarray, " B"]
  ) -> Int[np.ndarray, " B"]:
    """Returns the item of each candidate of a target: 0 is the positive, 1 and more are negatives.

    Args:
      split: of the targets.
      event: index of each target.
      user: 0-based, of each target.
      candidate: which of the target's candidates.
    """
    item = np.where(candidate == 0, self._data.item_id[event], 0).astype(np.int32)
    negative = np.flatnonzero(candidate)
    seed = self._options.seed if split == TRAIN else self._options.held_out_seed
    pool = self._targets[split] if self._options.negatives_from == "split" else None
    item[negative] = self._negatives(seed, event[negative], user[negative], candidate[negative], pool)
    return item

  def training_clicks(self) -> Int[np.ndarray, " V1"]:
    """Returns [V + 1] the number of events of each item, without the latest 2 K of each user."""
    data = self._data
    age = np.repeat(data.offsets[1:], np.diff(data.offsets)) - np.arange(data.num_events)  # 1 for the latest.
    is_training = age > 2 * self._options.held_out_targets
    return np.bincount(np.asarray(data.item_id)[is_training], minlength=data.num_items + 1)

  def _find_targets(self, users, split):
    options, ends = self._options, self._data.offsets[1:][users]
    held_out = np.arange(options.held_out_targets, 0, -1)  # Ages of the test targets, oldest first.
    ages = options.first_target + options.target_stride * np.arange(options.targets_per_user)
    ages = {TRAIN: ages[::-1], VALIDATION: options.held_out_targets + held_out, TEST: held_out}[split]
    events = ends[:, None] - ages  # [U, targets]
    return events[events >= self._data.offsets[:-1][users, None] + options.min_history]

  def _negatives(self, seed, event, user, candidate, pool):
    """Draws an item for each candidate, again for those clicked by the user; a draw depends on the example alone.

    pool: indices of the events whose items are drawn; None: all.
    """
    item, left = np.zeros(len(event), np.int32), np.arange(len(event))
    size = np.uint64(self._data.num_events if pool is None else len(pool))
    for attempt in range(_MAX_ATTEMPTS):
      bits = _random_bits(seed, event[left], candidate[left], attempt)
      drawn = (bits % size).astype(np.int64)
      item[left] = self._data.item_id[drawn if pool is None else pool[drawn]]
      if not self._options.exclude_clicked:
        return item
      left = left[_clicked(self._data, user[left], item[left])]
      if not len(left):
        return item
    raise ValueError(
      f"{_MAX_ATTEMPTS} draws found no item that user {user[left[0]]} never clicked; leave out users who clicked nearly"
      " everything"
    )


def candidate_batch(
  data: PreparedData,
  item_category: Int[np.ndarray, " V1"],
  history_length: int,
  event: Int[np.ndarray, " B"],
  user: Int[np.ndarray, " B"],
  item: Int[np.ndarray, " B"],
  label: Shaped[np.ndarray, " B"],
) -> CandidateBatch:
  """Returns examples whose histories are the latest events before `event`; label: whether the item was clicked."""
  history, age = latest_events(data, event, user, history_length)
  return CandidateBatch(
    history_item=history,
    history_category=item_category[history],
    history_age=age,
    item=item,
    category=item_category[item],
    label=label.astype(np.float32),
    user_id=user.astype(np.int32),
  )


def latest_events(
  data: PreparedData, event: Int[np.ndarray, " B"], user: Int[np.ndarray, " B"], count: int
) -> tuple[Int[np.ndarray, "B N"], Int[np.ndarray, "B N"]]:
  """Returns items and ages of the N latest events before each event, padded on the left: 1 is the age of the latest.

  Args:
    data: prepared columns.
    event: index of each event.
    user: 0-based, of each event.
    count: N.

  >>> data = PreparedData.from_columns(user=[0] * 3, item_id=[5, 3, 8])
  >>> [x.tolist() for x in latest_events(data, np.array([1, 2]), np.array([0, 0]), 2)]
  [[[0, 5], [5, 3]], [[0, 1], [2, 1]]]
  """
  age = np.arange(count, 0, -1)  # [N]
  earlier = event[:, None] - age  # [B, N]
  is_real = earlier >= data.offsets[user][:, None]
  item = np.where(is_real, data.item_id[np.maximum(earlier, 0)], 0).astype(np.int32)
  return item, np.where(is_real, age, 0).astype(np.int32)


class TrainingCandidates:
  """Random access to the training batches of a run: `self[i]` is this host's shard of batch i, in shuffled order.

  batches_per_epoch: full batches per epoch.
  examples_left_out: examples per epoch that do not fill a batch; other ones in each epoch.
  """

  def __init__(
    self,
    examples: CandidateExamples,
    batch_size: int,
    num_epochs: int,
    seed: int,
    splits: Sequence[int] = (TRAIN,),
    shard_index: int = 0,
    shard_count: int = 1,
  ):
    """Counts the batches; the order of an epoch is drawn at its first batch.

    Args:
      examples: candidates of all splits.
      batch_size: examples of a global batch, over all hosts.
      num_epochs: passes over the examples.
      seed: determines the order.
      splits: the splits to train on.
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
    self._order = functools.lru_cache(maxsize=2)(self._shuffled_examples)

  def __len__(self) -> int:
    return self._num_epochs * self.batches_per_epoch

  def __getitem__(self, step: int) -> CandidateBatch:
    return self._batch(step, self._first, self._size)

  def whole(self, step: int) -> CandidateBatch:
    """Returns the global batch, over all hosts."""
    return self._batch(step, 0, self.batch_size)

  def epoch(self, step: int) -> int:
    """Returns the epoch of a step; both count from 1."""
    return -(-step // self.batches_per_epoch)

  def _batch(self, step, first, size):
    epoch, batch = divmod(int(step), self.batches_per_epoch)
    start = batch * self.batch_size + first
    chosen = self._order(epoch)[start : start + size]
    if len(self._splits) == 1:
      return self._examples.batch(self._splits[0], chosen)
    ends = np.cumsum(self._sizes)
    group = np.searchsorted(ends, chosen, side="right")  # [B] indices into self._splits
    by_split = [
      self._examples.batch(split, chosen[group == i] - (ends[i] - self._sizes[i]))
      for i, split in enumerate(self._splits)
    ]
    original_order = np.argsort(np.argsort(group, kind="stable"))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[original_order], *by_split)

  def _shuffled_examples(self, epoch):
    """Returns the indices of all examples, those of one split after those of another, in the order of an epoch."""
    examples = np.arange(sum(self._sizes), dtype=np.int32)
    np.random.default_rng((self._seed, epoch)).shuffle(examples)
    return examples


def training_candidates(batches: TrainingCandidates, prefetch: int = 4) -> grain.IterDataset:
  """Returns the batches of a run as a Grain data set, whose iterators have `get_state()` and `set_state(state)`.

  Args:
    batches: the batches of the run.
    prefetch: batches that a thread prepares in advance; 0 prepares each batch on demand.
  """
  options = grain.ReadOptions(num_threads=min(1, prefetch), prefetch_buffer_size=prefetch)
  return grain.MapDataset.source(batches).to_iter_dataset(options)


def held_out_candidates(examples: CandidateExamples, split: int, batch_size: int) -> Iterator[CandidateBatch]:
  """Yields all examples of VALIDATION or TEST in order; the last batch may be smaller.

  Choice: all examples are scored; the scripts of arXiv 2410.02604 drop the last batch unless it is full.
  """
  total = examples.num_examples(split)
  for start in range(0, total, batch_size):
    yield examples.batch(split, np.arange(start, min(start + batch_size, total)))


def _clicked(data, user, item) -> Bool[np.ndarray, " B"]:
  """Returns whether each user has an event with the item, at any time."""
  start = data.offsets[user]
  length = data.offsets[user + 1] - start
  first = np.cumsum(length) - length  # [B] where each user's events begin in `event`
  event = np.repeat(start - first, length) + np.arange(length.sum())  # [E] events of all users
  same = data.item_id[event] == np.repeat(item, length)
  return np.logical_or.reduceat(same, first) if len(first) else np.zeros(0, bool)


def _random_bits(seed, event, candidate, attempt) -> UInt64[np.ndarray, " B"]:
  """Returns 64 bits for each event and candidate: a hash of all four arguments."""
  bits = np.full(len(event), seed, np.uint64)
  with np.errstate(over="ignore"):
    for key in (event, candidate, np.full(len(event), attempt)):
      bits = mix_bits(bits * GOLDEN_GAMMA + key.astype(np.uint64) + np.uint64(1))
  return bits


def _check(options):
  for name in ("history_length", "min_history", "held_out_targets", "target_stride", "targets_per_user"):
    if getattr(options, name) < 1:
      raise ValueError(f"{name}={getattr(options, name)} must be at least 1")
  if options.first_target <= 2 * options.held_out_targets:
    raise ValueError(
      f"{options.first_target=} must be above {2 * options.held_out_targets}: a user's latest"
      f" {options.held_out_targets=} events are for test, as many before them for validation"
    )
  if options.negatives_from not in NEGATIVES_FROM:
    raise ValueError(f"{options.negatives_from=} is not one of {NEGATIVES_FROM}")
  if options.negatives < 0:
    raise ValueError(f"{options.negatives=} must not be negative")
  for name in ("seed", "held_out_seed"):
    check_seed(f"options.{name}", getattr(options, name))
