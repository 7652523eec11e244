"""The structures that models read: a batch of user sequences, and a batch of candidates with histories.

`RankingBatch` holds the tokens of events with actions.

The arrays of a `SequenceBatch` are `[B, N]`, padded on the right, with id 0 as padding. A row may hold the sequences of
several users packed end to end; `sequence_id` separates them. Next-item training, masked-item training, ranking and
evaluation differ only in how the `target_*` fields are filled in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from pallas_kernels.integers import AnyArray as AnyArray  # What public functions accept: JAX or NumPy arrays.
from pallas_kernels.integers import as_arrays, as_integers


@flax.struct.dataclass
class SequenceBatch:
  """A batch of interaction sequences (a pytree; the leaves are NumPy or JAX arrays).

  item_id: items 1..V; special ids (the mask token V + 1) lie above V; 0 is padding.
  domain_id: domains 1..C; 0 on padding.
  timestamp: seconds since an epoch shared by the data set; all 0 where the data has no times.
  sequence_id: 1, 2, ... for the sequences packed into the row; 0 on padding.
  position: index inside its own sequence, from 0; in masked_item counted back from the latest event.
  target_item: the item to predict at this position.
  target_domain: its domain.
  target_time: its time, or the time at which it is requested.
  target_weight: weight of this position in the loss; 0 = nothing to predict here.
  action: rating, click, ... as a small integer, 0 = none; or None where the data has none.

  >>> import numpy as np
  >>> batch = next_item_batch(np.array([[5, 3, 8, 0]]))  # One user with three events, padded to four.
  >>> batch.item_id.tolist(), batch.target_item.tolist(), batch.target_weight.tolist()
  ([[5, 3, 8, 0]], [[3, 8, 0, 0]], [[1.0, 1.0, 0.0, 0.0]])
  """

  item_id: Int[Array, "B N"]
  domain_id: Int[Array, "B N"]
  timestamp: Int[Array, "B N"]
  sequence_id: Int[Array, "B N"]
  position: Int[Array, "B N"]
  target_item: Int[Array, "B N"]
  target_domain: Int[Array, "B N"]
  target_time: Int[Array, "B N"]
  target_weight: Float[Array, "B N"]
  action: Int[Array, "B N"] | None = None


def check_instance(name: str, value: Any, kind: type, how_to_make: str) -> None:
  """Raises unless an argument is of a class.

  Args:
    name: of the argument.
    value: what was given.
    kind: the class.
    how_to_make: how to get one, for the error.

  Raises:
    ValueError: an object of another class.

  >>> check_instance("batch", {}, SequenceBatch, "use next_item_batch")
  Traceback (most recent call last):
  ValueError: batch is a dict, it must be a SequenceBatch: use next_item_batch
  """
  if not isinstance(value, kind):
    raise ValueError(f"{name} is a {type(value).__name__}, it must be a {kind.__name__}: {how_to_make}")


def check_is_batch(batch: SequenceBatch) -> None:
  """Raises ValueError unless a model is given a `SequenceBatch`."""
  check_instance("batch", batch, SequenceBatch, "jaxrec.next_item_batch(item_id, ...) makes one from arrays [B, N]")


def check_columns(columns: Mapping[str, AnyArray | None]) -> dict[str, Array]:
  """Returns arrays as JAX arrays, those that are None left out, if they are integers `[B, N]` of one shape.

  Args:
    columns: name to array or None.

  Raises:
    ValueError: names an array of another shape or type, or with a value that JAX would cut (`as_integers`).
  """
  given = {name: x for name, x in columns.items() if x is not None}
  first = next(iter(given.values())).shape
  for name, x in given.items():
    if x.ndim != 2 or x.shape != first:
      raise ValueError(f"{name} has shape {x.shape}, needs {'[B, N]' if len(first) != 2 else first}")
  return {name: as_integers(name, x) for name, x in given.items()}


def next_item_batch(
  item_id: Integer[AnyArray, "B N"],
  domain_id: Integer[AnyArray, "B N"] | None = None,
  timestamp: Integer[AnyArray, "B N"] | None = None,
) -> SequenceBatch:
  """Returns a batch of one sequence per row, in which every event predicts the next one.

  The last event of a row has no target: its target item, domain and weight are 0, its target time is its own time.

  Args:
    item_id: items 1..V in order of time, padded on the right with 0.
    domain_id: domains 1..C; None: one domain.
    timestamp: seconds; None: no times.

  Raises:
    ValueError: integers that JAX would cut to 32 bits.

  >>> batch = next_item_batch(jnp.array([[5, 3, 8, 0]]))
  >>> batch.target_item.tolist(), batch.position.tolist(), batch.target_weight.tolist()
  ([[3, 8, 0, 0]], [[0, 1, 2, 0]], [[1.0, 1.0, 0.0, 0.0]])
  """
  columns = check_columns({"item_id": item_id, "domain_id": domain_id, "timestamp": timestamp})
  item_id, domain_id, timestamp = (columns.get(name) for name in ("item_id", "domain_id", "timestamp"))
  is_real = item_id != 0
  domain_id = is_real.astype(jnp.int32) if domain_id is None else domain_id
  timestamp = jnp.zeros_like(item_id) if timestamp is None else timestamp
  length = item_id.shape[1]
  item, domain, time = (jnp.pad(x, ((0, 0), (0, 1)))[:, 1:] for x in (item_id, domain_id, timestamp))
  position = jnp.arange(length, dtype=jnp.int32)[None]
  return SequenceBatch(
    item_id=item_id, domain_id=domain_id, timestamp=timestamp, sequence_id=is_real.astype(jnp.int32),
    position=jnp.where(is_real, position, 0), target_item=item, target_domain=domain,
    target_time=jnp.where(item != 0, time, timestamp), target_weight=(item != 0).astype(jnp.float32),
  )  # fmt: skip


@flax.struct.dataclass
class CandidateBatch:
  """A batch of candidates, each with its user's history, for click-through prediction (a pytree).

  Histories are padded on the left: the last column is the latest event. id 0 is padding everywhere.

  history_item, history_category: ids of the events, 0 on padding.
  history_age: how many events before the request, 1 for the latest; 0 on padding.
  item, category: ids of the candidate.
  label: 1 for a click, else 0.
  user_id: for metrics by user; from 0.

  >>> import numpy as np
  >>> two = np.array([1, 2])
  >>> batch = CandidateBatch(history_item=np.array([[0, 5], [7, 1]]), history_category=np.array([[0, 1], [1, 1]]),
  ...   history_age=np.array([[0, 1], [2, 1]]), item=two, category=two, label=np.array([1.0, 0.0]), user_id=two)
  >>> batch.history_item.shape, batch.label.tolist()
  ((2, 2), [1.0, 0.0])
  """

  history_item: Int[Array, "B N"]
  history_category: Int[Array, "B N"]
  history_age: Int[Array, "B N"]
  item: Int[Array, " B"]
  category: Int[Array, " B"]
  label: Float[Array, " B"]
  user_id: Int[Array, " B"]


@flax.struct.dataclass
class PackedCandidates:
  """Candidates of several targets of one user in each row, which share the user's events (a pytree).

  The history of a target is the `history_length` events before it: the columns `end - history_length .. end - 1`.

  history_item, history_category: ids of the events in order of time, padded on the left with 0.
  end: column of each target, at least `history_length`; ascending, P / T candidates belong to each of the T targets.
  item, category, label: of the candidates, as in a `CandidateBatch`.
  user_id: of the row; from 0.
  history_length: N, the same for all.
  """

  history_item: Int[Array, "B S"]
  history_category: Int[Array, "B S"]
  end: Int[Array, "B T"]
  item: Int[Array, "B P"]
  category: Int[Array, "B P"]
  label: Float[Array, "B P"]
  user_id: Int[Array, " B"]
  history_length: int = flax.struct.field(pytree_node=False)

  def candidate_end(self) -> Int[Array, "B P"]:
    """Returns the column of each candidate's target."""
    return jnp.repeat(jnp.asarray(self.end), self.item.shape[1] // self.end.shape[1], axis=1)

  def unpacked(self) -> CandidateBatch:
    """Returns the candidates with a history each, those of a row one after another.

    >>> row = {"history_item": jnp.array([[0, 5, 3]]), "history_category": jnp.array([[0, 1, 2]])}
    >>> one = {name: jnp.array([[9, 8]]) for name in ("item", "category")}
    >>> batch = PackedCandidates(**row, **one, end=jnp.array([[2, 3]]), label=jnp.ones((1, 2)), user_id=jnp.array([7]),
    ...   history_length=2).unpacked()
    >>> batch.history_item.tolist(), batch.history_age.tolist(), batch.user_id.tolist()
    ([[0, 5], [5, 3]], [[0, 1], [2, 1]], [7, 7])
    """
    age = jnp.arange(self.history_length, 0, -1, dtype=jnp.int32)
    column = self.candidate_end()[:, :, None] - age[None, None]  # [B, P, N]
    shape = (-1, self.history_length)
    item, category = (
      jnp.take_along_axis(jnp.asarray(x)[:, None], column, axis=2).reshape(shape)  # [B P, N]
      for x in (self.history_item, self.history_category)
    )
    return CandidateBatch(
      history_item=item, history_category=category, history_age=jnp.where(item != 0, age[None], 0),
      item=jnp.asarray(self.item).reshape(-1), category=jnp.asarray(self.category).reshape(-1),
      label=jnp.asarray(self.label).reshape(-1), user_id=jnp.repeat(jnp.asarray(self.user_id), self.item.shape[1]),
    )  # fmt: skip


CONTEXT, EVENT, CANDIDATE, ACTION = 1, 2, 3, 4
"""Kinds of tokens of a `RankingBatch`: a feature of user or request; an event with its actions; an item whose actions
are hidden and predicted; the actions of the item before. 0 is padding."""

BINARY, MULTI_CLASS, REGRESSION = "binary", "multi_class", "regression"


@dataclasses.dataclass(frozen=True)
class ActionType:
  """What the values of an action are.

  name: of the action.
  kind: "binary" (0 or 1), "multi_class" (0..classes - 1) or "regression" (any number).
  classes: K of a "multi_class" action.
  mean, scale: mean and standard deviation of a "regression" action, whose model reads and predicts (value - mean) /
    scale.
  """

  name: str
  kind: str
  classes: int = 2
  mean: float = 0.0
  scale: float = 1.0


@flax.struct.dataclass
class RankingBatch:
  """A batch of histories with actions, token by token (a pytree), made by `jaxrec.data.batches.ranking_rows`.

  A row may hold the tokens of several histories. Each token reads the keys `start..end - 1` of its row and itself.

  kind: CONTEXT, EVENT, CANDIDATE or ACTION; 0 on padding.
  sequence_id: 1, 2, ... for the histories of the row; 0 on padding.
  position: index of the token's event in its history; 0 for CONTEXT.
  item_id: items 1..V of EVENT and CANDIDATE tokens; 0 for others.
  features: name -> categories of the item, from 1; 0 where there is no item.
  context_id: row of the table of context features; 0 for others than CONTEXT.
  timestamp: seconds since an epoch shared by the data set, of the token's event; of the first one for CONTEXT.
  actions: name -> the actions of the token's event: a model reads those of EVENT and ACTION tokens and predicts those
    of CANDIDATE tokens.
  start, end: keys that the token reads, besides itself.
  weight: of a CANDIDATE token in the losses and metrics; 0 for others.
  user_id: 0-based user.
  """

  kind: Int[Array, "B N"]
  sequence_id: Int[Array, "B N"]
  position: Int[Array, "B N"]
  item_id: Int[Array, "B N"]
  features: dict[str, Int[Array, "B N"]]
  context_id: Int[Array, "B N"]
  timestamp: Int[Array, "B N"]
  actions: dict[str, Array]
  start: Int[Array, "B N"]
  end: Int[Array, "B N"]
  weight: Float[Array, "B N"]
  user_id: Int[Array, "B N"]


def as_ranking_batch(batch: RankingBatch) -> RankingBatch:
  """Returns the batch with JAX arrays, where data pipelines make NumPy arrays.

  Raises:
    ValueError: integers that JAX would cut to 32 bits.
  """

  def convert(name, values):
    return as_integers(name, values) if jnp.issubdtype(values.dtype, jnp.integer) else jnp.asarray(values)

  groups = {
    group: {name: convert(f"batch.{group}[{name!r}]", x) for name, x in getattr(batch, group).items()}
    for group in ("features", "actions")
  }
  return as_arrays("batch", batch.replace(**groups))
