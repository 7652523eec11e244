"""Softmax over all rows of a table that is row-sharded over devices.

Each device scores the queries of all devices against its own rows, a chunk at a time, and sends one number for each
query: the log-sum-exp over its rows. The gradient of its rows stays on it, and that of the queries is summed over the
devices. Nothing of the size of the table is sent, and no [T, V] array exists.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.embedding import exchange
from jaxrec.objectives import item_losses
from jaxrec.parallel.row_shards import RowShards


def full_softmax(
  shards: RowShards,
  query: Float[Array, "*T M"],
  positive: Float[Array, "*T M"],
  catalogue: Float[Array, "R M"],
  num_items: int,
  temperature: float = 1.0,
  chunk_size: int = 4096,
) -> Float[Array, "*T"]:
  """Returns `-log softmax` of the positive over items 1..num_items at each position, as `item_losses.full_softmax`.

  Differentiable in query, positive and catalogue; `Tables.add_catalogue` adds the last one's gradient to that of the
  rows that were looked up, and `Tables.apply` updates both.

  Args:
    shards: how the rows of `catalogue` are sharded.
    query: query vectors; the first axis is sharded over the same mesh axes.
    positive: vectors of the positives, looked up by `Tables.lookup`.
    catalogue: `Tables.catalogue`, or a function of each of its rows alone (and of `positive`), such as l2_normalize.
    num_items: rows 1..num_items are candidates; padding, mask tokens above and rows that pad the shards are not.
    temperature: divides the scores.
    chunk_size: rows scored at a time on each device.

  Choice: the queries of all devices are gathered on each, T times M numbers, as large as the batch.

  >>> vectors = jnp.ones((5, 2))
  >>> loss = full_softmax(RowShards(), jnp.ones((1, 2)), vectors[3:4], vectors, num_items=4)
  >>> f"{float(loss[0]):.4f}"  # ln 4
  '1.3863'
  """
  flat = query.reshape(-1, query.shape[-1])  # [T, M]
  missing = -flat.shape[0] % shards.num_shards
  body = functools.partial(_local_log_sum_exp, shards, num_items, temperature, chunk_size)
  log_sum = shards.shard_map(body, (shards.spec, shards.spec), shards.spec)
  log_sum = log_sum(jnp.pad(flat, ((0, missing), (0, 0))), catalogue)[: flat.shape[0]].reshape(query.shape[:-1])
  return log_sum - (query * positive).sum(axis=-1) / temperature


def _local_log_sum_exp(shards, num_items, temperature, chunk_size, query, catalogue):
  """The log-sum-exp of this shard's queries [T, M] over the rows of all shards."""
  ids = shards.local_ids(catalogue.shape[0])
  is_candidate = (ids > 0) & (ids <= num_items)  # [R]
  if not shards.axes:
    return item_losses.log_sum_exp(query, catalogue, is_candidate, temperature, chunk_size)
  all_queries = jax.lax.all_gather(query, shards.axes, tiled=True)  # [S * T, M]
  local = item_losses.log_sum_exp(all_queries, catalogue, is_candidate, temperature, chunk_size)  # [S * T]
  by_shard = exchange.swap(local.reshape(-1, query.shape[0]), shards.axes)  # [S, T]
  return jax.nn.logsumexp(by_shard, axis=0)
