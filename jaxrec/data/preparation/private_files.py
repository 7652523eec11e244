"""Small files of our own in a folder that others may write to, such as a shared cache: links are never followed."""

from __future__ import annotations

import os
import pathlib
import stat
from typing import IO


def open_to_write(path: pathlib.Path, *, append: bool) -> IO[bytes]:
  """Returns a regular file of its own, opened to write, which is made, emptied or appended to.

  Raises:
    ValueError: the path is a link, has a second name, or is no regular file.
  """
  try:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
  except OSError as error:
    if path.is_symlink() or path.exists() and not path.is_file():
      raise ValueError(f"{path}: is a link or no regular file, and is not written to; remove it") from error
    raise
  found = os.fstat(descriptor)
  if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
    os.close(descriptor)
    raise ValueError(f"{path}: has a second name or is no regular file, and is not written to; remove it")
  if append:
    os.lseek(descriptor, 0, os.SEEK_END)
  else:
    os.truncate(descriptor, 0)
  return os.fdopen(descriptor, "wb" if not append else "ab")


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a small file; raises as `open_to_write`."""
  with open_to_write(path, append=False) as stream:
    stream.write(text.encode())


def read_text(path: pathlib.Path) -> str | None:
  """Returns the text of a small file, or None if there is no regular file of this name."""
  if path.is_symlink() or not path.is_file():
    return None
  return path.read_text(encoding="utf-8", errors="replace")
