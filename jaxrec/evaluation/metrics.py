"""Metrics of rankings and predictions: HR@K, NDCG@K and MRR from ranks; AUC, GAUC and log loss from scores.

Plain NumPy in float64: metrics are computed once, on the host, from small arrays. `jaxrec.evaluation.catalogue`
produces the ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped

from jaxrec.batches import AnyArray


def hit_rate(ranks: Int[AnyArray, " B"], k: int) -> float:
  """Returns HR@K, the share of rows whose target is among the first k (with one target a row also Recall@K).

  Args:
    ranks: 1-based ranks.
    k: length of the list.

  Raises:
    ValueError: no ranks, a rank below 1, or k below 1.

  >>> hit_rate(np.array([1, 2, 11, 10]), 10)
  0.75
  """
  return float(np.mean(_checked_ranks(ranks, k) <= k))


def ndcg(ranks: Int[AnyArray, " B"], k: int) -> float:
  """Returns NDCG@K for one relevant item a row: the mean of 1 / log2(rank + 1) where rank <= k, else 0.

  Args:
    ranks: 1-based ranks.
    k: length of the list.

  Raises:
    ValueError: no ranks, a rank below 1, or k below 1.

  >>> ndcg(np.array([1, 3, 11]), 10)
  0.5
  """
  return float(np.mean(ndcg_of_each(_checked_ranks(ranks, k), k)))


def mrr(ranks: Int[AnyArray, " B"]) -> float:
  """Returns the mean reciprocal rank, without a cut-off.

  Raises:
    ValueError: no ranks or a rank below 1.

  >>> mrr(np.array([1, 2, 4, 4]))
  0.5
  """
  return float(np.mean(1.0 / _checked_ranks(ranks, 1)))


@dataclasses.dataclass(frozen=True)
class RankingMetrics:
  """Sums of ranking metrics over batches, per domain; state in, new state out.

  >>> metrics = RankingMetrics.zero(ks=(1, 10), domain_names=("books", "films"))
  >>> metrics = metrics.update(np.array([1, 3, 0]), np.array([1, 2, 0]))  # rank 0: a padding row
  >>> result = metrics.result()
  >>> result["HR@1"], result["NDCG@10"], result["domain/films/NDCG@10"], result["count"]
  (0.5, 0.75, 0.5, 2)
  """

  ks: tuple[int, ...]
  domain_names: tuple[str, ...]
  prefix: str
  count: np.ndarray  # [C] int64
  hits: np.ndarray  # [C, K] int64
  gains: np.ndarray  # [C, K] float64
  reciprocal: np.ndarray  # [C] float64

  @classmethod
  def zero(cls, ks: Sequence[int] = (10,), domain_names: Sequence[str] = ("all",), prefix: str = "") -> RankingMetrics:
    """Returns the metrics of no rows.

    Args:
      ks: list lengths of HR and NDCG.
      domain_names: names of the domains 1..C.
      prefix: prefix of every key of the result; "sampled/" for ranks among sampled negatives.

    Raises:
      ValueError: a length below 1, no domain, or a name given twice.
    """
    ks, names = tuple(int(k) for k in ks), tuple(domain_names)
    if not ks or min(ks) < 1 or len(set(ks)) < len(ks):
      raise ValueError(f"{ks=} must be different list lengths of at least 1")
    if not names or len(set(names)) < len(names):
      raise ValueError(f"domain_names={names} must be different names, one for each domain 1..C")
    shape = (len(names), len(ks))
    return cls(
      ks, names, prefix, np.zeros(shape[0], np.int64), np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape[0])
    )

  def update(self, ranks: Int[AnyArray, " B"], domains: Int[AnyArray, " B"] | None = None) -> RankingMetrics:
    """Returns the metrics with the rows of a batch added.

    Args:
      ranks: 1-based ranks; rows of rank 0 have no target (padding) and are left out.
      domains: domain 1..C of each row's target; may be left out where there is one domain only.

    Raises:
      ValueError: a negative rank, a domain outside 1..C, or unequal lengths.
    """
    ranks, row = self._checked_rows(ranks, domains)
    gains = np.stack([ndcg_of_each(ranks, k) for k in self.ks], axis=1)  # [B, K]
    hits = np.stack([ranks <= k for k in self.ks], axis=1)  # [B, K]
    count, new_hits, new_gains, reciprocal = (a.copy() for a in (self.count, self.hits, self.gains, self.reciprocal))
    np.add.at(count, row, 1)
    np.add.at(new_hits, row, hits)
    np.add.at(new_gains, row, gains)
    np.add.at(reciprocal, row, 1.0 / ranks)
    return dataclasses.replace(self, count=count, hits=new_hits, gains=new_gains, reciprocal=reciprocal)

  def merge(self, other: RankingMetrics) -> RankingMetrics:
    """Returns the metrics of both sets of rows (for example those of two hosts).

    Raises:
      ValueError: the two measure different things.
    """
    for name in ("ks", "domain_names", "prefix"):
      if getattr(self, name) != getattr(other, name):
        raise ValueError(
          f"metrics with {name}={getattr(self, name)} and {name}={getattr(other, name)} cannot be merged"
        )
    sums = {name: getattr(self, name) + getattr(other, name) for name in ("count", "hits", "gains", "reciprocal")}
    return dataclasses.replace(self, **sums)

  def result(self) -> dict[str, float | int]:
    """Returns "HR@10", "NDCG@10", ..., "MRR", "count"; with several domains also "domain/<name>/HR@10" and so on.

    A domain without rows has only its count, 0. No rows at all is an error: there is nothing to report.

    Raises:
      ValueError: no rows.
    """
    if not self.count.sum():
      raise ValueError("no rank was added: is there any user with an event in this split?")
    result = self._means(slice(None), self.prefix)
    if len(self.domain_names) > 1:
      for row, name in enumerate(self.domain_names):
        result.update(self._means(slice(row, row + 1), f"{self.prefix}domain/{name}/"))
    return result

  def _checked_rows(self, ranks, domains):
    """Returns the ranks of the rows that have a target, and the index of their domains."""
    ranks = np.asarray(ranks)
    if domains is None and len(self.domain_names) > 1:
      raise ValueError(f"domains must be given: there are {len(self.domain_names)} of them, {self.domain_names}")
    domains = np.ones_like(ranks) if domains is None else np.asarray(domains)
    if ranks.ndim != 1 or ranks.shape != domains.shape:
      raise ValueError(f"{ranks.shape=} and {domains.shape=} must be the same [B]")
    if ranks.size and ranks.min() < 0:
      raise ValueError(f"ranks holds {ranks.min()}; ranks start at 1, and 0 marks padding rows")
    ranks, domains = ranks[ranks > 0].astype(np.int64), domains[ranks > 0].astype(np.int64)
    if domains.size and (domains.min() < 1 or domains.max() > len(self.domain_names)):
      wrong = domains.min() if domains.min() < 1 else domains.max()
      raise ValueError(
        f"domains holds {wrong}, but there are domains 1..{len(self.domain_names)} only: {self.domain_names}"
      )
    return ranks, domains - 1

  def _means(self, rows, prefix):
    count = int(self.count[rows].sum())
    result: dict[str, float | int] = {}
    if count:
      for column, k in enumerate(self.ks):
        result[f"{prefix}HR@{k}"] = float(self.hits[rows, column].sum() / count)
        result[f"{prefix}NDCG@{k}"] = float(self.gains[rows, column].sum() / count)
      result[f"{prefix}MRR"] = float(self.reciprocal[rows].sum() / count)
    return result | {f"{prefix}count": count}


def auc(scores: Float[AnyArray, " B"], labels: Shaped[AnyArray, " B"]) -> float:
  """Returns the area under the ROC curve: the chance that a positive scores above a negative, ties counted one half.

  Args:
    scores: any numbers that grow with the chance of a click.
    labels: 0 or 1 (or booleans).

  Raises:
    ValueError: labels other than 0 and 1, only one class, NaN scores, or unequal lengths.

  Source: Mann-Whitney statistic, computed from average ranks.

  >>> auc(np.array([0.9, 0.4, 0.4, 0.1]), np.array([1, 1, 0, 0]))
  0.875
  """
  scores, labels = _checked_scores(scores, labels)
  if not 0 < labels.sum() < len(labels):
    raise ValueError(f"AUC needs both classes, but {int(labels.sum())} of {len(labels)} labels are positive")
  return float(_group_aucs(scores, labels, np.zeros(len(labels), np.int64), 1)[0][0])


@dataclasses.dataclass(frozen=True)
class GroupedAUC:
  """What `grouped_auc` returns: the weighted mean and how much of the data stands behind it."""

  value: float  # NaN where no group has both classes
  num_groups: int
  num_groups_skipped: int
  num_rows: int
  num_rows_skipped: int


def grouped_auc(
  scores: Float[AnyArray, " B"], labels: Shaped[AnyArray, " B"], groups: Shaped[AnyArray, " B"]
) -> GroupedAUC:
  """Returns GAUC: the AUC inside each group (a user, a category), averaged with the group sizes as weights.

  Groups with one class only have no AUC; they are left out of the sum and of the weights, and counted. Ties count one
  half.

  Args:
    scores: any numbers that grow with the chance of a click.
    labels: 0 or 1 (or booleans).
    groups: an id or a name for each row.

  Raises:
    ValueError: as `auc`, except that a single class is no error.

  Source: GAUC of Deep Interest Network (arXiv 1706.06978), section 6.1 (there weighted by impressions, which is the
    group size here).

  >>> result = grouped_auc(np.array([0.9, 0.1, 0.2, 0.8, 0.5]), np.array([1, 0, 1, 0, 1]), np.array([7, 7, 8, 8, 9]))
  >>> result.value, result.num_groups_skipped
  (0.5, 1)
  """
  scores, labels = _checked_scores(scores, labels)
  groups = np.asarray(groups)
  if groups.shape != scores.shape:
    raise ValueError(f"{groups.shape=} must be {scores.shape}: one group for each score")
  names, index = np.unique(groups, return_inverse=True)
  aucs, sizes = _group_aucs(scores, labels, index, len(names))
  used = ~np.isnan(aucs)
  value = float(np.sum(aucs[used] * sizes[used]) / sizes[used].sum()) if used.any() else float("nan")
  return GroupedAUC(value, len(names), int((~used).sum()), len(scores), int(sizes[~used].sum()))


def log_loss(probabilities: Float[AnyArray, " B"], labels: Shaped[AnyArray, " B"], epsilon: float = 1e-7) -> float:
  """Returns the mean binary cross-entropy in nats; probabilities are first clipped to [epsilon, 1 - epsilon].

  Raises:
    ValueError: probabilities outside [0, 1], labels other than 0 and 1, or unequal lengths.

  >>> round(log_loss(np.array([0.5, 0.5]), np.array([1, 0])), 6)
  0.693147
  """
  probabilities, labels = _checked_scores(probabilities, labels)
  if probabilities.min() < 0 or probabilities.max() > 1:
    raise ValueError(f"probabilities must lie in [0, 1], but reach from {probabilities.min()} to {probabilities.max()}")
  clipped = np.clip(probabilities, epsilon, 1 - epsilon)
  return float(-np.mean(np.where(labels, np.log(clipped), np.log1p(-clipped))))


def ndcg_of_each(ranks: Int[np.ndarray, "..."], k: int) -> Float[np.ndarray, "..."]:
  """Returns NDCG@K of one relevant item at each 1-based rank; see `ndcg`.

  >>> ndcg_of_each(np.array([1, 3, 11]), 10).tolist()
  [1.0, 0.5, 0.0]
  """
  return np.where(ranks <= k, 1.0 / np.log2(ranks + 1.0), 0.0)


def _checked_ranks(ranks, k):
  ranks = np.asarray(ranks)
  if k < 1:
    raise ValueError(f"{k=} must be at least 1")
  if ranks.ndim != 1 or not ranks.size:
    raise ValueError(f"{ranks.shape=} must be [B] with at least one rank")
  if ranks.min() < 1:
    raise ValueError(
      f"ranks start at 1, but {int((ranks < 1).sum())} are below: drop padding rows first (RankingMetrics does)"
    )
  return ranks


def _checked_scores(scores, labels):
  scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
  if scores.ndim != 1 or scores.shape != labels.shape or not scores.size:
    raise ValueError(f"{scores.shape=} and {labels.shape=} must be the same [B] with at least one row")
  if np.isnan(scores).any():
    raise ValueError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN")
  if not np.isin(labels, (0, 1)).all():
    raise ValueError(f"labels must be 0 or 1, but hold {np.unique(labels)[:5]}")
  return scores, labels.astype(bool)


def _group_aucs(scores, labels, group, num_groups):
  """Returns AUC (NaN where a class is missing) and size of each group, from average ranks inside the groups."""
  order = np.lexsort((scores, group))
  scores, labels, group = scores[order], labels[order], group[order]
  starts_tie = np.r_[True, (scores[1:] != scores[:-1]) | (group[1:] != group[:-1])]
  tie = np.cumsum(starts_tie) - 1  # [B] index of the run of equal scores
  first = np.flatnonzero(starts_tie)
  last = np.r_[first[1:], len(scores)] - 1
  sizes = np.bincount(group, minlength=num_groups)
  offset = np.cumsum(sizes) - sizes
  rank = (first + last)[tie] / 2 - offset[group] + 1  # [B] average 1-based rank inside the group
  positives = np.bincount(group, labels, num_groups)
  rank_sum = np.bincount(group, rank * labels, num_groups)
  pairs = positives * (sizes - positives)
  with np.errstate(invalid="ignore", divide="ignore"):
    return (rank_sum - positives * (positives + 1) / 2) / np.where(pairs > 0, pairs, np.nan), sizes
