"""The bytes and the text of raw files in blocks: unpacked within limits, decoded, with errors that name the file.

Raw files come from anywhere. What a file is, is read from its first bytes, not from its name; a packed file may
unpack to `MAX_RATIO` times its size and no more.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import pathlib
import zlib
from collections.abc import Iterator

MAX_RATIO = 200
"""Unpacked size : packed size. Logs and sequences reach 3 to 30; a file made to fill the memory reaches 1,000."""
_FREE_BYTES = 1 << 26  # What unpacks to less is not measured.
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_KINDS = {
  b"PK\x03\x04": "a zip archive (or an Excel file): unpack it and give the file inside",
  b"PK\x05\x06": "an empty zip archive",
  _GZIP: "packed with gzip twice: unpack it first",
  b"BZh": "packed with bzip2: unpack it first",
  b"\xfd7zXZ\x00": "packed with xz: unpack it first",
  b"\x28\xb5\x2f\xfd": "packed with zstd: unpack it first",
  b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it first",
  b"Rar!": "a RAR archive: unpack it first",
  b"PAR1": "a Parquet file: source 'table' reads it",
  b"ARROW1": "an Arrow or Feather file: write it as Parquet or CSV",
  b"ORC": "an ORC file: write it as Parquet or CSV",
  b"Obj\x01": "an Avro file: write it as Parquet or CSV",
  b"\x89HDF": "an HDF5 file: write it as Parquet or CSV",
  b"SQLite format 3": "an SQLite database: write the table as Parquet or CSV",
  b"\xd0\xcf\x11\xe0": "an old Excel file: write it as CSV",
  b"\x93NUMPY": "a NumPy array: write it as Parquet or CSV",
  b"%PDF": "a PDF",
  b"version https://git-lfs": "a pointer of Git LFS, not the file itself: get it with `git lfs pull`",
}
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def unpacked_blocks(path: pathlib.Path, size: int) -> Iterator[bytes]:
  """Yields the bytes of a file in blocks of `size`, unpacked if it is gzip, whatever its name.

  Raises:
    ValueError: the file cannot be read, is damaged or cut, unpacks to more than `MAX_RATIO` times its size, or is a
      kind of file that is not read here, which the message names.
  """
  read = 0
  try:
    with open(path, "rb") as raw, _unpacking(raw, path) as stream:
      while block := stream.read(size):
        if not read:
          _check_kind(path, block)
        read += len(block)
        if stream is not raw:
          check_ratio(path, raw.tell(), read)
        yield block
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise ValueError(
      f"{path}: damaged or truncated after {read} unpacked bytes ({error}); get the file again"
    ) from error
  except OSError as error:
    raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error


def check_ratio(path: pathlib.Path, packed: int, unpacked: int) -> None:
  """Raises ValueError if what is packed in a file is more than `MAX_RATIO` times as large, unless it is little."""
  if unpacked > max(_FREE_BYTES, MAX_RATIO * packed):
    raise ValueError(
      f"{path}: unpacks to more than {MAX_RATIO} times its size ({packed} bytes become {unpacked} or more);"
      " if that is right, unpack it yourself and give the result"
    )


def is_parquet(path: pathlib.Path) -> bool:
  """Returns whether a file is Parquet, by its first bytes or its name."""
  try:
    with open(path, "rb") as stream:
      return path.suffix == ".parquet" or stream.read(4) == b"PAR1"
  except OSError as error:
    raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error


def text_blocks(path: pathlib.Path, size: int, encoding: str = "utf-8") -> Iterator[bytes]:
  r"""Yields the text of a file as UTF-8 without byte order mark, in blocks of about `size`; lines end in `\n` or
  `\r\n`.

  UTF-8 itself is not checked here. If the first block has `\r` but no `\n`, lines end in `\r`, which becomes `\n`.

  Args:
    path: the file, plain or gzip.
    size: bytes of a block.
    encoding: of the file, a name that Python knows.

  Raises:
    ValueError: as for `unpacked_blocks`; an unknown encoding, or a text that is not in it.
  """
  from_cr = None
  for block in _decoded(path, size, encoding):
    if from_cr is None:
      from_cr = b"\r" in block and b"\n" not in block
    yield block.replace(b"\r", b"\n") if from_cr else block


def check_encoding(encoding: str) -> None:
  """Raises ValueError unless Python knows a text encoding of this name."""
  try:
    "a".encode(encoding)
  except (LookupError, ValueError) as error:
    raise ValueError(
      f"{encoding=} is not known; give a name such as 'utf-8', 'latin-1', 'cp1252' or 'utf-16'"
    ) from error


def _unpacking(raw, path: pathlib.Path):
  start = raw.read(2)
  raw.seek(0)
  if start == _GZIP:
    return gzip.GzipFile(fileobj=raw)
  if path.suffix == ".gz" and start:
    raise ValueError(f"{path}: is named .gz, but is not packed with gzip: damaged, or to be renamed")
  return contextlib.nullcontext(raw)


def _check_kind(path: pathlib.Path, block: bytes) -> None:
  for start, kind in _KINDS.items():
    if block.startswith(start):
      raise ValueError(f"{path}: is {kind}")
  if block[257:262] == b"ustar":
    raise ValueError(f"{path}: is a tar archive: unpack it and give the file inside")
  if is_html(block):
    raise ValueError(f"{path}: is an HTML page, perhaps of a login or an error, not data: get the file again")


def is_html(start: bytes) -> bool:
  """Returns whether the first bytes of a file are those of an HTML page.

  >>> is_html(b" <!DOCTYPE html><title>Log in</title>"), is_html(b"user,item")
  (True, False)
  """
  return start[:256].removeprefix(_BOM).lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _decoded(path: pathlib.Path, size: int, encoding: str) -> Iterator[bytes]:
  check_encoding(encoding)
  is_utf8 = codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")
  decoder = codecs.getincrementaldecoder(encoding)()
  first, lines = True, 1
  for block in _with_end(unpacked_blocks(path, size)):
    if is_utf8 and first and block.startswith(_UTF16):
      raise ValueError(f"{path}: line 1: begins with the mark of UTF-16; give encoding='utf-16'")
    if not is_utf8:
      try:
        block = decoder.decode(block, final=not block).encode()
      except UnicodeError as error:
        raise ValueError(f"{path}: in or after line {lines}: the text is not {encoding}: {error}") from error
      lines += block.count(b"\n")
    block = block.removeprefix(_BOM) if first else block
    first = first and not block
    if block:
      yield block


def _with_end(blocks: Iterator[bytes]) -> Iterator[bytes]:
  """Yields the blocks, and an empty one that tells a decoder that the text ends."""
  yield from blocks
  yield b""
