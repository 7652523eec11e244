"""What a worker of Spark does with the events of a shard: order, split, columns, files and counts."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from jaxrec.data import action_columns, prepared, prepared_shards
from jaxrec.data.preparation import assemble, filters
from jaxrec.data.prepared_shards import Shard
from jaxrec.data.spark.event_pieces import PLACE, arrow_batches, in_polars

if TYPE_CHECKING:
  import pyarrow as pa

SHARD, RESULT = "shard", "result"


@dataclasses.dataclass(frozen=True)
class ShardWriter:
  """Writes the shards of which it gets the events.

  folder: that of `meta.json`.
  count: of shards.
  num_domains: C.
  time_unit: of the times, which are cut to seconds.
  kinds: of the typed actions.
  held_out_events: of the split "leave_one_out".
  cuts: first times of validation and test, in seconds; None for the split "leave_one_out".
  """

  folder: pathlib.Path
  count: int
  num_domains: int
  time_unit: str
  kinds: Mapping[str, str]
  held_out_events: int
  cuts: tuple[int, int] | None

  def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Writes the shards of the events of some batches, and yields index and description of each."""
    tables = [pl.from_arrow(batch) for batch in batches]
    if not tables:
      return
    events = pl.concat(tables).rename(in_polars)
    del tables
    for (index,), of_shard in events.partition_by(SHARD, as_dict=True, include_key=False).items():
      found = json.dumps(self.write(int(index), of_shard))
      yield from arrow_batches(pl.DataFrame({SHARD: [int(index)], RESULT: [found]}))

  def write(self, index: int, events: pl.DataFrame) -> dict[str, Any]:
    """Writes a shard, and returns its entry in `meta`, and the counts that `described` adds up.

    Args:
      index: of the shard.
      events: in any order; `user` and `item` are the indices of prepared data.
    """
    in_order = "timestamp" not in events.columns
    events = filters.sort_events(events.sort(PLACE), in_order, {})
    events = filters.in_seconds(events, self.time_unit)
    users, lengths = np.unique(events["user"].to_numpy(), return_counts=True)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    columns = assemble.event_columns(events)
    if self.cuts is None:
      columns["split"] = prepared.leave_one_out(offsets, self.held_out_events)
    else:
      columns["split"] = filters.split_at(columns["timestamp"], *self.cuts)
    actions, action_meta = assemble.typed_actions(events, self.kinds)
    shard = Shard(users.astype(np.int64), offsets, columns, actions)
    self._save(shard, index)
    tally = assemble.tally_of_users(offsets, columns["split"], columns["domain_id"], self.num_domains)
    tally["splits"] = np.bincount(columns["split"], minlength=3).tolist()
    times = [int(columns["timestamp"].min()), int(columns["timestamp"].max())]
    has_actions = bool(np.any(columns["action"]))
    return {
      "entry": shard.entry(), "tally": tally, "times": times, "has_actions": has_actions, "actions": action_meta,
      "sums": {name: float(values.sum(dtype=np.float64)) for name, values in actions.items()},
    }  # fmt: skip

  def _save(self, shard: Shard, index: int) -> None:
    """Writes the folder of a shard whole; of several workers that try, as Spark lets them, the first one does."""
    path = prepared_shards.shard_folder(self.folder, index, self.count)
    attempt = pathlib.Path(tempfile.mkdtemp(prefix=".attempt-", dir=self.folder))
    try:
      prepared_shards.save(shard, attempt / path.name)
      os.rename(attempt / path.name, path)
    except OSError:
      if not path.is_dir():
        raise
    finally:
      shutil.rmtree(attempt, ignore_errors=True)


def described(found: list[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns what `meta` says of all shards, and their tally, from what `ShardWriter.write` returned for each."""
  tallies = [shard["tally"] for shard in found]
  tally = {
    name: np.sum([tally[name] for tally in tallies], axis=0).tolist() for name in tallies[0]
  }  # Counts, and lists of them.
  times = [min(shard["times"][0] for shard in found), max(shard["times"][1] for shard in found)]
  entries = [shard["entry"] for shard in found]
  actions = {name: _of_all(name, found) for name in found[0]["actions"]}
  has_actions = any(shard["has_actions"] for shard in found)
  return {"shards": entries, "times": times, "has_actions": has_actions, "actions": actions, "tally": tally}


def _of_all(name: str, found: list[Mapping[str, Any]]) -> dict[str, Any]:
  actions = [shard["actions"][name] for shard in found]
  mean = sum(shard["sums"][name] for shard in found) / sum(shard["entry"]["events"] for shard in found)
  return {
    "kind": actions[0]["kind"],
    "classes": max(action["classes"] for action in actions),
    "least": min(action["least"] for action in actions),
    "most": max(action["most"] for action in actions),
    "mean": action_columns.nine_digits(mean),
  }
