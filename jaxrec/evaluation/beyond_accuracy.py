"""What lists of recommendations are like, apart from accuracy: coverage, novelty, popularity, diversity, serendipity.

Plain NumPy in float64 over the k best items of each user, added up batch by batch: memory grows with the catalogue, not
with the number of users.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxrec.batches import AnyArray
from jaxrec.data.batches.evaluation import EvaluationBatch
from jaxrec.data.prepared import PreparedData
from jaxrec.evaluation.metrics import RankingMetrics

WARM, COLD = "warm/", "cold/"  # Before the metrics of targets with, and without, an event before the split.
_AVERAGED = ("Novelty", "Popularity", "Diversity", "Serendipity")
METRICS = ("Coverage", "Gini", *_AVERAGED)


@dataclasses.dataclass(frozen=True, eq=False)
class KnownItems:
  """What is known of the items before a split begins.

  num_events: how many events each item has; entry 0 is padding.
  num_users: how many users have had each item.
  all_users: how many users have had any.
  domain: of each item, 1..C; entry 0 is 0.
  attributes: ids of the attributes of each item, padded with 0; width 0 if there are none.
  """

  num_events: Int[np.ndarray, " V1"]
  num_users: Int[np.ndarray, " V1"]
  all_users: int
  domain: Int[np.ndarray, " V1"]
  attributes: Int[np.ndarray, "V1 S"]

  @classmethod
  def before(cls, data: PreparedData, split: int) -> KnownItems:
    """Returns what the events before a split say: 1 validation, 2 test (which knows the validation events).

    Attributes are the column "genres" of the items, text separated by "|"; without one the domain, if there are
    several.
    """
    known = np.asarray(data.split) < split
    item = np.asarray(data.item_id)[known]
    user = np.repeat(np.arange(data.num_users), np.diff(data.offsets))[known]
    pairs = np.unique(user * np.int64(data.num_items + 1) + item)
    sizes = {"minlength": data.num_items + 1}
    domain = data.item_domain()
    return cls(
      np.bincount(item, **sizes), np.bincount(pairs % (data.num_items + 1), **sizes), len(np.unique(user)), domain,
      _attributes(data, domain),
    )  # fmt: skip

  @functools.cached_property
  def self_information(self) -> Float[np.ndarray, " V1"]:
    """Returns log2(users / users who have had the item), in bits; an item nobody has had counts as if one had.

    Source: Zhou et al. 2010, "Solving the apparent diversity-accuracy dilemma of recommender systems", PNAS 107.
    """
    return np.log2(max(self.all_users, 1) / np.maximum(self.num_users, 1))

  @functools.cached_property
  def popularity_score(self) -> Float[np.ndarray, " V1"]:
    """Returns (V - number of items with more events) / V: 1 for the most popular; 0 for items without events."""
    counts = self.num_events[1:]
    more = len(counts) - np.searchsorted(np.sort(counts), counts, side="right")
    return np.concatenate([[0], np.where(counts > 0, 1 - more / len(counts), 0)])


def _attributes(data, domain):
  if "genres" not in data.items.columns:
    return domain[:, None] if data.num_domains > 1 else np.zeros((data.num_items + 1, 0), np.int32)
  sets = [sorted({name for name in (text or "").split("|") if name}) for text in data.items["genres"]]
  ids = {name: i for i, name in enumerate(sorted(set().union(*sets)), 1)}
  grid = np.zeros((len(sets) + 1, max(map(len, sets), default=0)), np.int32)
  for item, names in enumerate(sets, 1):
    grid[item, : len(names)] = [ids[name] for name in names]
  return grid


@dataclasses.dataclass(frozen=True, eq=False)
class ListReport:
  """Everything that this module reports of lists of k items: `BeyondAccuracy` and `TargetsByAge`."""

  lists: BeyondAccuracy
  targets: TargetsByAge

  @classmethod
  def zero(cls, data: PreparedData, split: int, k: int, ks: Sequence[int]) -> ListReport:
    """Returns the report of no list.

    Args:
      data: prepared columns.
      split: whose targets are ranked, 1 validation, 2 test; events before it are known.
      k: length of the lists.
      ks: list lengths of HR and NDCG of warm and cold targets.

    Raises:
      ValueError: k below 1, or above the number of items.
    """
    known = KnownItems.before(data, split)
    return cls(BeyondAccuracy.zero(known, k, data.domain_names), TargetsByAge.zero(known, ks, data.domain_names))

  def update(self, items: Int[AnyArray, "B K"], ranks: Int[AnyArray, " B"], batch: EvaluationBatch) -> ListReport:
    """Returns the report with the lists and ranks of a batch added."""
    target = np.asarray(batch.target_item), np.asarray(batch.target_domain)
    return ListReport(self.lists.update(items, *target), self.targets.update(ranks, *target))

  def result(self) -> dict[str, float | int]:
    """Returns the metrics by name."""
    return self.lists.result() | self.targets.result()


@dataclasses.dataclass(frozen=True, eq=False)
class BeyondAccuracy:
  """Sums over lists of k recommendations; state in, new state out.

  Of all lists, and under "domain/<name>/" of those whose target is in a domain (of the items of it, for the first two):

  - "Coverage@k": share of the items of the catalogue that are in at least one list.
    Source: Ge, Delgado-Battenfeld, Jannach 2010, "Beyond accuracy: evaluating recommender systems by coverage and
    serendipity", catalog coverage.
  - "Gini@k": Gini index of how often each item of the catalogue is recommended: 0 all alike, towards 1 a few only.
    Source: Sun et al. 2020 (RecBole), "GiniIndex"; Gunawardana and Shani 2009, section 4.6.
  - "Novelty@k": mean self-information of the recommended items, in bits; see `KnownItems.self_information`.
  - "Popularity@k": mean number of earlier events of the recommended items.
    Source: Yin et al. 2012 (arXiv 1205.6700), average recommendation popularity.
  - "Diversity@k": mean over the pairs of a list of 1 - |A and B| / |A or B|, A and B the attributes of the two items.
    Absent if items have no attributes. Source: Ziegler et al. 2005, "Improving recommendation lists through topic
    diversification", intra-list similarity; Jaccard over attributes is a choice.
  - "Serendipity@k": mean over users of max(0, (V + 1 - rank) / V - popularity score of the target) / k where the target
    is in the list, else 0; see `KnownItems.popularity_score`: finding what popularity ranks high counts for nothing.
    Source: Murakami, Mori, Orihara 2008, "Metrics for evaluating the serendipity of recommendation lists"; formula of
    RecTools 0.19. Choice: items rank behind all that are more popular; RecTools ranks the distinct numbers of events.

  A list that has fewer than k candidates is padded with item 0, which is left out; lists without a pair have no
  diversity. The means are over lists.

  >>> data = PreparedData.from_columns(user=[0, 0, 0, 0], item_id=[1, 1, 2, 3], num_items=4)
  >>> lists = BeyondAccuracy.zero(KnownItems.before(data, 2), k=2, domain_names=("all",))
  >>> lists = lists.update(np.array([[1, 3], [1, 4]]), np.array([3, 2]), np.array([1, 1]))
  >>> {name: round(value, 3) for name, value in lists.result().items()}
  {'Coverage@2': 0.75, 'Gini@2': 0.375, 'Novelty@2': 0.0, 'Popularity@2': 1.0, 'Serendipity@2': 0.188}
  """

  known: KnownItems
  k: int
  domain_names: tuple[str, ...]
  recommended: np.ndarray  # [V1] int64
  sums: np.ndarray  # [C, 4] float64
  counts: np.ndarray  # [C, 4] int64

  @classmethod
  def zero(cls, known: KnownItems, k: int, domain_names: tuple[str, ...]) -> BeyondAccuracy:
    """Returns the metrics of no list.

    Raises:
      ValueError: k below 1, or above the number of items.
    """
    if not 1 <= k < len(known.num_events):
      raise ValueError(f"{k=} must be a list length between 1 and the number of items {len(known.num_events) - 1}")
    shape = len(domain_names), len(_AVERAGED)
    return cls(
      known, k, domain_names, np.zeros(len(known.domain), np.int64), np.zeros(shape), np.zeros(shape, np.int64)
    )

  def update(
    self, items: Int[AnyArray, "B K"], target_item: Int[AnyArray, " B"], target_domain: Int[AnyArray, " B"]
  ) -> BeyondAccuracy:
    """Returns the metrics with the lists of a batch added.

    Args:
      items: the k best items of each user, best first, 0 where there is none.
      target_item: the item that each user chose; 0 on padding rows, which are left out.
      target_domain: its domain.
    """
    real = np.asarray(target_item) > 0
    items, target, domain = (np.asarray(a)[real] for a in (items, target_item, target_domain))
    is_item = items > 0
    size = is_item.sum(axis=1)  # [B]
    diversity, has_pair = list_diversity(self.known.attributes[items], is_item)
    values = [
      (_mean(self.known.self_information[items], is_item), size > 0),
      (_mean(self.known.num_events[items], is_item), size > 0),
      (diversity, has_pair),
      (self._serendipity(items, target), np.ones(len(items), bool)),
    ]
    sums, counts = self.sums.copy(), self.counts.copy()
    for column, (value, counted) in enumerate(values):
      np.add.at(sums[:, column], domain[counted] - 1, value[counted])
      np.add.at(counts[:, column], domain[counted] - 1, 1)
    recommended = self.recommended + np.bincount(items[is_item], minlength=len(self.recommended))
    return dataclasses.replace(self, recommended=recommended, sums=sums, counts=counts)

  def _serendipity(self, items, target):
    score = self.known.popularity_score
    num_items = len(score) - 1
    by_rank = (num_items - np.arange(items.shape[1])) / num_items  # [K]
    gain = np.maximum(by_rank - score[target][:, None], 0)  # [B, K]
    return (gain * (items == target[:, None])).sum(axis=1) / self.k

  def result(self) -> dict[str, float]:
    """Returns the metrics by name; those of a domain without a list are left out."""
    everything = np.arange(len(self.known.domain)) > 0
    result = self._named("", self.sums.sum(axis=0), self.counts.sum(axis=0), everything)
    for index, name in enumerate(self.domain_names if len(self.domain_names) > 1 else ()):
      if self.counts[index].any():
        own = self.known.domain == index + 1
        result |= self._named(f"domain/{name}/", self.sums[index], self.counts[index], own)
    return result

  def _named(self, prefix, sums, counts, is_item) -> dict[str, float]:
    times = self.recommended[is_item]
    values = {"Coverage": float((times > 0).mean()) if len(times) else None, "Gini": gini(times)}
    values |= {name: float(s / n) if n else None for name, s, n in zip(_AVERAGED, sums, counts, strict=True)}
    return {f"{prefix}{name}@{self.k}": value for name, value in values.items() if value is not None}


def _mean(values, is_item):
  return (values * is_item).sum(axis=1) / np.maximum(is_item.sum(axis=1), 1)


def gini(counts: Int[np.ndarray, " V"]) -> float | None:
  """Returns the Gini index of counts: sum over j of (2j - V - 1) x_j / (V sum of x), x sorted; None if all are 0.

  >>> gini(np.array([2, 2, 2])), gini(np.array([0, 0, 0, 8])), gini(np.array([0]))
  (0.0, 0.75, None)
  """
  if not counts.sum():
    return None
  num_items = len(counts)
  factors = 2 * np.arange(1, num_items + 1) - num_items - 1.0
  return float(factors @ np.sort(counts) / (num_items * counts.sum()))


def list_diversity(
  attributes: Int[np.ndarray, "B K S"], is_item: Bool[np.ndarray, "B K"]
) -> tuple[Float[np.ndarray, " B"], Bool[np.ndarray, " B"]]:
  """Returns the mean distance 1 - |A and B| / |A or B| over the pairs of each list, and whether a list has one.

  Args:
    attributes: ids of the attributes of each item, padded with 0; no id twice. Items without attributes are alike in
      nothing. With S = 0 no list has a diversity.
    is_item: False where a list has no item.

  >>> list_diversity(np.array([[[1, 2], [2, 3], [4, 0]]]), np.ones((1, 3), bool))[0].round(3).tolist()
  [0.889]
  """
  num_lists, k, width = attributes.shape
  total, pairs = np.zeros(num_lists), np.zeros(num_lists, np.int64)
  if not width:
    return total, pairs > 0
  size = (attributes > 0).sum(axis=-1)  # [B, K]
  for first in range(k - 1):
    others = attributes[:, first + 1 :]  # [B, K', S]
    same = (others[..., None] == attributes[:, first, None, None, :]) & (others[..., None] > 0)  # [B, K', S, S]
    common = same.sum(axis=(-1, -2))  # [B, K']
    union = size[:, first, None] + size[:, first + 1 :] - common
    is_pair = is_item[:, first, None] & is_item[:, first + 1 :]
    total += ((1 - common / np.maximum(union, 1)) * is_pair).sum(axis=1)
    pairs += is_pair.sum(axis=1)
  return total / np.maximum(pairs, 1), pairs > 0


@dataclasses.dataclass(frozen=True, eq=False)
class TargetsByAge:
  """Ranking metrics of warm targets, which have events before the split, and of cold ones, which have none."""

  known: KnownItems
  metrics: Mapping[str, RankingMetrics]

  @classmethod
  def zero(cls, known: KnownItems, ks: Sequence[int], domain_names: tuple[str, ...]) -> TargetsByAge:
    """Returns the metrics of no target."""
    return cls(known, {name: RankingMetrics.zero(ks, domain_names, prefix=name) for name in (WARM, COLD)})

  def update(
    self, ranks: Int[AnyArray, " B"], target_item: Int[AnyArray, " B"], target_domain: Int[AnyArray, " B"]
  ) -> TargetsByAge:
    """Returns the metrics with the targets of a batch added; rows of rank 0 are left out."""
    is_warm = self.known.num_events[np.asarray(target_item)] > 0
    chosen = {WARM: is_warm, COLD: ~is_warm}
    ranks = np.asarray(ranks)
    updated = {k: m.update(np.where(chosen[k], ranks, 0), target_domain) for k, m in self.metrics.items()}
    return dataclasses.replace(self, metrics=updated)

  def result(self) -> dict[str, float | int]:
    """Returns "warm/HR@10", "warm/count", "cold/HR@10", ...; of a group without targets only the count, 0."""
    result = {}
    for name, metrics in self.metrics.items():
      result |= metrics.result() if metrics.count.sum() else {f"{name}count": 0}
    return result
