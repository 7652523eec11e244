"""Click-through prediction by counting: logistic regressions that a model with embeddings must beat.

They read how popular a candidate is and how often its item and category occur in the history, and learn one weight for
each of these numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Shaped

from jaxrec.batches import CandidateBatch
from jaxrec.data.batches.candidates import CandidateExamples, held_out_candidates
from jaxrec.data.prepared import TRAIN

LATEST = 20  # Events that "category_in_latest" counts: the K of the published searches.
FEATURES = (
  "item_before", "category_before", "category_count", "category_by_recency", "category_is_latest",
  "category_in_latest", "popularity",
)  # fmt: skip
BASELINES = {"popularity": ("popularity",), "category counts": FEATURES[1:6], "counts": FEATURES}
"""Name of a baseline -> the features that it reads."""
_MAX_STEPS = 50


def count_baselines(
  examples: CandidateExamples, split: int, batch_size: int = 4096
) -> dict[str, Float[np.ndarray, " B"]]:
  """Returns the log-odds of each baseline for all candidates of a split, fitted to the training candidates.

  Args:
    examples: candidates of all splits.
    split: VALIDATION or TEST; its candidates are in the order of `held_out_candidates`.
    batch_size: candidates that are counted at a time.
  """
  clicks = examples.training_clicks()
  known, asked = (_columns(examples, which, clicks, batch_size) for which in (TRAIN, split))
  found = {}
  for name, features in BASELINES.items():
    chosen = [FEATURES.index(feature) for feature in features]
    found[name] = fit_logistic(known[0][:, chosen], known[1]).log_odds(asked[0][:, chosen])
  return found


def candidate_counts(batch: CandidateBatch, clicks: Shaped[np.ndarray, " V1"]) -> Float[np.ndarray, "B F"]:
  """Returns the features named in `FEATURES`.

  Args:
    batch: candidates with their histories.
    clicks: number of training events of each item.

  "category_by_recency" adds 1 / age of each event of the candidate's category; counts are logarithms of 1 + count.

  >>> history, category, age = np.array([[0, 3, 4]]), np.array([[0, 1, 1]]), np.array([[0, 2, 1]])
  >>> batch = CandidateBatch(history_item=history, history_category=category, history_age=age,
  ...   item=np.array([3]), category=np.array([1]), label=np.ones(1, np.float32), user_id=np.array([0]))
  >>> candidate_counts(batch, np.array([0, 0, 0, 6, 1])).round(2).tolist()
  [[1.0, 1.0, 1.1, 0.92, 1.0, 2.0, 1.95]]
  """
  item, age = np.asarray(batch.history_item), np.asarray(batch.history_age)
  is_real = item > 0
  same_item = is_real & (item == np.asarray(batch.item)[:, None])
  same = is_real & (np.asarray(batch.history_category) == np.asarray(batch.category)[:, None])
  columns = {
    "item_before": same_item.any(axis=1),
    "category_before": same.any(axis=1),
    "category_count": np.log1p(same.sum(axis=1)),
    "category_by_recency": np.log1p(np.where(same, 1 / np.maximum(age, 1), 0).sum(axis=1)),
    "category_is_latest": (same & (age == 1)).any(axis=1),
    "category_in_latest": (same & (age <= LATEST)).sum(axis=1),
    "popularity": np.log1p(clicks[np.asarray(batch.item)]),
  }
  return np.stack([columns[name].astype(np.float64) for name in FEATURES], axis=1)  # [B, F]


@dataclasses.dataclass(frozen=True)
class Logistic:
  """Log-odds that are linear in features: `overall + sum_f weight_f (x_f - mean_f) / scale_f`."""

  overall: float
  weight: Float[np.ndarray, " F"]
  mean: Float[np.ndarray, " F"]
  scale: Float[np.ndarray, " F"]

  def log_odds(self, x: Float[np.ndarray, "B F"]) -> Float[np.ndarray, " B"]:
    """Returns the log-odds of each row."""
    return self.overall + (x - self.mean[None]) / self.scale[None] @ self.weight


def fit_logistic(x: Float[np.ndarray, "B F"], label: Shaped[np.ndarray, " B"], penalty: float = 1e-3) -> Logistic:
  """Returns the regression with the smallest sum of losses and half the penalty times the squares of its weights.

  Args:
    x: features.
    label: 0 or 1.
    penalty: on the weights of standardised features; it also bounds those of classes that are perfectly separated.

  >>> found = fit_logistic(np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([1, 0, 1, 1]), penalty=1.0)
  >>> found.log_odds(np.array([[0.0], [1.0]])).round(2).tolist()
  [0.6, 1.77]
  """
  mean, scale = x.mean(axis=0), x.std(axis=0)
  scale = np.where(scale > 0, scale, 1.0)
  design = np.concatenate([np.ones((len(x), 1)), (x - mean) / scale], axis=1)  # [B, 1 + F]
  ridge = penalty * np.eye(design.shape[1])
  ridge[0, 0] = 1e-9 * len(x)  # The overall log-odds is free, up to what keeps the system solvable.
  weight = np.zeros(design.shape[1])
  for _ in range(_MAX_STEPS):  # Newton's method.
    probability = 1 / (1 + np.exp(-np.clip(design @ weight, -30, 30)))
    slope = design.T @ (probability - label) + ridge @ weight
    curvature = (design * (probability * (1 - probability))[:, None]).T @ design + ridge
    step = np.linalg.solve(curvature, slope)
    weight = weight - step
    if np.abs(step).max() < 1e-8:
      break
  return Logistic(float(weight[0]), weight[1:], mean, scale)


def _columns(examples, split, clicks, batch_size) -> tuple[Float[np.ndarray, "B F"], Float[np.ndarray, " B"]]:
  """Returns features and labels of all candidates of a split."""
  found: Iterator[Sequence[np.ndarray]] = (
    (candidate_counts(batch, clicks), batch.label) for batch in held_out_candidates(examples, split, batch_size)
  )
  features, labels = zip(*found, strict=True)
  return np.concatenate(features), np.concatenate(labels)
