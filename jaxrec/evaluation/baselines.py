"""Model-free baselines: popularity and random order.

They are query and item vectors, so that their metrics come from the same ranking code as those of models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxrec.data.batches.evaluation import EvaluationBatch
from jaxrec.data.prepared import PreparedData
from jaxrec.data.seeds import check_seed
from jaxrec.evaluation.protocols import ranking_metrics

_RANDOM_WIDTH = 16


@dataclasses.dataclass(frozen=True)
class Baseline:
  """A ranker: the score of an item for a user is the dot product of their vectors."""

  name: str
  item_vectors: Float[np.ndarray, "V1 M"]
  queries: Callable[[Int[np.ndarray, " B"]], Float[np.ndarray, "B M"]]  # Users, -1 on padding rows, to vectors.


def popularity(
  data: PreparedData, last_split: int = 0, users: Sequence[int] | None = None, *, since: int | None = None
) -> Baseline:
  """Returns the ranker that orders items by how often they occur in the data, or in its most recent part.

  Args:
    data: prepared columns.
    last_split: which events count: 0 those of training, 1 also those of validation (when the test item is ranked).
    users: users whose events count, as in `TrainingOptions.only_users`; None: all.
    since: events before this time do not count, in seconds; None: all count.

  Raises:
    ValueError: last_split is neither 0 nor 1, or `since` for data without times.

  Choice: equally popular items are ties, which count against the ranker as they do against any model.

  >>> data = PreparedData.from_columns(user=[0, 0, 0, 0], item_id=[2, 2, 1, 3])
  >>> popularity(data).item_vectors[:, 0].tolist()
  [0.0, 0.0, 2.0, 0.0]
  """
  if last_split not in (0, 1):
    raise ValueError(f"{last_split=} must be 0 (training events) or 1 (and validation events)")
  counts_here = np.asarray(data.split) <= last_split
  if since is not None:
    if not data.has_timestamps:
      raise ValueError(f"{since=} needs times, but the data has none")
    counts_here &= np.asarray(data.timestamp) >= since
  if users is not None:
    counts_here &= np.repeat(np.isin(np.arange(data.num_users), users), np.diff(data.offsets))
  counted = data.item_id[counts_here]
  counts = np.bincount(counted, minlength=data.num_items + 1).astype(np.float32)
  return Baseline("popularity", counts[:, None], lambda users: np.ones((len(users), 1), np.float32))


def random_order(data: PreparedData, seed: int = 0) -> Baseline:
  """Returns the ranker that gives each user a random order of the items, the same in every call.

  Every item is equally likely at every rank: HR@10 is about 10 / (number of candidates).

  >>> data = PreparedData.from_columns(user=[0, 0, 0, 0], item_id=[2, 2, 1, 3])
  >>> random_order(data).item_vectors.shape
  (4, 16)
  """
  check_seed("seed", seed)
  item_vectors = np.random.default_rng((seed, 0)).normal(size=(data.num_items + 1, _RANDOM_WIDTH)).astype(np.float32)
  user_vectors = np.random.default_rng((seed, 1)).normal(size=(data.num_users, _RANDOM_WIDTH)).astype(np.float32)
  return Baseline("random", item_vectors, lambda users: user_vectors[users])


def evaluate_baseline(
  baseline: Baseline, data: PreparedData, batches: Iterable[EvaluationBatch], **options: Any
) -> dict[str, float | int]:
  """Returns the ranking metrics of a baseline, from the code that ranks models.

  Args:
    baseline: from `popularity` or `random_order`.
    data: what `batches` were made from.
    batches: from `jaxrec.data.batches.evaluation.evaluation_batches`.
    **options: `ks`, `exclude_seen`, `protocol`, `sampled_negatives` of `jaxrec.evaluation.protocols.ranking_metrics`.

  Raises:
    ValueError: an unknown protocol, or no user to evaluate.
  """
  return ranking_metrics(lambda batch: baseline.queries(batch.user), baseline.item_vectors, data, batches, **options)
