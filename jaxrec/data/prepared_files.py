"""Files of a prepared folder: reading and writing with errors that name the file."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrec.data.local_path import check_local
from jaxrec.data.whole_folder import FolderExistsError, remove_leftovers

if TYPE_CHECKING:
  import polars as pl

FORMAT = 1  # Version of the folder format, in meta.json.
_META_KEYS = (
  "source",
  "options",
  "num_users",
  "num_items",
  "num_domains",
  "num_events",
  "domain_names",
  "split",
  "has_timestamps",
  "counts",
)


def check_free(path: pathlib.Path, overwrite: bool) -> None:
  """Checks that `path` is free, or with `overwrite` an empty or a prepared folder; removes leftovers next to it first.

  Raises:
    FolderExistsError: it exists and `overwrite` is False.
    ValueError: something else is there, or `path` is a URL.
  """
  check_local("out", path)
  remove_leftovers(path)
  if not path.exists():
    return
  if not overwrite:
    raise FolderExistsError(
      f"{path}: exists already; remove it, choose another folder, or pass overwrite=True (--overwrite)"
    )
  if not (path / "meta.json").is_file() and (not path.is_dir() or any(path.iterdir())):
    raise ValueError(f"{path}: not a folder of prepared data, so it is not overwritten; choose another folder")


class FolderWriteError(OSError):
  """A folder of prepared data cannot be written."""


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
  """Turns errors of writing `path` into one that names it and the space that is free then."""
  from polars.exceptions import PolarsError

  try:
    yield
  except FolderWriteError:
    raise
  except (OSError, PolarsError) as error:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
    free = f"{shutil.disk_usage(path.parent).free:,} bytes are free there" if path.parent.is_dir() else "no such folder"
    raise FolderWriteError(
      f"{path}: cannot be written ({reason}); {free}; free some space, or choose another folder"
    ) from error


def load_meta(path: pathlib.Path) -> dict[str, Any]:
  """Returns the description of a prepared folder.

  Raises:
    ValueError: the file is missing, damaged or of another version.
  """
  try:
    meta = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
    raise ValueError(f"{path}: cannot be read as the description of prepared data: {error}") from error
  if not isinstance(meta, dict) or meta.get("format") != FORMAT:
    raise ValueError(
      f'{path}: needs "format": {FORMAT}; not prepared data, or of another version: prepare the data again'
    )
  missing = [key for key in _META_KEYS if key not in meta]
  if missing:
    raise ValueError(f"{path}: lacks {missing}; prepare the data again")
  return meta


def load_array(path: pathlib.Path, dtype: type) -> np.ndarray:
  """Returns the memory-mapped column of a file.

  Raises:
    ValueError: the file is missing, damaged or of another type.
  """
  try:
    size_before_mapping = path.stat().st_size
    array = np.load(path, mmap_mode="r", allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise ValueError(f"{path}: missing or damaged ({error}); prepare the data again") from error
  if array.ndim != 1 or array.dtype != dtype:
    raise ValueError(f"{path}: holds {array.dtype} {array.shape}, needs one axis of {np.dtype(dtype)}")
  if size_before_mapping < array.nbytes:
    raise ValueError(
      f"{path}: truncated, {size_before_mapping} of more than {array.nbytes} bytes; prepare the data again"
    )
  return array


def save_arrays(folder: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes a file `<name>.npy` for each array."""
  for name, values in arrays.items():
    np.save(folder / f"{name}.npy", values)


def read_table(path: pathlib.Path, rows: int) -> pl.DataFrame:
  """Returns an id table.

  Raises:
    ValueError: the file is missing or damaged, or has another number of rows.
  """
  import polars as pl

  try:
    table = pl.read_parquet(path)
  except (pl.exceptions.PolarsError, OSError) as error:
    raise ValueError(f"{path}: missing or damaged ({error}); prepare the data again") from error
  if len(table) != rows:
    raise ValueError(f"{path}: has {len(table)} rows, meta.json says {rows}")
  return table
