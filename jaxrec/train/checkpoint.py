"""Checkpoints of a run: the latest and the best, each with parameters, optimizer state and the position in the data.

Orbax writes them in the background into a temporary folder that is renamed when complete, so that a run that is killed
at any moment leaves whole checkpoints only.
"""

from __future__ import annotations

import os
from typing import Any

import flax.serialization
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxrec.train.item_table import IN_PARAMS, InParams, ItemTable
from jaxrec.train.state import TrainState


class Checkpoints:
  """The checkpoints in one folder. Close it (or use `with`) to wait for what is still being written."""

  def __init__(self, folder: str, item_table: ItemTable = IN_PARAMS):
    """Opens or creates the folder.

    Args:
      folder: of the checkpoints.
      item_table: where the item table lives; sharded rows are saved in the order of ids, for any number of devices.
    """
    self._keep, self._item_table = _LatestAndBest(), item_table
    options = ocp.CheckpointManagerOptions(preservation_policy=self._keep, enable_async_checkpointing=True, create=True)
    self._manager = _open(folder, options)

  def save(self, state: TrainState, position: dict[str, Any], best_step: int | None) -> None:
    """Starts to save the state; older checkpoints are deleted when it is complete, except that of the best step.

    Args:
      state: may be donated as soon as this returns.
      position: what else the loop needs to resume, such as the state of the data iterator after the batch of this step;
        any JSON.
      best_step: step of the best validation so far.
    """
    self._keep.best_step = best_step
    position = {"best_step": best_step, **position}
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(_to_dict(state, self._item_table)), position=ocp.args.JsonSave(position)
    )
    self._manager.save(int(state.step), args=args, force=True)

  def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
    """Returns (state, position) of the latest checkpoint; None where there is none yet.

    Args:
      like: a state of the same model and optimizer, which gives shapes, dtypes and shardings.

    Raises:
      ValueError: the checkpoint is of another model or optimizer; lists what differs.
    """
    self.wait()
    step = self._manager.latest_step()
    if step is None:
      return None
    position = _restore_position(self._manager, step)
    self._keep.best_step = position["best_step"]
    return _restore_state(self._manager, step, like, self._item_table), position

  def state_of(self, step: int, like: TrainState) -> TrainState:
    """Returns the state after a step whose checkpoint is kept (the latest or the best)."""
    self.wait()
    return _restore_state(self._manager, step, like, self._item_table)

  def wait(self) -> None:
    """Returns when everything is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits and frees the threads."""
    self._manager.close()

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def load_state(
  folder: str, like: TrainState, which: str = "best", item_table: ItemTable = IN_PARAMS
) -> tuple[TrainState, int]:
  """Returns the state of a checkpoint and its step.

  Args:
    folder: of the checkpoints.
    like: a state of the same model and optimizer.
    which: "best" on validation (the latest where nothing was validated) or "latest".
    item_table: where the item table lives.

  Raises:
    FileNotFoundError: no checkpoint there.
    ValueError: the checkpoint is of another model.
  """
  if which not in ("best", "latest"):
    raise ValueError(f"{which=} must be 'best' or 'latest'")
  if not os.path.isdir(folder):
    raise FileNotFoundError(f"no checkpoints in {folder}; was the run started with another --workdir?")
  with _open(folder, ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)) as manager:
    step = manager.latest_step()
    if step is None:
      raise FileNotFoundError(f"{folder} holds no complete checkpoint yet")
    if which == "best":
      step = _restore_position(manager, step)["best_step"] or step
    return _restore_state(manager, step, like, item_table), step


class _LatestAndBest(checkpoint_managers.PreservationPolicy):
  """Keeps the newest checkpoint and the one of `best_step`."""

  best_step: int | None = None

  def should_preserve(self, checkpoints, *, context):
    newest = max(info.step for info in checkpoints)
    return [info.step in (newest, self.best_step) for info in checkpoints]


def _restore_position(manager, step):
  return manager.restore(step, args=ocp.args.Composite(position=ocp.args.JsonRestore()))["position"]


def _open(folder, options):
  handlers = {"state": ocp.StandardCheckpointHandler(), "position": ocp.JsonCheckpointHandler()}
  return ocp.CheckpointManager(os.path.abspath(folder), options=options, item_handlers=handlers)


def _restore_state(manager, step, like, item_table):
  wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, _without_rows(like))
  wanted["tables"] = item_table.abstract_checkpoint()
  found = manager.item_metadata(step)["state"]
  _check_same(_shapes(found), _shapes(wanted), f"{manager.directory}/{step}")
  if not wanted["model_state"] and "model_state" not in found:
    del wanted["model_state"]  # Checkpoints of older versions.
  # Not strict: a sharded table has rows beyond its last id that pad the shards, and there may be more or fewer now.
  args = ocp.args.StandardRestore(wanted, strict=isinstance(item_table, InParams))
  restored = manager.restore(step, args=ocp.args.Composite(state=args))["state"]
  rows = item_table.from_checkpoint(restored.pop("tables"))
  named = {"model_state": {}, **restored, "tables": None}
  return flax.serialization.from_state_dict(like.replace(tables=None), named).replace(tables=rows)


def _to_dict(state, item_table):
  """Returns nested dicts of arrays, readable without our classes or those of Optax."""
  return {**_without_rows(state), "tables": item_table.to_checkpoint(state.tables)}


def _without_rows(state):
  return flax.serialization.to_state_dict(state.replace(tables=None))


def _shapes(tree):
  """{"params/params/embedding": "float32[10, 4]", ...}; of tables without the number of rows."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
  shapes = [
    ["rows", *x.shape[1:]] if n.startswith("tables/tables/") else list(x.shape)
    for n, (_, x) in zip(names, leaves, strict=True)
  ]
  return {name: f"{leaf.dtype}{shape}" for name, shape, (_, leaf) in zip(names, shapes, leaves, strict=True)}


def _check_same(found, wanted, where):
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
