"""Encodes the histories of strangers in one batch and event by event: equal query vectors, and the time of both.

    PYTHONPATH=. python tests/programs/strangers_at_once.py --users=200 --events=1000

Strangers have up to `--events` events, drawn uniformly. Event by event means a program call for each event, of all
strangers together (`IncrementalModel`), and of single strangers, as a server would without prefill.
"""

import argparse
import time
from typing import NamedTuple

import jax
import numpy as np

import jaxrec
from jaxrec.serving.histories import histories_of_events
from jaxrec.serving.incremental import IncrementalModel

DAY = 86_400


class Comparison(NamedTuple):
  """Seconds of the first call, which compiles, and of the second one; the largest difference of vectors and scores."""

  at_once: tuple[float, float]
  together: tuple[float, float]
  alone: tuple[float, float]
  vectors: float
  scores: float


def main():
  """Prints the comparison."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--users", type=int, default=200)
  parser.add_argument("--events", type=int, default=1000)
  parser.add_argument("--alone", type=int, default=2, help="strangers to encode one by one")
  options = parser.parse_args()
  made = recommender(options.events)
  histories = strangers(made.data, options.users, options.events)
  found = compare(made, histories, options.alone)
  events = sum(map(len, histories))
  print(f"{options.users} strangers, {events:,} events; seconds of the first and the second call")
  print(f"one batch (Recommender.recommend):   {found.at_once[0]:8.2f} {found.at_once[1]:8.3f}")
  print(f"event by event, all together:        {found.together[0]:8.2f} {found.together[1]:8.3f}")
  print(f"event by event, {options.alone} strangers alone:   {found.alone[0]:8.2f} {found.alone[1]:8.3f}")
  print(f"largest difference: query vectors {found.vectors:.1e}, scores of recommended items {found.scores:.1e}")


def compare(made, histories, alone=1):
  """Returns the `Comparison` for histories of raw events.

  Args:
    made: a recommender whose model reads histories of this length.
    histories: lists of `(item, time)`.
    alone: how many of them are encoded one by one too.
  """
  columns = histories_of_events(made.data, histories)
  found, at_once = timed(lambda: made.recommend(histories=histories, k=10))
  vectors, together = timed(lambda: event_by_event(made, columns))
  single, apart = timed(
    lambda: np.concatenate([event_by_event(made, columns.take(np.array([row]))) for row in range(alone)])
  )
  expected = made.user_vectors(histories=histories)
  difference = max(np.abs(vectors - expected).max(), np.abs(single - expected[:alone]).max())
  pairs = [(row, item) for row, one in enumerate(found) for item in one.items]
  row, item = np.array([(row, made.data.item_index(item.item) - 1) for row, item in pairs]).T
  scores = (vectors[row] * made.item_vectors()[item]).sum(axis=1)
  given = np.array([item.score for _, item in pairs])
  return Comparison(at_once, together, apart, float(difference), float(np.abs(scores - given).max()))


def event_by_event(made, columns):
  """Returns the query vectors of `Histories`, from a call of a program for each event."""
  model = IncrementalModel(made.model, made.params, made.config.data.request_time)
  lengths = columns.lengths
  grid = np.zeros((3, len(columns), int(lengths.max())), np.int32)
  for row in range(len(columns)):
    span = columns.span(row)
    times = columns.timestamp[span] - columns.timestamp[span][0]
    domains = np.minimum(columns.domain_id[span], made.model.num_domains)
    grid[:, row, : lengths[row]] = columns.item_id[span], domains, times
  state = model.start(len(columns), made.config.data.max_length)
  for place in range(grid.shape[2]):
    state = model.observe(state, *grid[:, :, place])
  last = np.arange(len(columns)), lengths - 1
  return np.asarray(model.query(state, grid[1][last], grid[2][last]))


def strangers(data, users, events):
  """Returns histories of random lengths, items and days."""
  rng = np.random.default_rng(0)
  names = data.items["raw_id"].to_list()
  histories = []
  for length in rng.integers(1, events, size=users, endpoint=True):
    items, days = rng.integers(len(names), size=length), np.cumsum(rng.integers(3, size=length))
    histories.append([(names[item], DAY * int(day)) for item, day in zip(items, days, strict=True)])
  return histories


def recommender(longest):
  """Returns an HSTU of two layers with random parameters and 3,696 items, for histories of this length."""
  data = jaxrec.synthetic_data(num_users=50, num_items=3696)
  model = jaxrec.HSTU(
    num_items=data.num_items, width=64, num_layers=2, num_heads=2, head_width=32, value_width=32,
    max_positions=longest, attention_length=longest,
  )  # fmt: skip
  batch = jaxrec.next_item_batch(np.ones((1, 4), np.int32))
  config = jaxrec.default_config()
  config.data.max_length = longest
  return jaxrec.Recommender(model, jax.jit(model.init)(jax.random.key(0), batch)["params"], data, config)


def timed(function):
  """Returns the result of a function, and the seconds of its first and its second call."""
  seconds = []
  for _ in range(2):
    start = time.perf_counter()
    result = function()
    seconds.append(time.perf_counter() - start)
  return result, tuple(seconds)


if __name__ == "__main__":
  main()
