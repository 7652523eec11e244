"""Random damage to raw files: bits, cuts, lines, columns, numbers, marks, line ends."""

from __future__ import annotations

import random
from collections.abc import Callable

_NUMBERS = (
  *(
    "2147483648",
    "9223372036854775807",
    "9223372036854775808",
    "99999999999999999999999",
    "-1",
    "-9223372036854775808",
  ),
  *("1e400", "nan", "inf", "-inf", "1e9", "1e30", "0", "00012", "+5", "1_000", "0x10", "1.5", "", " 7", "7 ", "true"),
  *("null", "\u0663", "1e-400", "1,5", '""', '"7"', " "),
)
_BYTES = (b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\x80", b"\0", b"\0\0\0", b"\x1f", b"\x01")
_MARKS = (b'"', b'""', b"'", b'"a', b'\\"', b'"\n', b'a"b')


def mutate(data: bytes, separator: bytes, rng: random.Random) -> tuple[bytes, str]:
  """Returns damaged data, and the name of the damage."""
  change = rng.choice(_CHANGES)
  return (change(data, separator, rng) if data else b"x"), change.__name__.strip("_")


def _bits(data, separator, rng):
  damaged = bytearray(data)
  for _ in range(rng.randint(1, 4)):
    damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
  return bytes(damaged)


def _some_bytes(data, separator, rng):
  damaged = bytearray(data)
  for _ in range(rng.randint(1, 8)):
    damaged[rng.randrange(len(damaged))] = rng.randrange(256)
  return bytes(damaged)


def _end_cut(data, separator, rng):
  return data[: rng.randrange(len(data))]


def _start_cut(data, separator, rng):
  return data[rng.randrange(len(data)) :]


def _piece_moved(data, separator, rng):
  start = rng.randrange(len(data))
  piece, at = data[start : start + rng.randint(1, 40)], rng.randrange(len(data))
  return data[:at] + piece + data[at:]


def _nothing(data, separator, rng):
  return b""


def _blank_line(data, separator, rng):
  return _with_line(data, rng, lambda line: b"")


def _line_twice(data, separator, rng):
  return _with_line(data, rng, lambda line: line + b"\n" + line)


def _field_twice(data, separator, rng):
  return _with_fields(data, separator, rng, lambda fields, at: fields[:at] + fields[at : at + 1] * 2 + fields[at + 1 :])


def _field_missing(data, separator, rng):
  return _with_fields(data, separator, rng, lambda fields, at: fields[:at] + fields[at + 1 :])


def _number(data, separator, rng):
  number = rng.choice(_NUMBERS).encode()
  return _with_fields(data, separator, rng, lambda fields, at: [*fields[:at], number, *fields[at + 1 :]])


def _column_missing(data, separator, rng):
  at = rng.randint(0, 3)
  lines = [line.split(separator) for line in data.split(b"\n")]
  return b"\n".join(separator.join(fields[:at] + fields[at + 1 :]) for fields in lines)


def _other_separator(data, separator, rng):
  other = rng.choice([b",", b";", b"\t", b" ", b"|", b":", b"::", b":::"])
  return data.replace(separator, other)


def _one_other_separator(data, separator, rng):
  other = rng.choice([b",", b";", b"\t", b" ", b"|", b":", b":::"])
  return _with_line(data, rng, lambda line: line.replace(separator, other, 1))


def _strange_bytes(data, separator, rng):
  return _inserted(data, rng, rng.choice(_BYTES))


def _mark(data, separator, rng):
  return _inserted(data, rng, rng.choice(_MARKS))


def _two_marks(data, separator, rng):
  lines = data.split(b"\n")
  for _ in range(2):
    at = rng.randrange(len(lines))
    fields = lines[at].split(separator)
    one = rng.randrange(len(fields))
    fields[one] = fields[one] + b'"' if rng.random() < 0.5 else b'"' + fields[one]
    lines[at] = separator.join(fields)
  return b"\n".join(lines)


def _other_line_ends(data, separator, rng):
  return data.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\n\r", b"\r\r\n"]))


def _one_other_line_end(data, separator, rng):
  end = rng.choice([b"\r", b" ", b"\t"])
  return _with_line(data, rng, lambda line: line + end)


def _byte_order_mark(data, separator, rng):
  return rng.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"]) + data


def _long_line(data, separator, rng):
  tail = b"9" * rng.choice([20, 300, 100_000])
  return _with_line(data, rng, lambda line: line + tail)


def _line_breaks(data, separator, rng):
  return _inserted(data, rng, b"\n" * rng.randint(1, 3))


def _no_last_line_end(data, separator, rng):
  return data.rstrip(b"\n")


def _inserted(data: bytes, rng: random.Random, piece: bytes) -> bytes:
  at = rng.randrange(len(data) + 1)
  return data[:at] + piece + data[at:]


def _with_line(data: bytes, rng: random.Random, change: Callable[[bytes], bytes]) -> bytes:
  lines = data.split(b"\n")
  at = rng.randrange(len(lines))
  lines[at] = change(lines[at])
  return b"\n".join(lines)


def _with_fields(data: bytes, separator: bytes, rng: random.Random, change) -> bytes:
  def changed(line: bytes) -> bytes:
    fields = line.split(separator)
    return separator.join(change(fields, rng.randrange(len(fields))))

  return _with_line(data, rng, changed)


_CHANGES = (
  *(_bits, _some_bytes, _end_cut, _start_cut, _piece_moved, _nothing, _blank_line, _line_twice, _field_twice),
  *(_field_missing, _number, _number, _number, _column_missing, _other_separator, _one_other_separator, _strange_bytes),
  *(
    _mark,
    _two_marks,
    _other_line_ends,
    _one_other_line_end,
    _byte_order_mark,
    _long_line,
    _line_breaks,
    _no_last_line_end,
  ),
)
