"""Users whose interest in a category rises and falls with their earlier events; the truth about every event is known.

For questions that clicks alone cannot answer, such as whether the search stage of a ranker finds the behaviours that
matter.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from jaxrec.batches import CandidateBatch
from jaxrec.data.generators.common import (
  check_ranges,
  normalize,
  offsets_of,
  options_of,
  power_law,
  real_steps,
  sample_categorical,
  sample_lengths,
  sample_times,
  sample_unseen,
  takes_fields_of,
)
from jaxrec.data.prepared import PreparedData


@dataclasses.dataclass(frozen=True)
class InterestOptions:
  """Parameters of the process that `planted_interest` describes.

  num_users: number of users.
  num_categories: C, at least 2.
  items_per_category: items in each category.
  mean_events: mean number of events per user; uniform between 0.5 and 1.5 times the mean.
  group_size: categories per group; a behaviour in one category changes the interest in all categories of its group.
  own_affinity: effect of a behaviour on the interest in its own category; below 0 it lowers the interest.
  lowering_share: share, 0..1, of the pairs of different categories of a group that lower each other's interest.
  memory: number of events after which the effect of a behaviour has fallen to 1/e.
  strength: bound on the change of a category's log-odds by interest.
  explore: probability that an event ignores the history.
  popularity: exponent of the power law by which categories, and items of a category, are drawn.
  seed: the same seed gives the same data.
  """

  num_users: int = 1500
  num_categories: int = 120
  items_per_category: int = 60
  mean_events: float = 160.0
  group_size: int = 6
  own_affinity: float = -1.0
  lowering_share: float = 0.5
  memory: float = 20.0
  strength: float = 6.0
  explore: float = 0.1
  popularity: float = 0.4
  seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class InterestTruth:
  """The rule by which `planted_interest` made its events.

  affinity: [C + 1, C + 1] effect of a behaviour in the row's category on the interest in the column's category; row and
    column 0 are padding.
  weight: [C + 1] probability of each category for an event without history; 0 for padding.
  memory, strength, explore: as in `InterestOptions`.
  """

  affinity: Float[np.ndarray, "C1 C1"]
  weight: Float[np.ndarray, " C1"]
  memory: float
  strength: float
  explore: float

  def relevance(self, batch: CandidateBatch) -> Float[np.ndarray, "B N"]:
    """Returns how much each behaviour changes the interest in the candidate, in either direction; 0 on padding.

    This is |affinity| to the candidate's category times a decay with age.
    """
    category = np.asarray(batch.history_category)
    affinity = self.affinity[category, np.asarray(batch.category)[:, None]]  # [B, N]
    return np.abs(affinity) * self._decay(batch)

  def log_odds(self, batch: CandidateBatch) -> Float[np.ndarray, " B"]:
    """Returns log(p / q): p is the probability of the candidate's category given the history, q the one without it.

    This is no bound for a model of the items: negatives that the user clicked are drawn again, and no item repeats
    before its category is used up, so that the popularity of a candidate says whether it was clicked.
    """
    decay = self._decay(batch)  # [B, N]
    interest = np.einsum("bn,bnc->bc", decay, self.affinity[np.asarray(batch.history_category)])  # [B, C1]
    probability = _probabilities(interest[:, 1:], self.weight[1:], self.strength)  # [B, C]
    chosen = np.take_along_axis(probability, np.asarray(batch.category)[:, None] - 1, axis=1)[:, 0]  # [B]
    weight = self.weight[np.asarray(batch.category)]
    return np.log((1 - self.explore) * chosen + self.explore * weight) - np.log(weight)

  def _decay(self, batch):
    age = np.asarray(batch.history_age)
    return np.where(age > 0, np.exp((1 - age) / self.memory), 0.0)


@takes_fields_of(InterestOptions)
def planted_interest(**options) -> PreparedData:
  """Returns the events of users whose interests change over time, split leave-one-out; each category is a domain.

  Event by event:

  1. The user's interest in category c is the sum, over the earlier behaviours, of the affinity of their category to c
     times exp((1 - age) / memory), where the latest behaviour has age 1.
  2. Affinity is 0 between groups and `own_affinity` from a category to itself. Between two categories of a group it is
     1 or, for a share `lowering_share` of the pairs, -1; it is symmetric.
  3. With probability `explore` the category is drawn by its weight (a power law), otherwise in proportion to weight *
     exp(strength * tanh(interest / 2)).
  4. The item is drawn from the category by popularity; none repeats before the user has had all of them.

  How much a behaviour matters depends on whether its category is in the candidate's group and on its age, not on the
  items; the direction of its effect depends on the pair of categories. Attention has to treat the categories of a group
  alike, representations have to distinguish them. `planted_interest_truth` returns the rule. Item ids are a random
  permutation, so they carry no information about the category.

  Args:
    **options: the fields of `InterestOptions`.

  Raises:
    ValueError: a field is out of range.
    TypeError: an unknown field.

  >>> data = planted_interest(num_users=3, num_categories=4, items_per_category=5, mean_events=10)
  >>> data.num_users, data.num_items, data.domain_names
  (3, 20, ('category 1', 'category 2', 'category 3', 'category 4'))
  """
  settings = InterestOptions(**options)
  _check(settings)
  rng = np.random.default_rng(settings.seed)
  truth = _truth(rng, settings)
  lengths = sample_lengths(rng, settings.num_users, settings.mean_events)
  is_real = real_steps(lengths)  # [U, T]
  category, index = _simulate(rng, settings, truth, lengths.max())  # [U, T], from 1 and from 0
  ids = rng.permutation(settings.num_categories * settings.items_per_category) + 1
  return PreparedData.from_columns(
    offsets=offsets_of(lengths),
    item_id=ids[(category - 1) * settings.items_per_category + index][is_real],
    domain_id=category[is_real],
    timestamp=sample_times(rng, is_real.shape)[is_real],
    num_items=len(ids),
    domain_names=[f"category {c + 1}" for c in range(settings.num_categories)],
    item_domain=np.concatenate([[0], np.argsort(ids) // settings.items_per_category + 1]),
    source="planted_interest",
    options=dataclasses.asdict(settings),
  )


def planted_interest_truth(data: PreparedData) -> InterestTruth:
  """Returns the rule by which the events of `data` were made, from the options recorded in it.

  Args:
    data: made by `planted_interest`, in memory or loaded.

  Raises:
    ValueError: the data has another source.

  >>> data = planted_interest(num_users=3, num_categories=4, mean_events=10, group_size=1, lowering_share=0.0)
  >>> np.diag(planted_interest_truth(data).affinity).tolist()
  [0.0, -1.0, -1.0, -1.0, -1.0]
  """
  settings = options_of(data, "planted_interest", InterestOptions)
  return _truth(np.random.default_rng(settings.seed), settings)


def _truth(rng, settings) -> InterestTruth:
  """Returns the rule; its draws are the generator's first ones, so that the same seed gives the same rule."""
  count = settings.num_categories
  sign = np.triu(np.where(rng.random((count, count)) < settings.lowering_share, -1.0, 1.0))
  np.fill_diagonal(sign, settings.own_affinity)
  group = rng.permutation(count) // settings.group_size
  affinity = np.zeros((count + 1, count + 1))
  affinity[1:, 1:] = np.where(group[:, None] == group, sign + np.triu(sign, 1).T, 0.0)
  weight = np.concatenate([[0.0], rng.permutation(normalize(power_law(count, settings.popularity)))])
  return InterestTruth(affinity, weight, settings.memory, settings.strength, settings.explore)


def _simulate(rng, settings, truth, num_steps) -> tuple[Int[np.ndarray, "U T"], Int[np.ndarray, "U T"]]:
  """Returns categories and indices of items inside them, for all users at once, one event after another."""
  users, count = np.arange(settings.num_users), settings.num_categories
  category = np.zeros((len(users), num_steps), np.int64)
  index = np.zeros_like(category)
  interest = np.zeros((len(users), count))
  unseen = np.ones((len(users), count, settings.items_per_category), bool)
  popularity = normalize(power_law(settings.items_per_category, settings.popularity))
  for t in range(num_steps):
    probability = _probabilities(interest, truth.weight[1:], truth.strength)  # [U, C]
    probability = np.where(rng.random((len(users), 1)) < truth.explore, truth.weight[1:], probability)
    chosen = sample_categorical(rng, probability)  # [U] from 0
    category[:, t], index[:, t] = chosen + 1, sample_unseen(rng, popularity, unseen[users, chosen])
    unseen[users, chosen, index[:, t]] = False
    interest = interest * np.exp(-1 / truth.memory) + truth.affinity[chosen + 1, 1:]
  return category, index


def _probabilities(interest, weight, strength) -> Float[np.ndarray, "U C"]:
  return normalize(weight * np.exp(strength * np.tanh(interest / 2)))


def _check(settings):
  at_least = {"num_users": 1, "num_categories": 2, "items_per_category": 1, "group_size": 1}
  check_ranges(settings, at_least, probabilities=("lowering_share", "explore"))
  if settings.memory <= 0:
    raise ValueError(f"memory={settings.memory} must be above 0")
