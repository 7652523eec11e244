"""Scores a model on the validation or test events by full ranking and, where asked, among sampled negatives."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from jaxrec import parallel
from jaxrec.data import pipeline
from jaxrec.data.prepared import PreparedData
from jaxrec.ranking import UserRanks, ranking_metrics, ranks_of_users
from jaxrec.train.state import Params
from jaxrec.types import SequenceBatch


def evaluate(
  model: nn.Module, params: Params, data: PreparedData, config: ConfigDict, split: int, mesh: Mesh | None = None
) -> dict[str, float | int]:
  """Returns "HR@10", "NDCG@10", ..., "MRR", "count" and, with several domains, the same for each.

  With `config.eval.sampled_negatives` also "sampled/HR@10" and so on; see `jaxrec.ranking.ranking_metrics`.

  Args:
    model: Linen module; see `jaxrec.models`.
    params: its parameters.
    data: prepared columns.
    config: `config.data` says how histories are cropped, `config.eval` what is computed.
    split: 1 validation, 2 test (its histories hold the validation events).
    mesh: devices to use; None takes all.
  """
  return ranking_metrics(
    *_ranker(model, params, data, config, split, mesh or parallel.make_mesh()),
    ks=config.eval.ks,
    exclude_seen=config.eval.exclude_seen,
    protocol=config.eval.protocol,
    sampled_negatives=config.eval.sampled_negatives,
  )


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
) -> Iterable[pipeline.EvaluationBatch]:
  """Returns the evaluation users, in batches that the devices divide; every host gets all of them."""
  size = -(-config.eval.batch_size // mesh.size) * mesh.size
  options = {"request_time": config.data.request_time, "reveal_domain": config.data.reveal_domain}
  return pipeline.evaluation_batches(data, split, size, config.data.max_length, config.data.task, **options)


def last_queries(model: nn.Module, params: Params, batch: SequenceBatch) -> Float[Array, "B M"]:
  """Returns the float32 query vector of each row at its one position with target_weight > 0."""
  outputs = model.apply({"params": params}, batch, deterministic=True)  # [B, N, M]
  position = jnp.argmax(batch.target_weight > 0, axis=1)  # [B]
  return jnp.take_along_axis(outputs, position[:, None, None], axis=1)[:, 0].astype(jnp.float32)  # [B, M]


@functools.lru_cache(maxsize=8)
def _compiled(model, mesh):
  """Jitted queries and item vectors, results on every device so that every host can read them."""
  everywhere = NamedSharding(mesh, PartitionSpec())
  queries = jax.jit(parallel.knows_mesh(functools.partial(last_queries, model), mesh), out_shardings=everywhere)

  def item_vectors(params):
    return model.apply({"params": params}, method="item_vectors")  # [V1, M]

  return queries, jax.jit(item_vectors, out_shardings=everywhere)


def _ranker(model, params, data, config, split, mesh):
  """What `jaxrec.ranking` needs: queries of a batch, item vectors, data, batches."""
  queries_of, item_vectors_of = _compiled(model, mesh)
  return (
    lambda batch: _local(queries_of(params, parallel.spread_same_rows(batch.batch, mesh))),
    _local(item_vectors_of(params))[: data.num_items + 1],  # [V1, M]
    data,
    evaluation_batches(data, config, split, mesh),
  )


def _local(array):
  return array.addressable_data(0).astype(jnp.float32)
