"""When a phase evaluates, saves and ends; steps are counted from 1, and so are epochs."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Timetable:
  """When a phase ends, evaluates and saves.

  steps_per_epoch, num_epochs: length of the phase, if it doesn't stop early.
  evaluate_every_epochs: epochs from one evaluation to the next; not read where `evaluate_every_steps` is set.
  checkpoint_every_steps: checkpoints in addition to those after evaluations; 0: none.
  evaluate_every_steps: steps from one evaluation to the next; 0: evaluate at the end of epochs.

  >>> times = Timetable(steps_per_epoch=3, num_epochs=5, evaluate_every_epochs=2, checkpoint_every_steps=4)
  >>> times.num_steps, times.epoch(3), times.epoch(4)
  (15, 1, 2)
  >>> [step for step in range(1, 16) if times.evaluates(step)], [step for step in range(1, 16) if times.saves(step)]
  ([6, 12, 15], [4, 6, 8, 12, 15])
  """

  steps_per_epoch: int
  num_epochs: int
  evaluate_every_epochs: int = 1
  checkpoint_every_steps: int = 0
  evaluate_every_steps: int = 0

  @classmethod
  def from_config(cls, settings: ConfigDict, steps_per_epoch: int, num_epochs: int) -> Timetable:
    """Returns the timetable that `config.train` describes."""
    every = settings.evaluate_every_epochs, settings.checkpoint_every_steps, settings.get("evaluate_every_steps", 0)
    return cls(steps_per_epoch, num_epochs, *every)

  @property
  def num_steps(self) -> int:
    """Steps of the whole phase, if it doesn't stop early."""
    return self.num_epochs * self.steps_per_epoch

  def epoch(self, step: int) -> int:
    """Returns the epoch that a step belongs to."""
    return -(-step // self.steps_per_epoch)

  def evaluates(self, step: int) -> bool:
    """Whether an evaluation follows this step; one always follows the last."""
    if self.evaluate_every_steps:
      return step == self.num_steps or step % self.evaluate_every_steps == 0
    epoch_ends = step % self.steps_per_epoch == 0
    return step == self.num_steps or (epoch_ends and self.epoch(step) % self.evaluate_every_epochs == 0)

  def saves(self, step: int) -> bool:
    """Whether a checkpoint follows this step (and its evaluation)."""
    return self.evaluates(step) or (self.checkpoint_every_steps > 0 and step % self.checkpoint_every_steps == 0)
