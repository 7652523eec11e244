"""The steps of a lookup on one device: distinct ids, who owns them, and sums of gradients by row.

Rows are numbered through all devices: device s owns `s * R .. s * R + R - 1`, R rows of every stack. NOTHING stands for
no row. All of this is for ids of the size of a batch; nothing here is as large as a table.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

NOTHING = np.uint32(0xFFFFFFFF)


class Requests(NamedTuple):
  """What a device asks of the others.

  wanted: for each owner, the distinct rows asked of it; NOTHING fills up.
  place: of each id, its row in `wanted`, flat; S * K where there is none.
  occurrences: ids of each wanted row.
  overflow: distinct rows that found no room.
  """

  wanted: UInt32[Array, "S K"]
  place: Int[Array, " T"]
  occurrences: Int[Array, "S K"]
  overflow: Int[Array, ""]


def default_capacity(num_ids: int, num_shards: int) -> int:
  """Distinct rows that a device may ask of each other device.

  Ids spread at random over the owners come to num_ids / S each, give or take the square root of that: six of these and
  8 rows are added. One device needs no slack.

  >>> default_capacity(8192, 1), default_capacity(8192, 8), default_capacity(8192, 4096)
  (8192, 1224, 19)
  """
  if num_shards == 1:
    return num_ids
  mean = num_ids / num_shards
  return min(num_ids, math.ceil(mean + 6 * math.sqrt(mean) + 8))


def requests(ids: UInt32[Array, " T"], num_shards: int, rows_per_device: int, capacity: int) -> Requests:
  """Sorts out which distinct rows to ask of which device.

  >>> asked = requests(jnp.array([5, 1, 5, NOTHING], jnp.uint32), num_shards=2, rows_per_device=4, capacity=1)
  >>> asked.wanted.tolist(), asked.place.tolist(), asked.occurrences.tolist()
  ([[1], [5]], [1, 0, 1, 2], [[1], [2]])
  """
  places = num_shards * capacity
  order, ids, is_first = _sorted(ids)
  rank = jnp.cumsum(is_first)  # [T], from 1
  bounds = jnp.arange(num_shards, dtype=jnp.uint32) * jnp.uint32(rows_per_device)
  before = jnp.concatenate([jnp.zeros(1, rank.dtype), rank])[jnp.searchsorted(ids, bounds)]  # [S]
  owner = jnp.minimum(ids // jnp.uint32(rows_per_device), num_shards - 1).astype(jnp.int32)
  number = rank - 1 - before[owner]  # [T], among the rows of its owner
  is_row = ids != NOTHING
  place = jnp.where(is_row & (number < capacity), owner * capacity + number, places)
  wanted = jnp.full(places, NOTHING).at[place].set(ids, mode="drop")
  return Requests(
    wanted.reshape(num_shards, capacity),
    jnp.zeros_like(place).at[order].set(place, unique_indices=True),
    jnp.zeros(places, jnp.int32).at[place].add(1, mode="drop").reshape(num_shards, capacity),
    jnp.sum(is_first & is_row & (number >= capacity), dtype=jnp.int32),
  )


def sum_by_row(
  ids: UInt32[Array, " T"], values: tuple[Array, ...]
) -> tuple[UInt32[Array, " T"], Bool[Array, " T"], tuple[Array, ...]]:
  """Adds up the values of equal ids: sorted, then summed in segments.

  Returns:
    The distinct ids in rising order, NOTHING after them; which are real; and the sums, zeros after them.

  >>> ids, is_real, (sums,) = sum_by_row(jnp.array([9, 4, 9], jnp.uint32), (jnp.array([1.0, 2.0, 3.0]),))
  >>> ids[:2].tolist(), is_real.tolist(), sums.tolist()
  ([4, 9], [True, True, False], [2.0, 4.0, 0.0])
  """
  order, ids, is_first = _sorted(ids)
  segment = jnp.cumsum(is_first) - 1
  size = ids.shape[0]
  distinct = jnp.full(size, NOTHING).at[segment].set(ids)
  is_real = distinct != NOTHING

  def total(value):
    summed = jax.ops.segment_sum(value[order], segment, size, indices_are_sorted=True)
    return jnp.where(is_real.reshape(-1, *[1] * (value.ndim - 1)), summed, 0)

  return distinct, is_real, tuple(total(value) for value in values)


def _sorted(ids):
  """The order that sorts ids, the sorted ids, and where a new one begins."""
  ids, order = jax.lax.sort((ids, jnp.arange(ids.shape[0], dtype=jnp.int32)), num_keys=1)
  return order, ids, jnp.concatenate([jnp.ones(1, bool), ids[1:] != ids[:-1]])


def swap(x: Array, axes: tuple[str, ...]) -> Array:
  """Sends x[s] to device s; returns what each device sent here, by sender. Nothing to do on one device."""
  return jax.lax.all_to_all(x, axes, split_axis=0, concat_axis=0, tiled=True) if axes else x


def take(table: Float[Array, "R D"], row: Int[Array, "..."]) -> Float[Array, "... D"]:
  """Rows of a table; zeros for a row number outside of it."""
  return table.at[row].get(mode="fill", fill_value=0)
