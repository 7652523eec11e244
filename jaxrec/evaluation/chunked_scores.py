"""Scores of queries against the vectors of one shard, chunk by chunk: counted or merged, never all held at once.

Items are given by the rows of their vectors in the shard, -1 for none. All scores come from one matrix product, in full
float32 precision on every device (tensor cores and TPUs would otherwise round the inputs), so equal vectors have equal
scores.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import varying

BLOCK_SIZE = 512  # Queries scored together: changes speed and memory, never results.
CHUNK_SIZE = 4096  # Items scored together: changes speed and memory, never results.
TOP_K_CHUNK_SIZE = 32_768  # The same where the best of a chunk are sorted: fewer, larger chunks are sorted faster.
_MOST_SCORES = 1 << 22  # Scores of a block and a chunk for `top_k_chunk_size`: 16 MiB.
_LANE = 128  # Chunks are multiples of this, so that every score comes from the same inner loop of the product.


class Candidates(NamedTuple):
  """Vectors whose rows first..end - 1 are candidates.

  domain: domain of each row; None where candidates of all domains are pooled.
  """

  vectors: Float[Array, "R M"]
  domain: Int[Array, " R"] | None
  first: Int[Array, ""] | int
  end: Int[Array, ""] | int


def aligned_chunk_size(chunk_size: int, num_rows: int, at_least: int = 1) -> int:
  """Returns a chunk size that is a multiple of 128, not much above the number of rows.

  >>> aligned_chunk_size(4096, 1000), aligned_chunk_size(4096, 10**6), aligned_chunk_size(1, 1000, at_least=200)
  (1024, 4096, 256)
  """
  return _round_up(max(at_least, min(chunk_size, num_rows)), _LANE)


def top_k_chunk_size(chunk_size: int, num_rows: int, num_queries: int, k: int) -> int:
  """Returns `aligned_chunk_size` of at least k items, smaller where many queries are scored together.

  >>> [top_k_chunk_size(TOP_K_CHUNK_SIZE, 10**6, num_queries, 100) for num_queries in (1, 64, 512, 10_000)]
  [32768, 32768, 8192, 8192]
  """
  fitting = _MOST_SCORES // min(num_queries, BLOCK_SIZE)
  return aligned_chunk_size(min(chunk_size, fitting), num_rows, at_least=k)


def row_scores(
  queries: Float[Array, "B M"], vectors: Float[Array, "R M"], row: Int[Array, " B"], chunk_size: int
) -> Float[Array, " B"]:
  """Returns the score of one row for each query; that of row 0 where the row is -1."""

  def block_scores(block):
    queries, row = block
    # A chunk made of the block's own rows, so that it is computed as the other scores are.
    own = jnp.zeros(chunk_size, jnp.int32).at[: row.shape[0]].set(jnp.maximum(row, 0))
    return jnp.diagonal(_scores(queries, vectors[own]))  # [B]

  return _map_blocks(block_scores, (queries, row), chunk_size)


def count_at_least(
  queries: Float[Array, "B M"],
  candidates: Candidates,
  target_score: Float[Array, " B"],
  target_row: Int[Array, " B"],
  seen_row: Int[Array, "B S"],
  domain: Int[Array, " B"],
  chunk_size: int,
) -> Int[Array, " B"]:
  """Returns how many candidates of the query's domain, without the target and seen ones, are not below the target.

  seen_row: each row at most once, without the target.
  """
  vectors, item_domain, first, end = _padded(candidates, chunk_size)
  is_seen = (seen_row >= first) & (seen_row < end)
  if item_domain is not None:
    is_seen &= item_domain[jnp.maximum(seen_row, 0)] == domain[:, None]
  seen_row = jnp.where(is_seen, seen_row, -1)  # [B, S]

  def block_counts(block):
    queries, target_score, target_row, seen, domain = block
    target_score = target_score[:, None]  # [B, 1]

    def add_chunk(index, count):
      start, rows, is_new = _chunk_rows(index, chunk_size, vectors.shape[0])
      scores = _scores(queries, jax.lax.dynamic_slice_in_dim(vectors, start, chunk_size))  # [B, chunk]
      is_counted = (is_new & (rows >= first) & (rows < end))[None] & (rows[None] != target_row[:, None])  # [B, chunk]
      if item_domain is not None:
        is_counted &= jax.lax.dynamic_slice_in_dim(item_domain, start, chunk_size)[None] == domain[:, None]
      counted = jnp.sum(~(scores < target_score) & is_counted, axis=1, dtype=jnp.int32)
      is_here = (seen >= 0) & (seen >= index * chunk_size) & (seen >= start) & (seen < start + chunk_size)  # [B, S]
      seen_scores = jnp.take_along_axis(scores, jnp.clip(seen - start, 0, chunk_size - 1), axis=1)  # [B, S]
      return count + counted - jnp.sum(~(seen_scores < target_score) & is_here, axis=1, dtype=jnp.int32)

    start = varying.vary(jnp.zeros(target_row.shape[0], jnp.int32), axes)
    return jax.lax.fori_loop(0, -(-vectors.shape[0] // chunk_size), add_chunk, start)

  blocks = queries, target_score, target_row, seen_row, domain
  axes = varying.axes_of((blocks, candidates))
  return _map_blocks(block_counts, blocks, chunk_size)


def best_rows(
  queries: Float[Array, "B M"],
  candidates: Candidates,
  seen_row: Int[Array, "B S"],
  domain: Int[Array, " B"],
  k: int,
  chunk_size: int,
  recall: float = 1.0,
) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
  """Returns the k best scores and their rows; -inf where fewer candidates are left.

  The best of each chunk are merged into the best so far. With `recall` below 1 those of a chunk are found by
  `jax.lax.approx_max_k`, each with at least this probability.
  """
  vectors, item_domain, first, end = _padded(candidates, chunk_size)

  def block_best(block):
    queries, seen, domain = block
    row = jnp.arange(queries.shape[0])[:, None]

    def merge_chunk(index, best):
      start, rows, is_new = _chunk_rows(index, chunk_size, vectors.shape[0])
      scores = _scores(queries, jax.lax.dynamic_slice_in_dim(vectors, start, chunk_size))  # [B, chunk]
      is_candidate = jnp.broadcast_to(is_new & (rows >= first) & (rows < end), scores.shape)
      if item_domain is not None:
        is_candidate &= jax.lax.dynamic_slice_in_dim(item_domain, start, chunk_size)[None] == domain[:, None]
      # Positions before the chunk would wrap around: send them past its end, where they are dropped.
      position = jnp.where(seen >= start, seen - start, chunk_size)  # [B, S]
      is_candidate = is_candidate.at[row, position].set(False, mode="drop")
      scores = jnp.where(is_candidate, scores, -jnp.inf)
      if recall == 1:
        chunk_scores, index_in_chunk = jax.lax.top_k(scores, k)  # [B, K]
      else:
        chunk_scores, index_in_chunk = jax.lax.approx_max_k(scores, k, recall_target=recall)  # [B, K]
      merged, order = jax.lax.top_k(jnp.concatenate([best[0], chunk_scores], axis=1), k)  # [B, K]
      return merged, jnp.take_along_axis(jnp.concatenate([best[1], rows[index_in_chunk]], axis=1), order, axis=1)

    nothing = jnp.full((queries.shape[0], k), -jnp.inf, queries.dtype), jnp.zeros((queries.shape[0], k), jnp.int32)
    return jax.lax.fori_loop(0, -(-vectors.shape[0] // chunk_size), merge_chunk, varying.vary(nothing, axes))

  axes = varying.axes_of((queries, seen_row, domain, candidates))
  return _map_blocks(block_best, (queries, seen_row, domain), chunk_size)


def dedupe_seen(seen: Int[Array, "B S"], target: Int[Array, " B"]) -> tuple[Int[Array, "B S"], Bool[Array, " B"]]:
  """Returns the seen ids, with 0 in place of the target and of repetitions, and whether the target is among them.

  >>> ids, is_seen = dedupe_seen(jnp.array([[5, 3, 5, 4]]), jnp.array([4]))
  >>> ids.tolist(), is_seen.tolist()
  ([[0, 3, 5, 0]], [True])
  """
  is_target = seen == target[:, None]  # [B, S]
  return _distinct(jnp.where(is_target, 0, seen)), jnp.any(is_target, axis=1)


def _scores(queries, vectors):
  return jnp.matmul(queries, vectors.T, precision=jax.lax.Precision.HIGHEST)  # [B, chunk]


def _chunk_rows(index, chunk_size, num_padded):
  """Returns the start of a chunk, its rows and which of them no earlier chunk held.

  The last chunk is moved back so that it is full; this avoids a padded copy of the vectors.
  """
  start = jnp.minimum(index * chunk_size, num_padded - chunk_size)
  rows = start + jnp.arange(chunk_size, dtype=jnp.int32)  # [chunk]
  return start, rows, rows >= index * chunk_size


def _map_blocks(function, arrays, chunk_size):
  """Applies a function to blocks of rows one after another; a last block that is not full is padded with zeros."""
  num_rows = arrays[0].shape[0]
  block_size = min(BLOCK_SIZE, chunk_size, _round_up(num_rows, 8))
  num_blocks = -(-num_rows // block_size)

  def to_blocks(array):
    array = jnp.pad(array, [(0, num_blocks * block_size - num_rows)] + [(0, 0)] * (array.ndim - 1))
    return array.reshape(num_blocks, block_size, *array.shape[1:])  # [blocks, B, ...]

  result = jax.lax.map(function, jax.tree.map(to_blocks, arrays))
  return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:])[:num_rows], result)


def _padded(candidates, chunk_size):
  """Pads vectors that are fewer than one chunk."""
  padding = max(0, chunk_size - candidates.vectors.shape[0])
  if candidates.domain is not None:
    candidates = candidates._replace(domain=jnp.pad(candidates.domain, (0, padding)))
  return candidates._replace(vectors=jnp.pad(candidates.vectors, [(0, padding), (0, 0)]))


def _distinct(ids):
  """Returns each row sorted, with repetitions set to 0: [[5, 3, 5]] -> [[3, 5, 0]]."""
  ids = jnp.sort(ids, axis=1)
  if ids.shape[1] < 2:
    return ids
  return ids.at[:, 1:].set(jnp.where(ids[:, 1:] == ids[:, :-1], 0, ids[:, 1:]))


def _round_up(number, multiple):
  return -(-number // multiple) * multiple
