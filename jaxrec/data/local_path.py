"""Paths that must be of a file system."""

from __future__ import annotations

import os
import re


def is_url(path: str | os.PathLike) -> bool:
  """Returns whether a path is a URL, also as `os.path` writes it, with one slash; C:/ is a drive.

  >>> is_url("gs://bucket/data"), is_url("gs:/bucket/data"), is_url("C:/data"), is_url("runs/a:b")
  (True, True, False, False)
  """
  return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(path)))


def check_local(name: str, path: str | os.PathLike) -> None:
  """Raises where a path is a URL: it would become a folder of that name in the working directory of each host.

  Files are memory-mapped, locked and appended to, which object stores cannot do.

  Args:
    name: of the argument.
    path: to check.

  Raises:
    ValueError: it is a URL.

  >>> check_local("workdir", "runs/a:b")
  >>> check_local("workdir", "gs://bucket/run")
  Traceback (most recent call last):
  ValueError: workdir='gs://bucket/run' is a URL; it must be a path of a file system: mount the bucket (gcsfuse, \
s3fs), or use a local folder and copy it
  """
  if is_url(path):
    raise ValueError(
      f"{name}={os.fspath(path)!r} is a URL; it must be a path of a file system: mount the bucket (gcsfuse, s3fs), or"
      " use a local folder and copy it"
    )
