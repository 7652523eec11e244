"""Ranks of targets and best items over a table that is spread over devices: `retrieval`, with its semantics.

Each device scores all queries against its own rows, in chunks. Counts of rivals are summed over the devices, and of the
best items each device sends k a query. Nothing of the size of the table is sent.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from jaxrec.embedding.tables import Tables
from jaxrec.evaluation import chunked_scores, retrieval
from jaxrec.evaluation.chunked_scores import CHUNK_SIZE
from jaxrec.evaluation.retrieval import AnyArray

_WHOLE = PartitionSpec()


def target_ranks(
  tables: Tables,
  table: str,
  queries: Float[AnyArray, "B M"],
  catalogue: Float[AnyArray, "R M"],
  target_item: Int[AnyArray, " B"],
  num_items: int,
  *,
  seen_items: Int[AnyArray, "B S"] | None = None,
  item_domain: Int[AnyArray, " V1"] | None = None,
  target_domain: Int[AnyArray, " B"] | None = None,
  seen_target: str = "keep",
  chunk_size: int = CHUNK_SIZE,
) -> Int[Array, " B"]:
  """Returns the 1-based rank of each target among items 1..num_items; the same on every device.

  See `retrieval.target_ranks`: ties count against the model, and the other arguments and errors are its own.

  Args:
    tables: the tables.
    table: which of them has the items.
    queries: one query vector a row; each device gets all of them.
    catalogue: `Tables.catalogue`, or what was made of each of its rows alone.
    target_item: the item to find, 1..num_items; 0 marks a row without a target.
    num_items: rows above are no candidates.
    seen_items: items to take out of the candidates.
    item_domain: domain of each item, in the order of ids, V1 = num_items + 1; each device holds all of it.
    target_domain: domain of each row's target.
    seen_target: "keep" or "remove".
    chunk_size: rows scored at a time on each device.

  >>> from jaxrec.embedding import Table
  >>> tables = Tables({"item": Table(5, 1, initializer=jax.nn.initializers.ones)})
  >>> catalogue = tables.catalogue(tables.init(jax.random.key(0)), "item")
  >>> target_ranks(tables, "item", jnp.ones((1, 1)), catalogue, jnp.array([2]), num_items=4).tolist()
  [4]
  """
  if not tables.axes_of(table):
    options = {"seen_items": seen_items, "item_domain": item_domain, "target_domain": target_domain}
    options |= {"seen_target": seen_target, "chunk_size": chunk_size}
    return retrieval.target_ranks(queries, catalogue[: num_items + 1], target_item, **options)
  num_rows = queries.shape[0]
  retrieval.check_vectors(queries, catalogue, chunk_size)
  retrieval.check_ids("target_item", target_item, (num_rows,), num_items + 1)
  retrieval.check_seen_target(seen_target)
  seen = retrieval.checked_seen(seen_items, num_rows, num_items + 1)
  domains = retrieval.checked_domains(item_domain, "target_domain", target_domain, num_rows, num_items + 1)
  if num_rows == 0:
    return jnp.zeros((0,), jnp.int32)
  chunk_size = chunked_scores.aligned_chunk_size(chunk_size, catalogue.shape[0] // tables.num_shards)
  target, keep = jnp.asarray(target_item, jnp.int32), seen_target == "keep"
  return _target_ranks(
    tables, table, num_items, chunk_size, keep, jnp.asarray(queries), catalogue, target, seen, domains
  )


def top_k_items(
  tables: Tables,
  table: str,
  queries: Float[AnyArray, "B M"],
  catalogue: Float[AnyArray, "R M"],
  k: int,
  num_items: int,
  *,
  seen_items: Int[AnyArray, "B S"] | None = None,
  item_domain: Int[AnyArray, " V1"] | None = None,
  domain: Int[AnyArray, " B"] | None = None,
  chunk_size: int = CHUNK_SIZE,
) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
  """Returns the k best scores and their items of 1..num_items, best first; the same on every device.

  See `retrieval.top_k_items`: of equal scores the smaller id comes first, and where fewer than k candidates are
  left, the rest is item 0 with score -inf. Other arguments as of `target_ranks`.

  >>> from jaxrec.embedding import Table
  >>> tables = Tables({"item": Table(5, 1, initializer=jax.nn.initializers.ones)})
  >>> catalogue = tables.catalogue(tables.init(jax.random.key(0)), "item")
  >>> scores, items = top_k_items(tables, "item", jnp.ones((1, 1)), catalogue, 2, num_items=4)
  >>> scores.tolist(), items.tolist()
  ([[1.0, 1.0]], [[1, 2]])
  """
  options = {"seen_items": seen_items, "item_domain": item_domain, "domain": domain, "chunk_size": chunk_size}
  if not tables.axes_of(table):
    return retrieval.top_k_items(queries, catalogue[: num_items + 1], k, **options)
  num_rows = queries.shape[0]
  retrieval.check_vectors(queries, catalogue, chunk_size)
  if not 1 <= k <= num_items:
    raise ValueError(f"{k=} must be between 1 and the number of items {num_items}")
  seen = retrieval.checked_seen(seen_items, num_rows, num_items + 1)
  domains = retrieval.checked_domains(item_domain, "domain", domain, num_rows, num_items + 1)
  chunk_size = chunked_scores.aligned_chunk_size(chunk_size, catalogue.shape[0] // tables.num_shards, at_least=k)
  return _top_k_items(tables, table, num_items, chunk_size, k, jnp.asarray(queries), catalogue, seen, domains)


@partial(jax.jit, static_argnums=range(5))
def _target_ranks(tables, table, num_items, chunk_size, keep_target, queries, catalogue, target, seen, domains):
  seen, target_seen = chunked_scores.dedupe_seen(seen, target)
  body = partial(_rivals_here, tables, table, num_items, chunk_size)
  count = tables.mapped(body, (_WHOLE, tables.spec_of_catalogue(table), _WHOLE, _WHOLE, _WHOLE), _WHOLE)
  ranks = 1 + count(queries, catalogue, target, seen, domains)  # [B]
  if not keep_target:
    ranks = jnp.where(target_seen, num_items + 1, ranks)
  return jnp.where(target > 0, ranks, 0)


def _rivals_here(tables, table, num_items, chunk_size, queries, catalogue, target, seen, domains):
  """Candidates of all devices that are not below the target; the owner of the target tells its score."""
  candidates, row_of, _ = _candidates(tables, table, num_items, catalogue, domains[0])
  target_row, axes = row_of(target), tables.axes_of(table)
  score = chunked_scores.row_scores(queries, catalogue, target_row, chunk_size)  # [B]
  score = jax.lax.psum(jnp.where(target_row >= 0, score, 0), axes)
  rivals = chunked_scores.count_at_least(
    queries, candidates, score, target_row, row_of(seen), domains[1], chunk_size
  )  # [B]
  return jax.lax.psum(rivals, axes)


@partial(jax.jit, static_argnums=range(5))
def _top_k_items(tables, table, num_items, chunk_size, k, queries, catalogue, seen, domains):
  """Merges the best k of each device: in the order of ids, which the stable `top_k` keeps among equal scores."""
  body, spread = partial(_best_here, tables, table, num_items, chunk_size, k), tables.spread
  best = tables.mapped(body, (_WHOLE, tables.spec_of_catalogue(table), _WHOLE, _WHOLE), (spread, spread))
  scores, items = (
    x.swapaxes(0, 1).reshape(queries.shape[0], -1) for x in best(queries, catalogue, seen, domains)
  )  # [B, S * K]
  by_id = jnp.argsort(items, axis=1)
  scores, items = (jnp.take_along_axis(x, by_id, axis=1) for x in (scores, items))
  scores, place = jax.lax.top_k(scores, k)  # [B, K]
  return scores, jnp.where(scores > -jnp.inf, jnp.take_along_axis(items, place, axis=1), 0)


def _best_here(tables, table, num_items, chunk_size, k, queries, catalogue, seen, domains):
  """The best k of this device, with an axis of size 1 for the devices: [1, B, K]."""
  candidates, row_of, ids = _candidates(tables, table, num_items, catalogue, domains[0])
  scores, rows = chunked_scores.best_rows(queries, candidates, row_of(seen), domains[1], k, chunk_size)  # [B, K]
  items = jnp.where(scores > -jnp.inf, ids.at[rows].get(mode="clip"), 0)
  return scores[None], items[None]


def _candidates(tables, table, num_items, catalogue, item_domain):
  """The rows of this device; a function that tells which of them an id is; and the ids of the rows."""
  if tables.tables[table].num_rows >= 2**31:
    raise NotImplementedError(f"table {table!r} has 2^31 rows or more, and ids of items are int32: split the table")
  ids = tables.ids_here(table).astype(jnp.int32)
  first = jnp.sum(ids < 1, dtype=jnp.int32)
  end = jnp.sum(ids <= num_items, dtype=jnp.int32)
  domain = None if item_domain is None else item_domain.at[ids].get(mode="clip")
  row_of = partial(tables.layout.row_of, table, shard=jax.lax.axis_index(tables.axes_of(table)))
  return chunked_scores.Candidates(catalogue, domain, first, end), row_of, ids
