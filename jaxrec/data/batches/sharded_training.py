"""Training batches from prepared shards: each shard has its own rows in every batch.

Of S shards, shard s fills the s-th of S equal blocks of rows of each global batch, with its own packing and its own
order of users in each epoch. A batch is therefore the same for any number of hosts that divides S, and a host needs its
own shards only. An epoch has as many batches as the shard with most rows needs; a shard that has finished gives empty
rows, of which there are few, as shards are alike.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jaxtyping import Int

from jaxrec import parallel
from jaxrec.batches import SequenceBatch
from jaxrec.data import prepared_shards
from jaxrec.data.batches.training import ENDLESS, TrainingBatches, TrainingOptions, epoch_size, rows_for
from jaxrec.data.prepared import PreparedData


class ShardedTrainingBatches:
  """Random access to the batches of a run, as `TrainingBatches` gives it.

  users_per_epoch, users_left_out: of all shards.
  batches_per_epoch: batches in which every user appears once.
  """

  def __init__(self, data: PreparedData, options: TrainingOptions):
    """Packs the users of this host's shards. Every host makes its own at the same time: they tell each other sizes.

    Args:
      data: with the shards of this host, or all.
      options: `shard_index` and `shard_count` are those of the host.

    Raises:
      ValueError: options that contradict each other, rows or hosts that do not divide the shards, or no user to train
        on.
    """
    count = num_shards(data)
    if options.rows_per_batch % count:
      raise ValueError(f"rows_per_batch={options.rows_per_batch} must be divisible by the {count} shards of the data")
    self._num_epochs = options.num_epochs
    sizes = np.zeros((count, 3), np.int32)
    self._users, self._shards = [], []
    for index in _own_shards(data, options):
      users, columns = prepared_shards.own_columns(data, index)
      try:
        batches = TrainingBatches(columns, _options_of(options, index, count, users))
      except ValueError as error:
        raise ValueError(f"shard {index} of {count}: {error}; or prepare the data in fewer shards") from error
      sizes[index] = batches.users_per_epoch, batches.users_left_out, batches.batches_per_epoch
      self._users.append(users)
      self._shards.append(batches)
    sizes = parallel.max_over_hosts(sizes)
    self.users_per_epoch, self.users_left_out = (int(n) for n in sizes[:, :2].sum(axis=0))
    self.batches_per_epoch = int(sizes[:, 2].max())

  def __len__(self) -> int:
    return ENDLESS if self._num_epochs is None else self._num_epochs * self.batches_per_epoch

  def __getitem__(self, step: int) -> SequenceBatch:
    return jax.tree.map(lambda *blocks: np.concatenate(blocks), *(self._block(shard, step) for shard in self._shards))

  def users(self, step: int) -> Int[np.ndarray, " K"]:
    """Returns the users in the rows of this host in the batch of a step."""
    found = []
    for users, shard in zip(self._users, self._shards, strict=True):
      index = self._index(shard, step)
      found.append(users[shard.users(index)] if index is not None else users[:0])
    return np.concatenate(found)

  def _block(self, shard: TrainingBatches, step: int) -> SequenceBatch:
    index = self._index(shard, step)
    return shard[index] if index is not None else jax.tree.map(np.zeros_like, shard[0])

  def _index(self, shard: TrainingBatches, step: int) -> int | None:
    """Returns the index of a batch among those of a shard; None where the shard has finished its epoch."""
    epoch, batch = divmod(int(step), self.batches_per_epoch)
    return epoch * shard.batches_per_epoch + batch if batch < shard.batches_per_epoch else None


def make_training_batches(data: PreparedData, options: TrainingOptions) -> TrainingBatches | ShardedTrainingBatches:
  """Returns the batches of a run from shards, or from data in one piece."""
  return (ShardedTrainingBatches if prepared_shards.is_sharded(data) else TrainingBatches)(data, options)


def num_shards(data: PreparedData) -> int:
  """Returns the number of shards of data, 1 for data in one piece."""
  return len(data.meta["shards"]) if prepared_shards.is_sharded(data) else 1


def rows_of_batches(data: PreparedData, options: TrainingOptions, users_per_batch: int, multiple_of: int = 1) -> int:
  """Returns the `rows_per_batch` for batches of about `users_per_batch` users; `rows_for` for data with shards too.

  Args:
    data: with the shards of this host, or all.
    options: length, packing and host; `rows_per_batch` is not read.
    users_per_batch: mean number of users in a global batch.
    multiple_of: the result is a multiple of this and of the number of shards.
  """
  if not prepared_shards.is_sharded(data):
    return rows_for(data, options, users_per_batch, multiple_of)
  count = num_shards(data)
  sizes = np.zeros((count, 2), np.int32)
  for index in _own_shards(data, options):
    users, columns = prepared_shards.own_columns(data, index)
    sizes[index] = epoch_size(columns, _options_of(options, index, count, users))
  sizes = parallel.max_over_hosts(sizes)
  batches = max(1, round(int(sizes[:, 0].sum()) / users_per_batch))
  unit = int(np.lcm(multiple_of, count))
  return max(1, -(-int(sizes[:, 1].max()) * count // (batches * unit))) * unit


def _own_shards(data: PreparedData, options: TrainingOptions):
  return prepared_shards.shards_of_part(num_shards(data), (options.shard_index, options.shard_count))


def _options_of(options: TrainingOptions, index: int, count: int, users: Int[np.ndarray, " U"]) -> TrainingOptions:
  """Returns the options of one shard: its block of rows, in an order of its own."""
  seed = int(np.random.SeedSequence((options.seed, index)).generate_state(1)[0] >> 1)
  only = None if options.only_users is None else tuple(np.flatnonzero(np.isin(users, options.only_users)).tolist())
  rows = max(options.rows_per_batch // count, 1)
  return dataclasses.replace(
    options, rows_per_batch=rows, seed=seed, shard_index=0, shard_count=1, num_epochs=None, only_users=only
  )
