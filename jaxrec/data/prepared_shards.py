"""Prepared data in several folders by user, so that each host opens those that it trains on.

`<folder>/meta.json` has an entry for each shard: its users, events and hashes. A shard is a folder with the columns of
data in one piece, `offsets.npy` for its own users, and `user.npy`, which says which users of all they are. Users are
dealt out by the length of their histories, so that shards are alike whatever a history is cropped to. The data is the
same for any number of shards: ids, order of users and fingerprint do not depend on it.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from jaxrec.data import action_columns, fingerprint, prepared_files
from jaxrec.data.column_checks import COLUMNS, check_lengths

if TYPE_CHECKING:
  from jaxrec.data.prepared import PreparedData

OPENED = "opened_shards"  # In `meta` of data of which not all shards are opened.
META = ("shards", "times", "has_actions", OPENED)
"""What `meta` of shards has in addition; `times` are those of the first and the last event of all."""


@dataclasses.dataclass(frozen=True)
class Shard:
  """The events of some users.

  user: which users of all they are, ascending.
  offsets: where the events of each of them begin.
  columns, actions: of their events.
  """

  user: Int[np.ndarray, " U"]
  offsets: Int[np.ndarray, " U1"]
  columns: Mapping[str, np.ndarray]
  actions: Mapping[str, np.ndarray]

  def hashes(self) -> dict[str, str]:
    """Returns a hash of each of its arrays."""
    actions = {action_columns.PREFIX + name: values for name, values in self.actions.items()}
    return fingerprint.hashes({"user": self.user, "offsets": self.offsets, **self.columns, **actions})

  def entry(self) -> dict[str, Any]:
    """Returns what `meta` says of it."""
    return {"users": len(self.user), "events": int(self.offsets[-1]), "hashes": self.hashes()}

  def of_users(self, first: int, last: int) -> Shard:
    """Returns the events of its users in first..last - 1, who are then counted from `first`."""
    low, high = np.searchsorted(self.user, (first, last))
    event = slice(int(self.offsets[low]), int(self.offsets[high]))
    columns, actions = ({name: x[event] for name, x in group.items()} for group in (self.columns, self.actions))
    return Shard(self.user[low:high] - first, self.offsets[low : high + 1] - event.start, columns, actions)


def deal(lengths: Int[np.ndarray, " U"], count: int) -> list[Int[np.ndarray, " K"]]:
  """Returns the users of each of `count` shards: sorted by length, dealt to and fro like cards.

  Shards differ by one user at most, and by few events however long histories are cropped.

  >>> [users.tolist() for users in deal(np.array([9, 1, 8, 2, 7, 3]), 2)]
  [[0, 3, 5], [1, 2, 4]]
  """
  order = np.argsort(-np.asarray(lengths), kind="stable")
  turn = np.arange(len(order)) % (2 * count)
  shard = np.empty(len(order), np.int64)
  shard[order] = np.minimum(turn, 2 * count - 1 - turn)
  return [np.flatnonzero(shard == index) for index in range(count)]


def write(data: PreparedData, folder: pathlib.Path, count: int) -> dict[str, Any]:
  """Writes the columns of data as shards, and returns what `meta` says of them.

  Args:
    data: to write.
    folder: that of `meta.json`.
    count: of shards.

  Raises:
    ValueError: more shards than users.
  """
  check_count(count, data.num_users)
  lengths, entries = np.diff(data.offsets), []
  for index, users in enumerate(deal(lengths, count)):
    event = _events_of(data.offsets[:-1][users], lengths[users])
    offsets = np.concatenate([[0], np.cumsum(lengths[users])]).astype(np.int64)
    columns = {name: np.asarray(getattr(data, name), dtype)[event] for name, dtype in COLUMNS.items()}
    actions = {name: np.asarray(values)[event] for name, values in data.actions.items()}
    shard = Shard(users, offsets, columns, actions)
    save(shard, shard_folder(folder, index, count))
    entries.append(shard.entry())
  times = [int(data.timestamp.min()), int(data.timestamp.max())] if data.num_events else [0, 0]
  return {"shards": entries, "times": times, "has_actions": bool(np.any(data.action))}


def check_count(count: int, num_users: int) -> None:
  """Raises unless there can be so many shards.

  Raises:
    ValueError: more shards than users.
  """
  if not 1 <= count <= num_users:
    raise ValueError(f"shards={count} must be in 1..{num_users}, the number of users")


def load(path: pathlib.Path, meta: Mapping[str, Any], part: tuple[int, int]) -> dict[str, Any]:
  """Returns columns, offsets, actions and `meta` of the shards of a part, as those of `PreparedData`, in memory.

  Users of other shards have no events.

  Args:
    path: the folder.
    meta: the contents of its `meta.json`.
    part: index and number of equal parts; (0, 1) for all shards.

  Raises:
    ValueError: a shard is missing, truncated or of other sizes; or the parts do not divide the shards.
  """
  opened = shards_of_part(len(meta["shards"]), part)
  offsets, columns, actions = _together([open_shard(path, meta, index) for index in opened], meta["num_users"])
  if part != (0, 1):
    meta = {**meta, "num_events": int(offsets[-1]), OPENED: list(opened)}
  return {**columns, "offsets": offsets, "actions": actions, "meta": meta}


def columns_in_order(
  path: pathlib.Path, meta: Mapping[str, Any], users: int = 1 << 16
) -> Iterator[dict[str, np.ndarray]]:
  """Yields the columns of all shards as those of data in one piece, in blocks of some users.

  Args:
    path: the folder.
    meta: the contents of its `meta.json`.
    users: of a block, which is in memory.
  """
  shards = [open_shard(path, meta, index) for index in range(len(meta["shards"]))]
  for first in range(0, meta["num_users"], users):
    last = min(first + users, meta["num_users"])
    _, columns, actions = _together([shard.of_users(first, last) for shard in shards], last - first)
    yield {**columns, **{action_columns.PREFIX + name: values for name, values in actions.items()}}


def _together(shards: Sequence[Shard], num_users: int) -> tuple[np.ndarray, dict[str, Any], dict[str, Any]]:
  """Returns offsets, columns and actions of the users of some shards, in the order of all users."""
  lengths, start = np.zeros((2, num_users), np.int64)
  before = np.cumsum([0, *(len(shard.columns["item_id"]) for shard in shards)])
  for shard, first in zip(shards, before, strict=False):
    lengths[shard.user], start[shard.user] = np.diff(shard.offsets), first + shard.offsets[:-1]
  event = _events_of(start, lengths)
  columns = {name: np.concatenate([shard.columns[name] for shard in shards])[event] for name in COLUMNS}
  actions = {name: np.concatenate([shard.actions[name] for shard in shards])[event] for name in shards[0].actions}
  return np.concatenate([[0], np.cumsum(lengths)]), columns, actions


def open_shard(path: pathlib.Path, meta: Mapping[str, Any], index: int) -> Shard:
  """Returns a shard, its columns memory-mapped.

  Raises:
    ValueError: it is missing or truncated, or has other sizes than `meta` says.
  """
  described, count = meta["shards"][index], len(meta["shards"])
  folder = shard_folder(path, index, count)
  if not folder.is_dir():
    raise ValueError(f"{folder}: missing; {path} needs its {count} shards: copy it, or prepare the data again")
  columns = {name: prepared_files.load_array(folder / f"{name}.npy", dtype) for name, dtype in COLUMNS.items()}
  user, offsets = (prepared_files.load_array(folder / f"{name}.npy", np.int64) for name in ("user", "offsets"))
  actions = action_columns.load(folder, meta, described["events"])
  check_lengths(columns, offsets, described["users"], described["events"], str(folder))
  if len(user) != described["users"] or (np.diff(user) <= 0).any() or not 0 <= user[0] <= user[-1] < meta["num_users"]:
    raise ValueError(f"{folder}/user.npy: needs {described['users']} ascending users below {meta['num_users']}")
  return Shard(user, offsets, columns, actions)


def check_content(data: PreparedData) -> None:
  """Reads id tables and opened shards and compares them with the hashes that were taken when they were written.

  Raises:
    ValueError: a table has changed, or a shard is of other data or damaged; names it and what differs.
  """
  tables, whole = fingerprint.hashes(fingerprint.table_parts(data)), data.meta["fingerprint"]["hashes"]
  if changed := [name for name in tables if tables[name] != whole.get(name)]:
    raise ValueError(f"{data.path}: {', '.join(changed)} changed after the folder was written; prepare the data again")
  count = len(data.meta["shards"])
  for index in data.meta.get(OPENED, range(count)):
    before, now = data.meta["shards"][index]["hashes"], open_shard(data.path, data.meta, index).hashes()
    if changed := [name for name in {**before, **now} if before.get(name) != now.get(name)]:
      raise ValueError(
        f"{shard_folder(data.path, index, count)}: of other data than {data.path}/meta.json, or damaged:"
        f" {', '.join(changed)} differ; copy this shard again, or prepare the data again"
      )


def is_sharded(data: PreparedData) -> bool:
  """Returns whether data is a folder of shards."""
  return data.path is not None and "shards" in data.meta


def is_partial(data: PreparedData) -> bool:
  """Returns whether some shards are not opened: their users have no events here."""
  return OPENED in data.meta


def own_columns(data: PreparedData, index: int) -> tuple[Int[np.ndarray, " U"], PreparedData]:
  """Returns the users of a shard, and its columns as data of these users alone."""
  shard = open_shard(data.path, data.meta, index)
  sizes = {"num_users": len(shard.user), "num_events": int(shard.offsets[-1])}
  meta = {name: value for name, value in {**data.meta, **sizes}.items() if name not in ("shards", OPENED)}
  columns = {**shard.columns, "offsets": shard.offsets, "actions": shard.actions}
  return shard.user, dataclasses.replace(data, **columns, meta=meta, path=None, item_table=data.items)


def shards_of_part(count: int, part: tuple[int, int]) -> Sequence[int]:
  """Returns the shards of a part.

  Raises:
    ValueError: the parts do not divide the shards.

  >>> list(shards_of_part(8, (1, 4)))
  [2, 3]
  """
  if count % part[1]:
    raise ValueError(
      f"{count} shards cannot be divided among {part[1]} hosts; prepare the data in a multiple of {part[1]} shards"
    )
  each = count // part[1]
  return range(part[0] * each, (part[0] + 1) * each)


def shard_folder(path: pathlib.Path, index: int, count: int) -> pathlib.Path:
  """Returns the folder of a shard."""
  return path / f"shard-{index:05}-of-{count:05}"


def _events_of(start: Int[np.ndarray, " U"], length: Int[np.ndarray, " U"]) -> Int[np.ndarray, " E"]:
  """Returns the indices of the events of users, given where each begins, user after user."""
  return np.arange(int(length.sum())) + np.repeat(start - (np.cumsum(length) - length), length)


def save(shard: Shard, folder: pathlib.Path) -> None:
  """Writes the files of a shard to a new folder."""
  folder.mkdir()
  prepared_files.save_arrays(folder, {**shard.columns, "user": shard.user, "offsets": shard.offsets})
  action_columns.save(folder, shard.actions)
