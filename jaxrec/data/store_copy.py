"""Prepared folders in an object store, `gs://` or `s3://`: what a host needs of them is copied to a local folder.

Columns are memory-mapped, which needs files of a file system. So a host copies `meta.json`, the id tables and the
shards that it opens, once: they stay in $JAXREC_CACHE.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
from typing import Any

from absl import logging

from jaxrec.data import prepared_shards
from jaxrec.data.local_path import is_url
from jaxrec.data.preparation.download import cache_root

_TABLES = ("items.parquet", "users.parquet")


def local_folder(path: str | os.PathLike, part: tuple[int, int] = (0, 1)) -> pathlib.Path:
  """Returns a folder of a file system with the prepared data at `path`, copied if it is a URL.

  Args:
    path: of a file system; or a URL of a prepared folder, for which the package `fsspec` has a file system: gs:// needs
      the package gcsfs, s3:// needs s3fs.
    part: which of its shards are copied; see `PreparedData.load`.

  Raises:
    ValueError: there is no prepared folder, its package is missing, or it cannot be read; names the URL.
  """
  if not is_url(path):
    return pathlib.Path(path)
  url = re.sub(r":/+", "://", os.fspath(path), count=1).rstrip("/")
  try:
    return _copied(url, part)
  except Exception as error:  # Each store raises its own: of the network, of credentials.
    reason = f"{type(error).__name__}: {error}"
    raise ValueError(f"{url}: cannot be read as a folder of prepared data ({reason})") from error


def _copied(url: str, part: tuple[int, int]) -> pathlib.Path:
  import fsspec

  store, root = fsspec.core.url_to_fs(url)
  described = store.cat_file(f"{root}/meta.json")
  meta = json.loads(described)
  name = re.sub(r"[^A-Za-z0-9_-]+", "_", url.rpartition("/")[2])
  state = hashlib.sha256(url.encode() + b"\0" + described).hexdigest()[:16]  # Other data there are another folder here.
  folder = cache_root() / "stores" / f"{name}-{state}"
  for file in [*_TABLES, *_columns(store, root, meta, part)]:
    _copy(store, f"{root}/{file}", folder / file)
  _replace(folder / "meta.json", described)
  return folder


def _columns(store: Any, root: str, meta: dict[str, Any], part: tuple[int, int]) -> list[str]:
  """Returns the names of the files of the shards of a part, or of data in one piece."""
  folders = [""]
  if "shards" in meta:
    count = len(meta["shards"])
    opened = prepared_shards.shards_of_part(count, part)
    folders = [f"{prepared_shards.shard_folder(pathlib.Path(), index, count)}/" for index in opened]
  found = []
  for folder in folders:
    names = [entry.rpartition("/")[2] for entry in store.ls(f"{root}/{folder}".rstrip("/"), detail=False)]
    found += [folder + name for name in sorted(names) if name.endswith(".npy")]
  return found


def _copy(store: Any, source: str, file: pathlib.Path) -> None:
  """Copies a file that is not there yet; it appears whole, whoever copies it at the same time."""
  if file.exists():
    return
  logging.info("copying %s to %s", source, file)
  file.parent.mkdir(parents=True, exist_ok=True)
  unfinished = file.with_name(f".{file.name}.{os.getpid()}")
  try:
    store.get_file(source, str(unfinished))
    os.replace(unfinished, file)
  finally:
    unfinished.unlink(missing_ok=True)


def _replace(file: pathlib.Path, content: bytes) -> None:
  unfinished = file.with_name(f".{file.name}.{os.getpid()}")
  unfinished.write_bytes(content)
  os.replace(unfinished, file)
