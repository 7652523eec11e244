"""Users whose category says which behaviours matter and whose style says what they say; the truth is known.

For the question of decoupled embeddings: attention has to tell categories apart and to ignore styles, representations
have to tell styles apart in the same way in all categories. One narrow table cannot do both.
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
  takes_fields_of,
)
from jaxrec.data.prepared import PreparedData


@dataclasses.dataclass(frozen=True)
class StyleOptions:
  """Parameters of the process that `planted_styles` describes.

  num_users: number of users.
  num_categories: C, at least 2.
  items_per_category: items in each category, a multiple of `num_styles`.
  num_styles: S, at least 2; every category has items of each style.
  mean_events: mean number of events per user; uniform between 0.5 and 1.5 times the mean.
  memory: number of events after which the effect of a behaviour has fallen to 1/e.
  strength: bound on the change of a category's log-odds by interest.
  explore: probability that the category of an event ignores the history.
  keep_style: probability that an event has the user's own style of its category; otherwise any.
  popularity: exponent of the power law by which items of a style in a category are drawn. Categories are equally
    likely: interest would make those that are likely still more frequent, and popularity would tell who clicked.
  seed: the same seed gives the same data.
  """

  num_users: int = 2000
  num_categories: int = 300
  items_per_category: int = 160
  num_styles: int = 8
  mean_events: float = 240.0
  memory: float = 100.0
  strength: float = 3.0
  explore: float = 0.15
  keep_style: float = 0.8
  popularity: float = 0.4
  seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class StyleTruth:
  """The rule by which `planted_styles` made its events.

  num_categories: C.
  item_style: [V + 1] style 1..S of each item; 0 for padding.
  memory, strength, explore, keep_style: as in `StyleOptions`.
  """

  num_categories: int
  item_style: Int[np.ndarray, " V1"]
  memory: float
  strength: float
  explore: float
  keep_style: float

  def relevance(self, batch: CandidateBatch) -> Float[np.ndarray, "B N"]:
    """Returns how much each behaviour says about the candidate: a decay with age in its category, 0 in others."""
    is_same = np.asarray(batch.history_category) == np.asarray(batch.category)[:, None]
    return is_same * self._decay(batch)

  def log_odds(self, batch: CandidateBatch) -> Float[np.ndarray, " B"]:
    """Returns log(p / q) of the candidate's category and style: p given the history, q without it.

    The user's style of the category is not known: its probability follows from the styles of the behaviours in it.
    """
    category = np.asarray(batch.category)
    interest = np.zeros((len(category), self.num_categories + 1))
    np.add.at(interest, (np.arange(len(category))[:, None], np.asarray(batch.history_category)), self._decay(batch))
    probability = _probabilities(interest[:, 1:], self.strength)  # [B, C]
    chosen = np.take_along_axis(probability, category[:, None] - 1, axis=1)[:, 0]  # [B]
    of_category = np.log((1 - self.explore) * chosen * self.num_categories + self.explore)
    return of_category + self._style_log_odds(batch)

  def _style_log_odds(self, batch):
    history, num_styles = self.item_style[np.asarray(batch.history_item)], int(self.item_style.max())
    is_same = np.asarray(batch.history_category) == np.asarray(batch.category)[:, None]  # Padding has style 0.
    seen = np.stack([(is_same & (history == s)).sum(axis=1) for s in range(1, num_styles + 1)], axis=1)  # [B, S]
    by_chance = max((1 - self.keep_style) / num_styles, 1e-12)
    log_posterior = seen * np.log(1 + self.keep_style / by_chance)
    posterior = normalize(np.exp(log_posterior - log_posterior.max(axis=1, keepdims=True)))
    of_candidate = self.item_style[np.asarray(batch.item)][:, None] - 1
    own = np.take_along_axis(posterior, of_candidate, axis=1)[:, 0]  # [B]
    return np.log(num_styles * (by_chance + self.keep_style * own))

  def _decay(self, batch):
    age = np.asarray(batch.history_age)
    return np.where(age > 0, np.exp((1 - age) / self.memory), 0.0)


@takes_fields_of(StyleOptions)
def planted_styles(**options) -> PreparedData:
  """Returns the events of users with interests and styles, split leave-one-out; each category is a domain.

  Every user has a style of their own for each category, drawn once. Event by event:

  1. The user's interest in a category is the sum, over the earlier behaviours in it, of exp((1 - age) / memory), where
     the latest behaviour has age 1.
  2. With probability `explore` the category is any of the C, otherwise it is drawn in proportion to exp(strength *
     tanh(interest / 2)).
  3. The style is the user's own in that category with probability `keep_style`, otherwise any of the S.
  4. The item is drawn by popularity from those of the category and style; items may repeat.

  Whether a behaviour matters for a candidate depends on its category and hardly on its age; what it says depends on its
  style, which means the same in all categories. Negatives that are targets of others (`CandidateOptions.negatives_from`
  "split", without `exclude_clicked`) are as popular as positives, and then no model does better than
  `StyleTruth.log_odds`, but for what the batch cuts off.
  `planted_styles_truth` returns the rule. Item ids are a random permutation.

  Args:
    **options: the fields of `StyleOptions`.

  Raises:
    ValueError: a field is out of range.
    TypeError: an unknown field.

  >>> data = planted_styles(num_users=3, num_categories=4, items_per_category=6, num_styles=2, mean_events=10)
  >>> data.num_users, data.num_items, data.num_domains
  (3, 24, 4)
  """
  settings = StyleOptions(**options)
  _check(settings)
  rng = np.random.default_rng(settings.seed)
  ids = _rule(rng, settings)
  lengths = sample_lengths(rng, settings.num_users, settings.mean_events)
  is_real = real_steps(lengths)  # [U, T]
  category, index = _simulate(rng, settings, lengths.max())  # [U, T], both from 0
  return PreparedData.from_columns(
    offsets=offsets_of(lengths),
    item_id=ids[category * settings.items_per_category + index][is_real],
    domain_id=category[is_real] + 1,
    timestamp=sample_times(rng, is_real.shape)[is_real],
    num_items=len(ids),
    domain_names=[f"category {c + 1}" for c in range(settings.num_categories)],
    item_domain=np.concatenate([[0], np.argsort(ids) // settings.items_per_category + 1]),
    source="planted_styles",
    options=dataclasses.asdict(settings),
  )


def planted_styles_truth(data: PreparedData) -> StyleTruth:
  """Returns the rule by which the events of `data` were made, from the options recorded in it.

  Args:
    data: made by `planted_styles`, in memory or loaded.

  Raises:
    ValueError: the data has another source.

  >>> data = planted_styles(num_users=3, num_categories=4, items_per_category=6, num_styles=2, mean_events=10)
  >>> np.bincount(planted_styles_truth(data).item_style).tolist()
  [1, 12, 12]
  """
  settings = options_of(data, "planted_styles", StyleOptions)
  ids = _rule(np.random.default_rng(settings.seed), settings)
  of_style = settings.items_per_category // settings.num_styles
  style = np.argsort(ids) % settings.items_per_category // of_style + 1
  rule = (settings.memory, settings.strength, settings.explore, settings.keep_style)
  return StyleTruth(settings.num_categories, np.concatenate([[0], style]), *rule)


def _rule(rng, settings) -> Int[np.ndarray, " V"]:
  """Returns the ids of the items; the first draw, so that a seed always gives this rule."""
  return rng.permutation(settings.num_categories * settings.items_per_category) + 1


def _simulate(rng, settings, num_steps) -> tuple[Int[np.ndarray, "U T"], Int[np.ndarray, "U T"]]:
  """Returns categories and indices of items inside them, for all users at once, one event after another."""
  users, num_styles = np.arange(settings.num_users), settings.num_styles
  own_style = rng.integers(num_styles, size=(len(users), settings.num_categories))
  category = np.zeros((len(users), num_steps), np.int64)
  index = np.zeros_like(category)
  interest = np.zeros((len(users), settings.num_categories))
  of_style = settings.items_per_category // num_styles
  popularity = normalize(power_law(of_style, settings.popularity))
  for t in range(num_steps):
    probability = _probabilities(interest, settings.strength)  # [U, C]
    explores = rng.random((len(users), 1)) < settings.explore
    probability = np.where(explores, 1 / settings.num_categories, probability)
    chosen = sample_categorical(rng, probability)  # [U]
    keeps = rng.random(len(users)) < settings.keep_style
    style = np.where(keeps, own_style[users, chosen], rng.integers(num_styles, size=len(users)))
    category[:, t], index[:, t] = chosen, style * of_style + rng.choice(of_style, size=len(users), p=popularity)
    interest *= np.exp(-1 / settings.memory)
    interest[users, chosen] += 1
  return category, index


def _probabilities(interest, strength) -> Float[np.ndarray, "U C"]:
  return normalize(np.exp(strength * np.tanh(interest / 2)))


def _check(settings):
  at_least = {"num_users": 1, "num_categories": 2, "items_per_category": 1, "num_styles": 2}
  check_ranges(settings, at_least, probabilities=("explore", "keep_style"))
  if settings.memory <= 0:
    raise ValueError(f"memory={settings.memory} must be above 0")
  if settings.items_per_category % settings.num_styles:
    raise ValueError(
      f"items_per_category={settings.items_per_category} must be a multiple of num_styles={settings.num_styles}"
    )
