"""The training step of a config, compiled for devices that are not here: will it fit?"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxrec import parallel
from jaxrec.data.batches.training import TrainingBatches
from jaxrec.train.config import SEQUENTIAL
from jaxrec.train.sequence_task import training_options
from jaxrec.train.task import build_task
from pallas_kernels import aot


def compile_training_step(config: ConfigDict, target: str) -> tuple[Any, float]:
  """Compiles the training step of a config, its batch sharded over all devices of the target.

  Nothing as large as the parameters or the item table is made: they are shapes. `pallas_kernels.aot.memory_of` and
  `collectives_of` read from the program what it takes on each device and what it sends.

  Args:
    config: of task "sequential"; its data are read, for the shape of a batch.
    target: such as "v5e:2x2" or "h100"; see `pallas_kernels.aot.target_devices`.

  Returns:
    The program and the seconds that the compiler took.

  Raises:
    ValueError: an unknown target, another task, or rows that the devices do not divide.
    NotImplementedError: the compiler of the target is not installed.
    Exception: what the compiler says of a program that does not fit, "RESOURCE_EXHAUSTED" in its text.
  """
  if config.task != SEQUENTIAL:
    raise ValueError(f"config.task={config.task!r} must be {SEQUENTIAL!r}")
  mesh = parallel.make_mesh(config.parallel.to_dict(), aot.target_devices(target))
  task = build_task(config)
  options = training_options(config, task.data, last_split=0, mesh=mesh)
  options = dataclasses.replace(options, shard_index=0, shard_count=1)  # The rows of all hosts.
  batch = TrainingBatches(task.data, options)[0]
  state = task.abstract_state(mesh, 1000)
  sharding = parallel.row_sharding(mesh)
  rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), batch)
  return aot.compile_lowered(task.train_step(mesh, state, 1000).lower(state, rows))
