"""What a training is about. The loop knows tasks and nothing else; a new kind of training is one file with a `Task`."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxrec.data.fingerprint import Fingerprint
from jaxrec.data.prepared import PreparedData
from jaxrec.train.item_table import IN_PARAMS, ItemTable
from jaxrec.train.state import TrainState
from jaxrec.train.timetable import Timetable

SELECT, FINAL = "select", "final"
TASKS: Mapping[str, str] = {
  "sequential": "jaxrec.train.sequence_task:SequenceTask",
  "click_through": "jaxrec.train.click_task:ClickTask",
  "ranking": "jaxrec.train.ranking_task:RankingTask",
}
"""config.task -> module:class."""


@dataclasses.dataclass(frozen=True)
class Plan:
  """The batches of one phase, and when it evaluates, saves and ends.

  timetable: of the phase.
  batches: random access to this host's batches: `batches[i]` is that of step i + 1. Pytrees of NumPy arrays, the first
    axis of each sharded over devices and hosts.
  count: a batch of this host -> how much it holds, such as {"users": 128, "tokens": 9000}; the first is the unit of
    speeds.
  users: step -> the users in its global batch, to name them when a loss is not finite.
  identity: what must be the same when a run is resumed, such as {"rows_per_batch": 64}: a batch is known by its index.
  description: for the log.
  """

  timetable: Timetable
  batches: Any
  count: Callable[[Any], dict[str, int]]
  users: Callable[[int], Sequence[int]] = lambda step: ()
  identity: Mapping[str, int] = dataclasses.field(default_factory=dict)
  description: str = ""

  def iterator(self, prefetch: int = 4) -> grain.DatasetIterator:
    """Returns an iterator over the batches that has `get_state()` and `set_state(state)`.

    Args:
      prefetch: batches that a thread prepares ahead; 0 prepares each on request.
    """
    options = grain.ReadOptions(num_threads=min(1, prefetch), prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.source(self.batches).to_iter_dataset(options))


@runtime_checkable
class Task(Protocol):
  """Data, model, step and evaluation of one kind of training.

  config: with `name`, `seed`, and the groups `train` (`jaxrec.train.config.TrainSettings`), `optimizer`, `parallel` and
    `eval.metric`, the metric that chooses the best step.
  item_table: where the item table lives, for checkpoints; set by `init_state`.
  """

  config: ConfigDict
  item_table: ItemTable

  def fingerprint(self) -> Fingerprint | None:
    """Returns the fingerprint of the data, which a resumed run compares; None compares nothing."""
    ...

  def plan(self, phase: str, num_epochs: int, mesh: Mesh) -> Plan:
    """Returns the batches of a phase: "select" trains on training events, "final" on validation events as well."""
    ...

  def init_state(self, mesh: Mesh, total_steps: int) -> TrainState:
    """Returns the state before the first step; `total_steps` is the length of the learning rate's schedule."""
    ...

  def starting_state(self, state: TrainState) -> TrainState:
    """Returns the state that a new phase starts from, given that of `init_state`: such as one with other parameters."""
    ...

  def train_step(self, mesh: Mesh, like: TrainState, total_steps: int) -> Callable[..., tuple[TrainState, Any]]:
    """Returns (state, batch) -> (state after the update, scalars with "loss"); see `jaxrec.train.step`."""
    ...

  def before_evaluation(self, state: TrainState, plan: Plan, step: int, mesh: Mesh) -> TrainState:
    """Returns the state to evaluate and to save after a step, such as one with renewed batch statistics."""
    ...

  def evaluate(self, state: TrainState, split: int, mesh: Mesh) -> dict[str, float | int]:
    """Returns the metrics of a split (1 validation, 2 test), "count" among them."""
    ...


@dataclasses.dataclass
class BaseTask:
  """Defaults for tasks without an item table outside the parameters and without anything to do before evaluation."""

  config: ConfigDict
  item_table: ItemTable = IN_PARAMS

  def fingerprint(self) -> Fingerprint | None:
    """See `Task`: that of the field `data`, where there is one."""
    data = getattr(self, "data", None)
    return data.fingerprint if isinstance(data, PreparedData) else None

  def starting_state(self, state: TrainState) -> TrainState:
    """See `Task`: the same."""
    return state

  def before_evaluation(self, state: TrainState, plan: Plan, step: int, mesh: Mesh) -> TrainState:
    """See `Task`."""
    return state


def task_class(name: str) -> type:
  """Returns the class of a task: it has `default_config`, `check_config` and `from_config`.

  Raises:
    ValueError: there is no such task.
  """
  if name not in TASKS:
    raise ValueError(f"config.task={name!r} is unknown; use one of {tuple(TASKS)}")
  module, attribute = TASKS[name].split(":")
  return getattr(importlib.import_module(module), attribute)


def build_task(config: ConfigDict) -> Task:
  """Returns the task that a config describes, preparing or downloading its data where needed.

  Raises:
    ValueError: an unknown task, or a config that does not fit it.
  """
  return task_class(config.task).from_config(config)
