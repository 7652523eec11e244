"""Users whose interest in a category grows and fades with what they did before; the truth about every event is known.

For questions that clicks alone cannot answer: does the search stage of a ranker find the behaviours that matter?
"""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
from jaxtyping import Float, Int

from jaxrec.batches import CandidateBatch
from jaxrec.data.generators.synthetic import draw
from jaxrec.data.prepared import PreparedData

_START, _HOUR = 1_600_000_000, 3_600  # September 2020.


@dataclasses.dataclass(frozen=True)
class InterestOptions:
  """The process behind the events; `planted_interest` explains it.

  num_users: users.
  num_categories: C, at least 2.
  items_per_category: items of each.
  mean_events: mean number of events of a user; each has between half and one and a half times as many.
  group_size: categories that belong together: behaviours in one matter for the others and for itself, all alike.
  own_affinity: what a behaviour does to the interest in its own category; negative: lowers it.
  lowering_share: 0..1, share of the pairs of different categories inside groups in which they lower the interest.
  memory: events after which the effect of a behaviour has fallen to 1/e.
  strength: the most that the log-odds of a category rise or fall by interest.
  explore: 0..1, probability that an event ignores the history.
  popularity: exponent of the power law by which items of a category, and categories, are drawn.
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

  affinity: [C + 1, C + 1] what a behaviour in the row's category does to the interest in the column's; row and column 0
    are padding.
  weight: [C + 1] share of each category among events without a history; 0 of padding.
  memory, strength, explore: as in `InterestOptions`.
  """

  affinity: Float[np.ndarray, "C1 C1"]
  weight: Float[np.ndarray, " C1"]
  memory: float
  strength: float
  explore: float

  def relevance(self, batch: CandidateBatch) -> Float[np.ndarray, "B N"]:
    """Returns how much each behaviour moves the interest in the candidate, up or down; 0 on padding.

    It is |affinity| to the candidate's category, faded by age.
    """
    category = np.asarray(batch.history_category)
    affinity = self.affinity[category, np.asarray(batch.category)[:, None]]  # [B, N]
    return np.abs(affinity) * self._fade(batch)

  def log_odds(self, batch: CandidateBatch) -> Float[np.ndarray, " B"]:
    """Returns the log of how much more likely each candidate's category is than without the history.

    Negatives come by popularity, so no model of the category can order candidates better (behaviours that the batch
    cuts off aside).
    """
    fade = self._fade(batch)  # [B, N]
    interest = np.einsum("bn,bnc->bc", fade, self.affinity[np.asarray(batch.history_category)])  # [B, C1]
    share = _shares(interest[:, 1:], self.weight[1:], self.strength)  # [B, C]
    chosen = np.take_along_axis(share, np.asarray(batch.category)[:, None] - 1, axis=1)[:, 0]  # [B]
    weight = self.weight[np.asarray(batch.category)]
    return np.log((1 - self.explore) * chosen + self.explore * weight) - np.log(weight)

  def _fade(self, batch):
    age = np.asarray(batch.history_age)
    return np.where(age > 0, np.exp((1 - age) / self.memory), 0.0)


def planted_interest(**options) -> PreparedData:
  """Returns the events of users with interests that come and go; each category is a domain. Split leave-one-out.

  Event by event:

  1. The interest of the user in category c is the sum, over the behaviours so far, of the affinity of their category to
     c, times exp((1 - age) / memory), where the latest behaviour has age 1.
  2. Affinity is 0 between groups and `own_affinity` from a category to itself. For two categories of a group it is 1
     or, with `lowering_share`, -1, the same both ways.
  3. With probability `explore` the category is drawn by its weight (a power law). Otherwise in proportion to weight
     times exp(strength * tanh(interest / 2)).
  4. The item is drawn from the category by popularity, none twice before all have been had.

  So how much a behaviour matters depends on whether its category is in the candidate's group and on how long ago it
  was, not on the items; and what it says depends on the pair of categories. Attention has to find categories of a group
  alike, and representations have to tell them apart. `planted_interest_truth` returns the rule. Item ids are shuffled:
  they say nothing about the category.

  Args:
    **options: the fields of `InterestOptions`.

  Raises:
    ValueError: a field out of its range. TypeError: an unknown field.

  >>> data = planted_interest(num_users=3, num_categories=4, items_per_category=5, mean_events=10)
  >>> data.num_users, data.num_items, data.domain_names
  (3, 20, ('category 1', 'category 2', 'category 3', 'category 4'))
  """
  settings = InterestOptions(**options)
  _check(settings)
  rng = np.random.default_rng(settings.seed)
  truth = _truth(rng, settings)
  lengths = np.rint(settings.mean_events * rng.uniform(0.5, 1.5, settings.num_users)).astype(np.int64)
  kept = np.arange(lengths.max()) < lengths[:, None]  # [U, T]
  category, number = _simulate(rng, settings, truth, lengths.max())  # [U, T] from 1, from 0
  ids = rng.permutation(settings.num_categories * settings.items_per_category) + 1
  gaps = 1 + (_HOUR * rng.lognormal(0, 1, kept.shape)).astype(np.int64)  # [U, T]
  return PreparedData.from_columns(
    offsets=np.concatenate([[0], np.cumsum(lengths)]),
    item_id=ids[(category - 1) * settings.items_per_category + number][kept],
    domain_id=category[kept],
    timestamp=(_START + np.cumsum(gaps, axis=1))[kept],
    num_items=len(ids),
    domain_names=[f"category {c + 1}" for c in range(settings.num_categories)],
    item_domain=np.concatenate([[0], np.argsort(ids) // settings.items_per_category + 1]),
    source="planted_interest",
    options=dataclasses.asdict(settings),
  )


# What `help` shows and what the command line accepts.
planted_interest.__signature__ = inspect.signature(InterestOptions).replace(return_annotation=PreparedData)


def planted_interest_truth(data: PreparedData) -> InterestTruth:
  """Returns the rule by which the events of `data` were made, from the options that the data carry.

  Args:
    data: from `planted_interest`, or the folder in which such data were saved.

  Raises:
    ValueError: the data are from elsewhere.

  >>> data = planted_interest(num_users=3, num_categories=4, mean_events=10, group_size=1, lowering_share=0.0)
  >>> np.diag(planted_interest_truth(data).affinity).tolist()
  [0.0, -1.0, -1.0, -1.0, -1.0]
  """
  if data.meta["source"] != "planted_interest":
    raise ValueError(f"the data come from {data.meta['source']!r}; the rule of source 'planted_interest' only is known")
  settings = InterestOptions(**data.meta["options"])
  return _truth(np.random.default_rng(settings.seed), settings)


def _truth(rng, settings) -> InterestTruth:
  """The first draws of the generator, so that the same seed gives the same rule."""
  count = settings.num_categories
  sign = np.triu(np.where(rng.random((count, count)) < settings.lowering_share, -1.0, 1.0))
  np.fill_diagonal(sign, settings.own_affinity)
  group = rng.permutation(count) // settings.group_size
  affinity = np.zeros((count + 1, count + 1))
  affinity[1:, 1:] = np.where(group[:, None] == group, sign + np.triu(sign, 1).T, 0.0)
  weight = np.concatenate([[0.0], rng.permutation(_power_law(count, settings.popularity))])
  return InterestTruth(affinity, weight, settings.memory, settings.strength, settings.explore)


def _simulate(rng, settings, truth, num_steps) -> tuple[Int[np.ndarray, "U T"], Int[np.ndarray, "U T"]]:
  """Categories and numbers of items inside them: all users at once, step after step."""
  users, count = np.arange(settings.num_users), settings.num_categories
  category = np.zeros((len(users), num_steps), np.int64)
  number = np.zeros_like(category)
  interest = np.zeros((len(users), count))
  unseen = np.ones((len(users), count, settings.items_per_category), bool)
  popularity = _power_law(settings.items_per_category, settings.popularity)
  for t in range(num_steps):
    share = _shares(interest, truth.weight[1:], truth.strength)  # [U, C]
    share = np.where(rng.random((len(users), 1)) < truth.explore, truth.weight[1:], share)
    chosen = draw(rng, share)  # [U] from 0
    category[:, t], number[:, t] = chosen + 1, _items(rng, unseen, users, chosen, popularity)
    interest = interest * np.exp(-1 / truth.memory) + truth.affinity[chosen + 1, 1:]
  return category, number


def _items(rng, unseen, users, chosen, popularity):
  """Draws an item for each user and remembers it."""
  fresh = unseen[users, chosen]  # [U, items]
  weights = popularity * (fresh | ~fresh.any(axis=1, keepdims=True))
  number = draw(rng, weights / weights.sum(axis=1, keepdims=True))
  unseen[users, chosen, number] = False
  return number


def _shares(interest, weight, strength) -> Float[np.ndarray, "U C"]:
  odds = weight * np.exp(strength * np.tanh(interest / 2))
  return odds / odds.sum(axis=1, keepdims=True)


def _power_law(count, exponent) -> Float[np.ndarray, " count"]:
  weights = 1.0 / np.arange(1, count + 1) ** exponent
  return weights / weights.sum()


def _check(settings):
  for name, least in (("num_users", 1), ("num_categories", 2), ("items_per_category", 1), ("group_size", 1)):
    if getattr(settings, name) < least:
      raise ValueError(f"{name}={getattr(settings, name)} must be at least {least}")
  for name in ("lowering_share", "explore"):
    if not 0 <= getattr(settings, name) <= 1:
      raise ValueError(f"{name}={getattr(settings, name)} must be between 0 and 1")
  if settings.mean_events < 6 or settings.memory <= 0:
    raise ValueError(f"mean_events={settings.mean_events} must be at least 6 and memory={settings.memory} above 0")
