"""A check of a batch's values against its model, on the host: what jit cannot see and would clip, wrap or ignore."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from jaxrec.batches import SequenceBatch, check_is_batch

_INTEGERS = (
  "item_id", "domain_id", "timestamp", "sequence_id", "position", "target_item", "target_domain", "target_time"
)  # fmt: skip
_EARLIEST_MILLISECOND = 1 << 33  # As seconds this is the year 2242.


def check_batch(batch: SequenceBatch, model: Any = None) -> SequenceBatch:
  """Returns the batch unchanged, if a model can read it; ids outside of its tables would be clipped in silence.

  Args:
    batch: of NumPy or JAX arrays with known values. Not for code that jit traces.
    model: a `jaxrec.models.SequentialModel`, or None: everything that does not depend on the model is checked.

  Raises:
    ValueError: another object than a `SequenceBatch`, arrays of other shapes or types, ids or positions out of range,
      times that fall within a sequence, milliseconds, or sequence ids that do not mark the sequences.

  >>> from jaxrec.batches import next_item_batch
  >>> from jaxrec.models import SASRec
  >>> check_batch(next_item_batch(np.array([[5, 12]])), SASRec(num_items=9, width=4, max_positions=8))
  Traceback (most recent call last):
  ValueError: batch.item_id[0, 1] = 12 is outside 0..9: the model has num_items=9
  """
  check_is_batch(batch)
  columns = {name: getattr(batch, name) for name in (*_INTEGERS, "action")}
  if batch.action is None:
    del columns["action"]
  if any(isinstance(x, jax.core.Tracer) for x in columns.values()):
    raise ValueError("batch has no values while jit traces; call check_batch outside of it")
  columns = {name: np.asarray(x) for name, x in columns.items()}
  _check_arrays(columns | {"target_weight": np.asarray(batch.target_weight)})
  _check_sequences(columns)
  _check_times(columns)
  if model is not None:
    _check_model(columns, model)
  return batch


def _check_arrays(columns):
  shape = columns["item_id"].shape
  for name, x in columns.items():
    if x.ndim != 2 or x.shape != shape:
      raise ValueError(f"batch.{name}.shape={x.shape} must be [B, N], the shape of batch.item_id, which is {shape}")
    if name != "target_weight" and x.dtype.kind not in "iu":
      raise ValueError(f"batch.{name}.dtype={x.dtype} must be an integer dtype, such as int32")
  weight = columns["target_weight"]
  _refuse("target_weight", weight, ~(np.isfinite(weight) & (weight >= 0)), "must be finite and not negative")
  for name in ("item_id", "domain_id", "sequence_id", "position", "target_item", "target_domain"):
    _refuse(name, columns[name], columns[name] < 0, "must not be negative")


def _check_sequences(columns):
  """Sequences are 1, 2, ... within a row, each in one piece, and 0 is padding."""
  sequence, item = columns["sequence_id"], columns["item_id"]
  _refuse("sequence_id", sequence, (sequence == 0) & (item != 0), "is padding, but the event has an item: count from 1")
  starts = np.diff(sequence, axis=1, prepend=0) != 0
  for row in np.flatnonzero(starts.sum(axis=1) > 1):
    ids = sequence[row][starts[row]]
    ids = ids[ids != 0]
    if len(np.unique(ids)) < len(ids):
      raise ValueError(
        f"batch.sequence_id, row {row}: the events of a sequence must be neighbours, they are {ids.tolist()}"
      )


def _check_times(columns):
  time, sequence = columns["timestamp"], columns["sequence_id"]
  for name in ("timestamp", "target_time"):
    large = (sequence != 0) & (np.abs(columns[name].astype(np.int64)) >= _EARLIEST_MILLISECOND)
    _refuse(name, columns[name], large, "is no time in seconds: milliseconds?")
  same = (sequence[:, 1:] == sequence[:, :-1]) & (sequence[:, 1:] != 0)
  falls = np.zeros(time.shape, bool)
  falls[:, 1:] = same & (time[:, 1:] < time[:, :-1])
  _refuse("timestamp", time, falls, "is earlier than the event before it; events are oldest first")


def _check_model(columns, model):
  is_event = columns["sequence_id"] != 0
  num_items = model.num_items
  last = num_items + getattr(model, "num_special", 0)
  item, target = columns["item_id"], columns["target_item"]
  _refuse("item_id", item, item > last, f"is outside 0..{last}: the model has {num_items=}")
  _refuse("target_item", target, target > num_items, f"is outside 0..{num_items}: the model has {num_items=}")
  most = model.max_positions
  too_late = is_event & (columns["position"] >= most)
  _refuse("position", columns["position"], too_late, f"is outside 0..{most - 1}: the model has max_positions={most}")
  longest = getattr(model, "attention_length", None)
  length = int(columns["position"].max(initial=-1)) + 1
  if longest is not None and length > longest:
    raise ValueError(f"batch has histories of {length} events; the model has attention_length={longest}")
  if (num_actions := getattr(model, "num_actions", 0)) and "action" in columns:
    wrong = (columns["action"] < 0) | (columns["action"] > num_actions)
    _refuse("action", columns["action"], wrong, f"is outside 0..{num_actions}: the model has {num_actions=}")
  if model.num_domains > 1:
    domain, first = columns["domain_id"], (item <= num_items).astype(int)  # The domain of a masked item may be hidden.
    outside = is_event & ((domain < first) | (domain > model.num_domains))
    reason = f"is outside 1..{model.num_domains}: the model has num_domains={model.num_domains}"
    _refuse("domain_id", domain, outside, reason)


def _refuse(name: str, x: np.ndarray, wrong: Bool[np.ndarray, "B N"], reason: str) -> None:
  if wrong.any():
    row, column = np.unravel_index(wrong.argmax(), wrong.shape)
    raise ValueError(f"batch.{name}[{row}, {column}] = {x[row, column]} {reason}")
