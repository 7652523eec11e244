"""One checkpoint on disk: what it holds, and whether that is what was saved.

A checkpoint is a folder named after its step, with the arrays in `state` and everything else in `position`: the
position of the loop, the identity of the run, and dtype, shape and checksum of every array. All of that has a checksum
of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import inspect
import json
import os
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from jaxrec.train.item_growth import ItemGrowth
from jaxrec.train.item_table import InParams, ItemTable, Sharded
from jaxrec.train.leaf_checksums import leaf_checksums, named_leaves
from jaxrec.train.state import TrainState

_PARTS = ("state", "position", "_CHECKPOINT_METADATA")


class DamagedCheckpointError(ValueError):
  """A checkpoint cannot be read, or holds something else than was saved."""


@dataclasses.dataclass(frozen=True)
class Saved:
  """What a checkpoint holds besides its arrays.

  position: what the loop needs to resume; `best_step` is the step of the best validation so far, or None.
  identity: of the run, as `jaxrec.train.identity` writes it; None in checkpoints of older versions.
  leaves: name of an array -> [dtype and shape, checksum]; None in checkpoints of older versions.
  """

  position: dict[str, Any]
  identity: dict[str, Any] | None = None
  leaves: dict[str, list[Any]] | None = None


def to_dict(state: TrainState, item_table: ItemTable) -> dict[str, Any]:
  """Returns nested dicts of arrays, readable without our classes or those of Optax."""
  return {**_without_rows(state), "tables": item_table.to_checkpoint(state.tables)}


def describe(saved: Saved, arrays: Any, item_table: ItemTable) -> dict[str, Any]:
  """Returns the JSON of `position` for arrays from `to_dict`, which are read once.

  Args:
    saved: position and identity.
    arrays: of the checkpoint.
    item_table: says how many rows of its tables count.
  """
  checksums, shapes = leaf_checksums(arrays, _rows_that_count(item_table)), _shapes(arrays)
  leaves = {name: [shapes[name], checksum] for name, checksum in checksums.items()}
  record = _as_json({"position": saved.position, "identity": saved.identity, "leaves": leaves})
  return {**record, "checksum": _crc(record)}


def steps_in(folder: str | os.PathLike) -> list[int]:
  """Returns the steps of the checkpoints in a folder, latest first; other folders and files are ignored."""
  found = []
  for name in os.listdir(folder):
    path = os.path.join(folder, name)
    if not (os.path.isdir(path) and name.isascii() and name.isdigit()):
      continue
    if any(os.path.exists(os.path.join(path, part)) for part in _PARTS):
      found.append(int(name))
    else:
      logging.warning("%s is no checkpoint, ignored", path)
  return sorted(found, reverse=True)


def read_saved(folder: str, step: int) -> Saved:
  """Returns what a checkpoint holds besides its arrays.

  Raises:
    DamagedCheckpointError: it cannot be read, or it has changed since it was saved.
  """
  path = epath.Path(folder) / str(step)
  try:
    record = ocp.JsonCheckpointHandler().restore(path / "position")
    if not record.keys() & {"position", "identity", "leaves", "checksum"}:  # Of an older version.
      record["best_step"]
      return Saved(record)
    checksum = record.pop("checksum")
    if checksum != _crc(record):
      raise ValueError("its checksum is wrong")
    return Saved(**record)
  except Exception as error:
    raise _damaged(path, "position/metadata", _one_line(error)) from error


def read_state(
  folder: str, step: int, saved: Saved, like: TrainState, item_table: ItemTable, growth: ItemGrowth | None = None
) -> TrainState:
  """Returns the state of a checkpoint, compared with the checksums that were saved with it.

  Args:
    folder: of the checkpoints.
    step: of this one.
    saved: from `read_saved`.
    like: a state of the same model and optimizer, which gives shapes, dtypes and shardings.
    item_table: where the item table lives.
    growth: the items that `like` has in addition; their rows are those of `like`. None: the same items.

  Raises:
    DamagedCheckpointError: an array cannot be read or is not what was saved; on every host, if it is so on one of them.
    ValueError: the checkpoint is of another model or optimizer; lists what differs.
  """
  path = epath.Path(folder) / str(step)
  wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, _without_rows(like))
  wanted["tables"] = item_table.abstract_checkpoint()
  handler = ocp.StandardCheckpointHandler()
  found = _on_all_hosts(path, lambda: handler.metadata(path / "state"))
  names, on_disk, shapes = _saved_shapes(saved, found), _shapes(found), _shapes(wanted)
  counted = _rows_that_count(item_table)
  grown = {} if growth is None else growth.rows_before(found, wanted, counted)
  _check_same({**names, **{name: shapes[name] for name in grown}}, shapes, str(path))
  if names != on_disk:
    raise _damaged(path, "state", "names or shapes of its arrays are not those that were saved")
  if not wanted["model_state"] and "model_state" not in found:
    del wanted["model_state"]  # Checkpoints of older versions.
  # Not strict: a sharded table has rows beyond its last id that pad the shards, and there may be more or fewer now.
  args = ocp.args.StandardRestore(wanted, strict=isinstance(item_table, InParams) and not grown)
  arrays = _on_all_hosts(path, lambda: handler.restore(path / "state", args=args))
  _compare_checksums(path, saved, arrays, {**counted, **grown})
  if grown:
    arrays = growth.filled(arrays, to_dict(like, item_table), grown)
  rows = item_table.from_checkpoint(arrays.pop("tables"))
  named = {"model_state": {}, **arrays, "tables": None}
  return flax.serialization.from_state_dict(like.replace(tables=None), named).replace(tables=rows)


def _on_all_hosts(path, read: Callable[[], Any]) -> Any:
  """Returns what `read` returns; raises on every host if it fails on one: each reads its own shards."""
  result, failure = None, None
  with without_late_failures(), warnings.catch_warnings():
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    try:
      result = read()
    except Exception as error:
      failure = _one_line(error)  # The exception itself would keep the other reads of Orbax alive.
    if failure:
      time.sleep(0.05)
      gc.collect()
  failed = failure is not None
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    failed = bool(np.any(multihost_utils.process_allgather(np.array(failed))))
  if failed:
    raise _damaged(path, "state", failure or "another host cannot read its part")
  return result


@contextlib.contextmanager
def without_late_failures() -> Iterator[None]:
  """Hides the tracebacks with which pending reads and writes of Orbax end when another one failed."""
  before = sys.unraisablehook

  def hook(entry):
    is_read = inspect.iscoroutine(entry.object) and "orbax" in entry.object.cr_code.co_filename
    if not is_read and "Event loop is closed" not in str(entry.exc_value):
      before(entry)

  sys.unraisablehook = hook
  try:
    yield
  finally:
    sys.unraisablehook = before


def _saved_shapes(saved, found):
  return _shapes(found) if saved.leaves is None else {name: shape for name, (shape, _) in saved.leaves.items()}


def _compare_checksums(path, saved, arrays, num_rows):
  if saved.leaves is None:
    logging.warning("%s has no checksums: an older version saved it", path)
    return
  found = leaf_checksums(arrays, num_rows)
  wrong = [name for name, (_, checksum) in saved.leaves.items() if found[name] != checksum]
  if wrong:
    raise _damaged(path, "state", f"other values than were saved in {', '.join(wrong[:3])}{' ...' * (len(wrong) > 3)}")


def _rows_that_count(item_table) -> dict[str, int]:
  """Returns the rows with an id of each array of a sharded table, by its path; the other ones pad the last shard."""
  if not isinstance(item_table, Sharded):
    return {}
  arrays = named_leaves(item_table.abstract_checkpoint()["tables"])  # "items/rows", ...
  return {f"tables/tables/{name}": item_table.tables.tables[name.split("/")[0]].num_rows for name in arrays}


def _damaged(path, part, reason: str) -> DamagedCheckpointError:
  return DamagedCheckpointError(f"checkpoint {path} is damaged ({part}: {reason})")


def _one_line(error: Exception) -> str:
  return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _without_rows(state):
  return flax.serialization.to_state_dict(state.replace(tables=None))


def _shapes(tree: Any) -> dict[str, str]:
  """{"params/params/embedding": "float32[10, 4]", ...}; of tables without the number of rows."""
  shapes = {}
  for name, leaf in named_leaves(tree).items():
    shape = ["rows", *leaf.shape[1:]] if name.startswith("tables/tables/") else list(leaf.shape)
    shapes[name] = f"{leaf.dtype}{shape}"
  return shapes


def _check_same(found: Mapping[str, str], wanted: Mapping[str, str], where: str) -> None:
  lines = [f"  {k}: only in the checkpoint, {found[k]}" for k in sorted(found.keys() - wanted.keys())]
  lines += [f"  {k}: only in this model, {wanted[k]}" for k in sorted(wanted.keys() - found.keys())]
  both = sorted(found.keys() & wanted.keys())
  lines += [f"  {k}: {found[k]} in the checkpoint, {wanted[k]} in this model" for k in both if found[k] != wanted[k]]
  if lines:
    more = [f"  ... and {len(lines) - 20} more"] if len(lines) > 20 else []
    raise ValueError(
      "\n".join([f"the checkpoint {where} is of another model or optimizer:", *lines[:20], *more])
      + "\nUse the config of that run (config.json in its folder), or another --workdir."
    )


def _as_json(value):
  return json.loads(json.dumps(value))


def _crc(record: Mapping[str, Any]) -> int:
  return zlib.crc32(json.dumps(record, sort_keys=True).encode())
