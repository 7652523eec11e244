"""Several objectives in one training step: K gradients from one forward pass, weighed by their inner products.

`gradients` makes the gradients and their Gram matrix, `weighting` the weights, `transform` one optimizer of both.
Objectives are in the order (recommendation, auxiliary objectives ...).
"""

from __future__ import annotations

from jaxrec.multi_objective.base import Weighting
from jaxrec.multi_objective.gradients import (
  cosines,
  gram_matrix,
  norms,
  pull_heads,
  task_gradients,
  upper_bound_gradient,
)
from jaxrec.multi_objective.min_norm import min_norm_weights
from jaxrec.multi_objective.transform import MultiObjectiveState, multi_objective
from jaxrec.multi_objective.weighting import build

__all__ = [
  "MultiObjectiveState",
  "Weighting",
  "build",
  "cosines",
  "gram_matrix",
  "min_norm_weights",
  "multi_objective",
  "norms",
  "pull_heads",
  "task_gradients",
  "upper_bound_gradient",
]
