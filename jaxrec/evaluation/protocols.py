"""Ranking of held-out events, for anything that produces query vectors: models and baselines share this code."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrec.data.batches.evaluation import EvaluationBatch
from jaxrec.data.prepared import PreparedData
from jaxrec.data.seeds import check_seed
from jaxrec.evaluation.beyond_accuracy import ListReport
from jaxrec.evaluation.catalogue import Catalogue
from jaxrec.evaluation.metrics import RankingMetrics
from jaxrec.objectives.negatives import sample_items
from pallas_kernels.integers import as_integers

PROTOCOLS = ("full", "full_per_domain")
REPORTED = (*PROTOCOLS, "both")
WITHIN_DOMAIN = "within_domain/"  # Before the name of every metric of "full_per_domain" where the protocol is "both".
SAMPLED = "sampled/"  # Before the name of every metric that looks at sampled negatives only.


def ranking_metrics(
  queries_of: Callable[[EvaluationBatch], Float[Array | np.ndarray, "B M"]],
  item_vectors: Float[Array | np.ndarray, "V1 M"] | Catalogue,
  data: PreparedData,
  batches: Iterable[EvaluationBatch],
  *,
  ks: Sequence[int] = (1, 10, 50, 200),
  exclude_seen: bool = True,
  protocol: str = "full",
  sampled_negatives: int = 0,
  report: ListReport | None = None,
) -> dict[str, float | int]:
  """Returns "HR@10", "NDCG@10", ..., "MRR", "count" and, with several domains, the same for each.

  With `sampled_negatives` also "sampled/HR@10", "sampled/domain/<name>/HR@10" and so on: the rank of the target among
  that many negatives, independent of `protocol` and `exclude_seen`. Such numbers are far higher, can order models
  differently, and are for comparison with papers that report nothing else.

  Args:
    queries_of: batch -> one query vector for each row.
    item_vectors: one scoring vector for each item, row 0 padding; or a catalogue, which may be sharded.
    data: what `batches` were made from.
    batches: from `jaxrec.data.batches.evaluation.evaluation_batches`.
    ks: list lengths.
    exclude_seen: remove the user's earlier items from the candidates; a target seen before stays a candidate.
    protocol: candidates are all items ("full") or those of the target's domain ("full_per_domain"); "both": the
      former, and the latter under "within_domain/HR@10", "within_domain/domain/<name>/HR@10" and so on.
    sampled_negatives: R of `evaluation_negatives`; 0 = no sampled metrics.
    report: what else to say of the lists of the first k candidates, from `ListReport.zero`.

  Raises:
    ValueError: an unknown protocol, a negative number of negatives, no user to evaluate, or queries that are NaN or
      infinite.
  """
  if sampled_negatives < 0:
    raise ValueError(f"{sampled_negatives=} must not be negative; 0 leaves the sampled metrics out")
  if protocol not in REPORTED:
    raise ValueError(f"{protocol=} is unknown; use one of {REPORTED}")
  wanted = {"": "full", WITHIN_DOMAIN: "full_per_domain"} if protocol == "both" else {"": protocol}
  catalogue = _catalogue(item_vectors)
  rankings = {prefix: _full_ranks(catalogue, data, exclude_seen, name) for prefix, name in wanted.items()}
  metrics = {prefix: RankingMetrics.zero(ks, data.domain_names, prefix=prefix) for prefix in rankings}
  sampled = RankingMetrics.zero(ks, data.domain_names, prefix=SAMPLED)
  for batch in batches:
    queries = queries_of(batch)  # [B, M]
    _check_finite(queries, batch)
    for prefix, ranks_of in rankings.items():
      ranks = ranks_of(queries, batch)
      metrics[prefix] = metrics[prefix].update(ranks, batch.target_domain)
      if report is not None and prefix == "":
        items = _best_items(catalogue, data, exclude_seen, wanted[prefix], report.lists.k, queries, batch)
        report = report.update(items, ranks, batch)
    if sampled_negatives:
      negatives = evaluation_negatives(batch.user, batch.target_item, sampled_negatives, data.num_items)
      ranks = catalogue.sampled_target_ranks(queries, batch.target_item, negatives)
      sampled = sampled.update(np.asarray(ranks), batch.target_domain)
  parts = [*metrics.values(), *([sampled] if sampled_negatives else []), *([report] if report is not None else [])]
  return {name: value for part in parts for name, value in part.result().items()}


def _check_finite(queries, batch):
  """A model that diverged would only rank last."""
  wrong = batch.user[~np.isfinite(np.asarray(queries)).all(axis=1) & (np.asarray(batch.user) >= 0)]
  if len(wrong):
    raise ValueError(f"query vectors of {len(wrong)} users, {wrong[0]} among them, are not finite: the model diverged")


class UserRanks(NamedTuple):
  """The rank of each target, from 1; users in ascending order, those with several targets in a row, oldest first."""

  user: Int[np.ndarray, " T"]
  target_item: Int[np.ndarray, " T"]
  rank: Int[np.ndarray, " T"]


def ranks_of_users(
  queries_of: Callable[[EvaluationBatch], Float[Array | np.ndarray, "B M"]],
  item_vectors: Float[Array | np.ndarray, "V1 M"] | Catalogue,
  data: PreparedData,
  batches: Iterable[EvaluationBatch],
  *,
  exclude_seen: bool = True,
  protocol: str = "full",
) -> UserRanks:
  """Returns the ranks that `ranking_metrics` averages, user by user.

  Args:
    queries_of: batch -> one query vector for each row.
    item_vectors: scoring vectors or a catalogue.
    data: what `batches` were made from.
    batches: from `jaxrec.data.batches.evaluation.evaluation_batches`.
    exclude_seen: see `ranking_metrics`.
    protocol: "full" or "full_per_domain".

  Raises:
    ValueError: an unknown protocol, or no batch.
  """
  full_ranks = _full_ranks(_catalogue(item_vectors), data, exclude_seen, protocol)
  parts = [(batch.user, batch.target_item, full_ranks(queries_of(batch), batch)) for batch in batches]
  if not parts:
    raise ValueError("batches is empty: there is no user to rank for")
  user, target, rank = (np.concatenate([np.asarray(part[i]) for part in parts]) for i in range(3))
  order = np.argsort(user, kind="stable")[(user < 0).sum() :]  # Without rows that only pad a batch.
  return UserRanks(user[order], target[order], rank[order])


def _catalogue(item_vectors):
  return item_vectors if isinstance(item_vectors, Catalogue) else Catalogue(item_vectors)


def _full_ranks(catalogue, data, exclude_seen, protocol):
  """Returns the function (queries, batch) -> ranks among the candidates of a protocol."""
  if protocol not in PROTOCOLS:
    raise ValueError(f"{protocol=} is unknown; use one of {PROTOCOLS}")
  item_domain = data.item_domain() if protocol == "full_per_domain" else None

  def full_ranks(queries, batch):
    ranks = catalogue.target_ranks(
      queries,
      batch.target_item,
      seen_items=batch.seen_items if exclude_seen else None,
      item_domain=item_domain,
      target_domain=None if item_domain is None else batch.target_domain,
    )
    return np.asarray(ranks)

  return full_ranks


def _best_items(catalogue, data, exclude_seen, protocol, k, queries, batch):
  """Returns the k best of the candidates that `_full_ranks` ranks, one list a row."""
  within = protocol == "full_per_domain"
  _, items = catalogue.top_k(
    queries,
    k,
    seen_items=batch.seen_items if exclude_seen else None,
    item_domain=data.item_domain() if within else None,
    domain=batch.target_domain if within else None,
  )
  return np.asarray(items)


def evaluation_negatives(
  user: Int[Array | np.ndarray, " B"],
  target_item: Int[Array | np.ndarray, " B"],
  num_negatives: int,
  num_items: int,
  seed: int = 0,
) -> Int[Array, "B R"]:
  """Returns items to rank each target against, drawn uniformly from the catalogue, with replacement.

  The draws of a row depend only on its user, its target and the seed: they are the same for every model, baseline,
  batch size and host. An item drawn twice counts twice, the target itself not at all
  (`jaxrec.evaluation.catalogue.sampled_target_ranks`); items of the user's history may be drawn.

  Args:
    user: user indices; -1 on rows that only pad the batch.
    target_item: the held-out items.
    num_negatives: R; AutoCDSR takes 100.
    num_items: V.
    seed: of the draws.

  Source: AutoCDSR (arXiv 2505.21811), published code: 100 negatives from the whole id space, scores not normalised.
  Choice: that id space also has ids that occur nowhere in the data, which no trained model ranks high; ours are the
    items of the prepared data.

  >>> evaluation_negatives(np.array([7, 8]), np.array([1, 1]), 3, 100).shape
  (2, 3)
  """
  check_seed("seed", seed)
  user, target_item = as_integers("user", user), as_integers("target_item", target_item)
  return _draw_negatives(jax.random.key(seed), user, target_item, num_negatives, num_items)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _draw_negatives(key, user, target_item, num_negatives, num_items):
  def draw(user, target_item):
    own_key = jax.random.fold_in(jax.random.fold_in(key, user), target_item)
    return sample_items(own_key, "uniform", (num_negatives,), num_items)

  return jax.vmap(draw)(user, target_item)  # [B, R]
