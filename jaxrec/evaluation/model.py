"""Scores a model on the validation or test events by full ranking and, where asked, among sampled negatives."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from jaxrec import parallel
from jaxrec.batches import SequenceBatch
from jaxrec.data.batches import evaluation
from jaxrec.data.prepared import PreparedData
from jaxrec.embedding import Tables, TableState
from jaxrec.evaluation import sharded_retrieval
from jaxrec.evaluation.protocols import UserRanks, ranking_metrics, ranks_of_users
from jaxrec.objectives.item import TABLE
from jaxrec.train.state import Params, TrainState


class SpreadItems(NamedTuple):
  """An item table outside of the parameters. tables: with one called "items"; state: its rows."""

  tables: Tables
  state: TableState


def evaluate(
  model: nn.Module,
  params: Params,
  data: PreparedData,
  config: ConfigDict,
  split: int,
  mesh: Mesh | None = None,
  items: SpreadItems | None = None,
) -> dict[str, float | int]:
  """Returns "HR@10", "NDCG@10", ..., "MRR", "count" and, with several domains, the same for each.

  With `config.eval.sampled_negatives` also "sampled/HR@10" and so on; see `protocols.ranking_metrics`.

  Args:
    model: Linen module; see `jaxrec.models`.
    params: its parameters.
    data: prepared columns.
    config: `config.data` says how histories are cropped, `config.eval` what is computed.
    split: 1 validation, 2 test (its histories hold the validation events).
    mesh: devices to use; None takes all.
    items: where the item table is not among the parameters; each device then ranks against its own rows.
  """
  return ranking_metrics(
    *_ranker(model, params, data, config, split, mesh or parallel.make_mesh(), items),
    ks=config.eval.ks,
    exclude_seen=config.eval.exclude_seen,
    protocol=config.eval.protocol,
    sampled_negatives=config.eval.sampled_negatives,
  )


def evaluate_state(
  model: nn.Module,
  state: TrainState,
  tables: Tables | None,
  data: PreparedData,
  config: ConfigDict,
  split: int,
  mesh: Mesh | None = None,
) -> dict[str, float | int]:
  """As `evaluate`, of a state of training and the tables that it was trained with."""
  items = None if tables is None else SpreadItems(tables, state.tables)
  return evaluate(model, state.evaluated, data, config, split, mesh, items)


def user_ranks(
  model: nn.Module, params: Params, data: PreparedData, config: ConfigDict, split: int, mesh: Mesh | None = None
) -> UserRanks:
  """Returns the rank of each user's target by full ranking; arguments as of `evaluate`."""
  return ranks_of_users(
    *_ranker(model, params, data, config, split, mesh or parallel.make_mesh()),
    exclude_seen=config.eval.exclude_seen,
    protocol=config.eval.protocol,
  )


def evaluation_batches(
  data: PreparedData, config: ConfigDict, split: int, mesh: Mesh
) -> Iterable[evaluation.EvaluationBatch]:
  """Returns the evaluation users, in batches that the devices divide; every host gets all of them."""
  size = -(-config.eval.batch_size // mesh.size) * mesh.size
  options = {"request_time": config.data.request_time, "reveal_domain": config.data.reveal_domain}
  return evaluation.evaluation_batches(data, split, size, config.data.max_length, config.data.task, **options)


def last_queries(
  model: nn.Module, params: Params, batch: SequenceBatch, item: Float[Array, "B N M"] | None = None
) -> Float[Array, "B M"]:
  """Returns the float32 query vector of each row at its one position with target_weight > 0.

  Args:
    model: see `jaxrec.models`.
    params: its parameters.
    batch: of `jaxrec.data.batches.evaluation`.
    item: the rows of the batch's items, where the item table is not among the parameters.
  """
  given = {} if item is None else {"item": item}
  outputs = model.apply({"params": params}, batch, deterministic=True, **given)  # [B, N, M]
  position = jnp.argmax(batch.target_weight > 0, axis=1)  # [B]
  return jnp.take_along_axis(outputs, position[:, None, None], axis=1)[:, 0].astype(jnp.float32)  # [B, M]


@functools.lru_cache(maxsize=8)
def _compiled(model, mesh):
  """Jitted queries and item vectors, results on every device so that every host can read them."""
  everywhere = NamedSharding(mesh, PartitionSpec())
  queries = jax.jit(parallel.with_mesh(functools.partial(last_queries, model), mesh), out_shardings=everywhere)

  def item_vectors(params):
    return model.apply({"params": params}, method="item_vectors")  # [V1, M]

  return queries, jax.jit(item_vectors, out_shardings=everywhere)


@functools.lru_cache(maxsize=8)
def _compiled_with_items(model, mesh, tables):
  """As `_compiled`, of parameters and the state of the tables; the item vectors stay where the rows are."""
  everywhere = NamedSharding(mesh, PartitionSpec())

  def queries(params, state, batch):
    rows, plan = tables.lookup(state, {TABLE: batch.item_id})
    item = tables.vectors(rows, plan)[TABLE].astype(model.dtype)
    return last_queries(model, params, batch, item)

  def item_vectors(state):
    return model.scoring(tables.catalogue(state, TABLE))  # [R, M]

  return jax.jit(parallel.with_mesh(queries, mesh), out_shardings=everywhere), jax.jit(item_vectors)


class _TableCatalogue(NamedTuple):
  """Items whose vectors lie where the rows of their table do."""

  tables: Tables
  vectors: Float[Array, "R M"]
  num_items: int

  def target_ranks(self, queries, target_item, **options):
    """See `jaxrec.evaluation.protocols.Catalogue`."""
    # NumPy arrays, which several hosts may give to one program.
    queries = np.asarray(queries)
    return sharded_retrieval.target_ranks(
      self.tables, TABLE, queries, self.vectors, target_item, self.num_items, **options
    )

  def sampled_target_ranks(self, queries, target_item, negatives):
    """Not here."""
    raise NotImplementedError("sampled negatives need config.tables.placement='parameter'")


def _ranker(model, params, data, config, split, mesh, items=None):
  """What `jaxrec.evaluation.protocols` needs: queries of a batch, item vectors, data, batches."""
  batches = evaluation_batches(data, config, split, mesh)
  if items is not None:
    queries_of, item_vectors_of = _compiled_with_items(model, mesh, items.tables)
    catalogue = _TableCatalogue(items.tables, item_vectors_of(items.state), data.num_items)

    def spread_queries(batch):
      return _local(queries_of(params, items.state, parallel.shard_replicated_batch(batch.batch, mesh)))

    return spread_queries, catalogue, data, batches
  queries_of, item_vectors_of = _compiled(model, mesh)
  return (
    lambda batch: _local(queries_of(params, parallel.shard_replicated_batch(batch.batch, mesh))),
    _local(item_vectors_of(params))[: data.num_items + 1],  # [V1, M]
    data,
    batches,
  )


def _local(array):
  return array.addressable_data(0).astype(jnp.float32)
