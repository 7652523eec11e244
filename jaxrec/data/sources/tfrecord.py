"""TFRecord files of `tf.train.Example` with int64 lists, read without TensorFlow.

A record consists of its length (uint64), the masked CRC of the length (uint32), its bytes, and the masked CRC of the
bytes (uint32), all little-endian.

Source: the TFRecord layout in TensorFlow's guide, the protocol buffer encoding guide (varints, length-delimited
fields), CRC-32C.
"""

from __future__ import annotations

import gzip
import pathlib
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

_POLYNOMIAL = 0x82F63B78
_LENGTH_DELIMITED, _VARINT = 2, 0


def read_examples(
  paths: Sequence[pathlib.Path], names: Sequence[str]
) -> list[tuple[pathlib.Path, int, dict[str, np.ndarray]]]:
  """Returns the file, the 0-based index in the file, and the int64 lists `names` of each record, in file order.

  Raises:
    ValueError: a file is truncated or damaged (lengths, CRCs), or a record lacks a list; names file and record.
  """
  records, origins = [], []
  for path in paths:
    found = split_records(_unpack(path), str(path))
    records += found
    origins += [(path, index) for index in range(len(found))]
  _check_crcs(records, origins)
  return [
    (*origin, _int64_lists(record, names, _label(origin))) for (record, _), origin in zip(records, origins, strict=True)
  ]


def split_records(data: bytes, where: str) -> list[tuple[bytes, int]]:
  """Returns the bytes of each record and the masked CRC that follows them.

  Args:
    data: the contents of a file.
    where: the name of the file, for errors.

  Raises:
    ValueError: the data is truncated or the length of a record is damaged; the CRC of its bytes is not checked.
  """
  records, start = [], 0
  while start < len(data):
    length = int.from_bytes(data[start : start + 8], "little")
    end = start + 12 + length
    if end + 4 > len(data):
      raise ValueError(
        f"{where}: record {len(records) + 1} at byte {start} needs {length} bytes, but the file ends before: it is"
        " truncated, or not a TFRecord file"
      )
    if masked_crc([data[start : start + 8]])[0] != int.from_bytes(data[start + 8 : start + 12], "little"):
      raise ValueError(
        f"{where}: record {len(records) + 1} at byte {start}: the checksum of its length is wrong: damaged, or not a"
        " TFRecord file"
      )
    records.append((data[start + 12 : end], int.from_bytes(data[end : end + 4], "little")))
    start = end + 4
  if not records:
    raise ValueError(f"{where}: has no records")
  return records


def masked_crc(records: Sequence[bytes]) -> np.ndarray:
  """Returns the masked CRC-32C of each record, computed byte by byte with a table, for all records at once.

  >>> crc = 0xE3069283  # CRC-32C of "123456789", from its specification.
  >>> masked_crc([b"123456789"]).tolist() == [(((crc >> 15) | (crc << 17 & 0xFFFFFFFF)) + 0xA282EAD8) & 0xFFFFFFFF]
  True
  """
  lengths = np.array([len(record) for record in records])
  by_length = np.argsort(-lengths, kind="stable")
  padded = np.zeros((lengths.max(initial=0), len(records)), np.uint8)  # [longest, records]
  for column, record in enumerate(by_length):
    padded[: lengths[record], column] = np.frombuffer(records[record], np.uint8)
  num_longer = np.searchsorted(-lengths[by_length], -np.arange(len(padded)), side="left")
  crc = np.full(len(records), 0xFFFFFFFF, np.uint32)
  for step, count in enumerate(num_longer):
    crc[:count] = _TABLE[(crc[:count] ^ padded[step, :count]) & 0xFF] ^ (crc[:count] >> 8)
  crc = (crc ^ np.uint32(0xFFFFFFFF)).astype(np.uint64)
  masked = np.zeros(len(records), np.int64)
  masked[by_length] = (((crc >> 15) | (crc << 17) & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF
  return masked


def varints(data: np.ndarray) -> np.ndarray:
  """Returns the int64 integers of packed varints: 7 bits per byte, lowest first; the top bit says that more follow.

  >>> varints(np.array([5, 0xAC, 0x02], np.uint8)).tolist()
  [5, 300]
  """
  if not len(data):
    return np.zeros(0, np.int64)
  if data[-1] >= 0x80:
    raise ValueError("the last varint is truncated")
  starts = np.flatnonzero(np.concatenate([[True], data[:-1] < 0x80]))
  index = np.arange(len(data)) - np.repeat(starts, np.diff(np.append(starts, len(data))))  # Of a byte in its varint.
  if index.max() > 9:
    raise ValueError("a varint is longer than 10 bytes")
  bits = (data & 0x7F).astype(np.uint64) << (7 * index).astype(np.uint64)
  return np.add.reduceat(bits, starts).view(np.int64)


def _crc_table() -> np.ndarray:
  table = np.arange(256, dtype=np.uint32)
  for _ in range(8):
    table = np.where(table & 1, table >> 1 ^ np.uint32(_POLYNOMIAL), table >> 1)
  return table.astype(np.uint32)


_TABLE = _crc_table()


def _unpack(path: pathlib.Path) -> bytes:
  try:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise ValueError(f"{path}: damaged or truncated ({error}); get the file again") from error


def _label(origin: tuple[pathlib.Path, int]) -> str:
  return f"{origin[0]}: record {origin[1] + 1}"


def _check_crcs(records: Sequence[tuple[bytes, int]], origins: Sequence[tuple[pathlib.Path, int]]) -> None:
  expected = np.array([crc for _, crc in records], np.int64)
  wrong = np.flatnonzero(masked_crc([record for record, _ in records]) != expected)
  if len(wrong):
    raise ValueError(f"{_label(origins[wrong[0]])}: its checksum is wrong: damaged; get the file again")


def _int64_lists(record: bytes, names: Sequence[str], where: str) -> dict[str, np.ndarray]:
  """Returns the lists of Example { features: 1 { map: 1 { key: 1, Feature: 2 { Int64List: 3 { values: 1 } } } } }."""
  found = {}
  try:
    for features in _fields(record, 1):
      for entry in _fields(features, 1):
        key = bytes(next(_fields(entry, 1))).decode()
        if key in names:
          lists = [
            values for feature in _fields(entry, 2) for int64s in _fields(feature, 3) for values in _fields(int64s, 1)
          ]
          found[key] = np.concatenate([varints(np.frombuffer(values, np.uint8)) for values in lists])
  except (ValueError, IndexError, StopIteration) as error:
    raise ValueError(f"{where}: is not a tf.train.Example ({error or 'a key is missing'})") from error
  missing = [name for name in names if name not in found]
  if missing:
    raise ValueError(f"{where}: has no int64 list {missing}")
  return found


def _fields(message: bytes, number: int) -> Iterator[bytes]:
  """Yields the bytes of each field with the number `number`; those of an unpacked integer are its varint."""
  at = 0
  while at < len(message):
    tag, at = _varint(message, at)
    start = at
    size, at = _varint(message, at)
    if tag & 7 == _LENGTH_DELIMITED:
      start, at = at, at + size
    elif tag & 7 != _VARINT:
      raise ValueError(f"wire type {tag & 7} is not expected")
    if at > len(message):
      raise ValueError("a field is truncated")
    if tag >> 3 == number:
      yield message[start:at]


def _varint(message: bytes, at: int) -> tuple[int, int]:
  value = shift = 0
  while True:
    byte = message[at]
    value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
    if byte < 0x80:
      return value, at
