"""Batches of histories with actions: which events are predicted from which, shortened, packed, sharded, resumable.

A batch is a pure function of its index, as in `jaxrec.data.batches.training`.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from jaxtyping import Int

from jaxrec.batches import RankingBatch
from jaxrec.data.batches import packing as packing_lib
from jaxrec.data.batches.ranking_rows import LAYOUTS, Examples, RankingColumns, all_events, num_tokens
from jaxrec.data.batches.rows import prefix_lengths
from jaxrec.data.batches.stochastic_length import StochasticLength, shortened, shortened_lengths
from jaxrec.data.prepared import PreparedData

UNITS = ("user", "session", "impression")


@dataclasses.dataclass(frozen=True)
class RankingOptions:
  """How events with actions become batches.

  max_length: events of a history, the latest ones.
  layout: of the tokens, see `jaxrec.data.batches.ranking_rows`.
  unit: what an example predicts. "user": all events of a user; users with more than `max_length` have several examples,
    in which the events of each are predicted once, from at least half of `max_length` events before them where there
    are as many. "session": the events of a session, at its end. "impression": one event.
  session_gap: seconds without an event that end a session.
  row_length: tokens in a row; 0 for as many as the longest example needs.
  packing: whether several examples share a row.
  stochastic: rule and strength of Stochastic Length.
  seed: the same seed gives the same batches.
  shard_index, shard_count: this host takes rows / shard_count rows of each global batch.

  Source: Zhai et al. 2024, arXiv 2402.17152, section 2.3 (one example at the end of a session, "generative training").
  """

  max_length: int = 200
  layout: str = "one_token"
  unit: str = "user"
  session_gap: int = 1800
  row_length: int = 0
  packing: bool = True
  stochastic: StochasticLength = StochasticLength()
  seed: int = 0
  shard_index: int = 0
  shard_count: int = 1

  def __post_init__(self):
    if self.layout not in LAYOUTS or self.unit not in UNITS:
      raise ValueError(f"{self.layout=} must be one of {LAYOUTS} and {self.unit=} one of {UNITS}")


def training_examples(data: PreparedData, last_split: int, options: RankingOptions) -> Examples:
  """Returns the examples that predict every event of the splits 0..last_split once.

  >>> data = PreparedData.from_columns(user=[0] * 5, item_id=[1] * 5, split=[0] * 5)
  >>> found = training_examples(data, 0, RankingOptions(max_length=2))
  >>> found.first.tolist(), found.target.tolist(), found.end.tolist()
  ([0, 1, 2, 3], [0, 2, 3, 4], [2, 3, 4, 5])
  """
  count = prefix_lengths(data, last_split)
  first = data.offsets[:-1].astype(np.int64)
  if options.unit == "user":
    return _windows(first, first, first + count, options.max_length, options.max_length)
  start, end = _sessions(data, count, options)
  user_first = first[np.searchsorted(data.offsets, start, side="right") - 1]
  return _windows(user_first, start, end, options.max_length, max(options.max_length // 2, 1))


def held_out_examples(data: PreparedData, split: int, max_length: int) -> Examples:
  """Returns the examples that predict every event of a split (1 or 2) once.

  Choice: an event of a split may be predicted from earlier events of the same split, as a ranker that reads its logs at
  once would; parameters do not change.
  """
  first = data.offsets[:-1].astype(np.int64)
  start, end = first + prefix_lengths(data, split - 1), first + prefix_lengths(data, split)
  return _windows(first, start, end, max_length, max(max_length // 2, 1))


def _windows(user_first, start, end, max_length: int, most_at_first: int) -> Examples:
  """Returns examples that predict events start..end - 1 of each group: `most_at_first`, then max_length // 2 each."""
  step = max(max_length // 2, 1)
  length = end - start
  windows = np.where(length > 0, 1 + np.maximum(-(-(length - most_at_first) // step), 0), 0)
  group = np.repeat(np.arange(len(length)), windows)
  index = np.arange(windows.sum()) - np.repeat(np.cumsum(windows) - windows, windows)
  target = start[group] + np.where(index > 0, most_at_first + (index - 1) * step, 0)
  stop = np.minimum(start[group] + most_at_first + index * step, end[group])
  return Examples(np.maximum(user_first[group], stop - max_length), target, stop)


def _sessions(data, count, options) -> tuple[Int[np.ndarray, " S"], Int[np.ndarray, " S"]]:
  """Returns first event and end of each session; with the unit "impression" each event is one."""
  user = np.repeat(np.arange(data.num_users), count)
  event = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + data.offsets[user]
  time = np.asarray(data.timestamp)[event]
  begins = np.ones(len(event), bool)
  if options.unit == "session":
    begins[1:] = (user[1:] != user[:-1]) | (time[1:] - time[:-1] > options.session_gap)
  start = np.flatnonzero(begins)
  last = np.concatenate([start[1:], [len(event)]]) - 1 if len(start) else start
  return event[start], event[last] + 1


def history_batch(
  columns: RankingColumns, layout: str, first: Int[np.ndarray, " B"], end: Int[np.ndarray, " B"], row_length: int
) -> RankingBatch:
  """Returns histories without targets, one a row, for `jaxrec.serving.mfalcon`.

  Args:
    columns: what the tokens are filled with.
    layout: of the tokens.
    first, end: events `first..end - 1` of each user, at least one.
    row_length: tokens of a row.

  Raises:
    ValueError: a history is empty or does not fit into a row.
  """
  if (end <= first).any():
    raise ValueError(f"history {int((end <= first).argmax())} is empty; a cache needs an event")
  examples = Examples(first, end, end)
  events = all_events(examples)
  tokens = num_tokens(layout, columns.num_context, end - first, np.zeros_like(end))
  rows = packing_lib.separate_rows(tokens, row_length)
  shape = (len(first), row_length)
  return columns.batch(layout, examples, events, rows.row, rows.column, rows.sequence_id, shape)


class RankingBatches:
  """Random access to batches: `self[i]` is this host's part of batch i. Every example is in each epoch once.

  batches_per_epoch: the last batch of an epoch may have empty rows.
  rows_per_batch: rows of a global batch, over all hosts.
  row_length: tokens in a row.
  events_kept: share of the events that Stochastic Length leaves, 0..1.
  """

  def __init__(
    self,
    columns: RankingColumns,
    examples: Examples,
    options: RankingOptions,
    examples_per_batch: int,
    *,
    multiple_of: int = 1,
    shuffle: bool = True,
  ):
    """Packs the examples.

    Args:
      columns: what the tokens are filled with.
      examples: the histories.
      options: layout, packing, shards.
      examples_per_batch: the mean over the batches of an epoch.
      multiple_of: the rows of a batch are a multiple of this.
      shuffle: whether each epoch has its own order; False: the given order, and all events, for evaluation.

    Raises:
      ValueError: no examples, or one that does not fit into `row_length`.
    """
    if not len(examples):
      raise ValueError("there is no event to predict in these splits")
    self._columns, self._examples, self._options, self._shuffle = columns, examples, options, shuffle
    events, targets = shortened_lengths(examples, options.max_length, self._stochastic, options.seed)
    self.events_kept = float(events.sum() / (examples.end - examples.first).sum())
    self._lengths = num_tokens(options.layout, columns.num_context, events, targets)
    self.row_length = options.row_length or int(self._lengths.max())
    pack = packing_lib.pack if options.packing else packing_lib.separate_rows
    self._packing = pack(self._lengths, self.row_length)
    self.batches_per_epoch = max(1, round(len(examples) / examples_per_batch))
    self.rows_per_batch = -(-self._packing.num_rows // self.batches_per_epoch)
    self.rows_per_batch += -self.rows_per_batch % (multiple_of * options.shard_count)
    self.batches_per_epoch = -(-self._packing.num_rows // self.rows_per_batch)
    self._epoch = functools.lru_cache(maxsize=2)(self._packing_of_epoch)

  @property
  def _stochastic(self) -> StochasticLength:
    return self._options.stochastic if self._shuffle else StochasticLength()

  def __len__(self) -> int:
    return 2**40 * self.batches_per_epoch if self._shuffle else self.batches_per_epoch

  def __getitem__(self, step: int) -> RankingBatch:
    size = self.rows_per_batch // self._options.shard_count
    return self._batch(int(step), self._options.shard_index * size, size)

  def whole(self, step: int) -> RankingBatch:
    """Returns the global batch, over all hosts."""
    return self._batch(int(step), 0, self.rows_per_batch)

  def _batch(self, step, first_row, num_rows) -> RankingBatch:
    epoch, index = divmod(step, self.batches_per_epoch)
    packing, order = self._epoch(epoch)
    row = packing.row - (index * self.rows_per_batch + first_row)
    low, high = np.searchsorted(row, (0, num_rows))
    chosen = slice(low, high)
    examples = self._examples[order[chosen]]
    kept = all_events(examples)
    if self._stochastic.alpha:
      seeds = (self._options.seed, epoch)
      kept = shortened(kept, examples, self._columns.events, self._options.max_length, self._stochastic, seeds)
    shape, places = (num_rows, self.row_length), (row[chosen], packing.column[chosen], packing.sequence_id[chosen])
    return self._columns.batch(self._options.layout, examples, kept, *places, shape)

  def _packing_of_epoch(self, epoch):
    """Returns the packing, sorted by row, and the index of the example at each of its positions."""
    if self._shuffle:
      return packing_lib.reshuffle(self._packing, self._lengths, (self._options.seed, epoch))
    order, packing = np.argsort(self._packing.row, kind="stable"), self._packing
    by_row = (packing.row[order], packing.column[order], packing.sequence_id[order])
    return packing_lib.Packing(*by_row, packing.num_rows), order
