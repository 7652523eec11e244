"""How the rows of a text file are written, and how to read their columns."""

from __future__ import annotations

import dataclasses
from typing import Any

import polars as pl

from jaxrec.data.sources.file_blocks import check_encoding

PARSER_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
"""What polars raises for a file that it cannot read. A panic is no `Exception`."""


@dataclasses.dataclass(frozen=True)
class Column:
  """How to read one column.

  dtype: the polars type.
  optional: whether fields may be empty.
  unit: of a time, a key of `event_values.WRITTEN_TIMES`; it is kept in full precision. None: no time.
  before_1970: whether a time may be negative.
  numbers: of a column of text, the type that its values are read as, unless not one of them is a number. None: text.
  """

  dtype: Any
  optional: bool = False
  unit: str | None = None
  before_1970: bool = False
  numbers: Any = None


@dataclasses.dataclass(frozen=True)
class TextFormat:
  r"""How the rows of a text are written.

  separator: of fields, one or more characters, such as "," or "::".
  quote: the quotation mark of fields, '"'; "" if quotation marks are text; None for '"' with a check: a field over
    several lines, each of which is a valid row on its own, is refused, because rows would disappear if marks were
    text.
  encoding: of the file, such as "utf-8", "latin-1", "utf-16".
  """

  separator: str = ","
  quote: str | None = None
  encoding: str = "utf-8"

  def __post_init__(self):
    if not self.separator or any(c in self.separator for c in '"\n\r'):
      raise ValueError(
        f"separator={self.separator!r} must be one or more characters, without quotation marks and line breaks"
      )
    if self.quote not in (None, "", '"'):
      raise ValueError(f"quote={self.quote!r} is not known; give '\"', or '' if quotation marks are text")
    check_encoding(self.encoding)
