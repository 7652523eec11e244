"""Rows of delimited text: where they begin and end, given quotation marks, and their fields.

A field that begins with a quotation mark is quoted: it ends at the next single mark, before which marks are written
twice, and may hold separators and line breaks. A mark anywhere else is text. This is what spreadsheets and Python's
csv write.
"""

from __future__ import annotations

import dataclasses
import re
from functools import cached_property

import numpy as np

_MAX_LINES = 100  # Of the last row of a text, where it is searched from the end.
_QUOTE = b'"'
_LINE_END, _CARRIAGE_RETURN = ord("\n"), ord("\r")


class BadRow(ValueError):
  """A row that cannot be read: `at` is a byte of its text, `problem` what is wrong."""

  def __init__(self, at: int, problem: str):
    super().__init__(problem)
    self.at, self.problem = at, problem

  def lines_above(self, text: bytes) -> int:
    """Returns how many lines of the text are above the byte."""
    return text.count(b"\n", 0, self.at)


@dataclasses.dataclass(frozen=True)
class Quotations:
  """The quoted fields of a text: the byte offsets of the mark that opens each and of the one that closes it.

  regular: whether every mark of the text opens, closes, or is one of a pair inside; False if some are text.
  """

  opens: np.ndarray
  closes: np.ndarray
  regular: bool = True

  def hold(self, position: int) -> bool:
    """Returns whether a byte is in a quoted field."""
    return bool(np.searchsorted(self.opens, position) != np.searchsorted(self.closes, position))

  def until(self, end: int) -> Quotations:
    """Returns the quoted fields before the offset `end`."""
    count = np.searchsorted(self.opens, end)
    return dataclasses.replace(self, opens=self.opens[:count], closes=self.closes[:count])


@dataclasses.dataclass(frozen=True)
class Rows:
  r"""Complete rows of a text, each ended by `\n`, except perhaps the last, with a separator of one byte.

  quotations: None if marks have no meaning or there are none.
  """

  data: bytes
  separator: bytes
  quotations: Quotations | None = None

  @cached_property
  def unquoted(self) -> bytes:
    """The text with zeros in place of what is quoted."""
    if self.quotations is None:
      return self.data
    data = np.frombuffer(self.data, np.uint8)
    toggles = np.zeros(len(data), np.uint8)
    toggles[self.quotations.opens] = toggles[self.quotations.closes] = 1
    return (data * (np.cumsum(toggles, dtype=np.uint8) & 1 ^ 1)).tobytes()

  @cached_property
  def num_lines(self) -> int:
    """The number of lines, which is that of the rows unless quoted fields hold line breaks."""
    return self.data.count(b"\n") + (not self.data.endswith(b"\n"))

  @cached_property
  def ends(self) -> np.ndarray:
    """The offset of the line break that ends each row; that of the last row may be the end of the text."""
    ends = positions(self.unquoted, b"\n")
    return ends if self.data.endswith(b"\n") else np.append(ends, len(self.data))

  def line_of(self, row: int) -> int:
    """Returns the line, from 0, on which a row begins."""
    return self.data.count(b"\n", 0, self.start(row))

  def start(self, row: int) -> int:
    """Returns the offset of the first byte of a row."""
    return 0 if row == 0 else int(self.ends[row - 1]) + 1

  def between(self, first: int, last: int) -> Rows:
    """Returns the rows from `first` to before `last`."""
    return self._cut(self.start(first), self.start(last))

  def header(self) -> tuple[Rows, Rows]:
    """Returns the first row, and the others."""
    end = self.data.find(b"\n")
    while end >= 0 and self.quotations is not None and self.quotations.hold(end):
      end = self.data.find(b"\n", end + 1)
    end = end + 1 or len(self.data)
    return self._cut(0, end), self._cut(end, len(self.data))

  def _cut(self, start: int, end: int) -> Rows:
    marks = self.quotations
    if marks is not None:
      inside = slice(*np.searchsorted(marks.opens, [start, end]))
      marks = Quotations(marks.opens[inside] - start, marks.closes[inside] - start, marks.regular)
    return Rows(self.data[start:end], self.separator, marks)

  def over_several_lines(self) -> np.ndarray:
    """Returns the rows that hold line breaks."""
    inside = np.setdiff1d(positions(self.data, b"\n"), self.ends, assume_unique=True)
    return np.unique(np.searchsorted(self.ends, inside))

  def stray_carriage_return(self) -> int | None:
    """Returns the offset of the first carriage return outside of quoted fields that no line feed follows, or None."""
    if b"\r" not in self.data:  # Much faster than counting.
      return None
    found = self.data.count(b"\r") > self.data.count(b"\r\n") and re.search(rb"\r(?!\n|\Z)", self.unquoted)
    return found.start() if found else None

  def count(self, num_fields: int) -> int | None:
    """Returns the number of rows if each has `num_fields` fields, otherwise None."""
    text, mark = self.plain_marks
    structure = text.translate(None, bytes(set(range(256)) - {*self.separator, _LINE_END, *(mark or "").encode()}))
    if mark is not None:
      bytes_of = np.frombuffer(structure, np.uint8)
      is_mark = bytes_of == ord(mark)
      structure = bytes_of[~is_mark & (np.cumsum(is_mark, dtype=np.uint8) & 1 == 0)].tobytes()
    structure = structure.removesuffix(b"\n") + b"\n"
    number = len(structure) // num_fields
    return number if structure == (self.separator * (num_fields - 1) + b"\n") * number else None

  @cached_property
  def plain_marks(self) -> tuple[bytes, str | None]:
    """Text that a parser reads rightly which takes every mark for a quotation, and its mark.

    If some marks are text, those that quote become a byte that does not occur.
    """
    if self.quotations is None:
      return self.data, None
    if self.quotations.regular:
      return self.data, _QUOTE.decode()
    mark = free_byte(self.data)
    data = np.frombuffer(self.data, np.uint8).copy()
    data[self.quotations.opens] = data[self.quotations.closes] = mark[0]
    marks = positions(data.tobytes(), _QUOTE)
    inside = marks[np.searchsorted(self.quotations.opens, marks) != np.searchsorted(self.quotations.closes, marks)]
    return np.delete(data, inside[::2]).tobytes(), mark.decode()  # Inside, marks come in pairs.


def check_text(data: bytes) -> None:
  """Raises BadRow if a text holds a byte 0."""
  if (at := data.find(b"\0")) >= 0:
    raise BadRow(at, "holds a byte 0: damaged, not text, or UTF-16 (encoding='utf-16')")


def positions(data: bytes, byte: bytes) -> np.ndarray:
  """Returns the offsets of a byte in a text."""
  return np.flatnonzero(np.frombuffer(data, np.uint8) == byte[0])


def free_byte(data: bytes) -> bytes:
  """Returns a control character that does not occur in a text.

  Raises:
    ValueError: there is none.
  """
  for code in (*range(31, 27, -1), *range(1, 9), *range(14, 27)):
    if data.find(code) < 0:
      return bytes([code])
  raise ValueError("holds every control character, so it is not delimited text")


def quotations(data: bytes, separator: bytes, *, is_end: bool) -> tuple[Quotations | None, int]:
  """Returns the quoted fields of a text that begins with a row, and where its last complete row ends.

  Time is linear in the text.

  Args:
    data: the text.
    separator: of fields, one byte.
    is_end: whether nothing follows, so that the last row needs no line break.

  Raises:
    BadRow: text follows the mark that closes a field, or a quoted field is not closed.
  """
  if _QUOTE not in data:
    return None, len(data) if is_end else data.rfind(b"\n") + 1
  marks = positions(data, _QUOTE)
  end = _end_by_parity(data, marks, is_end)
  found = _by_parity(data, marks[: np.searchsorted(marks, end)], separator)
  return (found, end) if found is not None else _by_search(data, separator, is_end)


def _end_by_parity(data: bytes, marks: np.ndarray, is_end: bool) -> int:
  """Returns the end of the last row if every second mark closes a field; 0 if it is not among the last lines."""
  if is_end:
    return 0 if len(marks) % 2 else len(data)
  end = len(data)
  for _ in range(_MAX_LINES):
    end = data.rfind(b"\n", 0, end)
    if end < 0 or np.searchsorted(marks, end) % 2 == 0:
      return end + 1
  return 0


def _by_parity(data: bytes, marks: np.ndarray, separator: bytes) -> Quotations | None:
  """Returns the quotations if every second mark closes one, which is so unless marks are text; None otherwise."""
  if not len(marks):
    return None
  text = np.frombuffer(data, np.uint8)
  opens, closes = marks[::2], marks[1::2]
  pairs = closes[:-1] + 1 == opens[1:]  # Two marks that stand for one.
  opens, closes = opens[np.append(True, ~pairs)], closes[np.append(~pairs, True)]
  before, after = text.take(opens - 1, mode="clip"), text.take(closes + 1, mode="clip")
  begins = (before == separator[0]) | (before == _LINE_END) | (opens == 0)
  ends = (after == separator[0]) | (after == _LINE_END) | (after == _CARRIAGE_RETURN) | (closes == len(data) - 1)
  return Quotations(opens, closes) if begins.all() and ends.all() else None


def _by_search(data: bytes, separator: bytes, is_end: bool) -> tuple[Quotations | None, int]:
  around = re.escape(separator)
  begin, after = rb'"(?:(?<=[\n%s]")|(?<=\A"))' % around, rb"(?=[\n\r%s]|\Z)" % around
  opens, closes, rest = [], [], len(data)
  for match in re.finditer(begin + rb'(?:[^"]++|"")*+("' + after + rb")?+", data):
    if match[1] is None:
      if is_end or match.end() < len(data):
        raise BadRow(match.start(), _not_closed(data, match))
      rest = match.start()
    else:
      opens.append(match.start())
      closes.append(match.end() - 1)
  found = Quotations(np.array(opens, np.int64), np.array(closes, np.int64), regular=False)
  end = len(data) if is_end else Rows(data[:rest], separator, found.until(rest)).unquoted.rfind(b"\n") + 1
  found = found.until(end)
  return (found if len(found.opens) else None), end


def _not_closed(data: bytes, match: re.Match) -> str:
  if match.end() == len(data):
    problem = "is never closed"
  else:
    rest = data[match.end() + 1 : match.end() + 41].split(b"\n")[0].decode("utf-8", "replace")
    lines = data.count(b"\n", match.start(), match.end())
    problem = f"{rest!r} follows the mark that closes it" + (f", {lines} line(s) below" if lines else "")
  return f"a field begins with a quotation mark, but {problem}; give quote='' if quotation marks are text"


def split_fields(row: str, separator: str, *, quoting: bool) -> list[str]:
  """Returns the fields of one row.

  >>> split_fields('1;"a;""b"" c";d"e', ";", quoting=True)
  ['1', 'a;"b" c', 'd"e']
  """
  if not quoting or '"' not in row:
    return row.split(separator)
  field = re.compile(rf'"((?:[^"]++|"")*+)"(?={re.escape(separator)}|\Z)|((?:(?!{re.escape(separator)})[\s\S])*+)')
  fields, at = [], 0
  while True:
    match = field.match(row, at)
    fields.append(match[2] if match[1] is None else match[1].replace('""', '"'))
    if match.end() == len(row):
      return fields
    at = match.end() + len(separator)
