"""Archives of the official data sets: unpacked within limits, complete or not at all, and compared later."""

from __future__ import annotations

import hashlib
import json
import lzma
import pathlib
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator

from jaxrec.data.sources.file_blocks import check_ratio

_LISTING = ".unpacked.json"
_ERRORS = (
  *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError),
  *(RuntimeError, NotImplementedError, ValueError),  # Encrypted, unknown compression, names that are none.
)


def unpack(archive: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """Returns the folder with the contents of a .zip or .tar.gz; it appears complete or not at all.

  Raises:
    ValueError: the archive is damaged, encrypted, empty, neither .zip nor .tar.gz, or unpacks to more than
      `file_blocks.MAX_RATIO` times its size.
  """
  folder.parent.mkdir(parents=True, exist_ok=True)
  unfinished = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
  try:
    if zipfile.is_zipfile(archive):
      with zipfile.ZipFile(archive) as packed:
        check_ratio(archive, archive.stat().st_size, sum(entry.file_size for entry in packed.infolist()))
        packed.extractall(unfinished)
    else:
      _unpack_tar(archive, unfinished)
    if not any(path.is_file() for path in unfinished.rglob("*")):
      raise ValueError("it holds no files")
    _write_listing(unfinished)
    unfinished.rename(folder)
  except _ERRORS as error:
    raise ValueError(f"{archive}: cannot be unpacked ({error}); remove it and try again") from error
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)
  return folder


def _unpack_tar(archive: pathlib.Path, folder: pathlib.Path) -> None:
  size, unpacked = archive.stat().st_size, 0
  with tarfile.open(archive) as packed:
    for entry in packed:
      unpacked += entry.size
      check_ratio(archive, size, unpacked)
      packed.extract(entry, folder, filter="data")


def check_unpacked(folder: pathlib.Path) -> None:
  """Raises ValueError if a file of an unpacked folder is missing or not as it was unpacked."""
  listing = folder / _LISTING
  if not listing.is_file():
    raise ValueError(f"{folder}: does not say what was unpacked; remove the folder and try again")
  try:
    expected = json.loads(listing.read_text(encoding="utf-8"))
    changed = [name for name, sha256 in expected.items() if digest(folder / name, "sha256") != sha256]
  except (OSError, ValueError, AttributeError, TypeError) as error:
    raise ValueError(f"{folder}: is not as it was unpacked ({error}); remove the folder and try again") from error
  if changed:
    raise ValueError(f"{folder / changed[0]}: is not as it was unpacked; remove {folder} and try again")


def digest(path: pathlib.Path, kind: str) -> str:
  """Returns the hexadecimal digest of a file; `kind` is "md5" or "sha256"."""
  with open(path, "rb") as stream:
    return hashlib.file_digest(stream, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


def _write_listing(folder: pathlib.Path) -> None:
  listing = {str(path.relative_to(folder)): digest(path, "sha256") for path in _files(folder)}
  (folder / _LISTING).write_text(json.dumps(listing, indent=1), encoding="utf-8")


def _files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
