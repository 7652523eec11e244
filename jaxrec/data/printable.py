"""Text of raw data as a terminal may show it."""

from __future__ import annotations

import unicodedata


def printable(text: str, keep: str = "") -> str:
  """Returns the text with every character that would not show as itself written as its escape, as in Python.

  Titles, ids and names come from outside: they may hold line breaks, terminal sequences or marks that turn the
  direction of writing.

  Args:
    text: any text.
    keep: characters to leave as they are.

  >>> printable("a\\x1b[2J\\nb"), printable("Amélie")
  ('a\\\\x1b[2J\\\\nb', 'Amélie')
  """
  if text.isprintable():
    return text
  return "".join(c if c in keep or _shows(c) else c.encode("unicode_escape").decode() for c in text)


def _shows(character: str) -> bool:
  return character.isprintable() or unicodedata.category(character) == "Zs"  # Zs: other spaces, as in French titles.
