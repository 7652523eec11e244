"""Stochastic Length: long histories are mostly trained on as shorter ones, a subsequence of theirs.

    n events, of at most N     n <= N^(alpha/2): all of them
                               else all with probability N^alpha / n^2, a subsequence of N^(alpha/2) otherwise

so that attention costs O(N^alpha) a history instead of O(N^2).

Source: Zhai et al. 2024, arXiv 2402.17152, section 3.2 and appendix F.
Choice: whether an example is shortened is drawn once, so that all epochs have batches of the same size; which of its
  events are kept is drawn anew in each.
Choice: if all events of an example are predicted, the ones left out are neither read nor predicted; otherwise targets
  stay.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from jaxrec.data.batches.ranking_rows import Examples, TokenEvents
from jaxrec.data.batches.rows import EventColumns
from jaxrec.data.batches.splitmix import GOLDEN_GAMMA, mix_bits

RULES = ("recent", "uniform", "recency")


@dataclasses.dataclass(frozen=True)
class StochasticLength:
  """Which histories are shortened, and how.

  alpha: above 1 and at most 2; 0: all events are kept. 2 keeps all as well, since no history has more than N.
  rule: "recent", the latest events; "uniform", drawn at random; "recency", drawn at random in proportion to
    1 - age / (sum of the ages).
  """

  alpha: float = 0.0
  rule: str = "recency"

  def __post_init__(self):
    if self.alpha and not 1 < self.alpha <= 2:
      raise ValueError(f"{self.alpha=} must be above 1 and at most 2, or 0 for whole histories")
    if self.rule not in RULES:
      raise ValueError(f"{self.rule=} must be one of {RULES}")


def shortened_lengths(
  examples: Examples, max_length: int, stochastic: StochasticLength, seed: int
) -> tuple[Int[np.ndarray, " K"], Int[np.ndarray, " K"]]:
  """Returns the events and the targets that are kept of each history.

  >>> examples = Examples(np.array([0, 0]), np.array([0, 0]), np.array([16, 100]))
  >>> shortened_lengths(examples, 100, StochasticLength(1.2, "recent"), seed=0)[0].tolist()
  [16, 16]
  """
  length, targets = examples.end - examples.first, examples.end - examples.target
  if not stochastic.alpha:
    return length, targets
  most = round(max_length ** (stochastic.alpha / 2))
  keeps_all = _uniform(seed, 0, examples.end) < max_length**stochastic.alpha / length.astype(float) ** 2
  all_predicted = targets == length
  least = np.where(all_predicted, 0, targets)
  kept = np.where((length <= most) | keeps_all, length, np.maximum(most, least))
  return kept, np.where(all_predicted, kept, targets)


def shortened(
  events: TokenEvents,
  examples: Examples,
  columns: EventColumns,
  max_length: int,
  stochastic: StochasticLength,
  seeds: tuple[int, int],
) -> TokenEvents:
  """Returns the events that are kept, in order.

  Args:
    events: all events of the examples.
    examples: the histories.
    columns: for the times of events.
    max_length: N.
    stochastic: alpha, and the rule.
    seeds: of the lengths, see `shortened_lengths`, and the epoch.
  """
  kept, _ = shortened_lengths(examples, max_length, stochastic, seeds[0])
  stays = events.is_target & (examples.target > examples.first)[events.example]
  priority = np.where(stays, -np.inf, _priority(events, examples, columns, stochastic.rule, seeds))
  order = np.lexsort((priority, events.example))  # Histories stay where they are.
  length = np.bincount(events.example, minlength=len(examples))
  index = np.arange(len(order)) - np.repeat(np.cumsum(length) - length, length)
  chosen = np.sort(order[index < kept[events.example]])
  return TokenEvents(events.event[chosen], events.example[chosen], events.is_target[chosen])


def _priority(events, examples, columns, rule, seeds) -> Float[np.ndarray, " E"]:
  """Returns numbers of which the smallest of a history are kept; the exponential races of weighted sampling."""
  if rule == "recent":
    return -events.event.astype(float)
  race = -np.log1p(-_uniform(*seeds, events.event))
  if rule == "uniform":
    return race
  age = columns.seconds(examples.end - 1)[events.example] - columns.seconds(events.event).astype(float)
  if not age.any():
    age = (examples.end - 1)[events.example] - events.event.astype(float)
  total = np.bincount(events.example, age, len(examples))[events.example]
  weight = 1 - age / np.where(total > 0, total, 1)
  return race / np.maximum(weight, 1e-9)


def _uniform(seed, epoch, keys) -> Float[np.ndarray, " E"]:
  """Returns a number in 0..1 for each key, the same for the same three integers."""
  bits = np.full(len(keys), seed, np.uint64)
  with np.errstate(over="ignore"):
    for key in (np.full(len(keys), epoch), keys):
      bits = mix_bits(bits * GOLDEN_GAMMA + key.astype(np.uint64) + np.uint64(1))
  return (bits >> np.uint64(11)).astype(float) / 2**53
