"""Full ranking by a model: its query vectors and catalogue, and the metrics of a held-out split."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float
from ml_collections import ConfigDict

from jaxrec import parallel
from jaxrec.batches import AnyArray, SequenceBatch
from jaxrec.data.batches.evaluation import EvaluationBatch, EvaluationBatches
from jaxrec.data.batches.evaluation import evaluation_batches as batches_of_split
from jaxrec.data.prepared import PreparedData
from jaxrec.data.single_domain import whole_users
from jaxrec.evaluation.beyond_accuracy import ListReport
from jaxrec.evaluation.catalogue import Catalogue
from jaxrec.evaluation.protocols import UserRanks, ranking_metrics, ranks_of_users

Params = Any


class ModelRanker(NamedTuple):
  """What ranking needs of a model.

  queries: a batch to one float32 query vector a row.
  catalogue: scoring vectors of all items.
  """

  queries: Callable[[EvaluationBatch], Float[AnyArray, "B M"]]
  catalogue: Catalogue


def model_ranker(model: nn.Module, params: Params, num_items: int, mesh: Mesh) -> ModelRanker:
  """Returns the ranker of a model whose item table is in its parameters.

  Args:
    model: see `jaxrec.models`.
    params: its parameters.
    num_items: V of the data; rows of the table above are never candidates.
    mesh: devices over which the rows of a batch are sharded.
  """
  queries_of, item_vectors_of = _compiled(model, mesh)
  vectors = _first_shard(item_vectors_of(params))[: num_items + 1]  # [V1, M]

  def queries(batch):
    return _first_shard(queries_of(params, parallel.shard_replicated_batch(batch.batch, mesh)))

  return ModelRanker(queries, Catalogue(vectors))


def evaluate(
  model: nn.Module, params: Params, data: PreparedData, config: ConfigDict, split: int, mesh: Mesh | None = None
) -> dict[str, float | int]:
  """Returns "HR@10", "NDCG@10", ..., "MRR", "count" and, with several domains, the same for each.

  With `config.eval.sampled_negatives` also "sampled/HR@10" and so on; see `protocols.ranking_metrics`. With
  `config.eval.beyond_accuracy` also "Coverage@k", "cold/HR@10" and so on; see `beyond_accuracy`.

  Args:
    model: Linen module; see `jaxrec.models`.
    params: its parameters, the item table among them.
    data: prepared columns.
    config: `config.data` says how histories are cropped, `config.eval` what is computed.
    split: 1 validation, 2 test (its histories hold the validation events).
    mesh: devices to use; None takes all.
  """
  mesh = mesh or parallel.make_mesh()
  return evaluate_ranker(model_ranker(model, params, data.num_items, mesh), data, config, split, mesh)


def evaluate_ranker(
  ranker: ModelRanker, data: PreparedData, config: ConfigDict, split: int, mesh: Mesh
) -> dict[str, float | int]:
  """Returns the metrics of `evaluate` for queries and a catalogue that may be sharded over the devices."""
  batches = evaluation_batches(data, config, split, mesh)
  metrics = ranking_metrics(
    ranker.queries,
    ranker.catalogue,
    data,
    batches,
    ks=config.eval.ks,
    exclude_seen=config.eval.exclude_seen,
    protocol=config.eval.protocol,
    sampled_negatives=config.eval.sampled_negatives,
    report=list_report(data, config, split),
  )
  return metrics | unusual_requests(batches, config)


def unusual_requests(batches: EvaluationBatches, config: ConfigDict) -> dict[str, int]:
  """Returns how many targets are those of users without an event before the split ("new_users"), and how many are left
  out because the user has no event before them at all ("without_history"); {} where only first targets are asked for.
  """
  if config.eval.targets == "first":
    return {}
  return {"new_users": batches.new_users, "without_history": batches.without_history}


def list_report(data: PreparedData, config: ConfigDict, split: int) -> ListReport | None:
  """Returns the empty report of lists that `config.eval.beyond_accuracy` asks for; None where it is 0."""
  k = config.eval.beyond_accuracy
  return ListReport.zero(data, split, k, config.eval.ks) if k else None


def user_ranks(
  model: nn.Module, params: Params, data: PreparedData, config: ConfigDict, split: int, mesh: Mesh | None = None
) -> UserRanks:
  """Returns the rank of each user's target, or targets, by full ranking; the arguments are those of `evaluate`.

  Where `config.eval.protocol` is "both", the ranks are those among all items, from which "HR@10" and "NDCG@10" come.
  Users are those of the multi-domain data, also where `data` has their domains apart, so that runs compare by user.
  """
  mesh = mesh or parallel.make_mesh()
  ranker, batches = model_ranker(model, params, data.num_items, mesh), evaluation_batches(data, config, split, mesh)
  protocol = "full" if config.eval.protocol == "both" else config.eval.protocol
  options = {"exclude_seen": config.eval.exclude_seen, "protocol": protocol}
  ranks = ranks_of_users(ranker.queries, ranker.catalogue, data, batches, **options)
  return ranks._replace(user=whole_users(data, ranks.user))


def evaluation_batches(data: PreparedData, config: ConfigDict, split: int, mesh: Mesh) -> EvaluationBatches:
  """Returns the evaluation users in batches that the devices divide; every host gets all of them."""
  size = -(-config.eval.batch_size // mesh.size) * mesh.size
  options = {"request_time": config.data.request_time, "reveal_domain": config.data.reveal_domain}
  options |= {"targets": config.eval.targets, "targets_per_user": config.eval.targets_per_user}
  return batches_of_split(data, split, size, config.data.max_length, config.data.task, **options)


def last_queries(
  model: nn.Module, params: Params, batch: SequenceBatch, item: Float[AnyArray, "B N M"] | None = None
) -> Float[AnyArray, "B M"]:
  """Returns the float32 query vector of each row at its one position with target_weight > 0.

  Args:
    model: see `jaxrec.models`.
    params: its parameters.
    batch: of `jaxrec.data.batches.evaluation`.
    item: the rows of the batch's items, where the item table is not in the parameters.
  """
  given = {} if item is None else {"item": item}
  outputs = model.apply({"params": params}, batch, deterministic=True, **given)  # [B, N, M]
  position = jnp.argmax(batch.target_weight > 0, axis=1)  # [B]
  return jnp.take_along_axis(outputs, position[:, None, None], axis=1)[:, 0].astype(jnp.float32)  # [B, M]


@functools.lru_cache(maxsize=8)
def _compiled(model, mesh):
  """Jitted queries and item vectors, replicated so that every host can read them."""
  replicated = NamedSharding(mesh, PartitionSpec())
  queries = jax.jit(parallel.with_mesh(functools.partial(last_queries, model), mesh), out_shardings=replicated)

  def item_vectors(params):
    return model.apply({"params": params}, method="item_vectors")  # [V1, M]

  return queries, jax.jit(item_vectors, out_shardings=replicated)


def _first_shard(array):
  return array.addressable_data(0).astype(jnp.float32)
