"""CRC-32C of many records at once, in time and memory linear in their bytes.

A CRC whose register starts at 0 is linear in the message, and zeros in front change nothing. So records become rows of
blocks of equal length, filled with zeros in front; the CRCs of all blocks are computed together, byte by byte with a
table;
then neighbouring blocks are joined: the CRC of A and B is that of B, plus that of A followed by as many zeros as B has
bytes.

Source: CRC-32C (Castagnoli), RFC 3720 appendix B.4; the mask is that of the TFRecord layout in TensorFlow's guide.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

_POLYNOMIAL = 0x82F63B78
_BLOCK = 64  # Bytes.


def masked_crc(records: Sequence[bytes]) -> np.ndarray:
  """Returns the masked CRC-32C of each record as int64.

  >>> crc = 0xE3069283  # CRC-32C of "123456789", from its specification.
  >>> masked_crc([b"123456789"]).tolist() == [(((crc >> 15) | (crc << 17 & 0xFFFFFFFF)) + 0xA282EAD8) & 0xFFFFFFFF]
  True
  """
  crc = (_crc(records) ^ np.uint32(0xFFFFFFFF)).astype(np.uint64)
  return ((((crc >> 15) | (crc << 17) & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF).astype(np.int64)


def _crc(records: Sequence[bytes]) -> np.ndarray:
  """Returns the register after each record, from 0xFFFFFFFF; that is what `_START` makes of a register of 0."""
  lengths = np.array([len(record) + len(_START) for record in records], np.int64)
  counts = -(-lengths // _BLOCK)
  ends = np.cumsum(counts) * _BLOCK
  filled = b"".join(
    part
    for record, fill in zip(records, counts * _BLOCK - lengths, strict=True)
    for part in (bytes(fill), _START, record)
  )
  blocks = np.frombuffer(filled, np.uint8).reshape(-1, _BLOCK)
  crc = np.zeros(len(blocks), np.uint32)
  for column in np.ascontiguousarray(blocks.T):
    crc = _TABLE[(crc ^ column) & 0xFF] ^ (crc >> 8)
  return _join(crc, counts) if len(ends) else crc


def _join(crc: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """Returns the register after the last of `counts` blocks of each record, from those of the single blocks."""
  level = 0
  while counts.max() > 1:
    odd = np.flatnonzero(counts % 2)
    crc = np.insert(crc, (np.cumsum(counts) - counts)[odd], 0)  # A block of zeros in front.
    crc = _after_zeros(crc[::2], level) ^ crc[1::2]
    counts, level = (counts + 1) // 2, level + 1
  return crc


def _after_zeros(registers: np.ndarray, level: int) -> np.ndarray:
  """Returns what registers become after `_BLOCK` * 2^level bytes of zeros."""
  tables = _zeros_tables(level)
  result = tables[0][registers & 0xFF]
  for byte in (1, 2, 3):
    result ^= tables[byte][registers >> np.uint32(8 * byte) & 0xFF]
  return result


@functools.cache
def _zeros_tables(level: int) -> np.ndarray:
  """Returns what each value of each of the four bytes of a register becomes after `_BLOCK` * 2^level bytes of zeros."""
  tables = np.arange(256, dtype=np.uint32) << (8 * np.arange(4, dtype=np.uint32)[:, None])  # [4, 256]
  if level:
    return _after_zeros(_after_zeros(tables, level - 1), level - 1)
  for _ in range(_BLOCK):
    tables = _TABLE[tables & 0xFF] ^ (tables >> 8)
  return tables


def _crc_table() -> np.ndarray:
  table = np.arange(256, dtype=np.uint32)
  for _ in range(8):
    table = np.where(table & 1, table >> 1 ^ np.uint32(_POLYNOMIAL), table >> 1)
  return table.astype(np.uint32)


def _start() -> bytes:
  """Returns the four bytes after which a register of 0 is 0xFFFFFFFF."""
  highest = {int(entry) >> 24: index for index, entry in enumerate(_TABLE)}
  register, indices = 0xFFFFFFFF, []
  for _ in range(4):  # Backwards: the highest byte of a register tells the entry that was added last.
    indices.append(highest[register >> 24])
    register = ((register ^ int(_TABLE[indices[-1]])) << 8) & 0xFFFFFFFF
  forward, message = 0, []
  for index in reversed(indices):
    message.append(index ^ (forward & 0xFF))
    forward = int(_TABLE[index]) ^ (forward >> 8)
  return bytes(message)


_TABLE = _crc_table()
_START = _start()
