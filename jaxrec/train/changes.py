"""Settings that changed during a run, on request: `<workdir>/changes.json`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from jaxrec.train import writers
from jaxrec.train.identity import CHANGES_FILE

ON_REQUEST = (
  *("config.optimizer." + name for name in ("learning_rate", "b1", "b2", "weight_decay", "schedule", "warmup_steps")),
  *("config.optimizer." + name for name in ("clip_norm", "l2")),
  *("config.train." + name for name in ("dtype", "accumulate", "num_epochs", "patience", "retrain", "log_every_steps")),
  *("config.train." + name for name in ("evaluate_every_epochs", "evaluate_every_steps", "statistics_batches")),
  "config.eval.batch_size",
)
"""Settings that may change on request: the state and the position in the data stay what they are."""


def read(workdir: str) -> list[dict[str, Any]]:
  """Returns what changed, in order: "phase", "after_step" (the last step made with the old settings), "changes"."""
  path = os.path.join(workdir, CHANGES_FILE)
  return writers.read_json(path) if os.path.exists(path) else []


def announce(workdir: str, lines: Sequence[str]) -> None:
  """Writes changes whose step is not known before a checkpoint is restored; `record_step` completes them.

  Call it before the new config replaces the old one: a run that is killed in between is asked again. Changes that were
  announced and never trained with are replaced.
  """
  done = [entry for entry in read(workdir) if "phase" in entry]
  writers.write_json(os.path.join(workdir, CHANGES_FILE), [*done, {"changes": list(lines)}])


def record_step(workdir: str, phase: str, step: int) -> None:
  """Completes announced changes where a phase begins or resumes after `step`.

  Steps after it are made again, with the settings of today: changes that were recorded for later ones move back.
  """
  entries = read(workdir)
  moved = [
    {"phase": phase, "after_step": min(step, entry.get("after_step", step)), "changes": entry["changes"]}
    if entry.get("phase", phase) == phase
    else entry
    for entry in entries
  ]
  if moved != entries:
    writers.write_json(os.path.join(workdir, CHANGES_FILE), moved)
