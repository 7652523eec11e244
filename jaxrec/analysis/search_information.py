"""The published measure of a search: how much of what clicks depend on, by counts, is among the events that it finds.

The gain of an event is the mutual information, in bits, between the label and "the event of this age has this
category", given the candidate's category, counted over training candidates.

Source: "Long-Sequence Recommendation Models Need Decoupled Embeddings" (arXiv 2410.02604), section 5, figure 9.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxrec.batches import CandidateBatch
from jaxrec.data.batches.candidates import CandidateExamples, held_out_candidates
from jaxrec.data.prepared import TRAIN


@dataclasses.dataclass(frozen=True)
class ClickInformation:
  """Counts of training candidates, clicked and not: by category, and by category, category of an event and its age.

  samples: [C + 1, 2] not clicked and clicked candidates of each category.
  key: ascending; `((category * (C + 1)) + category of the event) * A + age`, where A is the number of bins of ages.
  counts: [keys, 2] not clicked and clicked candidates with such an event, divided by the ages in the bin.
  bin_of_age: [ages + 1] bin of each age; that of 0 is not used.
  num_bins: A.
  min_samples, min_count, max_rare: see `is_supported`.
  """

  samples: Float[np.ndarray, "C1 2"]
  key: Int[np.ndarray, " keys"]
  counts: Float[np.ndarray, "keys 2"]
  bin_of_age: Int[np.ndarray, " ages"]
  num_bins: int
  min_samples: int
  min_count: int
  max_rare: int

  def gain(self, batch: CandidateBatch) -> Float[np.ndarray, "B N"]:
    """Returns the mutual information of each event, in bits; 0 on padding and where nothing was counted."""
    with_event = self._counts(batch)  # [B, N, 2]
    total = self.samples[np.asarray(batch.category)][:, None]  # [B, 1, 2]
    cells = np.stack([with_event, np.maximum(total - with_event, 0)], axis=-2)  # [B, N, event, label]
    size = np.maximum(total.sum(axis=-1), 1e-12)  # [B, 1]
    expected = cells.sum(axis=-1, keepdims=True) * cells.sum(axis=-2, keepdims=True) / size[..., None, None]
    with np.errstate(divide="ignore", invalid="ignore"):
      terms = np.where(cells > 0, cells * np.log2(cells / expected), 0.0)
    information = np.maximum(terms.sum(axis=(-2, -1)) / size, 0.0)
    return np.where(np.asarray(batch.history_item) > 0, information, 0.0)

  def is_supported(self, batch: CandidateBatch) -> Bool[np.ndarray, " B"]:
    """Returns which candidates the counts say enough about.

    Their category has at least `min_samples` training candidates, and at most `max_rare` of their events were seen
    fewer than `min_count` times with clicked, or with other, candidates.
    """
    rare = (self._counts(batch).min(axis=-1) < self.min_count) & (np.asarray(batch.history_item) > 0)
    enough = self.samples.sum(axis=1)[np.asarray(batch.category)] >= self.min_samples
    return enough & (rare.sum(axis=1) <= self.max_rare)

  def _counts(self, batch) -> Float[np.ndarray, "B N 2"]:
    wanted = _keys(batch, len(self.samples), self.bin_of_age, self.num_bins)
    if not len(self.key):
      return np.zeros((*wanted.shape, 2))
    index = np.minimum(np.searchsorted(self.key, wanted), len(self.key) - 1)
    return np.where((self.key[index] == wanted)[..., None], self.counts[index], 0.0)


def count_information(
  examples: CandidateExamples,
  num_ages: int,
  *,
  first_ages: Sequence[int] | None = None,
  min_samples: int = 700,
  min_count: int = 50,
  max_rare: int = 20,
  batch_size: int = 4096,
) -> ClickInformation:
  """Returns the counts over the training candidates; categories with fewer than `min_samples` are left out.

  Args:
    examples: candidates of all splits.
    num_ages: the largest age, the length of the histories.
    first_ages: the first age of each bin, ascending from 1; ages of a bin share the mean of their counts, for data too
      small to count each age. None: every age for itself, as published.
    min_samples, min_count, max_rare: see `ClickInformation.is_supported`; the defaults are the published ones.
    batch_size: candidates that are counted at a time.

  Raises:
    ValueError: ages that do not ascend from 1.
  """
  first = np.arange(1, num_ages + 1) if first_ages is None else np.asarray(first_ages)
  if first.ndim != 1 or not len(first) or first[0] != 1 or (np.diff(first) <= 0).any():
    raise ValueError(f"{first_ages=} must ascend from 1: the first age of each bin")
  bin_of_age = np.maximum(np.searchsorted(first, np.arange(num_ages + 1), side="right") - 1, 0)
  width = np.bincount(bin_of_age[1:], minlength=len(first)).astype(np.float64)
  samples = np.zeros((examples.num_categories + 1, 2))
  for batch in held_out_candidates(examples, TRAIN, batch_size):
    np.add.at(samples, (batch.category, (batch.label > 0.5).astype(int)), 1)
  enough, parts = samples.sum(axis=1) >= min_samples, []
  for batch in held_out_candidates(examples, TRAIN, batch_size):
    keys = _keys(batch, len(samples), bin_of_age, len(first))
    is_counted = (batch.history_item > 0) & enough[batch.category][:, None]
    label = np.broadcast_to((batch.label > 0.5)[:, None], keys.shape)
    parts.append(_tally(keys[is_counted], np.eye(2)[label[is_counted].astype(int)]))
    if sum(len(key) for key, _ in parts[1:]) > len(parts[0][0]):  # So that no more is kept than twice what is distinct.
      parts = [_merged(parts)]
  key, counts = _merged(parts)
  counts = counts / np.maximum(width[key % len(first)], 1)[:, None]
  return ClickInformation(samples, key, counts, bin_of_age, len(first), min_samples, min_count, max_rare)


def without_items(variables: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the variables of a model whose scores read category and age alone, as in the published measurement.

  Rows of items are 0, and those of categories grow, so that their product is divided by sqrt(d) of the category alone.

  Args:
    variables: of a `jaxrec.models.ctr.ClickThroughRanker` with scores that are dot products.
  """
  params = variables["params"]
  rows = params["embedding"].items()
  embedding = {name: _without_items(value) if name.startswith("lookup") else value for name, value in rows}
  return {**variables, "params": {**params, "embedding": embedding}}


def _without_items(tables):
  item, category = tables["item_table"], tables["category_table"]
  factor = ((item.shape[1] + category.shape[1]) / category.shape[1]) ** 0.25  # In both factors of the product.
  return {**tables, "item_table": jax.numpy.zeros_like(item), "category_table": factor * category}


def _keys(batch, num_categories, bin_of_age, num_bins) -> Int[np.ndarray, "B N"]:
  age = np.minimum(np.asarray(batch.history_age), len(bin_of_age) - 1)
  pair = np.asarray(batch.category, np.int64)[:, None] * num_categories + np.asarray(batch.history_category)
  return pair * num_bins + bin_of_age[age]


def _merged(tallies) -> tuple[Int[np.ndarray, " keys"], Float[np.ndarray, "keys 2"]]:
  return _tally(*(np.concatenate(column) for column in zip(*tallies, strict=True)))


def _tally(key, counts) -> tuple[Int[np.ndarray, " keys"], Float[np.ndarray, "keys 2"]]:
  """Returns the distinct keys, ascending, and the sums of their counts."""
  distinct, index = np.unique(key, return_inverse=True)
  sums = [np.bincount(index, counts[:, column], len(distinct)) for column in range(2)]
  return distinct, np.stack(sums, axis=1).astype(float)  # Of no weights at all `bincount` makes integers.
