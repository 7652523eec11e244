"""Rows for unbounded ids: user ids, URLs, crossed features. Two hashes per id keep most ids distinct.

An id whose vector is the sum of the rows `h1(id)` and `h2(id)` shares both of them with another id with probability
1 / V^2; a single row would collide with probability 1 / V.

Source: "Hash Embeddings for Efficient Word Representations", arXiv 1709.03933; "double hashing" of arXiv 2007.14523.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer, UInt32

from jaxrec.embedding.rounding import mix


def fold_id(wide: Integer[np.ndarray, "..."]) -> UInt32[np.ndarray, "... 2"]:
  """Splits 64-bit ids into two 32-bit words, which JAX can hold without its 64-bit mode; for the data pipeline.

  Raises:
    ValueError: numbers that are no integers.

  >>> fold_id(np.array([1, 2**40 + 5])).tolist()
  [[1, 0], [5, 256]]
  """
  wide = np.asarray(wide)
  if not np.issubdtype(wide.dtype, np.integer):
    raise ValueError(f"wide must hold integers, not {wide.dtype}")
  bits = wide.astype(np.uint64)
  return np.stack([bits & np.uint64(0xFFFFFFFF), bits >> np.uint64(32)], axis=-1).astype(np.uint32)


def two_rows(words: UInt32[Array | np.ndarray, "... 2"], num_rows: int, seed: int = 0) -> Integer[Array, "... 2"]:
  """Hashes each id to two rows of a table; their sum is the id's vector. Id 0 gets rows 0 and 0: padding.

  Args:
    words: ids as returned by `fold_id`.
    num_rows: rows of the table; the results are 1..num_rows - 1.
    seed: selects the hash functions: give each table a different seed.

  Raises:
    ValueError: fewer than 3 rows, or ids that were not folded.

  >>> rows = two_rows(fold_id(np.array([0, 7, 2**40])), 1000)
  >>> rows.shape, rows[0].tolist(), bool((rows[1:] > 0).all() & (rows < 1000).all())
  ((3, 2), [0, 0], True)
  """
  words = _words(words)
  if num_rows < 3:
    raise ValueError(f"{num_rows=} must be at least 3: one for padding and two to choose from")
  low, high = words[..., :1], words[..., 1:]
  salts = jnp.asarray([2 * seed, 2 * seed + 1], jnp.uint32).reshape(*(1,) * (words.ndim - 1), 2)
  hashed = mix(mix(low ^ mix(salts)) ^ mix(high + jnp.uint32(0x9E3779B9) * (salts + 1)))  # [..., 2]
  rows = hashed % jnp.uint32(num_rows - 1) + 1
  is_padding = (low | high) == 0  # [..., 1]
  return jnp.where(is_padding, 0, rows).astype(jnp.int32 if num_rows <= 2**31 else jnp.uint32)


def _words(words):
  words = jnp.asarray(words) if isinstance(words, jax.Array) else np.asarray(words)
  if words.dtype != np.uint32 or words.ndim == 0 or words.shape[-1] != 2:
    raise ValueError(f"words of {words.dtype} and shape {words.shape} must be uint32 pairs: use fold_id")
  return jnp.asarray(words)
