"""A checksum of each array of a pytree, the same for any number of devices and processes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

_BLOCK = 1 << 16  # Elements that are summed at a time on one device; changes speed, never results.
_ROUNDS = ((16, 0x7FEB352D), (15, 0x846CA68B))  # Of the hash of an index.


def leaf_checksums(tree: Any, num_rows: Mapping[str, int] | None = None) -> dict[str, int]:
  """Returns {"params/params/items/table": checksum, ...} of the arrays of a pytree.

  The bits of each element are multiplied by an odd number for its index along each axis, and summed modulo 2^32. Sums
  may be taken in any order: each device sums its shard, nothing is copied to the host, and arrays that are sharded in
  another way after a restore have the same checksum. The change of one element, such as a flipped bit, always changes
  it; another change goes unnoticed about once in 2^30 times.

  Args:
    tree: arrays on devices, of any dtype; on several hosts, the same program on each of them.
    num_rows: name -> how many rows of its array count; arrays that are not named count as a whole. The rows that fill
      the last shard of a table are left out in this way.

  Choice: Orbax and TensorStore keep no checksum of array data; `zlib.crc32` would need all shards on one host.

  >>> one, other = ({"a": jnp.array([[1, 2], [3, x]]), "b": jnp.array([1.5])} for x in (4, 5))
  >>> before, after = leaf_checksums(one), leaf_checksums(other)
  >>> before["a"] == after["a"], before["b"] == after["b"]
  (False, True)
  """
  leaves = named_leaves(tree)
  if not leaves:
    return {}
  rows = tuple((num_rows or {}).get(name) for name in leaves)
  block = _BLOCK if all(len(x.sharding.device_set) == 1 for x in leaves.values()) else None
  # Bound to their devices, as restored arrays are: one program for both.
  arrays = [x if x.committed else jax.device_put(x, x.sharding) for x in leaves.values()]
  sums = jax.device_get(_checksums(arrays, rows, block).addressable_data(0))
  return {name: int(value) for name, value in zip(leaves, sums, strict=True)}


def named_leaves(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a pytree by the path to them.

  >>> named_leaves({"a": {"b": 1}, "c": None, "d": (2,)})
  {'a/b': 1, 'd/0': 2}
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@functools.partial(jax.jit, static_argnums=(1, 2))
def _checksums(leaves: list[Array], num_rows: tuple[int | None, ...], block: int | None) -> UInt32[Array, " L"]:
  return jnp.stack([_checksum(x, rows, block) for x, rows in zip(leaves, num_rows, strict=True)])


def _checksum(x, num_rows, block):
  """Sums over the first axis, then over the next one: the weight of an element is a product of odd numbers.

  A large array on one device is read in blocks, as XLA writes the bits of all of it to memory first on CPUs.
  """
  if block is None or x.size <= 2 * block:
    total = _sum_rows(_bits(x), 0, num_rows)
  else:
    rows = max(1, block // (x.size // len(x)))

    def add(index, total):
      part = jax.lax.dynamic_slice_in_dim(x, index * rows, rows)
      return total + _sum_rows(_bits(part), index * rows, num_rows)

    done = len(x) // rows
    rest = _sum_rows(_bits(x[done * rows :]), done * rows, num_rows)
    total = jax.lax.fori_loop(0, done, add, rest)
  while total.ndim:
    total = _sum_rows(total, 0, None)
  return total


def _sum_rows(bits, start, num_rows):
  """Returns the weighted sum over the first axis, whose first entry has the index `start`."""
  if not bits.ndim:
    return bits
  index = jax.lax.iota(jnp.uint32, len(bits)) + jnp.uint32(start)
  weight = _odd(index + jnp.uint32(bits.ndim << 28))  # Other numbers for each axis.
  if num_rows is not None:
    weight = jnp.where(index < num_rows, weight, jnp.uint32(0))
  return jnp.sum(bits * weight.reshape(-1, *[1] * (bits.ndim - 1)), axis=0, dtype=jnp.uint32)


def _bits(x):
  """Returns an unsigned integer for each element, another one for other bits; two on a further axis for 8 bytes."""
  if x.dtype == jnp.bool_:
    return x.astype(jnp.uint32)
  unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
  bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
  return bits ^ (bits >> 7) ^ (bits >> 15)  # The low bits of many numbers are 0, and products would keep them so.


def _odd(index):
  """Returns an odd number for each index.

  Source: the multipliers of C. Wellons, "Prospecting for Hash Functions" (lowbias32 of hash-prospector).
  """
  for shift, multiplier in _ROUNDS:
    index = (index ^ (index >> shift)) * jnp.uint32(multiplier)
  return (index ^ (index >> 16)) | jnp.uint32(1)
