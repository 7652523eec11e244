"""A stream of records whose items keep appearing, and in which what was chosen is chosen again.

For questions about changing vocabularies, and about attention that must count: how often an item was in a history says
how likely it is to be next.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from jaxrec.data.generators.common import HOUR, START_SECOND, offsets_of, takes_fields_of
from jaxrec.data.prepared import TEST, TRAIN, VALIDATION, PreparedData
from jaxrec.data.seeds import check_seed


@dataclasses.dataclass(frozen=True)
class StreamingOptions:
  """Parameters of the process that `streaming_vocabulary` describes.

  num_records: records, each of them a user.
  num_items: V, all of which are there at the end; a multiple of num_categories.
  num_categories: each item is in one.
  length: events of a record, at least 3.
  most_categories: a record has 1 to so many.
  least_concentration, most_concentration: between which the concentration of a record is drawn; a small one repeats
    few items, a large one takes new ones.
  initial_share: share of the items that are there at the beginning, above 0 and up to 1.
  held_out_share: share of the records, the last ones, that are for validation, and again for test; below 0.5.
  seed: the same seed gives the same data.
  """

  num_records: int = 20_000
  num_items: int = 20_000
  num_categories: int = 100
  length: int = 128
  most_categories: int = 5
  least_concentration: float = 1.0
  most_concentration: float = 500.0
  initial_share: float = 0.4
  held_out_share: float = 0.05
  seed: int = 0


@takes_fields_of(StreamingOptions)
def streaming_vocabulary(**options) -> PreparedData:
  """Returns records in the order of a stream; whole records are held out, those at its end.

  Items appear at equal intervals: `initial_share` of them are there at the beginning, all of them when the first
  held-out record comes. Each record draws how many categories it has, 1 to `most_categories`, which ones, and a
  concentration a. Its event t = 0, 1, ... is, with probability a / (a + t), a new draw: one of its categories, then one
  of the items of that category that are there, each equally likely. Otherwise it repeats one of its t events so far,
  each equally likely. So the probability of an item is (a * prior + its count so far) / (a + t), a Chinese restaurant
  process. A record takes its events within seconds, and the next one comes an hour later. Item ids are a random
  permutation, and say nothing about category or age.

  Train it in the order of the data, once: `config.data.order="given"`, `config.train.num_epochs=1`, and evaluate with
  the items of a record among the candidates, `config.eval.exclude_seen=False`.

  Args:
    **options: the fields of `StreamingOptions`.

  Raises:
    ValueError: a field is out of range.
    TypeError: an unknown field.

  Source: Zhai et al. 2024, arXiv 2402.17152, section 4.1.2 and appendix C: a streaming Dirichlet process, records of
    at most 5 of 100 categories, items that keep appearing.
  Choice: the numbers of items and records, the length, the range of the concentration and the initial share are not
    those of the paper as far as it is known here; counts are those of a record, not of all records.

  >>> data = streaming_vocabulary(num_records=40, num_items=20, num_categories=5, length=6)
  >>> data.num_users, data.num_items, np.bincount(data.split).tolist()
  (40, 20, [216, 12, 12])
  """
  settings = StreamingOptions(**options)
  _check(settings)
  rng = np.random.default_rng(settings.seed)
  item = _simulate(rng, settings)  # [U, T]
  ids = rng.permutation(settings.num_items) + 1
  records, length = item.shape
  start = START_SECOND + HOUR * np.arange(records)[:, None]
  split = np.full(records, TRAIN)
  split[records - 2 * _held_out(settings) :] = VALIDATION
  split[records - _held_out(settings) :] = TEST
  return PreparedData.from_columns(
    offsets=offsets_of(np.full(records, length)),
    item_id=ids[item.ravel()],
    timestamp=(start + np.arange(length)).ravel(),
    split=np.repeat(split, length),
    num_items=settings.num_items,
    source="streaming",
    options=dataclasses.asdict(settings),
  )


def items_there(settings: StreamingOptions) -> Int[np.ndarray, " U"]:
  """Returns how many items there are when each record comes.

  >>> items_there(StreamingOptions(num_records=10, num_items=100, held_out_share=0.2, initial_share=0.5)).tolist()
  [50, 58, 67, 75, 83, 92, 100, 100, 100, 100]
  """
  training = settings.num_records - 2 * _held_out(settings)
  progress = np.minimum(np.arange(settings.num_records) / max(training, 1), 1)
  share = settings.initial_share + (1 - settings.initial_share) * progress
  return np.rint(share * settings.num_items).astype(np.int64)


def _simulate(rng: np.random.Generator, settings: StreamingOptions) -> Int[np.ndarray, "U T"]:
  """Draws the items of all records at once, one event after another; item i is the i-th to appear."""
  count, categories = settings.num_records, settings.num_categories
  record = np.arange(count)
  concentration = rng.uniform(settings.least_concentration, settings.most_concentration, count)
  num_chosen = rng.integers(1, settings.most_categories + 1, count)
  chosen = rng.permuted(np.broadcast_to(np.arange(categories), (count, categories)), axis=1)
  chosen = chosen[:, : settings.most_categories]  # [U, most_categories]
  there = items_there(settings)
  item = np.zeros((count, settings.length), np.int64)
  for t in range(settings.length):
    category = chosen[record, (rng.random(count) * num_chosen).astype(np.int64)]
    of_category = _count_of(category, there, categories)
    new = category + categories * (rng.random(count) * of_category).astype(np.int64)
    again = item[record, (rng.random(count) * t).astype(np.int64)]
    item[:, t] = np.where(rng.random(count) < concentration / (concentration + t), new, again)
  return item


def _count_of(category, there, num_categories):
  """How many of the first `there` items are in a category, where item i is in category i modulo their number."""
  return (there - category - 1) // num_categories + 1


def event_probability(
  settings: StreamingOptions, history: Int[np.ndarray, " t"], categories: Int[np.ndarray, " c"], concentration: float,
  there: int,
) -> Float[np.ndarray, " V"]:  # fmt: skip
  """Returns the probability of each item to be the next event of a record, items in the order of their appearance.

  Args:
    settings: of the stream.
    history: the record's items so far.
    categories: of the record.
    concentration: of the record.
    there: items that have appeared.

  >>> settings = StreamingOptions(num_items=4, num_categories=2)
  >>> event_probability(settings, np.array([0]), np.array([0]), concentration=1.0, there=4).tolist()
  [0.75, 0.0, 0.25, 0.0]
  """
  prior = np.zeros(settings.num_items)
  for category in categories:
    items = np.arange(category, there, settings.num_categories)
    prior[items] = 1 / len(items) / len(categories)
  counts = np.bincount(history, minlength=settings.num_items)
  return (concentration * prior + counts) / (concentration + len(history))


def _held_out(settings: StreamingOptions) -> int:
  return max(1, round(settings.held_out_share * settings.num_records))


def _check(settings: StreamingOptions) -> None:
  check_seed("seed", settings.seed)
  least = {"num_records": 3, "num_items": 1, "num_categories": 1, "length": 3, "most_categories": 1}
  for name, minimum in least.items():
    if getattr(settings, name) < minimum:
      raise ValueError(f"{name}={getattr(settings, name)} must be at least {minimum}")
  if settings.num_items % settings.num_categories:
    raise ValueError(f"{settings.num_items=} must be a multiple of {settings.num_categories=}")
  if settings.most_categories > settings.num_categories:
    raise ValueError(f"{settings.most_categories=} must be at most {settings.num_categories=}")
  if not 0 < settings.least_concentration <= settings.most_concentration:
    raise ValueError(f"{settings.least_concentration=} must be above 0 and at most {settings.most_concentration=}")
  if not 0 < settings.initial_share <= 1 or not 0 <= settings.held_out_share < 0.5:
    raise ValueError(f"{settings.initial_share=} must be above 0 and up to 1, {settings.held_out_share=} in 0..0.5")
  if settings.initial_share * settings.num_items < settings.num_categories:
    raise ValueError(
      f"{settings.initial_share=} of {settings.num_items=} leaves one of {settings.num_categories=} without items at"
      " the beginning; raise one of the first two"
    )
