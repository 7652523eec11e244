"""Differences between models on the same users: intervals by resampling users and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxrec.evaluation.metrics import ndcg_of_each
from jaxrec.evaluation.protocols import UserRanks


class Interval(NamedTuple):
  """A mean difference, its standard error, and its interval of 95%, from resamples; `count` users, `seeds` seeds."""

  mean: float
  error: float
  low: float
  high: float
  count: int
  seeds: int


class UserValues(NamedTuple):
  """A metric of each evaluated user, for S seeds of a model.

  user: user indices, ascending.
  domain: domain of the user's target, 1..C.
  value: the metric.
  """

  user: Int[np.ndarray, " U"]
  domain: Int[np.ndarray, " U"]
  value: Float[np.ndarray, "S U"]


def user_values(ranks: Sequence[UserRanks], item_domain: Int[np.ndarray, " V1"], k: int) -> UserValues:
  """Returns NDCG@k of each user.

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
  """Returns the mean difference over the users that both have, each seed with the same seed of the base.

  An interval comes from draws, with replacement, of users and, where there are several, of seeds; the same seeds and
  users are drawn for both, so that what they share cancels.

  Args:
    value, base: of two models, with the seeds in the same order.
    domain: users with a target in this domain only; None: all.
    resamples: draws.
    seed: of the draws.

  Raises:
    ValueError: another number of seeds, or no user.
  """
  if len(value.value) != len(base.value):
    raise ValueError(f"{len(value.value)} seeds are compared with {len(base.value)}; give each model the same seeds")
  _, here, there = np.intersect1d(value.user, base.user, return_indices=True)
  if domain is not None:
    kept = value.domain[here] == domain
    here, there = here[kept], there[kept]
  if not len(here):
    raise ValueError("no user is in both; compare models of the same data")
  return bootstrap(value.value[:, here] - base.value[:, there], resamples, seed)


def bootstrap(differences: Float[np.ndarray, "S U"], resamples: int = 2000, seed: int = 0) -> Interval:
  """Returns the mean of differences by seed and user, with an interval from draws of seeds and users.

  >>> tuple(round(x, 2) for x in bootstrap(np.array([[0.0, 1.0]]), resamples=4000)[:4])  # Means 0, .5 and 1.
  (0.5, 0.35, 0.0, 1.0)
  """
  rng = np.random.default_rng(seed)
  seeds, users = differences.shape
  means = np.empty(resamples)
  for index in range(resamples):
    weight = np.bincount(rng.integers(seeds, size=seeds), minlength=seeds) / seeds
    means[index] = (weight @ differences)[rng.integers(users, size=users)].mean()
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
  if (np.diff(columns[0][order]) == 0).any():
    raise ValueError("a user is in the runs of two domains; give one run for each domain")
  return UserValues(columns[0][order], columns[1][order], value[:, order])
