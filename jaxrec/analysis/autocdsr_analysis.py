"""Analyses of cross-domain attention: where it goes, which users it helps, and how its objective was weighted.

Functions return numbers; `jaxrec.analysis.autocdsr_plots` draws them.

Source: the analyses of AutoCDSR, arXiv 2505.21811: cross-domain attention of users that a single-domain model serves
  well, and of users that only a cross-domain model serves well.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxrec.data.batches.evaluation import EvaluationBatch
from jaxrec.data.batches.rows import prefix_lengths
from jaxrec.data.generators.planted_transfer import (
  FIRST_NOISE,
  HARMFUL,
  INFORMATIVE,
  NEUTRAL,
  TARGET,
  USEFUL,
  PlantedTruth,
)
from jaxrec.data.prepared import PreparedData
from jaxrec.layers.attention import MASS, SIZES, group_shares, is_other_group, masses_by_layer, sizes_by_layer
from jaxrec.layers.intra_domain import OWN
from jaxrec.models import SequentialModel
from jaxrec.objectives.attention_score import query_domain
from jaxrec.train.state import Params

SHARES = ("all_keys", "visible")
STRATA = ("single right", "cross right", "both", "none")
TRAJECTORY = ("weight/cross_domain_attention", "cosine", "cross_domain_attention", "recommendation")


class Mean(NamedTuple):
  """The mean of `count` numbers and its standard error; None for the mean of no numbers and the error of one."""

  count: int
  mean: float | None
  error: float | None

  @classmethod
  def from_values(cls, values: Float[np.ndarray, " X"]) -> Mean:
    """Returns the mean of the values.

    >>> Mean.from_values(np.array([0.0, 1.0]))
    Mean(count=2, mean=0.5, error=0.5)
    """
    values = np.asarray(values, np.float64)
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return cls(len(values), float(values.mean()) if len(values) else None, error)


@dataclasses.dataclass(frozen=True, eq=False)
class QueryAttention:
  """Attention of the query of each evaluated user, at its evaluated position; users in ascending order.

  user: user indices.
  query_domain: domain 1..C of the event at that position; the target's domain where the event is masked.
  target_domain: domain of the user's next event.
  share: share of the attention that goes to each group of keys, mean over layers and heads: 0 is the query itself if it
    is a mask token, 1..C are the domains, C + 1 the bottleneck tokens, if any. Rows sum to 1.
  events: share of the row's events in each group: the attention shares of a query that attends uniformly.
  others: share of the absolute weights on each group without the query itself, then on the query itself; mean over
    layers and heads.
  """

  user: Int[np.ndarray, " U"]
  query_domain: Int[np.ndarray, " U"]
  target_domain: Int[np.ndarray, " U"]
  share: Float[np.ndarray, "U G"]
  events: Float[np.ndarray, "U G"]
  others: Float[np.ndarray, "U G1"]

  def select(self, users: Int[np.ndarray, " K"]) -> QueryAttention:
    """Returns the rows of some users, in ascending order.

    Raises:
      ValueError: a user without a query.
    """
    if missing := np.setdiff1d(users, self.user).tolist():
      raise ValueError(f"users {missing[:5]} have no query here; select users that all models are evaluated on")
    rows = np.isin(self.user, users)
    return QueryAttention(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

  def cross_domain_share(self, own: str = "query", score: str = "all_keys") -> Float[np.ndarray, " U"]:
    """Returns the share of each query's attention that goes to other domains, 0..1.

    Args:
      own: the domain that is not "other". "query": the domain of the query's event, as in the objective of AutoCDSR
        (`jaxrec.layers.attention.cross_domain_share`); "target": the domain of the target.
      score: "all_keys": among all attention, signed weights added up; "visible": among attention to other events than
        the query whose domain is not hidden, in absolute weights; 0 without any.

    Raises:
      ValueError: another value of `own` or `score`.
    """
    if own not in OWN:
      raise ValueError(f"{own=} is unknown; use one of {OWN}")
    if score not in SHARES:
      raise ValueError(f"{score=} is unknown; use one of {SHARES}")
    domain = self.query_domain if own == "query" else self.target_domain
    is_other = is_other_group(domain, self.share.shape[1])
    if score == "all_keys":
      return (self.share * is_other).sum(axis=1)
    other = (self.others[:, :-1] * is_other).sum(axis=1)
    total = self.others[:, 1:-1].sum(axis=1)
    return np.where(total > 0, other / np.where(total > 0, total, 1), 0)


def query_attention(model: nn.Module, params: Params, batches: Iterable[EvaluationBatch]) -> QueryAttention:
  """Returns the attention of the evaluated users' queries by group of keys.

  Args:
    model: a `SequentialModel` with at least two domains.
    params: parameters of the model.
    batches: from `jaxrec.data.batches.evaluation.evaluation_batches` or `jaxrec.evaluation.model.evaluation_batches`.

  Raises:
    ValueError: another kind of model, or a single domain.

  Choice: SiLU weights have any sum and sign; as in the objective, shares are of the absolute masses.
  """
  check_model(model)
  masses = jax.jit(functools.partial(_at_query, model))
  parts = [(batch, *masses(params, batch.batch)) for batch in batches]
  columns = [
    np.concatenate([np.asarray(part[i])[part[0].user >= 0] for part in parts]) for i in range(1, len(parts[0]))
  ]
  user, target_domain = (
    np.concatenate([getattr(batch, name)[batch.user >= 0] for batch, *_ in parts]) for name in ("user", "target_domain")
  )
  order = np.argsort(user)
  return QueryAttention(*(x[order] for x in (user, columns[0], target_domain, *columns[1:])))


def query_shares(
  model: nn.Module, params: Params, batches: Iterable[EvaluationBatch], own: str = "query"
) -> Float[np.ndarray, " U"]:
  """Returns the share of each evaluated user's attention that goes to other domains, users in ascending order.

  Args:
    model: a `SequentialModel` with at least two domains.
    params: parameters of the model.
    batches: see `query_attention`.
    own: see `QueryAttention.cross_domain_share`.
  """
  return query_attention(model, params, batches).cross_domain_share(own)


def check_model(model: nn.Module) -> None:
  """Raises ValueError unless the model has cross-domain attention to analyze."""
  if not isinstance(model, SequentialModel):
    raise ValueError(f"{type(model).__name__} is not a SequentialModel, whose layers record attention by domain")
  if model.num_domains < 2:
    raise ValueError(f"{model.num_domains=}: cross-domain attention needs at least two")


def attention_by_strata(
  shares: Float[np.ndarray, " U"],
  single_ranks: Int[np.ndarray, " U"],
  cross_ranks: Int[np.ndarray, " U"],
  k: int = 10,
) -> dict[str, Mean]:
  """Returns the mean share of the users in each stratum, with its standard error and the number of users.

  The strata: the target is in the top k of the single-domain model only ("single right"), of the cross-domain model
  only ("cross right"), of "both", or of "none". To compare another model, pass its shares or the differences with the
  same ranks: `attention_by_strata(other - shares, single_ranks, cross_ranks)`.

  Args:
    shares: attention share of each user; see `query_shares`.
    single_ranks: rank of each user's target by a single-domain model, from 1.
    cross_ranks: rank of each user's target by a cross-domain model, from 1.
    k: length of the recommendation list.

  Raises:
    ValueError: ranks below 1, unequal lengths, or k below 1.

  >>> strata = attention_by_strata(np.array([0.5, 0.75, 0.25]), np.array([1, 20, 2]), np.array([30, 3, 11]))
  >>> strata["single right"].mean, strata["cross right"].mean, strata["both"].count
  (0.375, 0.75, 0)
  """
  single, cross = _is_hit("single_ranks", single_ranks, shares, k), _is_hit("cross_ranks", cross_ranks, shares, k)
  members = (single & ~cross, ~single & cross, single & cross, ~single & ~cross)
  return {name: Mean.from_values(shares[rows]) for name, rows in zip(STRATA, members, strict=True)}


def weight_trajectory(
  records: Sequence[Mapping[str, Any]], phase: str = "select"
) -> dict[str, Float[np.ndarray, " T"] | Int[np.ndarray, " T"]]:
  """Returns "step" and the scalars of `TRAJECTORY` over training, each a mean over a log interval.

  Args:
    records: records of metrics.jsonl; see `jaxrec.train.writers.read_records`.
    phase: "select" or "final".

  Raises:
    ValueError: no record of the phase has weights.
  """
  found = [r for r in records if r["kind"] == "train" and r["phase"] == phase and TRAJECTORY[0] in r]
  if not found:
    raise ValueError(f"no training record of {phase=} has {TRAJECTORY[0]!r}: the run had one objective")
  values = {name: np.array([record[name] for record in found], np.float64) for name in TRAJECTORY}
  return {"step": np.array([record["step"] for record in found], np.int64), **values}


class MeanStd(NamedTuple):
  """The mean over `count` seeds and the sample standard deviation, None for a single seed."""

  count: int
  mean: float
  std: float | None

  @classmethod
  def from_values(cls, numbers: Sequence[float]) -> MeanStd:
    """Returns mean and standard deviation of the numbers."""
    return cls(len(numbers), statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None)


def weight_sweep(
  runs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], metric: str
) -> tuple[dict[float, MeanStd], dict[str, MeanStd]]:
  """Returns a metric by fixed weight of the second objective (ascending), and by name of an automatic weighting.

  Args:
    runs: (config, summary) pairs as dicts; runs of the same weighting differ in their seeds. The weight of a run
      without a second objective is 0; that of a fixed weighting is the second weight divided by the first.
    metric: path of a number in the summary, such as "select/test_of_selected/NDCG@10".

  Raises:
    ValueError: a summary without the metric, or fixed weights that are not two with the first above 0.

  >>> run = lambda weight, value: ({"multi_objective": {"objectives": ["cross_domain_attention"],
  ...   "weighting": {"name": "fixed", "weights": [1, weight]}}}, {"test": {"MRR": value}})
  >>> weight_sweep([run(0.5, 0.25), run(0.5, 0.75)], "test/MRR")[0][0.5].mean
  0.5
  """
  values: dict[float | str, list[float]] = {}
  for config, summary in runs:
    values.setdefault(_weight(config["multi_objective"]), []).append(_number(summary, metric))
  cells = {key: MeanStd.from_values(numbers) for key, numbers in values.items()}
  fixed = {key: cells[key] for key in sorted(key for key in cells if isinstance(key, float))}
  return fixed, {key: value for key, value in cells.items() if isinstance(key, str)}


def attention_to_usefulness(
  attention: QueryAttention, data: PreparedData, truth: PlantedTruth, split: int
) -> dict[str, dict[str, Mean]]:
  """Returns the attention shares of queries for the target domain, by what helps them and what does not.

  Results are for "all" queries, for those with a "planted" target (it follows an event of the informative domain), and
  for those whose target continues its "own chain". Each has the mean shares by domain ("own", the target domain,
  "informative", "noise"), by the truth about the target ("useful", "neutral", "harmful"), of "bottleneck" tokens, and
  of the mask token itself ("hidden"); and, as "events/own" and so on, the shares of the events, which a query that
  attends uniformly would have.

  Args:
    attention: attention of the users; see `query_attention`.
    data: from `jaxrec.data.generators.planted_transfer.planted_transfer`.
    truth: truth of the data.
    split: held-out events that are the targets: 1 validation, 2 test.

  Raises:
    ValueError: no target in the target domain.
  """
  attention = attention.select(attention.user[attention.target_domain == TARGET])
  if not len(attention.user):
    raise ValueError("no query has a target in the target domain")
  event = data.offsets[:-1][attention.user] + prefix_lengths(data, split - 1)[attention.user]
  values = _by_kind(attention.share, truth.usefulness[event])
  values |= {f"events/{name}": x for name, x in _by_kind(attention.events, truth.usefulness[event]).items()}
  planted = truth.is_planted[event]
  parts = {"all": np.ones_like(planted), "planted": planted, "own chain": ~planted}
  return {part: {name: Mean.from_values(x[rows]) for name, x in values.items()} for part, rows in parts.items()}


def _at_query(model, params, batch):
  """Returns domain, shares of attention and events, and of absolute weights, of each row's query; `[B, G]` each."""
  _, state = model.apply({"params": params}, batch, deterministic=True, mutable=[MASS, SIZES])
  position = jnp.argmax(batch.target_weight > 0, axis=1)[:, None]  # [B, 1]

  def mean_shares(layers):
    at_query = [jnp.take_along_axis(x, position[..., None, None], axis=1)[:, 0] for x in layers]  # [B, H, G]
    return [group_shares(x).mean(axis=1) for x in at_query]  # [B, G]

  shares = mean_shares(masses_by_layer(state[MASS]))
  others = mean_shares([layer.sizes for layer in sizes_by_layer(state[SIZES])])
  is_group = jax.nn.one_hot(batch.domain_id, shares[0].shape[-1]) * (batch.sequence_id != 0)[..., None]  # [B, N, G]
  events = is_group.sum(axis=1) / jnp.maximum(is_group.sum(axis=(1, 2)), 1)[:, None]  # [B, G]
  domain = jnp.take_along_axis(query_domain(batch), position, axis=1)[:, 0]
  return domain, sum(shares) / len(shares), events, sum(others) / len(others)


def _is_hit(name, ranks, shares, k) -> Bool[np.ndarray, " U"]:
  ranks = np.asarray(ranks)
  if k < 1:
    raise ValueError(f"{k=} must be at least 1")
  if ranks.shape != np.shape(shares):
    raise ValueError(f"{name} has shape {ranks.shape}, but shares have {np.shape(shares)}: one of each per user")
  if (ranks < 1).any():
    raise ValueError(f"{name} contains {ranks.min()}; ranks start at 1")
  return ranks <= k


def _by_kind(share, usefulness) -> dict[str, Float[np.ndarray, " U"]]:
  """Sums columns of shares [U, G] by domain and by the usefulness [U, C] of the domain."""
  num_domains = usefulness.shape[1]
  by_domain = share[:, 1 : num_domains + 1]  # [U, C]
  by_truth = {"useful": USEFUL, "neutral": NEUTRAL, "harmful": HARMFUL}
  return {
    "own": share[:, TARGET],
    "informative": share[:, INFORMATIVE],
    "noise": by_domain[:, FIRST_NOISE - 1 :].sum(axis=1),
    **{name: (by_domain * (usefulness == value)).sum(axis=1) for name, value in by_truth.items()},
    "bottleneck": share[:, num_domains + 1 :].sum(axis=1),
    "hidden": share[:, 0],
  }


def _weight(settings) -> float | str:
  """Returns the fixed weight of the second objective, or the name of the automatic weighting."""
  if not settings["objectives"]:
    return 0.0
  weighting = settings["weighting"]
  if weighting["name"] != "fixed":
    return weighting["name"]
  weights = weighting["weights"]
  if len(weights) != 2 or weights[0] <= 0:
    raise ValueError(f"fixed {weights=} must be two numbers, the first above 0")
  return float(weights[1] / weights[0])


def _number(summary, path) -> float:
  """Returns the number at a path in nested dicts, whose keys may contain slashes."""
  flat = dict(_leaves(summary))
  if path not in flat:
    raise ValueError(f"metric={path!r} is not in a summary, which has {', '.join(sorted(flat))}")
  return float(flat[path])


def _leaves(tree, prefix=""):
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _leaves(value, f"{prefix}{key}/")
    elif isinstance(value, int | float) and not isinstance(value, bool):
      yield f"{prefix}{key}", value
