"""Multi-objective training: K gradients from one forward pass, weighted by a rule, as an Optax transformation.

`gradients` computes the gradients and their Gram matrix, `weighting` the weights, and `transform` wraps any optimizer.
Objectives are ordered (recommendation, auxiliary objectives ...).

Works on its own: imports nothing else of jaxrec. The manual is the README.md of this folder.
"""

from __future__ import annotations

from jaxrec.multi_objective.base import Weighting
from jaxrec.multi_objective.conflicts import cagrad, pcgrad
from jaxrec.multi_objective.gradients import (
  cosines,
  gram_matrix,
  norms,
  pull_heads,
  task_gradients,
  upper_bound_gradient,
)
from jaxrec.multi_objective.min_norm import min_norm_weights
from jaxrec.multi_objective.modifiers import clamped, delayed, smoothed
from jaxrec.multi_objective.pareto_mtl import pareto, preference_vectors
from jaxrec.multi_objective.set_points import band, set_point
from jaxrec.multi_objective.transform import MultiObjectiveState, multi_objective
from jaxrec.multi_objective.weighting import WEIGHTINGS, build, fixed, idle_updates, mgda, uncertainty

__all__ = [
  "WEIGHTINGS", "MultiObjectiveState", "Weighting", "band", "build", "cagrad", "clamped", "cosines", "delayed", "fixed",
  "gram_matrix", "idle_updates", "mgda", "min_norm_weights", "multi_objective", "norms", "pareto", "pcgrad",
  "preference_vectors", "pull_heads", "set_point", "smoothed", "task_gradients", "uncertainty", "upper_bound_gradient",
]  # fmt: skip
