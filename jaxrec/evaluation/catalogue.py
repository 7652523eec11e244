"""Full ranking over a catalogue of item vectors, on one device or row-sharded over many: ranks and best items.

No `[B, V]` array exists: each shard scores all queries against its own rows, chunk by chunk. Counts of items at least
as good as the target are summed over the shards, and of the best items each shard sends k for each query. The score of
item v for query q is their dot product in float32, at full precision on every device (tensor cores and TPUs would
otherwise round the inputs). `sampled_target_ranks` ranks against given negatives only; its name says so.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from jaxrec.batches import AnyArray
from jaxrec.evaluation import chunked_scores
from jaxrec.evaluation.chunked_scores import CHUNK_SIZE, TOP_K_CHUNK_SIZE
from jaxrec.parallel.row_shards import RowShards
from pallas_kernels.integers import as_integers

_REPLICATED = PartitionSpec()
_SEEN_TARGET = ("keep", "remove")


@dataclasses.dataclass(frozen=True)
class Catalogue:
  """Item vectors and where they are: one array of V + 1 rows, or an array whose rows are sharded over a mesh.

  vectors: scoring vectors `[R, M]` in float32. Without shards row r is item r, and row 0 is padding.
  num_items: V; rows above are never candidates. None: R - 1.
  shards: which row holds which item.

  >>> catalogue = Catalogue(jnp.array([[9.0], [3.0], [2.0], [2.0]], jnp.float32))
  >>> catalogue.target_ranks(jnp.ones((1, 1), jnp.float32), jnp.array([2])).tolist()
  [3]
  """

  vectors: Float[AnyArray, "R M"]
  num_items: int | None = None
  shards: RowShards = RowShards()

  def __post_init__(self):
    if self.num_items is None:
      object.__setattr__(self, "num_items", self.vectors.shape[0] - 1)

  def target_ranks(
    self,
    queries: Float[AnyArray, "B M"],
    target_item: Int[AnyArray, " B"],
    *,
    seen_items: Int[AnyArray, "B S"] | None = None,
    item_domain: Int[AnyArray, " V1"] | None = None,
    target_domain: Int[AnyArray, " B"] | None = None,
    seen_target: str = "keep",
    chunk_size: int = CHUNK_SIZE,
  ) -> Int[Array, " B"]:
    """Returns the 1-based rank of each target among all candidates; see the function `target_ranks`."""
    num_rows = queries.shape[0]
    self._check(queries, chunk_size)
    _check_ids("target_item", target_item, (num_rows,), self.num_items)
    if seen_target not in _SEEN_TARGET:
      raise ValueError(f"{seen_target=} must be one of {_SEEN_TARGET}")
    seen = _checked_seen(seen_items, num_rows, self.num_items)
    domains = _checked_domains(item_domain, "target_domain", target_domain, num_rows, self.num_items)
    if num_rows == 0:
      return jnp.zeros((0,), jnp.int32)
    size = chunked_scores.aligned_chunk_size(chunk_size, self._rows_of_a_shard)
    target, keep = jnp.asarray(target_item, jnp.int32), seen_target == "keep"
    return _target_ranks(
      self.shards, self.num_items, size, keep, jnp.asarray(queries), self.vectors, target, seen, domains
    )

  def top_k(
    self,
    queries: Float[AnyArray, "B M"],
    k: int,
    *,
    seen_items: Int[AnyArray, "B S"] | None = None,
    item_domain: Int[AnyArray, " V1"] | None = None,
    domain: Int[AnyArray, " B"] | None = None,
    chunk_size: int = TOP_K_CHUNK_SIZE,
    recall: float = 1.0,
  ) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
    """Returns the k best scores and their items, best first; see the function `top_k_items`."""
    num_rows = queries.shape[0]
    self._check(queries, chunk_size)
    if not 1 <= k <= self.num_items:
      raise ValueError(f"{k=} must be between 1 and the number of items {self.num_items}")
    if not 0 < recall <= 1:
      raise ValueError(f"{recall=} must be above 0 and at most 1")
    seen = _checked_seen(seen_items, num_rows, self.num_items)
    domains = _checked_domains(item_domain, "domain", domain, num_rows, self.num_items)
    if num_rows == 0:
      return jnp.zeros((0, k), queries.dtype), jnp.zeros((0, k), jnp.int32)
    size = chunked_scores.top_k_chunk_size(chunk_size, self._rows_of_a_shard, num_rows, k)
    return _top_k(self.shards, self.num_items, size, k, recall, jnp.asarray(queries), self.vectors, seen, domains)

  def sampled_target_ranks(
    self,
    queries: Float[AnyArray, "B M"],
    target_item: Int[AnyArray, " B"],
    negative_items: Int[AnyArray, "B R"],
  ) -> Int[Array, " B"]:
    """Returns the 1-based rank of each target among its row's negatives; see the function `sampled_target_ranks`."""
    self._check(queries, CHUNK_SIZE)
    _check_ids("target_item", target_item, (queries.shape[0],), self.num_items)
    _check_ids("negative_items", negative_items, (queries.shape[0], None), self.num_items)
    items = jnp.asarray(target_item, jnp.int32), jnp.asarray(negative_items, jnp.int32)
    return _sampled_ranks(self.shards, jnp.asarray(queries), self.vectors, *items)

  def _check(self, queries, chunk_size):
    _check_vectors(queries, self.vectors, chunk_size)
    if self.shards.axes and self.vectors.shape[0] * self.shards.num_shards >= 2**31:
      raise NotImplementedError(f"{self.vectors.shape=}: item ids are int32; split catalogues of 2^31 rows or more")

  @property
  def _rows_of_a_shard(self):
    return self.vectors.shape[0] // self.shards.num_shards


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
    chunk_size: items scored at a time on each device.

  Raises:
    ValueError: shapes or options that don't fit together, or ids outside the catalogue.

  Source: full ranking as in HSTU (arXiv 2402.17152), section 4.1.
  Choice: "keep" differs from the public HSTU code, where a target that the user has met before can never be found and
    gets rank 2501; "remove" with ranks above 2500 set to 2501 is that rule.

  >>> vectors = jnp.array([[9.0], [3.0], [2.0], [2.0], [1.0]], jnp.float32)
  >>> query = jnp.ones((2, 1), jnp.float32)
  >>> target_ranks(query, vectors, jnp.array([2, 4])).tolist()
  [3, 4]
  >>> target_ranks(query, vectors, jnp.array([2, 4]), seen_items=jnp.array([[1, 1], [3, 0]])).tolist()
  [2, 3]
  """
  return Catalogue(item_vectors).target_ranks(
    queries, target_item, seen_items=seen_items, item_domain=item_domain, target_domain=target_domain,
    seen_target=seen_target, chunk_size=chunk_size,
  )  # fmt: skip


def top_k_items(
  queries: Float[AnyArray, "B M"],
  item_vectors: Float[AnyArray, "V1 M"],
  k: int,
  *,
  seen_items: Int[AnyArray, "B S"] | None = None,
  item_domain: Int[AnyArray, " V1"] | None = None,
  domain: Int[AnyArray, " B"] | None = None,
  chunk_size: int = TOP_K_CHUNK_SIZE,
  recall: float = 1.0,
) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
  """Returns the k best scores and their items, best first; of equal scores the smaller id comes first.

  Args:
    queries: one query vector a row.
    item_vectors: one vector an item, V1 = V + 1 rows; row 0 is padding.
    k: how many items, 1..V.
    seen_items: items never to recommend, 0 padded.
    item_domain: domain of each item; with `domain`, only items of that domain are recommended.
    domain: the wanted domain of each row.
    chunk_size: items scored at a time on each device; fewer with many queries, see `chunked_scores.top_k_chunk_size`.
    recall: 1: exact. Less: the share of the best items that is expected to be found, by `jax.lax.approx_max_k`, which
      is made for TPUs; of equal scores any may come first.

  Where fewer than k candidates are left, the rest of the row is item 0 with score -inf.

  Raises:
    ValueError: shapes or options that don't fit together, or ids outside the catalogue.

  >>> vectors = jnp.array([[9.0], [3.0], [2.0], [2.0]], jnp.float32)
  >>> scores, items = top_k_items(jnp.ones((1, 1), jnp.float32), vectors, 3, seen_items=jnp.array([[1]]))
  >>> scores.tolist(), items.tolist()
  ([[2.0, 2.0, -inf]], [[2, 3, 0]])
  """
  options = {"seen_items": seen_items, "item_domain": item_domain, "domain": domain, "chunk_size": chunk_size}
  return Catalogue(item_vectors).top_k(queries, k, **options, recall=recall)


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

  >>> vectors = jnp.array([[9.0], [3.0], [2.0], [1.0]], jnp.float32)
  >>> sampled_target_ranks(jnp.ones((1, 1), jnp.float32), vectors, jnp.array([2]), jnp.array([[1, 3, 2, 0]])).tolist()
  [2]
  """
  return Catalogue(item_vectors).sampled_target_ranks(queries, target_item, negative_items)


@partial(jax.jit, static_argnums=range(4))
def _target_ranks(shards, num_items, chunk_size, keep_target, queries, vectors, target, seen, domains):
  """Counts, over all shards, the candidates that are not below the target."""
  seen, target_seen = chunked_scores.dedupe_seen(seen, target)
  body = partial(_local_count, shards, num_items, chunk_size)
  count = shards.shard_map(body, (_REPLICATED, shards.spec, _REPLICATED, _REPLICATED, _REPLICATED), _REPLICATED)
  ranks = 1 + count(queries, jnp.asarray(vectors), target, seen, domains)  # [B]
  if not keep_target:
    ranks = jnp.where(target_seen, num_items + 1, ranks)
  return jnp.where(target > 0, ranks, 0)


def _local_count(shards, num_items, chunk_size, queries, vectors, target, seen, domains):
  """Candidates of all shards that are not below the target, whose score its own shard computes."""
  candidates, _ = _local_candidates(shards, num_items, vectors, domains[0])
  target_row = shards.local_rows(target)
  score = chunked_scores.row_scores(queries, vectors, target_row, chunk_size)  # [B]
  score = shards.sum(jnp.where(target_row >= 0, score, 0))
  seen_row, domain = shards.local_rows(seen), domains[1]
  count = chunked_scores.count_at_least(queries, candidates, score, target_row, seen_row, domain, chunk_size)  # [B]
  return shards.sum(count)


@partial(jax.jit, static_argnums=range(5))
def _top_k(shards, num_items, chunk_size, k, recall, queries, vectors, seen, domains):
  """Merges the best k of each shard in the order of ids, which the stable `top_k` keeps among equal scores."""
  body = partial(_local_top_k, shards, num_items, chunk_size, k, recall)
  best = shards.shard_map(body, (_REPLICATED, shards.spec, _REPLICATED, _REPLICATED), (shards.spec, shards.spec))
  scores, items = (
    x.swapaxes(0, 1).reshape(queries.shape[0], -1) for x in best(queries, jnp.asarray(vectors), seen, domains)
  )  # [B, S * K]
  if shards.num_shards > 1:
    by_id = jnp.argsort(items, axis=1)
    scores, items = (jnp.take_along_axis(x, by_id, axis=1) for x in (scores, items))
    scores, index = jax.lax.top_k(scores, k)  # [B, K]
    items = jnp.take_along_axis(items, index, axis=1)
  return scores, jnp.where(scores > -jnp.inf, items, 0)


def _local_top_k(shards, num_items, chunk_size, k, recall, queries, vectors, seen, domains):
  """The best k of this shard, with a leading axis of size 1 for the shards: [1, B, K]."""
  candidates, ids = _local_candidates(shards, num_items, vectors, domains[0])
  seen_row, domain = shards.local_rows(seen), domains[1]
  scores, rows = chunked_scores.best_rows(queries, candidates, seen_row, domain, k, chunk_size, recall)  # [B, K]
  items = jnp.where(scores > -jnp.inf, ids.at[rows].get(mode="clip"), 0)
  return scores[None], items[None]


def _local_candidates(shards, num_items, vectors, item_domain):
  """The rows of this shard that are items 1..num_items, and the ids of all its rows."""
  ids = shards.local_ids(vectors.shape[0])
  first = jnp.sum(ids < 1, dtype=jnp.int32)
  end = jnp.sum(ids <= num_items, dtype=jnp.int32)
  domain = None if item_domain is None else item_domain.at[ids].get(mode="clip")
  return chunked_scores.Candidates(vectors, domain, first, end), ids


@partial(jax.jit, static_argnums=0)
def _sampled_ranks(shards, queries, vectors, target, negatives):
  items = jnp.concatenate([target[:, None], negatives], axis=1)  # [B, 1 + R]
  body = partial(_local_item_scores, shards)
  scores = shards.shard_map(body, (_REPLICATED, shards.spec, _REPLICATED), _REPLICATED)
  scores = scores(queries, jnp.asarray(vectors), items)  # [B, 1 + R]
  is_counted = (negatives > 0) & (negatives != target[:, None])
  ranks = 1 + jnp.sum(~(scores[:, 1:] < scores[:, :1]) & is_counted, axis=1, dtype=jnp.int32)
  return jnp.where(target > 0, ranks, 0)


def _local_item_scores(shards, queries, vectors, items):
  """Scores of given items, each computed by the shard that holds it."""
  rows = shards.local_rows(items)  # [B, 1 + R]
  scores = jnp.einsum("bm,brm->br", queries, vectors[jnp.maximum(rows, 0)], precision=jax.lax.Precision.HIGHEST)
  return shards.sum(jnp.where(rows >= 0, scores, 0))


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


def _check_ids(name, ids, shape, num_items):
  """Checks the shape and, where the values are known (not while jit traces), that all ids are 0..V."""
  expected = tuple(got if want is None else want for want, got in zip(shape, ids.shape, strict=False))
  if len(ids.shape) != len(shape) or tuple(ids.shape) != expected:
    raise ValueError(f"{name}.shape={tuple(ids.shape)} must be {shape}: one row for each query")
  if isinstance(ids, jax.core.Tracer) or not ids.size:
    return
  smallest, largest = int(ids.min()), int(ids.max())
  if smallest < 0 or largest > num_items:
    wrong = smallest if smallest < 0 else largest
    raise ValueError(
      f"{name} holds id {wrong}, but item_vectors has rows for 0..{num_items}: data and model don't match"
    )


def _checked_seen(seen_items, num_rows, num_items):
  """Returns seen items as an array, with no columns where there are none."""
  if seen_items is None:
    return jnp.zeros((num_rows, 0), jnp.int32)
  _check_ids("seen_items", seen_items, (num_rows, None), num_items)
  width = seen_items.shape[1]
  # Widths are rounded up to powers of two, so that batches of many lengths share a few compiled programs.
  return jnp.pad(jnp.asarray(seen_items, jnp.int32), [(0, 0), (0, _round_up_to_power_of_two(width) - width)])


def _checked_domains(item_domain, name, domain, num_rows, num_items):
  """Returns (item_domain, domain) as arrays; (None, zeros) where candidates of all domains are pooled."""
  if (item_domain is None) != (domain is None):
    raise ValueError(
      f"item_domain and {name} belong together: give both (candidates of that domain) or neither (all items)"
    )
  if item_domain is None:
    return None, jnp.zeros(num_rows, jnp.int32)
  if tuple(item_domain.shape) != (num_items + 1,) or tuple(domain.shape) != (num_rows,):
    shapes = f"item_domain.shape={tuple(item_domain.shape)} and {name}.shape={tuple(domain.shape)}"
    raise ValueError(
      f"{shapes} must be ({num_items + 1},), a row of item_vectors each, and ({num_rows},), a query each"
    )
  return as_integers("item_domain", item_domain), as_integers(name, domain)


def _round_up_to_power_of_two(number):
  return 1 << max(number - 1, 0).bit_length() if number else 0
