"""What the documentation needs to know of Markdown: headings, sections and links, with code left alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_FENCE = re.compile(r"^(```|~~~)")
_CODE_SPAN = re.compile(r"(`[^`\n]+`)")
_LINK = re.compile(r"(!?\[(?:[^\[\]]|!?\[[^\]]*\]\([^()]*\))*\]\()([^()\s]+)\)")
_HIDDEN = {ord("["): "\ue000", ord("]"): "\ue001"}
_SHOWN = {ord(hidden): chr(shown) for shown, hidden in _HIDDEN.items()}


@dataclass(frozen=True)
class Heading:
  """A heading of a page.

  line: index of its line.
  level: 1 for the title.
  text: without the hash signs.
  """

  line: int
  level: int
  text: str


def is_code(lines: list[str]) -> list[bool]:
  """Returns for each line whether it belongs to a fenced block, fences included.

  >>> is_code(["a", "```bash", "# b", "```", "c"])
  [False, True, True, True, False]
  """
  inside, found = False, []
  for line in lines:
    fence = bool(_FENCE.match(line))
    found.append(inside or fence)
    inside ^= fence
  return found


def headings(text: str) -> list[Heading]:
  """Returns the headings of a page in order; lines of code that begin with a hash sign are none.

  >>> [(heading.level, heading.text) for heading in headings("# Title\\n\\n## One `x`\\n")]
  [(1, 'Title'), (2, 'One `x`')]
  """
  lines = text.splitlines()
  found = []
  for index, (line, code) in enumerate(zip(lines, is_code(lines), strict=True)):
    if not code and (match := re.match(r"(#{1,6}) (.+)$", line)):
      found.append(Heading(index, len(match[1]), match[2].strip()))
  return found


def slug(text: str) -> str:
  """Returns the anchor of a heading, by the rule of GitHub and of MyST.

  >>> slug('Generative ranking (`config.task="ranking"`)')
  'generative-ranking-configtaskranking'
  """
  return re.sub(r"[^\w\- ]", "", text.lower().strip()).replace(" ", "-")


def anchors(text: str) -> set[str]:
  """Returns the anchors of all headings; the second of two equal headings ends in -1, as on GitHub.

  >>> sorted(anchors("# A\\n\\n## A\\n"))
  ['a', 'a-1']
  """
  found: dict[str, int] = {}
  result = set()
  for heading in headings(text):
    name = slug(heading.text)
    result.add(f"{name}-{found[name]}" if name in found else name)
    found[name] = found.get(name, 0) + 1
  return result


def section(text: str, title: str) -> tuple[str, int]:
  """Returns what stands below a heading, up to the next one of its level or above, and the level of that heading.

  Raises:
    ValueError: the page has no heading, or more than one, with this text.

  >>> section("# T\\n\\n## A\\n\\none\\n\\n### B\\n\\n## C\\n", "A")
  ('\\none\\n\\n### B\\n', 2)
  """
  all_headings = headings(text)
  found = [heading for heading in all_headings if heading.text == title]
  if len(found) != 1:
    raise ValueError(f"{len(found)} headings are {title!r}, one is needed: {[h.text for h in all_headings]}")
  (start,) = found
  ends = [heading.line for heading in all_headings if heading.line > start.line and heading.level <= start.level]
  lines = text.splitlines()
  return "\n".join(lines[start.line + 1 : min(ends, default=len(lines))]), start.level


def shifted(text: str, levels: int) -> str:
  """Returns a text whose headings are so many levels lower.

  >>> shifted("## A", -1)
  '# A'
  """
  lines = text.splitlines()
  for heading in headings(text):
    lines[heading.line] = f"{'#' * (heading.level + levels)} {heading.text}"
  return "\n".join(lines)


def prose(text: str) -> Iterator[tuple[int, str]]:
  """Yields index and text of the lines outside of fenced blocks."""
  lines = text.splitlines()
  yield from ((index, line) for index, (line, code) in enumerate(zip(lines, is_code(lines), strict=True)) if not code)


def links(text: str) -> list[str]:
  """Returns the targets of all links and pictures, in order.

  >>> links("[a](b.md#c), [`x[0]`](d.md) and `[no](link)` ![e](f.png)")
  ['b.md#c', 'd.md', 'f.png']
  """
  return [match[2] for _, line in prose(text) for match in _LINK.finditer(_hide_code(line))]


def with_links(text: str, replace: Callable[[str, str], str]) -> str:
  """Returns a text with other links.

  Args:
    text: a page.
    replace: opening (`[text](` or `![text](`) and target -> the whole link.

  >>> with_links("[a](b) `[c](d)`", lambda opening, target: f"{opening}new)")
  '[a](new) `[c](d)`'
  """
  lines = text.splitlines()
  for index, line in prose(text):
    changed = _LINK.sub(lambda match: replace(match[1], match[2]), _hide_code(line))
    lines[index] = changed.translate(_SHOWN)
  return "\n".join(lines)


def restructured(text: str, marks: str = "|*") -> str:
  """Returns prose whose marks, bars and asterisks if not given, are plain text in reStructuredText outside of code, as
  is what follows a code span at once, such as the plural of a name.

  >>> print(restructured("two `Table`s, |w| * 2"))
  two `Table`\\ s, \\|w\\| \\* 2
  """
  parts = re.split(r"(`[^`]*`)", text)
  parts[::2] = [re.sub(f"([{marks}])", r"\\\1", part) for part in parts[::2]]
  parts[2::2] = [rf"\ {part}" if part[:1].isalnum() else part for part in parts[2::2]]
  return "".join(parts)


def _hide_code(line: str) -> str:
  """Returns a line whose brackets inside code spans are private characters, so that they open no link."""
  return _CODE_SPAN.sub(lambda match: match[0].translate(_HIDDEN), line)
