"""Where the raw files of a source are, and whether they are still what they were, without reading them."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Mapping
from typing import Any

# Source -> its folder in $JAXREC_DATA: the names under which the official archives unpack, and a sample of Taobao.
RAW_FOLDERS: Mapping[str, str] = {
  "movielens-100k": "ml-100k", "movielens-1m": "ml-1m", "movielens-20m": "ml-20m", "movielens-25m": "ml-25m",
  "movielens-32m": "ml-32m", "kuairand-1k": "kuairand-1k", "amazon-5core": "amazon-5core", "abxi": "abxi-food-kitchen",
  "taobao": "taobao-sample",
}  # fmt: skip


def raw_folder(source: str) -> str | None:
  """Returns the folder in $JAXREC_DATA with the raw data of a source, or None if there is none."""
  root, name = os.environ.get("JAXREC_DATA"), RAW_FOLDERS.get(source)
  path = os.path.join(root, name) if root and name else None
  return path if path and os.path.exists(path) else None


def files_state(path: str | os.PathLike | None) -> dict[str, Any] | None:
  """Returns how many files a path holds, their bytes, and a hash of their names, sizes and times; None without files.

  A file that is replaced by one of the same size and time is not noticed; any other change is.

  Args:
    path: a file, a folder, or a pattern of files.

  >>> files_state(None), files_state("there is no such file")
  (None, None)
  """
  files = sorted(_files(path)) if path else []
  if not files:
    return None
  digest, total = hashlib.sha256(), 0
  for name, file in files:
    status = os.stat(file)
    digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
    total += status.st_size
  return {"files": len(files), "bytes": total, "hash": digest.hexdigest()[:16]}


def _files(path):
  """Yields the name inside the folder, and the path, of each file."""
  if not os.path.isdir(path):
    yield from (("", path),) if os.path.exists(path) else ((name, name) for name in glob.glob(path, recursive=True))
    return
  for folder, _, names in os.walk(path, followlinks=True):
    for name in names:
      file = os.path.join(folder, name)
      if os.path.exists(file):  # Not a dangling link.
        yield os.path.relpath(file, path), file
