"""Text tables: rows of strings as aligned columns, plain or in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from jaxrec.data.printable import printable

_RULES = {"l": (":", "-"), "r": ("-", ":"), "-": ("-", "-")}


def text_table(rows: Sequence[Sequence[str]], align: str = "l", *, markdown: bool = False) -> str:
  """Returns rows as lines of text with aligned columns; the first row is the header.

  Args:
    rows: cells as text; a row shorter than the header ends in empty cells. Characters that do not print are escaped.
    align: one letter per column: "l" left, "r" right, "-" not padded. The last letter is for all further columns.
    markdown: whether to return a Markdown table, with a rule below the header.

  Raises:
    ValueError: no row, another letter, or a row longer than the header.

  >>> rows = [["model", "users", "MRR"], ["hstu", "1,204", "0.25"], ["sasrec", "96", "0.2"]]
  >>> print(text_table(rows, "lr"))
  model   users   MRR
  hstu    1,204  0.25
  sasrec     96   0.2
  >>> print(text_table(rows, "l-", markdown=True))
  | model  | users | MRR |
  |:-------|---|---|
  | hstu   | 1,204 | 0.25 |
  | sasrec | 96 | 0.2 |
  """
  letters = _letters(rows, align)
  full = [[*map(printable, row), *[""] * (len(letters) - len(row))] for row in rows]
  widths = [max(map(len, column)) for column in zip(*full, strict=True)]
  lines = [[_pad(*cell) for cell in zip(row, widths, letters, strict=True)] for row in full]
  if not markdown:
    return "\n".join("  ".join(cells).rstrip() for cells in lines)
  rule = "|".join(map(_rule, widths, letters))
  header, *body = ("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|" for cells in lines)
  return "\n".join([header, f"|{rule}|", *body])


def label_of_all(names: Sequence[str]) -> str:
  """Returns the label of the row for all domains, which is none of their names.

  >>> label_of_all(["books", "films"]), label_of_all(["all", "none"])
  ('all', '(all)')
  """
  label = "all"
  while label in names:
    label = f"({label})"
  return label


def _letters(rows, align):
  if not rows or not set(align) <= set(_RULES) or not align:
    raise ValueError(f"text_table needs a header and letters of {''.join(_RULES)!r}, got {len(rows)} rows and {align=}")
  longest = max(rows, key=len)
  if len(longest) > len(rows[0]):
    raise ValueError(f"row {longest!r} is longer than the header {rows[0]!r}")
  return align[: len(rows[0])].ljust(len(rows[0]), align[-1])


def _pad(text, width, letter):
  return text.ljust(width) if letter == "l" else text.rjust(width) if letter == "r" else text


def _rule(width, letter):
  first, last = _RULES[letter]
  return first + "-" * (1 if letter == "-" else width) + last
