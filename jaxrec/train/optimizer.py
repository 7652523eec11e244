"""AdamW with a learning rate schedule and clipping, from settings; a weighting that a run is too short for."""

from __future__ import annotations

import optax
from absl import logging
from ml_collections import ConfigDict

from jaxrec import multi_objective


def make_schedule(settings: ConfigDict, total_steps: int) -> optax.Schedule:
  """Returns the learning rate as a function of the number of updates made so far.

  Args:
    settings: `config.optimizer`. The schedules "constant", "linear" and "cosine" (both down to 0 at `total_steps`),
      each after a linear warm-up of `warmup_steps` from 0; "warmup_cosine" is "cosine" that insists on a warm-up.
    total_steps: length of the whole run, whether or not it stops early.

  Raises:
    ValueError: an unknown schedule, or a warm-up that doesn't fit.

  >>> settings = ConfigDict({"learning_rate": 1.0, "schedule": "linear", "warmup_steps": 2})
  >>> schedule = make_schedule(settings, total_steps=6)
  >>> [float(schedule(step)) for step in (0, 1, 2, 4, 6)]
  [0.0, 0.5, 1.0, 0.5, 0.0]
  """
  peak, warmup = settings.learning_rate, settings.warmup_steps
  if warmup >= total_steps:
    raise ValueError(f"optimizer.warmup_steps={warmup} must be less than the {total_steps} steps of the run")
  if settings.schedule == "constant":
    after = optax.constant_schedule(peak)
  elif settings.schedule == "linear":
    after = optax.linear_schedule(peak, 0.0, total_steps - warmup)
  elif settings.schedule in ("cosine", "warmup_cosine"):
    after = optax.cosine_decay_schedule(peak, total_steps - warmup)
  else:
    raise ValueError(
      f"optimizer.schedule={settings.schedule!r} is unknown; use constant, linear, cosine or warmup_cosine"
    )
  if settings.schedule == "warmup_cosine" and not warmup:
    raise ValueError("optimizer.schedule='warmup_cosine' needs optimizer.warmup_steps; use 'cosine' for none")
  return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup]) if warmup else after


def make_optimizer(settings: ConfigDict, total_steps: int) -> optax.GradientTransformation:
  """Returns AdamW after clipping the norm of the whole gradient.

  Args:
    settings: `config.optimizer`.
    total_steps: see `make_schedule`.

  Its state is that of AdamW with and without clipping, so that a run can resume with or without it.

  Choice: weight decay acts on all parameters (the published configurations have none).
  """
  adamw = optax.adamw(
    make_schedule(settings, total_steps), b1=settings.b1, b2=settings.b2, weight_decay=settings.weight_decay
  )
  return _clipped(adamw, settings.clip_norm) if settings.clip_norm else adamw


def warn_of_idle_weighting(weighting: ConfigDict, total_steps: int, reweight_every: int = 1) -> None:
  """Logs a warning if a run ends before its weighting of several objectives begins to weigh any but the first.

  Args:
    weighting: `config.multi_objective.weighting`.
    total_steps: of the run.
    reweight_every: steps from one update of the weights to the next.
  """
  idle = multi_objective.idle_updates(weighting.to_dict()) * reweight_every
  if idle >= total_steps:
    logging.warning(
      "config.multi_objective.weighting: only the first objective has a weight in the first %d steps, and there are %d;"
      " lower start_after or base_updates", idle, total_steps,
    )  # fmt: skip


def _clipped(inner, norm):
  clip = optax.clip_by_global_norm(norm)

  def update(grads, state, params=None):
    grads, _ = clip.update(grads, optax.EmptyState())
    return inner.update(grads, state, params)

  return optax.GradientTransformation(inner.init, update)
