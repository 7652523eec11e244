"""Prepared data: event columns on disk, sorted by user and time.

A folder holds `meta.json`, one `.npy` file per column, `offsets.npy`, and the id tables `items.parquet` and
`users.parquet`, which map ids back to raw ids and titles. Columns are memory-mapped, so that opening a large folder is
instant. In shards (`jaxrec.data.prepared_shards`) the columns are in several folders inside, and come into memory.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrec.data import action_columns, column_checks, prepared_files, prepared_shards
from jaxrec.data import fingerprint as fingerprints
from jaxrec.data.column_checks import COLUMNS, TEST, TRAIN, VALIDATION, check_lengths
from jaxrec.data.raw_items import RawItems
from jaxrec.data.whole_folder import whole_folder

if TYPE_CHECKING:
  import polars as pl

_MOST = 2**31 - 3  # Users or items: ids are int32, and two more are a mask token and a count.


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedData:
  """The events of all users as columns; those of user u are the entries `offsets[u]:offsets[u + 1]` of every column.

  item_id: items 1..V.
  domain_id: domains 1..C.
  timestamp: seconds; all 0 if the data has no times.
  action: rating, click, ... as a small integer; 0 for none.
  split: 0 training, 1 validation, 2 test.
  offsets: [num_users + 1] where each user's events begin; the last entry is num_events.
  meta: the contents of `meta.json`: source, options, sizes, split, counts of dropped events by reason.
  path: the folder, or None if the data is in memory.
  actions: name -> column of each typed action, such as a rating or seconds; see `jaxrec.data.action_columns`.
  item_table, user_table: the id tables of data in memory; use `items` and `users`, which read those of a folder.
  """

  item_id: np.ndarray
  domain_id: np.ndarray
  timestamp: np.ndarray
  action: np.ndarray
  split: np.ndarray
  offsets: np.ndarray
  meta: Mapping[str, Any]
  path: pathlib.Path | None = None
  actions: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  item_table: pl.DataFrame | None = None
  user_table: pl.DataFrame | None = None

  @classmethod
  def load(cls, path: str | os.PathLike, part: tuple[int, int] = (0, 1)) -> PreparedData:
    """Returns the prepared data of a folder, its columns memory-mapped and checked.

    Args:
      path: the folder; or its URL in an object store, from where it is copied as `jaxrec.data.store_copy` says.
      part: index and number of equal parts of the shards, to open one of them: users of the others then have no
        events. (0, 1) opens all; data in one piece has no parts.

    Raises:
      ValueError: a shard or a file is missing, truncated, of another type, or holds ids out of range; the message names
        the file.
    """
    from jaxrec.data import store_copy

    path = store_copy.local_folder(path, part)
    if not path.is_dir():
      raise ValueError(f"{path}: no such folder of prepared data; create it with `python -m experiments.prepare`")
    meta = prepared_files.load_meta(path / "meta.json")
    for name in ("items.parquet", "users.parquet"):
      if not (path / name).is_file():
        raise ValueError(f"{path / name}: missing; prepare the data again")
    if "shards" in meta:
      data = cls(**prepared_shards.load(path, meta, part), path=path)
    else:
      columns = {name: prepared_files.load_array(path / f"{name}.npy", dtype) for name, dtype in COLUMNS.items()}
      offsets = prepared_files.load_array(path / "offsets.npy", np.int64)
      actions = action_columns.load(path, meta, meta["num_events"])
      data = cls(**columns, offsets=offsets, meta=meta, path=path, actions=actions)
    column_checks.check(data)
    return data

  @classmethod
  def from_columns(
    cls,
    *,
    item_id,
    user=None,
    offsets=None,
    domain_id=None,
    timestamp=None,
    action=None,
    actions: Mapping[str, Any] | None = None,
    action_kinds: Mapping[str, str] | None = None,
    split: Any = "leave_one_out",
    num_items: int | None = None,
    domain_names: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    raw_items: Sequence[str] | None = None,
    raw_users: Sequence[str] | None = None,
    item_domain=None,
    source: str = "columns",
    options: Mapping[str, Any] | None = None,
    counts: Mapping[str, Any] | None = None,
  ) -> PreparedData:
    """Returns prepared data in memory, for tests, notebooks and generated data.

    Events must be sorted by user and time. Numbers may have any type that holds whole numbers.

    Args:
      item_id: [num_events] items 1..V.
      user: [num_events] 0-based user of each event, never decreasing. Give either this or `offsets`.
      offsets: [num_users + 1] where each user's events begin; the last entry is num_events.
      domain_id: [num_events] domains 1..C; None for one domain.
      timestamp: [num_events] seconds; None if the data has no times.
      action: [num_events] small integers, 0 for none; None if the data has no actions.
      actions, action_kinds: name -> [num_events] values, and name -> kind; see `jaxrec.data.action_columns`.
      split: [num_events] 0 training, 1 validation, 2 test; or "leave_one_out", see the function of this name.
      num_items: V; None for the largest item id of the events.
      domain_names: [C] names of the domains; None for "domain 1", ...
      titles: [V] titles of the items; None for no titles.
      raw_items, raw_users: [V], [num_users] raw ids; None for the ids as text.
      item_domain: [V + 1] domain of every item, 0 first; None for the domain of the item's first event, 1 without one.
      source, options, counts: recorded in `meta`.

    Raises:
      ValueError: lengths or ids do not fit together; a number is a fraction, NaN or too large; times fall inside a
        user; names of domains or users repeat.

    >>> data = PreparedData.from_columns(user=[0, 0, 0, 1], item_id=[3, 1, 2, 2])
    >>> data.num_users, data.num_items, data.offsets.tolist(), data.split.tolist()
    (2, 3, [0, 3, 4], [0, 1, 2, 0])
    """
    from jaxrec.data import id_tables  # Imports polars.

    item_id = _integers("item_id", item_id)
    if (user is None) == (offsets is None):
      raise ValueError("give exactly one of user and offsets")
    offsets = _offsets_of(user) if offsets is None else _integers("offsets", offsets)
    filled = {"domain_id": (domain_id, 1), "timestamp": (timestamp, 0), "action": (action, 0)}
    columns = {
      name: np.full(len(item_id), fill, COLUMNS[name]) if value is None else _integers(name, value)
      for name, (value, fill) in filled.items()
    }
    check_lengths({"item_id": item_id, **columns}, offsets, len(offsets) - 1, len(item_id), "columns")
    is_rule = isinstance(split, str)
    if is_rule and split != "leave_one_out":
      raise ValueError(f"{split=} is not known; give 'leave_one_out' or an array of 0, 1, 2")
    columns["split"] = leave_one_out(offsets) if is_rule else _integers("split", split, low=TRAIN, high=TEST)
    sizes = _sizes(item_id, columns["domain_id"], num_items, domain_names)
    if item_domain is None:
      item_domain = first_domain(item_id, columns["domain_id"], sizes["num_items"])
    meta = {"format": prepared_files.FORMAT, "source": source, "options": dict(options or {})}
    meta |= {"num_users": len(offsets) - 1, **sizes, "num_events": len(item_id)}
    meta |= {"split": {"kind": split if is_rule else "given"}, "has_timestamps": timestamp is not None}
    meta["counts"] = dict(counts or {})
    tables = {
      "item_table": id_tables.item_table(sizes["num_items"], sizes["num_domains"], raw_items, titles, item_domain),
      "user_table": id_tables.user_table(len(offsets) - 1, raw_users),
    }
    typed, meta["actions"] = action_columns.describe(actions or {}, action_kinds or {}, "{}[{}]".format)
    check_lengths(typed, offsets, len(offsets) - 1, len(item_id), "actions")
    data = cls(item_id=item_id, **columns, offsets=offsets, meta=meta, actions=typed, **tables)
    column_checks.check(data)
    return data

  def save(self, path: str | os.PathLike, *, overwrite: bool = False, shards: int = 1) -> PreparedData:
    """Writes the folder `path` and returns it loaded. It appears complete or not at all, as `whole_folder` says.

    Args:
      path: the folder to write.
      overwrite: whether to replace an existing prepared folder.
      shards: folders inside it that users are dealt out to; 1: none. The loaded data is the same.

    Raises:
      FolderExistsError: the folder exists and `overwrite` is False.
      ValueError: more shards than users.
      OSError: it cannot be written, as when the disk is full.
    """
    if prepared_shards.is_partial(self):
      raise ValueError(f"{self.path} is opened in part; load all of its shards to save the data")
    path = pathlib.Path(path)
    prepared_files.check_free(path, overwrite)
    with prepared_files.writing(path), whole_folder(path, overwrite) as unfinished:
      with prepared_files.writing(path):  # Before what is half written is removed.
        self._write(unfinished, shards)
    return PreparedData.load(path)

  def _write(self, folder: pathlib.Path, shards: int) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
      fingerprint = thread.submit(fingerprints.fingerprint, self)  # While the disk is busy.
      meta = {name: value for name, value in self.meta.items() if name not in prepared_shards.META}
      if shards != 1:
        meta |= prepared_shards.write(self, folder, shards)
      else:
        prepared_files.save_arrays(folder, {name: np.asarray(getattr(self, name), COLUMNS[name]) for name in COLUMNS})
        prepared_files.save_arrays(folder, {"offsets": np.asarray(self.offsets, np.int64)})
        action_columns.save(folder, self.actions)
      self.items.write_parquet(folder / "items.parquet")
      self.users.write_parquet(folder / "users.parquet")
      meta |= {"fingerprint": fingerprint.result()}
    (folder / "meta.json").write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

  @property
  def num_users(self) -> int:
    return self.meta["num_users"]

  @property
  def num_items(self) -> int:
    return self.meta["num_items"]

  @property
  def num_domains(self) -> int:
    return self.meta["num_domains"]

  @property
  def num_events(self) -> int:
    return self.meta["num_events"]

  @property
  def domain_names(self) -> tuple[str, ...]:
    return tuple(self.meta["domain_names"])

  @property
  def has_timestamps(self) -> bool:
    return self.meta["has_timestamps"]

  @property
  def action_meta(self) -> Mapping[str, Mapping[str, Any]]:
    """For each typed action its kind, its number of classes, and its least, greatest and mean value."""
    return self.meta.get("actions", {})

  @property
  def action_names(self) -> Mapping[str, tuple[str, ...]]:
    """For "action", or "action.<name>" of a typed action, the names of its actions, where the source wrote text.

    The names of `action` are those of the numbers 1, 2, ..., the names of a typed action those of 0, 1, ...
    """
    return {column: tuple(names) for column, names in self.meta.get("action_names", {}).items()}

  def user_slice(self, user: int) -> slice:
    """Returns the slice of columns with the events of the 0-based `user`. Raises: ValueError if there is none."""
    if not 0 <= user < self.num_users:
      raise ValueError(f"{user=} is outside 0..{self.num_users - 1}")
    return slice(int(self.offsets[user]), int(self.offsets[user + 1]))

  @functools.cached_property
  def fingerprint(self) -> fingerprints.Fingerprint:
    """Returns the fingerprint of the content: that of meta.json for a folder; see `jaxrec.data.fingerprint`."""
    return (self.path is not None and self.meta.get("fingerprint")) or fingerprints.fingerprint(self)

  def check_content(self) -> None:
    """Reads all files of the folder and compares them with the fingerprint that was taken when it was written.

    Raises:
      ValueError: they have changed since; names what.
    """
    if self.path is None or "fingerprint" not in self.meta:  # Folders of older versions have none.
      return
    if prepared_shards.is_sharded(self):
      prepared_shards.check_content(self)
      return
    changed = fingerprints.changed_parts(self.meta["fingerprint"], fingerprints.fingerprint(self))
    if changed:
      raise ValueError(
        f"{self.path}: {', '.join(changed)} changed after the folder was written, or a file is damaged; prepare the"
        " data again"
      )

  @functools.cached_property
  def items(self) -> pl.DataFrame:
    """Returns one row per item 1..V: item_id, raw_id, title, domain_id and further columns of the source."""
    if self.item_table is not None:
      return self.item_table
    return prepared_files.read_table(self.path / "items.parquet", self.num_items)

  @functools.cached_property
  def users(self) -> pl.DataFrame:
    """Returns one row per user: user (0-based) and raw_id."""
    if self.user_table is not None:
      return self.user_table
    return prepared_files.read_table(self.path / "users.parquet", self.num_users)

  def item_titles(self) -> list[str]:
    """Returns V + 1 titles: entry i is that of item i, or its raw id if it has no title; entry 0 is empty."""
    return [""] + [title or raw for title, raw in zip(self.items["title"], self.items["raw_id"], strict=True)]

  def item_domain(self) -> np.ndarray:
    """Returns the domain of every item, int32 [V + 1], read-only; 0 for padding."""
    return self._item_domain

  @functools.cached_property
  def _item_domain(self) -> np.ndarray:
    domain = np.concatenate([[0], self.items["domain_id"].to_numpy()]).astype(np.int32)
    return np.broadcast_to(domain, domain.shape)  # Read-only, because all callers share it.

  def user_index(self, raw_id: str | int) -> int:
    """Returns the 0-based index of the user with this id in the raw data.

    Raises:
      ValueError: there is no such user.
    """
    if (found := self.find_user(str(raw_id))) is None:
      examples = ", ".join(map(repr, self.users["raw_id"].head(3)))
      raise ValueError(f"user {str(raw_id)!r} is not in the prepared data ({self.num_users} users such as {examples})")
    return found

  def find_user(self, raw_id: str) -> int | None:
    """Returns the 0-based index of the user with this id in the raw data; None if there is none."""
    return self._index_of_raw_user.get(raw_id)

  def user_raw_id(self, user: int) -> str:
    """Returns the id that the 0-based `user` has in the raw data."""
    self.user_slice(user)
    return self.users["raw_id"][user]

  @functools.cached_property
  def _index_of_raw_user(self) -> dict[str, int]:
    return {raw_id: index for index, raw_id in enumerate(self.users["raw_id"])}

  def item_index(self, raw_id: str | int, domain: str | None = None) -> int:
    """Returns the id 1..V of the item with this id in the raw data; see `RawItems.index`."""
    return self.raw_items.index(raw_id, domain)

  def item_raw_id(self, item: int) -> str:
    """Returns the id that the item 1..V has in the raw data. Raises: ValueError for another number."""
    if not 1 <= item <= self.num_items:
      raise ValueError(f"{item=} is outside 1..{self.num_items}")
    return self.items["raw_id"][item - 1]

  @functools.cached_property
  def raw_items(self) -> RawItems:
    """The ids of items in the raw data, to look them up."""
    return RawItems(self.items["raw_id"], self.items["domain_id"].to_list(), self.domain_names)


def leave_one_out(offsets: np.ndarray, held_out: int = 1) -> np.ndarray:
  """Returns the split of each event: a user's last ones 2, as many before them 1, earlier ones and those of others 0.

  Args:
    offsets: where the events of each user begin.
    held_out: number of 2, and of 1; users with no more events than both have only 0.

  >>> leave_one_out(np.array([0, 4, 6])).tolist(), leave_one_out(np.array([0, 5]), held_out=2).tolist()
  ([0, 0, 1, 2, 0, 0], [0, 1, 1, 2, 2])
  """
  offsets, split = np.asarray(offsets, np.int64), np.zeros(offsets[-1], np.uint8)
  ends = offsets[1:][np.diff(offsets) > 2 * held_out]
  for back in range(1, held_out + 1):
    split[ends - back] = TEST
    split[ends - held_out - back] = VALIDATION
  return split


def first_domain(item_id: np.ndarray, domain_id: np.ndarray, num_items: int) -> np.ndarray:
  """Returns the domain of each item's first event, int32 [V + 1]: 1 for items without events, 0 for padding.

  >>> first_domain(np.array([2, 2, 1]), np.array([2, 1, 1]), 3).tolist()
  [0, 1, 2, 1]
  """
  domain = np.ones(num_items + 1, np.int32)
  in_range = (item_id >= 1) & (item_id <= num_items)
  domain[item_id[in_range][::-1]] = domain_id[in_range][::-1]
  domain[0] = 0
  return domain


def _integers(name: str, values: Any, **limits: int) -> np.ndarray:
  from jaxrec.data import event_values  # Imports polars.

  return event_values.integer_array(name, values, COLUMNS.get(name, np.int64), **limits)


def _offsets_of(user) -> np.ndarray:
  user = _integers("user", user, low=0, high=_MOST)
  if len(user) and (np.diff(user) < 0).any():
    raise ValueError("user must be 0-based and never decrease: the events of a user are adjacent")
  return np.concatenate([[0], np.cumsum(np.bincount(user))]).astype(np.int64)


def _sizes(item_id, domain_id, num_items, domain_names) -> dict[str, Any]:
  from jaxrec.data import id_tables

  num_domains = max(int(domain_id.max(initial=1)), 1)
  names = list(domain_names) if domain_names is not None else [f"domain {d + 1}" for d in range(num_domains)]
  id_tables.check_distinct("domain_names", names)
  num_items = int(item_id.max(initial=0) if num_items is None else num_items)
  if not 0 <= num_items <= _MOST:
    raise ValueError(f"{num_items=} must be in 0..{_MOST}, because ids are int32")
  return {"num_items": num_items, "num_domains": len(names), "domain_names": names}
