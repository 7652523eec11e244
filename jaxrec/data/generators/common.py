"""What the generators share: random draws, event times, option checks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxrec.data.prepared import PreparedData
from jaxrec.data.seeds import check_seed

START_SECOND = 1_600_000_000  # September 2020.
HOUR = 3_600
GENRES = (
  "mystery", "romance", "history", "space", "comedy", "travel", "sports", "cooking", "horror", "nature", "music", "war",
)  # fmt: skip

_MIN_MEAN_EVENTS = 6

_Options = TypeVar("_Options")


def takes_fields_of(options: type) -> Callable[[Callable[..., PreparedData]], Callable[..., PreparedData]]:
  """Returns a decorator that gives a generator the signature of a dataclass, for `help` and the command line."""

  def decorate(generator):
    generator.__signature__ = inspect.signature(options).replace(return_annotation=PreparedData)
    return generator

  return decorate


def options_of(data: PreparedData, source: str, options: type[_Options]) -> _Options:
  """Returns the options from which a generator made `data`, as recorded in its `meta`.

  Raises:
    ValueError: the data has another source.
  """
  if data.meta["source"] != source:
    raise ValueError(
      f"the truth is known for source {source!r} only; the source of the data is {data.meta['source']!r}"
    )
  return options(**data.meta["options"])


def check_ranges(options: Any, at_least: Mapping[str, int], probabilities: Sequence[str]) -> None:
  """Checks the seed, fields that have a minimum, fields between 0 and 1, and `mean_events`.

  Raises:
    ValueError: names the first field out of range.
  """
  check_seed("seed", options.seed)
  for name, minimum in at_least.items():
    if getattr(options, name) < minimum:
      raise ValueError(f"{name}={getattr(options, name)} must be at least {minimum}")
  for name in probabilities:
    if not 0 <= getattr(options, name) <= 1:
      raise ValueError(f"{name}={getattr(options, name)} must be between 0 and 1")
  if options.mean_events < _MIN_MEAN_EVENTS:
    raise ValueError(
      f"mean_events={options.mean_events} must be at least {_MIN_MEAN_EVENTS}; a split needs some history"
    )


def sample_lengths(rng: np.random.Generator, num_users: int, mean_events: float) -> Int[np.ndarray, " U"]:
  """Returns the number of events of each user, uniform between 0.5 and 1.5 times the mean."""
  return np.rint(mean_events * rng.uniform(0.5, 1.5, num_users)).astype(np.int64)


def sample_times(rng: np.random.Generator, shape: tuple[int, int]) -> Int[np.ndarray, "U T"]:
  """Returns the seconds of successive events, about an hour from one to the next (log-normal)."""
  gaps = 1 + (HOUR * rng.lognormal(0, 1, shape)).astype(np.int64)  # [U, T]
  return START_SECOND + np.cumsum(gaps, axis=1)


def offsets_of(lengths: Int[np.ndarray, " U"]) -> Int[np.ndarray, " U1"]:
  """Returns where each user's events begin in the columns; the last entry is the number of events."""
  return np.concatenate([[0], np.cumsum(lengths)])


def real_steps(lengths: Int[np.ndarray, " U"]) -> Bool[np.ndarray, "U T"]:
  """Returns which steps of a simulation become events: the first `lengths[u]` of each user.

  >>> real_steps(np.array([1, 3])).astype(int).tolist()
  [[1, 0, 0], [1, 1, 1]]
  """
  return np.arange(lengths.max()) < lengths[:, None]


def sample_categorical(
  rng: np.random.Generator, probabilities: Float[np.ndarray, "*batch G"]
) -> Int[np.ndarray, "*batch"]:
  """Returns one index drawn from each distribution along the last axis."""
  above = rng.random(probabilities.shape[:-1])[..., None] > np.cumsum(probabilities, axis=-1)
  return np.minimum(above.sum(axis=-1), probabilities.shape[-1] - 1)


def sample_unseen(
  rng: np.random.Generator, weights: Float[np.ndarray, " I"], unseen: Bool[np.ndarray, "U I"]
) -> Int[np.ndarray, " U"]:
  """Returns one index per user in proportion to the weights, among the unseen ones, or all if none is unseen."""
  allowed = unseen | ~unseen.any(axis=1, keepdims=True)
  return sample_categorical(rng, normalize(weights * allowed))


def power_law(count: int, exponent: float) -> Float[np.ndarray, " count"]:
  """Returns the weights 1, 2**-exponent, 3**-exponent, ..."""
  return 1.0 / np.arange(1, count + 1) ** exponent


def normalize(weights: Float[np.ndarray, "*batch I"]) -> Float[np.ndarray, "*batch I"]:
  """Returns weights that sum to 1 along the last axis.

  >>> normalize(np.array([1.0, 3.0])).tolist()
  [0.25, 0.75]
  """
  return weights / weights.sum(axis=-1, keepdims=True)


def genre_names(count: int) -> list[str]:
  """Returns `count` names for genres.

  >>> genre_names(2), genre_names(13)[-1]
  (['mystery', 'romance'], 'genre13')
  """
  return [GENRES[g] if g < len(GENRES) else f"genre{g + 1}" for g in range(count)]
