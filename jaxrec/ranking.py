"""Full ranking of held-out events by anything that makes query vectors: models and baselines share these few lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Array, Float

from jaxrec.data.evaluation import EvaluationBatch
from jaxrec.data.prepared import PreparedData
from jaxrec.metrics import RankingMetrics
from jaxrec.retrieval import target_ranks

PROTOCOLS = ("full", "full_per_domain")


def ranking_metrics(
  queries_of: Callable[[EvaluationBatch], Float[Array | np.ndarray, "B M"]],
  item_vectors: Float[Array | np.ndarray, "V1 M"],
  data: PreparedData,
  batches: Iterable[EvaluationBatch],
  *,
  ks: Sequence[int] = (1, 10, 50, 200),
  exclude_seen: bool = True,
  protocol: str = "full",
) -> dict[str, float | int]:
  """Returns "HR@10", "NDCG@10", ..., "MRR", "count" and, with several domains, the same for each.

  Args:
    queries_of: a batch to one query vector a row.
    item_vectors: one scoring vector an item; row 0 is padding.
    data: what `batches` were made from.
    batches: from `jaxrec.data.evaluation.evaluation_batches`.
    ks: list lengths.
    exclude_seen: take the user's earlier items out of the candidates; a target met before stays one.
    protocol: candidates are all items ("full") or those of the target's domain ("full_per_domain").

  Raises:
    ValueError: an unknown protocol, or no user to evaluate.
  """
  if protocol not in PROTOCOLS:
    raise ValueError(f"{protocol=} is unknown; use one of {PROTOCOLS}")
  item_domain = data.item_domain() if protocol == "full_per_domain" else None
  metrics = RankingMetrics.zero(ks, data.domain_names)
  for batch in batches:
    ranks = target_ranks(
      queries_of(batch),
      item_vectors,
      batch.target_item,
      seen_items=batch.seen_items if exclude_seen else None,
      item_domain=item_domain,
      target_domain=None if item_domain is None else batch.target_domain,
    )
    metrics = metrics.update(np.asarray(ranks), batch.target_domain)
  return metrics.result()
