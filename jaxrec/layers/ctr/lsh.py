"""Locality-sensitive hashing (LSH): bits from random hyperplanes replace dot products.

Vectors of similar direction are on the same side of most hyperplanes. ETA keeps the K events that differ from the
candidate in the fewest bits. SDIM keeps, for each group of bits, the events that agree with the candidate in all bits
of the group, and needs no scores.

Source: ETA, arXiv 2108.04468; SDIM, arXiv 2205.10249; random hyperplanes: Charikar 2002.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrec.layers.norm import l2_normalize


def hyperplanes(width: int, num_bits: int, seed: int = 0) -> Float[np.ndarray, "M K"]:
  """Returns normals of random hyperplanes through 0, which are not trained and depend on the seed only.

  >>> hyperplanes(width=8, num_bits=3).shape
  (8, 3)
  """
  return np.random.default_rng(seed).standard_normal((width, num_bits)).astype(np.float32)


def hash_bits(x: Float[Array, "... M"], normals: Float[Array | np.ndarray, "M K"]) -> Bool[Array, "... K"]:
  """Returns the side of each hyperplane that a vector is on; has no gradient.

  >>> hash_bits(jnp.array([[3.0, -1.0]]), jnp.eye(2)).tolist()
  [[True, False]]
  """
  return x @ jnp.asarray(normals, x.dtype) > 0  # [..., K]


def hamming_distance(target: Bool[Array, "B K"], history: Bool[Array, "B N K"]) -> Int[Array, "B N"]:
  """Returns the number of bits in which each event differs from the candidate.

  >>> hamming_distance(jnp.array([[True, True]]), jnp.array([[[True, True], [False, False]]])).tolist()
  [[0, 2]]
  """
  return (target[:, None] != history).sum(axis=-1, dtype=jnp.int32)  # [B, N]


def nearness(distance: Int[Array, "B N"]) -> Float[Array, "B N"]:
  """Returns scores that decrease with the distance; among equal distances the later event has the higher score.

  Choice: distances are small integers and often tie; ETA does not specify how ties are broken.

  >>> nearness(jnp.array([[3, 0, 0]])).argsort(axis=1).tolist()
  [[0, 1, 2]]
  """
  num_events = distance.shape[-1]
  return -distance.astype(jnp.float32) + jnp.arange(num_events, dtype=jnp.float32)[None] / num_events


def same_bucket(
  target: Bool[Array, "B K"], history: Bool[Array, "B N K"], bits_per_bucket: int
) -> Bool[Array, "B G N"]:
  """Returns which events agree with the candidate in all bits of each group; G is the number of groups.

  Raises:
    ValueError: `bits_per_bucket` does not divide the number of bits.

  >>> history = jnp.array([[[True, False, True, True]]])
  >>> same_bucket(jnp.array([[True, True, True, True]]), history, 2).tolist()
  [[[False], [True]]]
  """
  num_bits = target.shape[-1]
  if bits_per_bucket < 1 or num_bits % bits_per_bucket:
    raise ValueError(f"{bits_per_bucket=} must divide the number of bits {num_bits}")
  agrees = (target[:, None] == history).reshape(*history.shape[:2], -1, bits_per_bucket)  # [B, N, G, bits]
  return agrees.all(axis=-1).swapaxes(1, 2)  # [B, G, N]


def mean_of_buckets(sums: Float[Array, "B G M"]) -> Float[Array, "B M"]:
  """Returns the mean over groups of normalised sums of the events in the candidate's bucket; an empty bucket adds 0.

  Source: SDIM, arXiv 2205.10249.

  >>> [f"{x:.2f}" for x in mean_of_buckets(jnp.array([[[3.0, 4.0], [0.0, 0.0]]]))[0].tolist()]
  ['0.30', '0.40']
  """
  return l2_normalize(sums).mean(axis=1)  # [B, M]
