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

from jaxrec.evaluation import chunked_scores
from jaxrec.evaluation.chunked_scores import CHUNK_SIZE

AnyArray = Array | np.ndarray


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
  check_vectors(queries, item_vectors, chunk_size)
  num_rows = queries.shape[0]
  check_ids("target_item", target_item, (num_rows,), item_vectors.shape[0])
  check_seen_target(seen_target)
  seen_items = checked_seen(seen_items, num_rows, item_vectors.shape[0])
  item_domain, domain = checked_domains(item_domain, "target_domain", target_domain, num_rows, item_vectors.shape[0])
  if num_rows == 0:
    return jnp.zeros((0,), jnp.int32)
  return _target_ranks(
    jnp.asarray(queries),
    jnp.asarray(item_vectors),
    jnp.asarray(target_item, jnp.int32),
    seen_items,
    item_domain,
    domain,
    keep_target=seen_target == "keep",
    chunk_size=chunked_scores.aligned_chunk_size(chunk_size, item_vectors.shape[0]),
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
  check_vectors(queries, item_vectors, CHUNK_SIZE)
  check_ids("target_item", target_item, (queries.shape[0],), item_vectors.shape[0])
  check_ids("negative_items", negative_items, (queries.shape[0], None), item_vectors.shape[0])
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
  check_vectors(queries, item_vectors, chunk_size)
  num_rows, num_vectors = queries.shape[0], item_vectors.shape[0]
  if not 1 <= k < num_vectors:
    raise ValueError(f"{k=} must be between 1 and the number of items {num_vectors - 1}")
  seen_items = checked_seen(seen_items, num_rows, num_vectors)
  item_domain, domain = checked_domains(item_domain, "domain", domain, num_rows, num_vectors)
  chunk_size = chunked_scores.aligned_chunk_size(chunk_size, num_vectors, at_least=k)
  vectors = jnp.asarray(item_vectors)
  return _top_k_items(jnp.asarray(queries), vectors, seen_items, item_domain, domain, k=k, chunk_size=chunk_size)


@partial(jax.jit, static_argnames=("keep_target", "chunk_size"))
def _target_ranks(queries, item_vectors, target, seen, item_domain, domain, *, keep_target, chunk_size):
  """Counts, block by block of queries, the candidates that are not below the target."""
  num_vectors = item_vectors.shape[0]
  seen, target_seen = chunked_scores.dedupe_seen(seen, target)
  candidates = chunked_scores.Candidates(item_vectors, item_domain, 1, num_vectors)
  score = chunked_scores.row_scores(queries, item_vectors, target, chunk_size)  # [B]
  ranks = 1 + chunked_scores.count_at_least(queries, candidates, score, target, _rows(seen), domain, chunk_size)  # [B]
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
  candidates = chunked_scores.Candidates(item_vectors, item_domain, 1, item_vectors.shape[0])
  scores, items = chunked_scores.best_rows(queries, candidates, _rows(seen), domain, k, chunk_size)  # [B, K]
  return scores, jnp.where(scores > -jnp.inf, items, 0)


def _rows(ids):
  return jnp.where(ids > 0, ids, -1)


def check_vectors(queries, item_vectors, chunk_size):
  """Checks shapes, dtypes and the size of chunks."""
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


def check_ids(name, ids, shape, num_vectors):
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


def check_seen_target(seen_target):
  """Checks the option."""
  if seen_target not in ("keep", "remove"):
    raise ValueError(f"{seen_target=} must be 'keep' or 'remove'")


def checked_seen(seen_items, num_rows, num_vectors):
  """Returns seen items as an array, with no columns where there are none."""
  if seen_items is None:
    return jnp.zeros((num_rows, 0), jnp.int32)
  check_ids("seen_items", seen_items, (num_rows, None), num_vectors)
  width = seen_items.shape[1]
  # Few different widths, so that batches of many lengths share a few compiled programs.
  return jnp.pad(jnp.asarray(seen_items, jnp.int32), [(0, 0), (0, _round_up_power(width) - width)])


def checked_domains(item_domain, name, domain, num_rows, num_vectors):
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


def _round_up_power(number):
  return 1 << max(number - 1, 0).bit_length() if number else 0
