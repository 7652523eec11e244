"""The steps of a lookup on one device: deduplicate ids, find the owners of rows, sum gradients by row.

A "global row" numbers the rows of all devices: device s owns `s * R .. s * R + R - 1`, R rows of every stack. NO_ROW
marks the absence of a row. All arrays here have the size of a batch; none is as large as a table.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

NO_ROW = np.uint32(0xFFFFFFFF)


class Requests(NamedTuple):
  """The rows that one device requests from each device.

  wanted: for each owner, the distinct global rows requested from it, followed by NO_ROW.
  index: for each id, the index of its row in the flattened `wanted`; S * K where there is none.
  occurrences: number of ids of each wanted row.
  overflow: distinct rows that exceeded the capacity K.
  """

  wanted: UInt32[Array, "S K"]
  index: Int[Array, " T"]
  occurrences: Int[Array, "S K"]
  overflow: Int[Array, ""]


def default_capacity(num_ids: int, num_shards: int) -> int:
  """Returns a number of distinct rows per pair of devices that uniformly distributed ids hardly ever exceed.

  Each owner receives num_ids / S of them, with a standard deviation of at most the square root of that; the capacity
  adds six of these and 8 rows. A single device needs no slack.

  >>> default_capacity(8192, 1), default_capacity(8192, 8), default_capacity(8192, 4096)
  (8192, 1224, 19)
  """
  if num_shards == 1:
    return num_ids
  mean = num_ids / num_shards
  return min(num_ids, math.ceil(mean + 6 * math.sqrt(mean) + 8))


def make_requests(ids: UInt32[Array, " T"], num_shards: int, rows_per_device: int, capacity: int) -> Requests:
  """Returns the distinct rows of `ids`, grouped by the device that owns them.

  Args:
    ids: global rows, or NO_ROW.
    num_shards: S.
    rows_per_device: R.
    capacity: K, distinct rows requested from each device; those beyond are counted in `overflow`.

  >>> requests = make_requests(jnp.array([5, 1, 5, NO_ROW], jnp.uint32), num_shards=2, rows_per_device=4, capacity=1)
  >>> requests.wanted.tolist(), requests.index.tolist(), requests.occurrences.tolist()
  ([[1], [5]], [1, 0, 1, 2], [[1], [2]])
  """
  size = num_shards * capacity
  order, ids, is_first = _sorted(ids)
  distinct = jnp.cumsum(is_first)  # [T], counts from 1
  bounds = jnp.arange(num_shards, dtype=jnp.uint32) * jnp.uint32(rows_per_device)
  before = jnp.concatenate([jnp.zeros(1, distinct.dtype), distinct])[jnp.searchsorted(ids, bounds)]  # [S]
  owner = jnp.minimum(ids // jnp.uint32(rows_per_device), num_shards - 1).astype(jnp.int32)
  position = distinct - 1 - before[owner]  # [T], among the distinct rows of the same owner
  is_row = ids != NO_ROW
  index = jnp.where(is_row & (position < capacity), owner * capacity + position, size)
  wanted = jnp.full(size, NO_ROW).at[index].set(ids, mode="drop")
  return Requests(
    wanted.reshape(num_shards, capacity),
    jnp.zeros_like(index).at[order].set(index, unique_indices=True),
    jnp.zeros(size, jnp.int32).at[index].add(1, mode="drop").reshape(num_shards, capacity),
    jnp.sum(is_first & is_row & (position >= capacity), dtype=jnp.int32),
  )


def sum_by_row(
  ids: UInt32[Array, " T"], values: tuple[Array, ...]
) -> tuple[UInt32[Array, " T"], Bool[Array, " T"], tuple[Array, ...]]:
  """Sums the values of equal ids: a sort, then a sum over segments.

  Returns:
    The distinct ids in ascending order, followed by NO_ROW; which of them are real; and the sums, followed by zeros.

  >>> ids, is_real, (sums,) = sum_by_row(jnp.array([9, 4, 9], jnp.uint32), (jnp.array([1.0, 2.0, 3.0]),))
  >>> ids[:2].tolist(), is_real.tolist(), sums.tolist()
  ([4, 9], [True, True, False], [2.0, 4.0, 0.0])
  """
  order, ids, is_first = _sorted(ids)
  segment = jnp.cumsum(is_first) - 1
  size = ids.shape[0]
  distinct = jnp.full(size, NO_ROW).at[segment].set(ids)
  is_real = distinct != NO_ROW

  def total(value):
    summed = jax.ops.segment_sum(value[order], segment, size, indices_are_sorted=True)
    return jnp.where(is_real.reshape(-1, *[1] * (value.ndim - 1)), summed, 0)

  return distinct, is_real, tuple(total(value) for value in values)


def _sorted(ids):
  """Returns the order that sorts ids, the sorted ids, and where each distinct id begins."""
  ids, order = jax.lax.sort((ids, jnp.arange(ids.shape[0], dtype=jnp.int32)), num_keys=1)
  return order, ids, jnp.ones(ids.shape, bool).at[1:].set(ids[1:] != ids[:-1])


def swap(x: Array, axes: tuple[str, ...]) -> Array:
  """Sends x[s] to device s and returns what each device sent here, by sender; the identity without axes."""
  return jax.lax.all_to_all(x, axes, split_axis=0, concat_axis=0, tiled=True) if axes else x


def take(table: Float[Array, "R D"], row: Int[Array, "..."]) -> Float[Array, "... D"]:
  """Gathers rows of a table; zeros for a row index outside of it."""
  return table.at[row].get(mode="fill", fill_value=0)
