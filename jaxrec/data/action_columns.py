"""Actions of events, typed: what a user did with an item, such as a like, a kind of behaviour or seconds of watching.

Prepared data may have any number of them. Each is a file `action.<name>.npy`; `meta["actions"]` holds their kinds.
Tables of events name such a column `action.<name>`. Where a source writes actions as text, `meta["action_names"]` holds
the texts of a column, in the order of their numbers.

| kind | values | dtype |
|---|---|---|
| binary | 0 or 1 | uint8 |
| multi_class | 0..K - 1 | int32 |
| regression | finite numbers, such as a rating or seconds | float32 |
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxrec.batches import BINARY, MULTI_CLASS, REGRESSION
from jaxrec.data import prepared_files

DTYPES: Mapping[str, type] = {BINARY: np.uint8, MULTI_CLASS: np.int32, REGRESSION: np.float32}
ACTION = "action"
"""The column of an action without a kind: a small integer, 0 for none."""
PREFIX = "action."
_NAME = re.compile(r"[A-Za-z0-9_]+")


def describe(
  actions: Mapping[str, Any], kinds: Mapping[str, str], place: Callable[[str, int], str]
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
  """Returns the columns with their dtypes, and for each its kind, its classes and its range, for `meta["actions"]`.

  Args:
    actions: name -> values, one for each event.
    kinds: name -> a key of `DTYPES`.
    place: name and index of a wrong value -> where it is, for the error.

  Raises:
    ValueError: an unknown kind, a column without one, or a value that its kind does not allow.

  >>> columns, meta = describe({"like": [0, 1, 1, 1]}, {"like": "binary"}, lambda name, index: f"{name}[{index}]")
  >>> columns["like"].tolist(), meta
  ([0, 1, 1, 1], {'like': {'kind': 'binary', 'classes': 2, 'least': 0.0, 'most': 1.0, 'mean': 0.75}})
  """
  check_kinds(kinds)
  if set(actions) != set(kinds):
    raise ValueError(f"actions {sorted(actions)} and their kinds {sorted(kinds)} must have the same names")
  columns, meta = {}, {}
  for name, kind in kinds.items():
    values = np.asarray(actions[name])
    bad = np.flatnonzero(wrong_values(values, kind))
    if len(bad):
      raise ValueError(f"{place(name, bad[0])}: the action {name!r} is {values[bad[0]]}, needs {_NEEDS[kind]}")
    columns[name] = values.astype(DTYPES[kind])
    meta[name] = {"kind": kind, "classes": _num_classes(columns[name], kind), **_range(columns[name])}
  return columns, meta


def first_number(column: str) -> int:
  """Returns the number of the first name of a column: 1 of `action`, where 0 stands for none, else 0."""
  return 1 if column == ACTION else 0


def check_kinds(kinds: Mapping[str, str]) -> None:
  """Raises unless the names of actions can be file names and their kinds are known.

  Raises:
    ValueError: names the action.
  """
  for name, kind in kinds.items():
    if not _NAME.fullmatch(name):
      raise ValueError(f"the action name {name!r} must consist of letters, digits and underscores")
    if kind not in DTYPES:
      raise ValueError(f"the kind {kind!r} of action {name!r} is not known; give one of {', '.join(DTYPES)}")


def wrong_values(values: np.ndarray, kind: str) -> np.ndarray:
  """Returns which values a kind of action does not allow.

  >>> wrong_values(np.array([0.0, 1.0, 2.0, np.nan]), "binary").tolist()
  [False, False, True, True]
  """
  if kind == BINARY:
    return (values != 0) & (values != 1)
  if kind == MULTI_CLASS:
    return ~((values >= 0) & (values == np.floor(values)) & (values < 2**31))
  return ~np.isfinite(values)


_NEEDS = {BINARY: "0 or 1", MULTI_CLASS: "a whole number from 0", REGRESSION: "a finite number"}


def parse_kinds(given: str | Mapping[str, str]) -> dict[str, str]:
  """Returns name -> kind, from such a mapping or from text as on a command line.

  Raises:
    ValueError: text of another form, or an unknown kind.

  >>> parse_kinds("like=binary, watched=regression")
  {'like': 'binary', 'watched': 'regression'}
  """
  if isinstance(given, str):
    pairs = [part.split("=") for part in given.split(",") if part.strip()]
    if any(len(pair) != 2 for pair in pairs):
      raise ValueError(f"actions={given!r} must be like 'like=binary,watched=regression'")
    given = {name.strip(): kind.strip() for name, kind in pairs}
  check_kinds(given)
  return dict(given)


def save(folder: pathlib.Path, columns: Mapping[str, np.ndarray]) -> None:
  """Writes a file for each column."""
  for name, values in columns.items():
    np.save(folder / f"{PREFIX}{name}.npy", values)


def load(folder: pathlib.Path, meta: Mapping[str, Any], num_events: int) -> dict[str, np.ndarray]:
  """Returns the memory-mapped columns that `meta` lists; none for data that were prepared without actions.

  Raises:
    ValueError: a file is missing, damaged, of another type or of another length.
  """
  columns = {}
  for name, described in meta.get("actions", {}).items():
    path = folder / f"{PREFIX}{name}.npy"
    columns[name] = prepared_files.load_array(path, DTYPES[described["kind"]])
    if len(columns[name]) != num_events:
      raise ValueError(f"{path}: has {len(columns[name])} entries, needs {num_events} (num_events)")
  return columns


def _num_classes(values, kind) -> int:
  return {BINARY: 2, REGRESSION: 0}.get(kind, int(values.max(initial=0)) + 1)


def _range(values) -> dict[str, float]:
  if not len(values):
    return {"least": 0.0, "most": 0.0, "mean": 0.0}
  return {"least": float(values.min()), "most": float(values.max()), "mean": nine_digits(values.mean(dtype=np.float64))}


def nine_digits(mean: float) -> float:
  """Returns a mean as it is recorded: to nine digits, so that it does not depend on the order of the sum.

  >>> nine_digits(1 / 3)
  0.333333333
  """
  return float(f"{mean:.9g}")
