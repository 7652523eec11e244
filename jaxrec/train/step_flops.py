"""How many floating-point operations a training step has, as the compiler counts them."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxrec import parallel
from jaxrec.objectives.item import TABLE, ItemObjective
from jaxrec.train.sequence_task import SequenceTask, count_users_and_tokens
from jaxrec.train.state import num_parameters
from jaxrec.train.task import SELECT


class StepCost(NamedTuple):
  """What a training step costs.

  flops: floating-point operations of a step, forward and backward pass and update, for all devices together.
  tokens: positions that are no padding in the first batch.
  steps: of all epochs.
  parameters: numbers in `params`, the item table among them.
  table_parameters: those of the item table.
  """

  flops: float
  tokens: int
  steps: int
  parameters: int
  table_parameters: int


def step_cost(config: ConfigDict) -> StepCost:
  """Returns what a training step of a sequential config costs.

  The count is that of XLA's cost analysis, of the program before it is optimised for a device, so that it is the same
  on all of them. It counts the body of a loop once; therefore the program that is counted computes attention without
  tiles and the softmax over all items at once, and has no microbatches. Attention then counts all pairs of a row,
  masked ones too, as is usual for Transformers. It is not compiled, and no step is made.

  Args:
    config: of task "sequential", with one objective.

  Raises:
    ValueError: another task, several objectives, or an item table that is sharded.

  Source: the attribute `cost_analysis` of `jax.stages.Lowered`.
  """
  if config.task != "sequential" or config.multi_objective.objectives:
    raise ValueError(f"{config.task=} with {config.multi_objective.objectives=}: FLOPs are counted for one objective"
                     " of task 'sequential'")  # fmt: skip
  config = ConfigDict(config.to_dict())
  config.train.accumulate = 1
  task = _without_loops(SequenceTask.from_config(config))
  mesh = parallel.make_mesh(config.parallel.to_dict())
  plan = task.plan(SELECT, config.train.num_epochs, mesh)
  total_steps = plan.timetable.num_steps
  state = task.abstract_state(mesh, total_steps)
  if state.tables is not None:
    raise ValueError("FLOPs are counted for an item table in the parameters: config.tables.placement=parameter")
  batch = plan.batches[0]
  lowered = task.train_step(mesh, state, total_steps).lower(state, parallel.shard_batch(batch, mesh))
  return StepCost(
    flops=float(lowered.cost_analysis()["flops"]),
    tokens=count_users_and_tokens(batch)["tokens"],
    steps=total_steps,
    parameters=num_parameters(state.params),
    table_parameters=num_parameters(state.params.get(TABLE, {})),
  )


def _without_loops(task: SequenceTask) -> SequenceTask:
  """Returns the task with attention and loss that compute the same without a loop."""
  model, objective = task.model, task.objective
  if hasattr(model, "implementation"):
    model = model.clone(implementation="dense")
  if isinstance(objective, ItemObjective):
    objective = dataclasses.replace(objective, chunk_size=task.data.num_items + 1)
  return dataclasses.replace(task, model=model, objective=objective)
