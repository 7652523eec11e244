"""The folder in which programs keep compiled code: where it is, and its limit.

JAX can bound it too (`jax_compilation_cache_max_size`), but reads a file of each entry at each writing, 50 ms where
there are 1,000 entries, and writes nothing any more beside entries that were written without the limit. Here the folder
is looked at once, when a program starts: 4 ms for 1,000 entries.
"""

from __future__ import annotations

import contextlib
import os
import sys

FOLDER, LIMIT = "JAX_COMPILATION_CACHE_DIR", "JAXREC_COMPILE_CACHE_BYTES"
_DEFAULT_LIMIT = 2 << 30


def use_compilation_cache() -> None:
  """Caches compiled programs in `$JAXREC_CACHE/jax` (default ~/.cache/jaxrec/jax), unless JAX's variables are set.

  At most `$JAXREC_COMPILE_CACHE_BYTES` are left there (default 2 GiB; 0: none, so that nothing is found again). A
  folder that JAX's own variable names belongs to the caller, and has no limit.
  """
  root = os.environ.get("JAXREC_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "jaxrec")
  folder, limit = os.path.join(root, "jax"), _limit()
  if os.environ.setdefault(FOLDER, folder) == folder:
    remove_oldest(folder, limit)
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def remove_oldest(folder: str, limit: int) -> None:
  """Removes files of a folder, those first that were not used for the longest time, until the others fit a limit.

  Args:
    folder: need not exist; files that another process removes meanwhile are skipped.
    limit: bytes.
  """
  files = []
  with contextlib.suppress(OSError), os.scandir(folder) as entries:
    for entry in entries:
      with contextlib.suppress(OSError):
        found = entry.stat()
        files.append((max(found.st_atime, found.st_mtime), found.st_size, entry.path))
  size = sum(size for _, size, _ in files)
  for _, bytes_of_file, path in sorted(files):
    if size <= limit:
      return
    with contextlib.suppress(OSError):
      os.remove(path)
    size -= bytes_of_file


def _limit() -> int:
  text = os.environ.get(LIMIT, str(_DEFAULT_LIMIT))
  if not text.isdecimal():
    sys.exit(f"${LIMIT}={text!r} must be a number of bytes, such as {_DEFAULT_LIMIT}")
  return int(text)
