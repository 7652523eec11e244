"""TFRecord files of `tf.train.Example` with int64 lists, read without TensorFlow.

A record consists of its length (uint64), the masked CRC of the length (uint32), its bytes, and the masked CRC of the
bytes (uint32), all little-endian.

Source: the TFRecord layout in TensorFlow's guide, the protocol buffer encoding guide (varints, length-delimited
fields), CRC-32C.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from jaxrec.data.sources.crc32c import masked_crc
from jaxrec.data.sources.file_blocks import unpacked_blocks

_LENGTH_DELIMITED, _VARINT = 2, 0
_MAX_VARINT = 10  # Bytes.
_BLOCK = 1 << 20


def read_examples(
  paths: Sequence[pathlib.Path], names: Sequence[str]
) -> list[tuple[pathlib.Path, int, dict[str, np.ndarray]]]:
  """Returns the file, the 0-based index in the file, and the int64 lists `names` of each record, in file order.

  Raises:
    ValueError: a file is truncated or damaged (lengths, CRCs), or a record lacks a list; names file and record.
  """
  examples = []
  for path in paths:
    records = split_records(b"".join(unpacked_blocks(path, _BLOCK)), str(path))
    _check_crcs(records, path)
    examples += [
      (path, index, _int64_lists(record, names, f"{path}: record {index + 1}"))
      for index, (record, _) in enumerate(records)
    ]
  return examples


def split_records(data: bytes, where: str) -> list[tuple[bytes, int]]:
  """Returns the bytes of each record and the masked CRC that follows them.

  Args:
    data: the contents of a file.
    where: the name of the file, for errors.

  Raises:
    ValueError: the data is truncated or the length of a record is damaged; the CRC of its bytes is not checked.
  """
  records, starts, start = [], [], 0
  while start < len(data):
    end = start + 12 + int.from_bytes(data[start : start + 8], "little")
    if end + 4 > len(data):
      _check_lengths(data, starts, where)
      raise ValueError(
        f"{where}: record {len(records) + 1} at byte {start} needs {end - start - 12} bytes, but the file ends before:"
        " it is truncated, or not a TFRecord file"
      )
    records.append((data[start + 12 : end], int.from_bytes(data[end : end + 4], "little")))
    starts.append(start)
    start = end + 4
  if not records:
    raise ValueError(f"{where}: has no records")
  _check_lengths(data, starts, where)
  return records


def _check_lengths(data: bytes, starts: Sequence[int], where: str) -> None:
  expected = [int.from_bytes(data[start + 8 : start + 12], "little") for start in starts]
  wrong = np.flatnonzero(masked_crc([data[start : start + 8] for start in starts]) != np.array(expected, np.int64))
  if len(wrong):
    raise ValueError(
      f"{where}: record {wrong[0] + 1} at byte {starts[wrong[0]]}: the checksum of its length is wrong: damaged, or not"
      " a TFRecord file"
    )


def varints(data: np.ndarray) -> np.ndarray:
  """Returns the int64 integers of packed varints: 7 bits per byte, lowest first; the top bit says that more follow.

  >>> varints(np.array([5, 0xAC, 0x02], np.uint8)).tolist()
  [5, 300]
  """
  if not len(data):
    return np.zeros(0, np.int64)
  if data[-1] >= 0x80:
    raise ValueError("the last varint is truncated")
  ends = np.flatnonzero(data < 0x80)
  if len(ends) == len(data):
    return data.astype(np.int64)
  lengths = np.diff(ends, prepend=-1)
  if lengths.max() > _MAX_VARINT:
    raise ValueError(f"a varint is longer than {_MAX_VARINT} bytes")
  starts = ends - lengths + 1
  index = np.arange(len(data)) - np.repeat(starts, lengths)  # Of a byte in its varint.
  bits = (data & 0x7F).astype(np.uint64) << (7 * index).astype(np.uint64)
  return np.add.reduceat(bits, starts).view(np.int64)


def _check_crcs(records: Sequence[tuple[bytes, int]], path: pathlib.Path) -> None:
  expected = np.array([crc for _, crc in records], np.int64)
  wrong = np.flatnonzero(masked_crc([record for record, _ in records]) != expected)
  if len(wrong):
    raise ValueError(f"{path}: record {wrong[0] + 1}: its checksum is wrong: damaged; get the file again")


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
          if any(values and values[-1] >= 0x80 for values in lists):
            raise ValueError("the last varint of a list is truncated")
          found[key] = varints(np.frombuffer(b"".join(lists), np.uint8))
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
  value = 0
  for shift in range(0, 7 * _MAX_VARINT, 7):
    byte = message[at]
    value, at = value | (byte & 0x7F) << shift, at + 1
    if byte < 0x80:
      return value, at
  raise ValueError(f"a varint is longer than {_MAX_VARINT} bytes")
