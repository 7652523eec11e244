"""TFRecord files of `tf.train.Example` with int64 lists, read without TensorFlow.

A record is: length (uint64), masked CRC of the length (uint32), the bytes, masked CRC of the bytes (uint32), all
  little-endian.
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
  """Returns file, 0-based record number and the int64 lists `names` of each record, in the order of the files.

  Raises:
    ValueError: a file is cut short or damaged (lengths, CRCs), or a record lacks a list; file and record are named.
  """
  records, homes = [], []
  for path in paths:
    found = split_records(_unpack(path), str(path))
    records += found
    homes += [(path, number) for number in range(len(found))]
  _check_sums([record for record, _ in records], [total for _, total in records], homes)
  return [(*home, _int64_lists(record, names, _place(home))) for (record, _), home in zip(records, homes, strict=True)]


def split_records(data: bytes, where: str) -> list[tuple[bytes, int]]:
  """Returns the bytes of each record and the masked CRC written behind it; lengths are checked, sums are not yet."""
  records, at = [], 0
  while at < len(data):
    length = int.from_bytes(data[at : at + 8], "little")
    end = at + 12 + length
    if end + 4 > len(data):
      raise ValueError(
        f"{where}: record {len(records) + 1} at byte {at} needs {length} bytes, the file ends before: it is cut "
        "short or no TFRecord file"
      )
    if masked_crc([data[at : at + 8]])[0] != int.from_bytes(data[at + 8 : at + 12], "little"):
      raise ValueError(
        f"{where}: record {len(records) + 1} at byte {at}: the check sum of its length is wrong: damaged, or no "
        "TFRecord file"
      )
    records.append((data[at + 12 : end], int.from_bytes(data[end : end + 4], "little")))
    at = end + 4
  if not records:
    raise ValueError(f"{where}: holds no record")
  return records


def masked_crc(records: Sequence[bytes]) -> np.ndarray:
  """Returns the masked CRC-32C of each record: a table step a byte, all records side by side.

  >>> crc = 0xE3069283  # CRC-32C of "123456789" in its definition
  >>> masked_crc([b"123456789"]).tolist() == [(((crc >> 15) | (crc << 17 & 0xFFFFFFFF)) + 0xA282EAD8) & 0xFFFFFFFF]
  True
  """
  lengths = np.array([len(record) for record in records])
  by_length = np.argsort(-lengths, kind="stable")
  padded = np.zeros((lengths.max(initial=0), len(records)), np.uint8)  # [longest, records]
  for column, record in enumerate(by_length):
    padded[: lengths[record], column] = np.frombuffer(records[record], np.uint8)
  still = np.searchsorted(-lengths[by_length], -np.arange(len(padded)), side="left")
  crc = np.full(len(records), 0xFFFFFFFF, np.uint32)
  for step, count in enumerate(still):
    crc[:count] = _TABLE[(crc[:count] ^ padded[step, :count]) & 0xFF] ^ (crc[:count] >> 8)
  crc = (crc ^ np.uint32(0xFFFFFFFF)).astype(np.uint64)
  masked = np.zeros(len(records), np.int64)
  masked[by_length] = (((crc >> 15) | (crc << 17) & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF
  return masked


def varints(data: np.ndarray) -> np.ndarray:
  """Returns the int64 numbers of packed varints (7 bits a byte, lowest first, the top bit says that more follow).

  >>> varints(np.array([5, 0xAC, 0x02], np.uint8)).tolist()
  [5, 300]
  """
  if not len(data):
    return np.zeros(0, np.int64)
  if data[-1] >= 0x80:
    raise ValueError("the last varint is cut short")
  starts = np.flatnonzero(np.concatenate([[True], data[:-1] < 0x80]))
  place = np.arange(len(data)) - np.repeat(starts, np.diff(np.append(starts, len(data))))
  if place.max() > 9:
    raise ValueError("a varint is longer than 10 bytes")
  bits = (data & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
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
    raise ValueError(f"{path}: damaged or cut short ({error}); fetch the file again") from error


def _place(home: tuple[pathlib.Path, int]) -> str:
  return f"{home[0]}: record {home[1] + 1}"


def _check_sums(records: Sequence[bytes], sums: Sequence[int], homes: Sequence[tuple[pathlib.Path, int]]) -> None:
  wrong = np.flatnonzero(masked_crc(records) != np.array(sums, np.int64))
  if len(wrong):
    raise ValueError(f"{_place(homes[wrong[0]])}: its check sum is wrong: damaged; fetch the file again")


def _int64_lists(record: bytes, names: Sequence[str], where: str) -> dict[str, np.ndarray]:
  """Reads Example { Features { map<string, Feature { Int64List { packed values } }> } }: field 1 each, the list 3."""
  found = {}
  try:
    for features in _fields(record, 1):
      for entry in _fields(features, 1):
        key = bytes(next(_fields(entry, 1))).decode()
        if key in names:
          lists = [
            values for feature in _fields(entry, 2) for numbers in _fields(feature, 3) for values in _fields(numbers, 1)
          ]
          found[key] = np.concatenate([varints(np.frombuffer(part, np.uint8)) for part in lists])
  except (ValueError, IndexError, StopIteration) as error:
    raise ValueError(f"{where}: is not a tf.train.Example ({error or 'a key is missing'})") from error
  missing = [name for name in names if name not in found]
  if missing:
    raise ValueError(f"{where}: has no int64 list {missing}")
  return found


def _fields(message: bytes, wanted: int) -> Iterator[bytes]:
  """Yields the bytes of each field `wanted` of a message (for an unpacked number: its varint)."""
  at = 0
  while at < len(message):
    tag, at = _varint(message, at)
    start = at
    size, at = _varint(message, at)
    if tag & 7 == _LENGTH_DELIMITED:
      start, at = at, at + size
    elif tag & 7 != _VARINT:
      raise ValueError(f"wire type {tag & 7} has no place here")
    if at > len(message):
      raise ValueError("a field is cut short")
    if tag >> 3 == wanted:
      yield message[start:at]


def _varint(message: bytes, at: int) -> tuple[int, int]:
  value = shift = 0
  while True:
    byte = message[at]
    value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
    if byte < 0x80:
      return value, at
