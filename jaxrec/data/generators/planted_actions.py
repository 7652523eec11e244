"""Events with actions whose true probabilities are known, given the history that a model may read.

For questions that need a floor: how close a ranking model comes to the entropy of the actions, and whether its
probabilities are right.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxrec.data.generators.common import (
  check_ranges,
  genre_names,
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

KINDS = {"like": "binary", "reaction": "multi_class", "seconds": "regression"}
NUM_REACTIONS = 3


@dataclasses.dataclass(frozen=True)
class ActionOptions:
  """Parameters of the process that `planted_actions` describes.

  num_users: number of users.
  num_genres: C; each is a domain.
  items_per_genre: items in each genre.
  mean_events: mean number of events per user; uniform between 0.5 and 1.5 times the mean.
  memory: number of events after which the effect of a like has fallen to 1/e.
  strength: greatest change of log-odds by the history.
  quality: standard deviation of what an item itself adds to log-odds.
  noise: standard deviation of `seconds` around its mean.
  popularity: exponent of the power law by which items of a genre are shown.
  seed: the same seed gives the same data.
  """

  num_users: int = 2000
  num_genres: int = 6
  items_per_genre: int = 20
  mean_events: float = 60.0
  memory: float = 8.0
  strength: float = 2.0
  quality: float = 0.7
  noise: float = 8.0
  popularity: float = 0.4
  seed: int = 0


class Truth(NamedTuple):
  """The distributions from which actions are drawn.

  like: probability of a like.
  reaction: probability of each reaction.
  seconds: mean of `seconds`, whose noise is normal with a known standard deviation.
  """

  like: Float[np.ndarray, "*batch"]
  reaction: Float[np.ndarray, "*batch 3"]
  seconds: Float[np.ndarray, "*batch"]


@takes_fields_of(ActionOptions)
def planted_actions(**options) -> PreparedData:
  """Returns events with the actions `like`, `reaction` and `seconds`, split leave-one-out.

  Items are shown at random, whatever the history. A user's mood in a genre is the sum of +1 for each earlier like and
  -1 for each earlier event without one in it, each times exp((1 - age) / memory), where the event before has age 1 and
  events in other genres count as well; m = tanh(mood / 2). Then

  1. like is 1 with log-odds strength * m + the item's quality;
  2. reaction 0, 1 or 2 is drawn from softmax(0, strength * m, quality - strength * m);
  3. seconds is 30 + 10 * strength * m + 5 * quality, plus normal noise.

  All that they depend on is in the history and the item; `planted_action_truth` returns it. Item ids are a random
  permutation, so they carry no information about the genre.

  Args:
    **options: the fields of `ActionOptions`.

  Raises:
    ValueError: a field is out of range.
    TypeError: an unknown field.

  >>> data = planted_actions(num_users=3, num_genres=2, items_per_genre=4, mean_events=10)
  >>> data.num_users, data.num_items, sorted(data.actions)
  (3, 8, ['like', 'reaction', 'seconds'])
  """
  settings = ActionOptions(**options)
  check_ranges(settings, {"num_users": 1, "num_genres": 1, "items_per_genre": 1}, probabilities=())
  if min(settings.memory, settings.noise) <= 0:
    raise ValueError(f"{settings.memory=} and {settings.noise=} must be above 0")
  rng = np.random.default_rng(settings.seed)
  quality, genre_of = _items(rng, settings)
  lengths = sample_lengths(rng, settings.num_users, settings.mean_events)
  is_real = real_steps(lengths)  # [U, T]
  item = _shown(rng, settings, genre_of, is_real.shape)  # [U, T]
  actions = _simulate(rng, settings, genre_of[item], quality[item])
  return PreparedData.from_columns(
    offsets=offsets_of(lengths),
    item_id=item[is_real],
    domain_id=genre_of[item[is_real]],
    timestamp=sample_times(rng, is_real.shape)[is_real],
    actions={name: values[is_real] for name, values in actions.items()},
    action_kinds=KINDS,
    num_items=len(quality) - 1,
    domain_names=genre_names(settings.num_genres),
    item_domain=genre_of,
    source="planted_actions",
    options=dataclasses.asdict(settings),
  )


def planted_action_truth(data: PreparedData) -> Truth:
  """Returns the distributions from which the actions of each event of `data` were drawn, given the events before it.

  Args:
    data: made by `planted_actions`, in memory or loaded.

  Raises:
    ValueError: the data has another source.

  >>> data = planted_actions(num_users=2, mean_events=6, strength=0.0, quality=0.0)
  >>> truth = planted_action_truth(data)
  >>> set(truth.like.tolist()), set(truth.seconds.tolist())
  ({0.5}, {30.0})
  """
  settings = options_of(data, "planted_actions", ActionOptions)
  quality, genre_of = _items(np.random.default_rng(settings.seed), settings)
  is_real = real_steps(np.diff(data.offsets))
  item, like = np.zeros(is_real.shape, np.int64), np.zeros(is_real.shape, np.int64)
  item[is_real], like[is_real] = data.item_id, data.actions["like"]
  mood = _Mood(len(item), settings)
  found = []
  for t in range(item.shape[1]):
    genre = genre_of[item[:, t]]
    found.append(_distributions(settings, mood.of(genre), quality[item[:, t]]))
    mood.add(genre, like[:, t])
  return Truth(*(np.stack(values, axis=1)[is_real] for values in zip(*found, strict=True)))


def _items(rng, settings) -> tuple[Float[np.ndarray, " V1"], Int[np.ndarray, " V1"]]:
  """Returns quality and genre of each item; its draws are the generator's first ones, so that they can be repeated."""
  count = settings.num_genres * settings.items_per_genre
  quality = np.concatenate([[0.0], settings.quality * rng.normal(size=count)])
  genre = np.concatenate([[0], rng.permutation(count) % settings.num_genres + 1])
  return quality, genre


def _shown(rng, settings, genre_of, shape) -> Int[np.ndarray, "U T"]:
  genre = rng.integers(1, settings.num_genres + 1, shape)
  rank = sample_categorical(
    rng,
    np.broadcast_to(
      normalize(power_law(settings.items_per_genre, settings.popularity)), (*shape, settings.items_per_genre)
    ),
  )
  items_of = np.stack([np.flatnonzero(genre_of == g) for g in range(1, settings.num_genres + 1)])  # [C, items]
  return items_of[genre - 1, rank]


def _simulate(rng, settings, genre, quality) -> dict[str, np.ndarray]:
  """Draws the actions of all users at once, one event after another."""
  actions = {name: np.zeros(genre.shape) for name in KINDS}
  mood = _Mood(len(genre), settings)
  for t in range(genre.shape[1]):
    truth = _distributions(settings, mood.of(genre[:, t]), quality[:, t])
    actions["like"][:, t] = rng.random(len(genre)) < truth.like
    actions["reaction"][:, t] = sample_categorical(rng, truth.reaction)
    actions["seconds"][:, t] = truth.seconds + settings.noise * rng.normal(size=len(genre))
    mood.add(genre[:, t], actions["like"][:, t])
  return actions


class _Mood:
  """The mood of U users in each genre."""

  def __init__(self, num_users, settings):
    self._value, self._keep = np.zeros((num_users, settings.num_genres + 1)), np.exp(-1 / settings.memory)
    self._user = np.arange(num_users)

  def of(self, genre):
    return np.tanh(self._value[self._user, genre] / 2)

  def add(self, genre, like):
    self._value *= self._keep
    self._value[self._user, genre] += 2 * like - 1


def _distributions(settings, mood, quality) -> Truth:
  push = settings.strength * mood
  logits = np.stack([np.zeros_like(push), push, quality - push], axis=-1)
  return Truth(1 / (1 + np.exp(-push - quality)), normalize(np.exp(logits)), 30 + 10 * push + 5 * quality)
