"""One owner of a folder: a lock that the kernel holds for a process."""

from __future__ import annotations

import os
import socket
from typing import IO

import jax
from absl import logging

try:
  import fcntl
except ImportError:  # Not on Windows.
  fcntl = None

_FILE = ".lock"


class FolderLock:
  """Makes this process the only one that writes to a folder, until `with` ends or the process dies.

  The lock is flock(2) on `<folder>/.lock`. The kernel frees it when its process ends, also by SIGKILL, so nothing stale
  is left; the file stays and names the latest owner. Of a distributed run process 0 takes it for all. Programs that
  only read a folder take none. The folder is a path of a file system, not the URL of a bucket. Shared folders need a
  file system whose locks reach every host, as NFS and Lustre (mounted with flock) have; where there are no locks that
  is logged, and nothing is refused.

  >>> import tempfile
  >>> folder = tempfile.mkdtemp()
  >>> with FolderLock(folder), FolderLock(folder):  # doctest: +ELLIPSIS
  ...   pass
  Traceback (most recent call last):
  ValueError: ... is in use by process ... on ...
  """

  def __init__(self, folder: str):
    """Takes nothing yet.

    Args:
      folder: an existing folder.
    """
    self._folder, self._file = folder, None

  def __enter__(self) -> FolderLock:
    """Takes the lock.

    Raises:
      ValueError: another process has it; the text names the process and its host.
    """
    if jax.process_index() == 0:
      self._file = self._taken()
    return self

  def __exit__(self, *_: object) -> None:
    if self._file:
      self._file.close()

  def _taken(self) -> IO[str] | None:
    file = None
    try:
      file = open(os.path.join(self._folder, _FILE), "a+", encoding="utf-8")
      if fcntl is None:
        raise OSError("this system has no flock")
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      with file:
        raise ValueError(self._refusal(file)) from None
    except OSError as error:
      logging.warning("%s cannot be locked (%s): make sure that no other process writes to it", self._folder, error)
      if file:
        file.close()
      return None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file

  def _refusal(self, file):
    file.seek(0)
    owner = file.read(200) or "another process"
    return f"{self._folder} is in use by {owner}; wait for its end or stop it, or give another folder"
