"""The training step of a config, set up for timing."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxrec import parallel
from jaxrec.train.state import num_parameters
from jaxrec.train.task import SELECT, Plan, Task, build_task

TOTAL_STEPS = 1000  # Length of the learning rate schedule.


@dataclasses.dataclass
class Training:
  """A task with its state and its batches on the devices; `step(i)` runs one step and returns its scalars."""

  task: Task
  mesh: Mesh
  plan: Plan
  batches: list[Any]
  state: Any
  train_step: Any

  @classmethod
  def from_config(cls, config: ConfigDict, max_batches: int | None = None) -> Training:
    """Builds the task of a config with the batches of one epoch, or the first `max_batches` of them."""
    task, mesh = build_task(config), parallel.make_mesh(config.parallel.to_dict())
    plan = task.plan(SELECT, 1, mesh)
    count = min(max_batches or plan.timetable.num_steps, plan.timetable.num_steps)
    batches = [parallel.shard_batch(plan.batches[i], mesh) for i in range(count)]
    state = task.init_state(mesh, TOTAL_STEPS)
    return cls(task, mesh, plan, batches, state, task.train_step(mesh, state, TOTAL_STEPS))

  def step(self, i: int) -> dict[str, Any]:
    """Runs a training step on batch i modulo the number of batches."""
    self.state, scalars = self.train_step(self.state, self.batches[i % len(self.batches)])
    return scalars

  def describe(self) -> dict[str, Any]:
    """Returns the sizes and the machine, for a record."""
    rows, row_length = self.batches[0].item_id.shape
    return {
      "parameters": num_parameters(self.state.params),
      "rows": rows,
      "row_length": row_length,
      "tokens": round(statistics.mean(int((batch.sequence_id > 0).sum()) for batch in self.batches)),
      "devices": jax.device_count(),
      **parallel.machine(),
    }
