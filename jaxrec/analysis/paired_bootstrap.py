"""Differences between models on the same users: intervals by resampling users and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxrec.evaluation.metrics import ndcg_of_each
from jaxrec.evaluation.protocols import UserRanks


class Interval(NamedTuple):
  """A mean difference over targets, its standard error, and its interval of 95%, from resamples of `count` users and
  `seeds` seeds.
  """

  mean: float
  error: float
  low: float
  high: float
  count: int
  seeds: int


class UserValues(NamedTuple):
  """A metric of each target, for S seeds of a model; a user may have several targets.

  user: user indices, ascending.
  domain: domain of the target, 1..C.
  value: the metric.
  """

  user: Int[np.ndarray, " T"]
  domain: Int[np.ndarray, " T"]
  value: Float[np.ndarray, "S T"]


def user_values(ranks: Sequence[UserRanks], item_domain: Int[np.ndarray, " V1"], k: int) -> UserValues:
  """Returns NDCG@k of each target.

  Args:
    ranks: of the same users and targets, one for each seed.
    item_domain: domain of each item; row 0 is padding.
    k: length of the list.

  Raises:
    ValueError: users or targets differ between the seeds.
  """
  first = ranks[0]
  for other in ranks[1:]:
    if not (np.array_equal(other.user, first.user) and np.array_equal(other.target_item, first.target_item)):
      raise ValueError("the runs of a model are of different users or targets: they must have the same data and split")
  return UserValues(first.user, item_domain[first.target_item], np.stack([ndcg_of_each(one.rank, k) for one in ranks]))


def paired_difference(
  value: UserValues, base: UserValues, domain: int | None = None, *, resamples: int = 2000, seed: int = 0
) -> Interval:
  """Returns the mean difference over the targets that both have, each seed with the same seed of the base.

  An interval comes from draws, with replacement, of users and, where there are several, of seeds; the same seeds and
  users are drawn for both, so that what they share cancels. A user is drawn with all targets, which are no independent
  observations. The n-th target of a user in one is the n-th in the other: with several targets of a user, both models
  must be of the same data.

  Args:
    value, base: of two models, with the seeds in the same order.
    domain: targets in this domain only; None: all.
    resamples: draws.
    seed: of the draws.

  Raises:
    ValueError: another number of seeds, no user, or a target that is in another domain in the other.
  """
  if len(value.value) != len(base.value):
    raise ValueError(f"{len(value.value)} seeds are compared with {len(base.value)}; give each model the same seeds")
  here, there = _same_targets(value.user, base.user)
  if (value.domain[here] != base.domain[there]).any():
    raise ValueError("the targets of a user differ between the models; compare models of the same data")
  if domain is not None:
    kept = value.domain[here] == domain
    here, there = here[kept], there[kept]
  if not len(here):
    raise ValueError("no user is in both; compare models of the same data")
  return bootstrap(value.value[:, here] - base.value[:, there], resamples, seed, value.user[here])


def _same_targets(user, other):
  """Returns the indices of the targets that both have; the n-th target of a user is the n-th in the other."""
  most = 1 + max(np.bincount(users).max(initial=0) for users in (user, other))
  keys = []
  for users in (user, other):
    starts_at = np.unique(users, return_index=True)[1]
    place = np.arange(len(users)) - np.repeat(starts_at, np.diff(np.append(starts_at, len(users))))
    keys.append(users.astype(np.int64) * most + place)
  return np.intersect1d(*keys, return_indices=True)[1:]


def bootstrap(
  differences: Float[np.ndarray, "S T"],
  resamples: int = 2000,
  seed: int = 0,
  user: Int[np.ndarray, " T"] | None = None,
) -> Interval:
  """Returns the mean of differences by seed and target, with an interval from draws of seeds and users.

  Args:
    differences: of each seed and target.
    resamples: draws.
    seed: of the draws.
    user: of each target, ascending; None: each target has a user of its own.

  >>> tuple(round(x, 2) for x in bootstrap(np.array([[0.0, 1.0]]), resamples=4000)[:4])  # Means 0, .5 and 1.
  (0.5, 0.35, 0.0, 1.0)
  """
  rng = np.random.default_rng(seed)
  starts = np.arange(differences.shape[1]) if user is None else np.unique(user, return_index=True)[1]
  totals = np.add.reduceat(differences, starts, axis=1)  # [S, U]
  counts = np.diff(np.append(starts, differences.shape[1]))
  seeds, users = totals.shape
  means = np.empty(resamples)
  for index in range(resamples):
    weight = np.bincount(rng.integers(seeds, size=seeds), minlength=seeds) / seeds
    drawn = rng.integers(users, size=users)
    means[index] = (weight @ totals)[drawn].sum() / counts[drawn].sum()
  low, high = np.quantile(means, (0.025, 0.975))
  error = float(means.std(ddof=1))
  return Interval(float(differences.mean()), error, float(low), float(high), users, seeds)


def means_by_seed(values: UserValues, domain: int | None = None) -> Float[np.ndarray, " S"]:
  """Returns the mean of each seed, over all users or those with a target in a domain."""
  return values.value[:, slice(None) if domain is None else values.domain == domain].mean(axis=1)


def joined(parts: Sequence[UserValues]) -> UserValues:
  """Returns the values of models of one domain each as those of one model, users ascending.

  Raises:
    ValueError: a user in two of them.
  """
  columns = [np.concatenate([getattr(part, name) for part in parts]) for name in ("user", "domain")]
  value = np.concatenate([part.value for part in parts], axis=1)
  order = np.argsort(columns[0], kind="stable")
  users = np.sort(np.concatenate([np.unique(part.user) for part in parts]))
  if (np.diff(users) == 0).any():
    raise ValueError("a user is in the runs of two domains; give one run for each domain")
  return UserValues(columns[0][order], columns[1][order], value[:, order])
