"""Ranks of targets and best items over a whole catalogue, in chunks: no `[B, V]` array ever exists.

`target_ranks` counts, `top_k_items` merges; `sampled_target_ranks` ranks against given negatives only and is kept apart
by its name. Row 0 of `item_vectors` is padding and never a candidate. The score of item v for query q is their dot
product, in full float32 precision on every device (tensor cores and TPUs would otherwise round the inputs).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

AnyArray = Array | np.ndarray

BLOCK_SIZE = 512  # Queries scored together: changes speed and memory, never results.
CHUNK_SIZE = 4096  # Items scored together: changes speed and memory, never results.
_LANE = 128  # Chunks are multiples of this, so that every score comes from the same inner loop of the product.


def target_ranks(
  queries: Float[AnyArray, "B M"],
  item_vectors: Float[AnyArray, "V1 M"],
  target_item: Int[AnyArray, " B"],
  *,
  seen_items: Int[AnyArray, "B S"] | None = None,
  item_domain: Int[AnyArray, " V1"] | None = None,
  target_domain: Int[AnyArray, " B"] | None = None,
  seen_target: str = "keep",
  chunk_size: int = CHUNK_SIZE,
) -> Int[Array, " B"]:
  """Returns the 1-based rank of each target among all candidate items; ties count against the model.

  rank = 1 + the number of other candidates whose score is not below the target's. A score that is NaN is not below
  anything, so a model that diverged ranks last instead of first. All scores, the target's included, come from the same
  matrix product, so equal item vectors have equal scores.

  Args:
    queries: one query vector a row.
    item_vectors: one vector an item, V1 = V + 1 rows; row 0 is padding.
    target_item: the item to find, 1..V; 0 marks a row without a target, whose rank is 0.
    seen_items: items to take out of the candidates, 0 padded, repetitions allowed; None leaves everything in.
    item_domain: domain of each item; with `target_domain`, candidates are the items of the target's own domain.
    target_domain: domain of each row's target.
    seen_target: what happens to a target that is itself among the seen items. "keep": it stays a candidate. "remove":
      it is taken out and ranks last of all, V + 1.
    chunk_size: items scored at a time.

  Raises:
    ValueError: shapes or options that don't fit together, or ids outside the catalogue.

  Source: full ranking as in HSTU (arXiv 2402.17152), section 4.1.
  Choice: "keep" differs from the public HSTU code, where a target that the user has met before can never be found and
    gets rank 2501; "remove" with ranks above 2500 set to 2501 is that rule.

  >>> vectors = np.array([[9.0], [3.0], [2.0], [2.0], [1.0]], np.float32)
  >>> query = np.ones((2, 1), np.float32)
  >>> target_ranks(query, vectors, np.array([2, 4])).tolist()
  [3, 4]
  >>> target_ranks(query, vectors, np.array([2, 4]), seen_items=np.array([[1, 1], [3, 0]])).tolist()
  [2, 3]
  """
  _check_vectors(queries, item_vectors, chunk_size)
  num_rows = queries.shape[0]
  _check_ids("target_item", target_item, (num_rows,), item_vectors.shape[0])
  if seen_target not in ("keep", "remove"):
    raise ValueError(f"{seen_target=} must be 'keep' or 'remove'")
  seen_items = _checked_seen(seen_items, num_rows, item_vectors.shape[0])
  item_domain, domain = _checked_domains(item_domain, "target_domain", target_domain, num_rows, item_vectors.shape[0])
  if num_rows == 0:
    return jnp.zeros((0,), jnp.int32)
  chunk_size = min(chunk_size, _round_up(item_vectors.shape[0], _LANE))
  return _target_ranks(
    jnp.asarray(queries),
    jnp.asarray(item_vectors),
    jnp.asarray(target_item, jnp.int32),
    seen_items,
    item_domain,
    domain,
    keep_target=seen_target == "keep",
    chunk_size=_round_up(chunk_size, _LANE),
  )


def sampled_target_ranks(
  queries: Float[AnyArray, "B M"],
  item_vectors: Float[AnyArray, "V1 M"],
  target_item: Int[AnyArray, " B"],
  negative_items: Int[AnyArray, "B R"],
) -> Int[Array, " B"]:
  """Returns the 1-based rank of each target among its row's negatives; ties count against the model.

  Not comparable with `target_ranks`: report such numbers under names that say "sampled"
  (`RankingMetrics.zero(prefix="sampled/")`). A negative equal to the target, or 0, is not counted; a negative given
  twice is counted twice.

  Raises:
    ValueError: as `target_ranks`.

  >>> vectors = np.array([[9.0], [3.0], [2.0], [1.0]], np.float32)
  >>> sampled_target_ranks(np.ones((1, 1), np.float32), vectors, np.array([2]), np.array([[1, 3, 2, 0]])).tolist()
  [2]
  """
  _check_vectors(queries, item_vectors, CHUNK_SIZE)
  _check_ids("target_item", target_item, (queries.shape[0],), item_vectors.shape[0])
  _check_ids("negative_items", negative_items, (queries.shape[0], None), item_vectors.shape[0])
  return _sampled_ranks(
    jnp.asarray(queries), jnp.asarray(item_vectors), jnp.asarray(target_item), jnp.asarray(negative_items)
  )


def top_k_items(
  queries: Float[AnyArray, "B M"],
  item_vectors: Float[AnyArray, "V1 M"],
  k: int,
  *,
  seen_items: Int[AnyArray, "B S"] | None = None,
  item_domain: Int[AnyArray, " V1"] | None = None,
  domain: Int[AnyArray, " B"] | None = None,
  chunk_size: int = CHUNK_SIZE,
) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
  """Returns the k best scores and their items, best first; of equal scores the smaller id comes first.

  Args:
    queries: one query vector a row.
    item_vectors: one vector an item, V1 = V + 1 rows; row 0 is padding.
    k: how many items, 1..V.
    seen_items: items never to recommend, 0 padded.
    item_domain: domain of each item; with `domain`, only items of that domain are recommended.
    domain: the wanted domain of each row.
    chunk_size: items scored at a time.

  Where fewer than k candidates are left, the rest of the row is item 0 with score -inf.

  Raises:
    ValueError: shapes or options that don't fit together, or ids outside the catalogue.

  >>> vectors = np.array([[9.0], [3.0], [2.0], [2.0]], np.float32)
  >>> scores, items = top_k_items(np.ones((1, 1), np.float32), vectors, 3, seen_items=np.array([[1]]))
  >>> scores.tolist(), items.tolist()
  ([[2.0, 2.0, -inf]], [[2, 3, 0]])
  """
  _check_vectors(queries, item_vectors, chunk_size)
  num_rows, num_vectors = queries.shape[0], item_vectors.shape[0]
  if not 1 <= k < num_vectors:
    raise ValueError(f"{k=} must be between 1 and the number of items {num_vectors - 1}")
  seen_items = _checked_seen(seen_items, num_rows, num_vectors)
  item_domain, domain = _checked_domains(item_domain, "domain", domain, num_rows, num_vectors)
  chunk_size = _round_up(max(k, min(chunk_size, num_vectors)), _LANE)
  vectors = jnp.asarray(item_vectors)
  return _top_k_items(jnp.asarray(queries), vectors, seen_items, item_domain, domain, k=k, chunk_size=chunk_size)


@partial(jax.jit, static_argnames=("keep_target", "chunk_size"))
def _target_ranks(queries, item_vectors, target, seen, item_domain, domain, *, keep_target, chunk_size):
  """Counts, block by block of queries, the candidates that are not below the target."""
  num_vectors = item_vectors.shape[0]
  item_vectors, item_domain = _pad_to_chunk(item_vectors, item_domain, chunk_size)
  target_seen = jnp.any(seen == target[:, None], axis=1)  # [B]
  seen = _distinct(jnp.where(seen == target[:, None], 0, seen))  # [B, S]
  if item_domain is not None:
    seen = jnp.where(item_domain[seen] == domain[:, None], seen, 0)

  def block_ranks(block):
    queries, target, seen, domain = block
    # The target's score: a chunk made of the block's own targets, so that it is computed as the other scores are.
    own = jnp.zeros(chunk_size, jnp.int32).at[: target.shape[0]].set(target)
    target_score = jnp.diagonal(_scores(queries, item_vectors[own]))[:, None]  # [B, 1]

    def add_chunk(index, rank):
      start, ids, is_new = _chunk_ids(index, chunk_size, item_vectors.shape[0], num_vectors)
      scores = _scores(queries, jax.lax.dynamic_slice_in_dim(item_vectors, start, chunk_size))  # [B, chunk]
      is_rival = is_new & (ids != target[:, None])  # [B, chunk]
      if item_domain is not None:
        is_rival &= jax.lax.dynamic_slice_in_dim(item_domain, start, chunk_size) == domain[:, None]
      rivals = jnp.sum(~(scores < target_score) & is_rival, axis=1, dtype=jnp.int32)
      is_here = (seen > 0) & (seen >= index * chunk_size) & (seen >= start) & (seen < start + chunk_size)  # [B, S]
      seen_scores = jnp.take_along_axis(scores, jnp.clip(seen - start, 0, chunk_size - 1), axis=1)  # [B, S]
      return rank + rivals - jnp.sum(~(seen_scores < target_score) & is_here, axis=1, dtype=jnp.int32)

    num_chunks = -(-item_vectors.shape[0] // chunk_size)
    return jax.lax.fori_loop(0, num_chunks, add_chunk, jnp.ones(target.shape[0], jnp.int32))

  ranks = _map_blocks(block_ranks, (queries, target, seen, domain), chunk_size)  # [B]
  if not keep_target:
    ranks = jnp.where(target_seen, num_vectors, ranks)
  return jnp.where(target > 0, ranks, 0)


@jax.jit
def _sampled_ranks(queries, item_vectors, target, negatives):
  items = jnp.concatenate([target[:, None], negatives], axis=1)  # [B, 1 + R]
  scores = jnp.einsum("bm,brm->br", queries, item_vectors[items], precision=jax.lax.Precision.HIGHEST)
  is_rival = (negatives > 0) & (negatives != target[:, None])
  ranks = 1 + jnp.sum(~(scores[:, 1:] < scores[:, :1]) & is_rival, axis=1, dtype=jnp.int32)
  return jnp.where(target > 0, ranks, 0)


@partial(jax.jit, static_argnames=("k", "chunk_size"))
def _top_k_items(queries, item_vectors, seen, item_domain, domain, *, k, chunk_size):
  """Merges the best k of each chunk into the best k so far."""
  num_vectors = item_vectors.shape[0]
  item_vectors, item_domain = _pad_to_chunk(item_vectors, item_domain, chunk_size)

  def block_top_k(block):
    queries, seen, domain = block
    rows = jnp.arange(queries.shape[0])[:, None]

    def merge_chunk(index, best):
      start, ids, is_new = _chunk_ids(index, chunk_size, item_vectors.shape[0], num_vectors)
      scores = _scores(queries, jax.lax.dynamic_slice_in_dim(item_vectors, start, chunk_size))  # [B, chunk]
      is_candidate = jnp.broadcast_to(is_new, scores.shape)
      if item_domain is not None:
        is_candidate &= jax.lax.dynamic_slice_in_dim(item_domain, start, chunk_size) == domain[:, None]
      # Positions before the chunk would wrap around: send them past its end, where they are dropped.
      position = jnp.where(seen >= start, seen - start, chunk_size)  # [B, S]
      is_candidate = is_candidate.at[rows, position].set(False, mode="drop")
      scores = jnp.where(is_candidate, scores, -jnp.inf)
      chunk_scores, place = jax.lax.top_k(scores, k)  # [B, K]
      merged, order = jax.lax.top_k(jnp.concatenate([best[0], chunk_scores], axis=1), k)  # [B, K]
      return merged, jnp.take_along_axis(jnp.concatenate([best[1], ids[place]], axis=1), order, axis=1)

    nothing = jnp.full((queries.shape[0], k), -jnp.inf, queries.dtype), jnp.zeros((queries.shape[0], k), jnp.int32)
    return jax.lax.fori_loop(0, -(-item_vectors.shape[0] // chunk_size), merge_chunk, nothing)

  scores, items = _map_blocks(block_top_k, (queries, seen, domain), chunk_size)  # [B, K]
  return scores, jnp.where(scores > -jnp.inf, items, 0)


def _scores(queries, vectors):
  return jnp.matmul(queries, vectors.T, precision=jax.lax.Precision.HIGHEST)  # [B, chunk]


def _chunk_ids(index, chunk_size, num_padded, num_vectors):
  """Returns the start of a chunk, its item ids and which of them are items that no earlier chunk held.

  The last chunk is moved back so that it is full; this spares a padded copy of the vectors.
  """
  start = jnp.minimum(index * chunk_size, num_padded - chunk_size)
  ids = start + jnp.arange(chunk_size, dtype=jnp.int32)  # [chunk]
  return start, ids, (ids >= index * chunk_size) & (ids > 0) & (ids < num_vectors)


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


def _pad_to_chunk(item_vectors, item_domain, chunk_size):
  """Pads a catalogue smaller than one chunk; larger ones are left alone."""
  padding = max(0, chunk_size - item_vectors.shape[0])
  if item_domain is not None:
    item_domain = jnp.pad(item_domain, (0, padding))
  return jnp.pad(item_vectors, [(0, padding), (0, 0)]), item_domain


def _distinct(ids):
  """Returns each row sorted, with repetitions set to 0: [[5, 3, 5]] -> [[3, 5, 0]]."""
  ids = jnp.sort(ids, axis=1)
  if ids.shape[1] < 2:
    return ids
  return ids.at[:, 1:].set(jnp.where(ids[:, 1:] == ids[:, :-1], 0, ids[:, 1:]))


def _check_vectors(queries, item_vectors, chunk_size):
  if queries.ndim != 2 or item_vectors.ndim != 2 or queries.shape[1] != item_vectors.shape[1]:
    raise ValueError(f"{queries.shape=} and {item_vectors.shape=} must be [B, M] and [V1, M] with the same M")
  if queries.dtype != item_vectors.dtype or queries.dtype.itemsize < 4:
    raise ValueError(
      f"{queries.dtype=} and {item_vectors.dtype=} must be the same and float32 or wider: cast both to float32"
    )
  if item_vectors.shape[0] < 2:
    raise ValueError(f"{item_vectors.shape=} needs row 0 for padding and a row for each item")
  if chunk_size < 1:
    raise ValueError(f"{chunk_size=} must be positive")


def _check_ids(name, ids, shape, num_vectors):
  """Checks shape and, where the values are known (not while jit traces), that all ids are 0..V."""
  expected = tuple(want or got for want, got in zip(shape, ids.shape, strict=False))
  if len(ids.shape) != len(shape) or tuple(ids.shape) != expected:
    raise ValueError(f"{name}.shape={tuple(ids.shape)} must be {shape}: one row for each query")
  if isinstance(ids, jax.core.Tracer) or not ids.size:
    return
  smallest, largest = int(ids.min()), int(ids.max())
  if smallest < 0 or largest >= num_vectors:
    wrong = smallest if smallest < 0 else largest
    raise ValueError(
      f"{name} holds id {wrong}, but item_vectors has rows for 0..{num_vectors - 1}: data and model don't match"
    )


def _checked_seen(seen_items, num_rows, num_vectors):
  if seen_items is None:
    return jnp.zeros((num_rows, 0), jnp.int32)
  _check_ids("seen_items", seen_items, (num_rows, None), num_vectors)
  width = seen_items.shape[1]
  # Few different widths, so that batches of many lengths share a few compiled programs.
  return jnp.pad(jnp.asarray(seen_items, jnp.int32), [(0, 0), (0, _round_up_power(width) - width)])


def _checked_domains(item_domain, name, domain, num_rows, num_vectors):
  """Returns (item_domain, domain) as arrays; (None, zeros) where candidates are pooled over domains."""
  if (item_domain is None) != (domain is None):
    raise ValueError(
      f"item_domain and {name} belong together: give both (candidates of that domain) or neither (all items)"
    )
  if item_domain is None:
    return None, jnp.zeros(num_rows, jnp.int32)
  if tuple(item_domain.shape) != (num_vectors,) or tuple(domain.shape) != (num_rows,):
    shapes = f"item_domain.shape={tuple(item_domain.shape)} and {name}.shape={tuple(domain.shape)}"
    raise ValueError(f"{shapes} must be ({num_vectors},), a row of item_vectors each, and ({num_rows},), a query each")
  return jnp.asarray(item_domain, jnp.int32), jnp.asarray(domain, jnp.int32)


def _round_up(number, multiple):
  return -(-number // multiple) * multiple


def _round_up_power(number):
  return 1 << max(number - 1, 0).bit_length() if number else 0
