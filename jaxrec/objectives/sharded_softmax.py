"""Softmax over all rows of a table that is spread over devices.

Each device scores the queries of all devices against its own rows, a chunk at a time, and what leaves it is one number
a query: the log-sum-exp over its rows. The gradient of its rows stays with it, and that of the queries is summed over
the devices. Nothing of the size of the table is sent, and no [T, V] array exists.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.embedding import exchange
from jaxrec.embedding.tables import Tables
from jaxrec.objectives import item_losses


def full_softmax(
  tables: Tables,
  table: str,
  query: Float[Array, "*T M"],
  positive: Float[Array, "*T M"],
  catalogue: Float[Array, "R M"],
  num_items: int,
  temperature: float = 1.0,
  chunk_size: int = 4096,
) -> Float[Array, "*T"]:
  """`-log softmax` of the positive over items 1..num_items at each position, as `item_losses.full_softmax`.

  Differentiable in query, positive and catalogue; `Tables.add_catalogue` adds the last one's gradient to that of the
  rows that were looked up, and `Tables.apply` updates both.

  Args:
    tables: the tables.
    table: which of them has the items.
    query: query vectors; the first axis is spread over the devices.
    positive: the vectors of the positives, looked up by `Tables.lookup`.
    catalogue: `Tables.catalogue`, or what was made of each of its rows alone (and of `positive`): l2_normalize.
    num_items: rows 1..num_items are candidates; padding, mask tokens above and rows that fill up the devices are not.
    temperature: divides the scores.
    chunk_size: rows scored at a time on each device.

  Choice: the queries of all devices are gathered on each, T times M numbers, as large as the batch.

  >>> from jaxrec.embedding import Table
  >>> tables = Tables({"item": Table(5, 2, initializer=jax.nn.initializers.ones)})
  >>> state = tables.init(jax.random.key(0))
  >>> rows, plan = tables.lookup(state, {"item": jnp.array([3])})
  >>> positive = tables.vectors(rows, plan)["item"]
  >>> loss = full_softmax(tables, "item", jnp.ones((1, 2)), positive, tables.catalogue(state, "item"), num_items=4)
  >>> f"{float(loss[0]):.4f}"  # ln 4
  '1.3863'
  """
  flat = query.reshape(-1, query.shape[-1])  # [T, M]
  missing = -flat.shape[0] % tables.num_shards
  whole = tables.spec_of_catalogue(table)
  body = functools.partial(_log_sum_exp, tables, table, num_items, temperature, chunk_size)
  log_sum = tables.mapped(body, (tables.spread, whole), tables.spread)
  log_sum = log_sum(jnp.pad(flat, ((0, missing), (0, 0))), catalogue)[: flat.shape[0]].reshape(query.shape[:-1])
  return log_sum - (query * positive).sum(axis=-1) / temperature


def _log_sum_exp(tables, table, num_items, temperature, chunk_size, query, catalogue):
  """Of the queries [T, M] of this device, over the rows of all devices."""
  axes = tables.axes_of(table)
  ids = tables.ids_here(table)
  is_candidate = (ids > 0) & (ids <= num_items)  # [R]
  if not axes:
    return item_losses.log_sum_exp(query, catalogue, is_candidate, temperature, chunk_size)
  everyone = jax.lax.all_gather(query, axes, tiled=True)  # [S * T, M]
  here = item_losses.log_sum_exp(everyone, catalogue, is_candidate, temperature, chunk_size)  # [S * T]
  by_device = exchange.swap(here.reshape(-1, query.shape[0]), axes)  # [S, T]
  return jax.nn.logsumexp(by_device, axis=0)
