"""Folders that appear complete or not at all, and are replaced without a moment in which there is none."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator

from absl import logging

try:
  import fcntl
except ImportError:  # Not on Windows.
  fcntl = None

_UNFINISHED, _REPLACED = "unfinished", "replaced"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # Of renameat2(2).


class FolderExistsError(ValueError):
  """The folder exists, and was not to be replaced."""


@contextlib.contextmanager
def whole_folder(path: pathlib.Path, overwrite: bool) -> Iterator[pathlib.Path]:
  """Gives a new folder next to `path`, which becomes `path` when `with` ends without an error.

  A link is followed: the folder that it points to is replaced. What a killed process leaves behind is removed by the
  next one that writes the same folder.

  Args:
    path: the folder to write.
    overwrite: whether to replace it if it exists. On Linux both are exchanged at once; elsewhere the old one is moved
      aside first, and comes back if the process is killed in between and started again.

  Raises:
    FolderExistsError: it exists although `overwrite` is False, perhaps since another process wrote it meanwhile.
  """
  path = _real(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  unfinished, lock = _locked_folder(path, _UNFINISHED)
  try:
    yield unfinished
    unfinished.chmod(0o755)
    _put_in_place(unfinished, path, overwrite)
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)  # Holds the old folder if that was replaced.
    os.close(lock)


def remove_leftovers(path: pathlib.Path) -> None:
  """Removes what killed processes left next to `path`, and restores a folder that they had renamed.

  Each process holds a lock on its unfinished folder, so those of running ones stay.
  """
  path = _real(path)
  pattern = re.compile(rf"\.{re.escape(path.name)}\.({_UNFINISHED}|{_REPLACED})\.[a-z0-9_]{{8}}")
  for folder in sorted(path.parent.iterdir()) if path.parent.is_dir() else ():
    found = pattern.fullmatch(folder.name)
    lock = _lock(folder) if found and folder.is_dir() else None
    if lock is None:
      continue
    moved_aside = folder / path.name
    if found[1] == _REPLACED and moved_aside.exists() and not path.exists():
      moved_aside.rename(path)
      logging.warning("%s: brought back from %s, where a killed process had moved it", path, folder)
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
    logging.info("%s: removed; a killed process had left it", folder)


def _real(path):
  return pathlib.Path(os.path.realpath(path))


def _locked_folder(path, kind):
  """Returns a new folder and the descriptor that holds its lock."""
  while True:
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.{kind}.", dir=path.parent))
    lock = _lock(folder, needed=False)
    if lock is not None and folder.exists():  # Another process may take it for a leftover before it is locked.
      return folder, lock


def _lock(folder, needed=True):
  """Returns a descriptor with an exclusive lock on a folder; None where another process has it.

  On file systems without locks on folders: None if the lock is needed, else a descriptor without it.
  """
  try:
    descriptor = os.open(folder, os.O_RDONLY)
  except FileNotFoundError:
    return None
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except (OSError, AttributeError) as error:
    if needed or isinstance(error, BlockingIOError):
      os.close(descriptor)
      return None
  return descriptor


def _put_in_place(unfinished, path, overwrite):
  if overwrite and path.exists():
    if not _exchange(unfinished, path):
      _replace_in_two_steps(unfinished, path)
    return
  try:
    unfinished.rename(path)
  except OSError as error:
    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
      raise
    raise FolderExistsError(f"{path}: exists already; another process has written it meanwhile") from error


def _exchange(one, other) -> bool:
  """Exchanges two folders at once; False where the system cannot."""
  try:
    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
  except (AttributeError, OSError, TypeError):  # Another C library or system.
    return False
  if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
    return True
  number = ctypes.get_errno()
  if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
    return False
  raise OSError(number, os.strerror(number), str(other))


def _replace_in_two_steps(unfinished, path):
  aside, lock = _locked_folder(path, _REPLACED)
  try:
    path.rename(aside / path.name)
    try:
      unfinished.rename(path)
    except OSError:
      (aside / path.name).rename(path)
      raise
  finally:
    shutil.rmtree(aside, ignore_errors=True)
    os.close(lock)
