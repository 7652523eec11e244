"""What attention across domains does: to whom it goes, whom it helps, how it was weighed. Numbers only.

`jaxrec.analysis.cross_domain_plots` draws what the functions here return.

Source: the analyses of AutoCDSR, arXiv 2505.21811: attention to other domains of users whom a single-domain model
  serves well, and of those whom only a model across domains does.
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
from jaxrec.layers.attention import MASS, group_shares, is_other_group, masses_by_layer
from jaxrec.models import SequentialModel
from jaxrec.objectives.autocdsr import OWN, query_domain
from jaxrec.train.state import Params

STRATA = ("single right", "cross right", "both", "none")
TRAJECTORY = ("weight/cross_domain_attention", "cosine", "cross_domain_attention", "recommendation")


class Mean(NamedTuple):
  """The mean of `count` numbers and its standard error; None where there are too few numbers (1, or 2)."""

  count: int
  mean: float | None
  error: float | None

  @classmethod
  def of(cls, values: Float[np.ndarray, " X"]) -> Mean:
    """Returns the mean of the values.

    >>> Mean.of(np.array([0.0, 1.0]))
    Mean(count=2, mean=0.5, error=0.5)
    """
    values = np.asarray(values, np.float64)
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return cls(len(values), float(values.mean()) if len(values) else None, error)


@dataclasses.dataclass(frozen=True, eq=False)
class QueryAttention:
  """Attention of each evaluated user's query, at the one position that is asked; users in rising order.

  user: user numbers.
  query_domain: domain 1..C of the event at that position; of the target where the model doesn't see it (a mask token).
  target_domain: domain of what the user chose next.
  share: what part of its attention goes to each group of keys, mean over layers and heads: 0 is the query itself where
    its domain is hidden, 1..C the domains, C + 1 (where there are any) bottleneck tokens. Rows sum to 1.
  events: what part of the events in the row are of each group: what a query that likes all alike would pay.
  """

  user: Int[np.ndarray, " U"]
  query_domain: Int[np.ndarray, " U"]
  target_domain: Int[np.ndarray, " U"]
  share: Float[np.ndarray, "U G"]
  events: Float[np.ndarray, "U G"]

  def of(self, users: Int[np.ndarray, " K"]) -> QueryAttention:
    """Returns the rows of some users, in rising order.

    Raises:
      ValueError: a user is not there.
    """
    if missing := np.setdiff1d(users, self.user).tolist():
      raise ValueError(f"users {missing[:5]} have no query here; give users that all models are evaluated on")
    rows = np.isin(self.user, users)
    return QueryAttention(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

  def across(self, own: str = "query") -> Float[np.ndarray, " U"]:
    """Returns what part of each query's attention leaves its domain, 0..1.

    Args:
      own: "query": the domain of the event that asks, as `cross_domain_share` and so the objective of AutoCDSR count
        it; "target": that of what is asked for.
    """
    if own not in OWN:
      raise ValueError(f"{own=} is unknown; use one of {OWN}")
    domain = self.query_domain if own == "query" else self.target_domain
    return (self.share * is_other_group(domain, self.share.shape[1])).sum(axis=1)


def query_attention(model: nn.Module, params: Params, batches: Iterable[EvaluationBatch]) -> QueryAttention:
  """Returns to which groups the queries of the evaluated users attend.

  Args:
    model: a `SequentialModel` of at least two domains.
    params: its parameters.
    batches: from `jaxrec.data.batches.evaluation.evaluation_batches` or `jaxrec.evaluation.model.evaluation_batches`.

  Raises:
    ValueError: another kind of model, or one domain only.

  Choice: SiLU weights have any sum and sign; as in `cross_domain_share`, shares are of the absolute masses.
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
  """Returns what part of each evaluated user's attention leaves its domain, users in rising order.

  See `query_attention` and `QueryAttention.across`.
  """
  return query_attention(model, params, batches).across(own)


def check_model(model: nn.Module) -> None:
  """Raises ValueError where a model has no attention across domains that could be looked at."""
  if not isinstance(model, SequentialModel):
    raise ValueError(f"{type(model).__name__} is no SequentialModel, whose layers tell where attention goes")
  if model.num_domains < 2:
    raise ValueError(f"{model.num_domains=}: attention across domains needs at least two")


def attention_by_strata(
  shares: Float[np.ndarray, " U"],
  single_ranks: Int[np.ndarray, " U"],
  cross_ranks: Int[np.ndarray, " U"],
  k: int = 10,
) -> dict[str, Mean]:
  """Returns how many users each stratum has, and the mean of their shares with its standard error.

  The strata: only the single-domain model has the target among its first k ("single right"), only the model across
  domains has ("cross right"), "both" or "none". To hold another model against the first, ask for its shares, or for the
  differences, in the same strata: `attention_by_strata(other - shares, single_ranks, cross_ranks)`.

  Args:
    shares: of each user; see `query_shares`.
    single_ranks: rank of the user's target by a single-domain model, from 1.
    cross_ranks: the same by a model across domains.
    k: length of the list.

  Raises:
    ValueError: other ranks, lengths or k.

  >>> strata = attention_by_strata(np.array([0.5, 0.75, 0.25]), np.array([1, 20, 2]), np.array([30, 3, 11]))
  >>> strata["single right"].mean, strata["cross right"].mean, strata["both"].count
  (0.375, 0.75, 0)
  """
  single, cross = _is_hit("single_ranks", single_ranks, shares, k), _is_hit("cross_ranks", cross_ranks, shares, k)
  members = (single & ~cross, ~single & cross, single & cross, ~single & ~cross)
  return {name: Mean.of(shares[rows]) for name, rows in zip(STRATA, members, strict=True)}


def weight_trajectory(
  records: Sequence[Mapping[str, Any]], phase: str = "select"
) -> dict[str, Float[np.ndarray, " T"] | Int[np.ndarray, " T"]]:
  """Returns "step" and the scalars of `TRAJECTORY` by step, means over the log intervals.

  Args:
    records: of metrics.jsonl; see `jaxrec.train.writers.read_records`.
    phase: "select" or "final".

  Raises:
    ValueError: no record of the phase holds weights.
  """
  found = [r for r in records if r["kind"] == "train" and r["phase"] == phase and TRAJECTORY[0] in r]
  if not found:
    raise ValueError(f"no training record of {phase=} holds {TRAJECTORY[0]!r}: the run had one objective")
  values = {name: np.array([record[name] for record in found], np.float64) for name in TRAJECTORY}
  return {"step": np.array([record["step"] for record in found], np.int64), **values}


class Spread(NamedTuple):
  """A number over `count` seeds: its mean, and its sample standard deviation, None of one seed."""

  count: int
  mean: float
  spread: float | None

  @classmethod
  def of(cls, numbers: Sequence[float]) -> Spread:
    """Returns the mean and spread of the numbers."""
    return cls(len(numbers), statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None)


def weight_sweep(
  runs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], metric: str
) -> tuple[dict[float, Spread], dict[str, Spread]]:
  """Returns a metric by fixed weight of the second objective, weights rising, and by name of an automatic weighting.

  Args:
    runs: (config, summary) pairs as dicts; runs of one weighting differ in their seeds. A run without a second
      objective has the weight 0; a fixed weighting has that of its second objective divided by that of its first.
    metric: the path of a number in the summary, such as "select/test_of_selected/NDCG@10".

  Raises:
    ValueError: a summary without the metric, or fixed weights that are not two with a first above 0.

  >>> run = lambda weight, value: ({"multi_objective": {"objectives": ["cross_domain_attention"],
  ...   "weighting": {"name": "fixed", "weights": [1, weight]}}}, {"test": {"MRR": value}})
  >>> weight_sweep([run(0.5, 0.25), run(0.5, 0.75)], "test/MRR")[0][0.5].mean
  0.5
  """
  values: dict[float | str, list[float]] = {}
  for config, summary in runs:
    values.setdefault(_weight(config["multi_objective"]), []).append(_number(summary, metric))
  spreads = {key: Spread.of(numbers) for key, numbers in values.items()}
  fixed = {key: spreads[key] for key in sorted(key for key in spreads if isinstance(key, float))}
  return fixed, {key: value for key, value in spreads.items() if isinstance(key, str)}


def attention_to_usefulness(
  attention: QueryAttention, data: PreparedData, truth: PlantedTruth, split: int
) -> dict[str, dict[str, Mean]]:
  """Returns what part of their attention the queries for the target domain pay to what helps and to what doesn't.

  Of all of them, and apart of those whose target is "planted" (it follows an event of the informative domain) and of
  those whose target continues its "own chain". For each a mean share by domain ("own", the target domain,
  "informative", "noise"), by the truth about the target ("useful", "neutral", "harmful"), of "bottleneck" tokens, and
  of the mask token itself ("hidden"); and under "events/own" and so on the shares of the events, which a query that
  likes all events alike would pay.

  Args:
    attention: of the users; see `query_attention`.
    data: from `jaxrec.data.generators.planted_transfer.planted_transfer`.
    truth: of the data.
    split: which held-out events the queries ask for: 1 validation, 2 test.

  Raises:
    ValueError: no query asks for the target domain.
  """
  attention = attention.of(attention.user[attention.target_domain == TARGET])
  if not len(attention.user):
    raise ValueError("no query asks for the target domain")
  event = data.offsets[:-1][attention.user] + prefix_lengths(data, split - 1)[attention.user]
  values = _by_kind(attention.share, truth.usefulness[event])
  values |= {f"events/{name}": x for name, x in _by_kind(attention.events, truth.usefulness[event]).items()}
  planted = truth.is_planted[event]
  parts = {"all": np.ones_like(planted), "planted": planted, "own chain": ~planted}
  return {part: {name: Mean.of(x[rows]) for name, x in values.items()} for part, rows in parts.items()}


def _at_query(model, params, batch):
  """Domain, shares of attention and shares of events of each row's query: [B], [B, G], [B, G]."""
  _, state = model.apply({"params": params}, batch, deterministic=True, mutable=[MASS])
  position = jnp.argmax(batch.target_weight > 0, axis=1)[:, None]  # [B, 1]
  shares = []
  for mass in masses_by_layer(state[MASS]):
    asked = jnp.take_along_axis(mass, position[..., None, None], axis=1)[:, 0]  # [B, H, G]
    shares.append(group_shares(asked).mean(axis=1))  # [B, G]
  is_group = jax.nn.one_hot(batch.domain_id, shares[0].shape[-1]) * (batch.sequence_id != 0)[..., None]  # [B, N, G]
  events = is_group.sum(axis=1) / jnp.maximum(is_group.sum(axis=(1, 2)), 1)[:, None]  # [B, G]
  return jnp.take_along_axis(query_domain(batch), position, axis=1)[:, 0], sum(shares) / len(shares), events


def _is_hit(name, ranks, shares, k) -> Bool[np.ndarray, " U"]:
  ranks = np.asarray(ranks)
  if k < 1:
    raise ValueError(f"{k=} must be at least 1")
  if ranks.shape != np.shape(shares):
    raise ValueError(f"{name} has the shape {ranks.shape}, shares have {np.shape(shares)}: one of each a user")
  if (ranks < 1).any():
    raise ValueError(f"{name} holds {ranks.min()}; ranks start at 1")
  return ranks <= k


def _by_kind(share, usefulness) -> dict[str, Float[np.ndarray, " U"]]:
  """Sums of the columns of shares [U, G] by domain and by what the truth [U, C] says of the domain."""
  num_domains = usefulness.shape[1]
  of_domain = share[:, 1 : num_domains + 1]  # [U, C]
  by_truth = {"useful": USEFUL, "neutral": NEUTRAL, "harmful": HARMFUL}
  return {
    "own": share[:, TARGET],
    "informative": share[:, INFORMATIVE],
    "noise": of_domain[:, FIRST_NOISE - 1 :].sum(axis=1),
    **{name: (of_domain * (usefulness == value)).sum(axis=1) for name, value in by_truth.items()},
    "bottleneck": share[:, num_domains + 1 :].sum(axis=1),
    "hidden": share[:, 0],
  }


def _weight(settings) -> float | str:
  """The fixed weight of the second objective, or the name of the weighting that finds it."""
  if not settings["objectives"]:
    return 0.0
  weighting = settings["weighting"]
  if weighting["name"] != "fixed":
    return weighting["name"]
  weights = weighting["weights"]
  if len(weights) != 2 or weights[0] <= 0:
    raise ValueError(f"fixed {weights=} must be two, the first above 0")
  return float(weights[1] / weights[0])


def _number(summary, path) -> float:
  """The number at a path of a tree of dicts, whose keys may hold slashes."""
  flat = dict(_leaves(summary))
  if path not in flat:
    raise ValueError(f"metric={path!r} is in no place of a summary; there are {', '.join(sorted(flat))}")
  return float(flat[path])


def _leaves(tree, prefix=""):
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _leaves(value, f"{prefix}{key}/")
    elif isinstance(value, int | float) and not isinstance(value, bool):
      yield f"{prefix}{key}", value
