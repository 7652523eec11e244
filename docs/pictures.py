"""Pictures of the README and the site, drawn from the code.

    python -m docs.pictures

writes them into `docs/pictures`; a test compares them with the code. `docs/pictures/demo.txt` is what a terminal of 100
columns shows after `python -m experiments.demo`, without the progress bar; to take it anew, delete `runs/demo` and copy
what the command prints.
"""

from __future__ import annotations

import ast
import functools
import html
import re
from collections.abc import Iterable
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from docs.repository import REPOSITORY
from pallas_kernels import IntervalMask, sort_by_segment

FOLDER = REPOSITORY / "docs" / "pictures"
INK, PAPER, QUIET = "#1f2933", "#ffffff", "#9aa5b1"
COLOURS = ("#d9e8f6", "#f9e2c9", "#d5efdf")
BOX, GAP, ROW = (132, 34), 22, 68


def pictures() -> dict[str, str]:
  """Returns file name -> SVG."""
  return {"architecture.svg": architecture(), "masks.svg": masks(), "demo.svg": screen(FOLDER / "demo.txt")}


@functools.cache
def room_imports() -> dict[str, set[str]]:
  """Returns room -> rooms that it imports; rooms are the folders and modules of jaxrec, and the other two packages."""
  found = {}
  for package in ("experiments", "jaxrec", "pallas_kernels"):
    for path in sorted((REPOSITORY / package).rglob("*.py")):
      here = _room(path.relative_to(REPOSITORY).with_suffix("").as_posix().replace("/", "."))
      names = {name for node in ast.walk(ast.parse(path.read_text())) for name in _imported(node)}
      found.setdefault(here, set()).update(there for name in names if (there := _room(name)) not in (None, here))
  found.pop(None)
  return found


def _imported(node):
  if isinstance(node, ast.Import):
    return [alias.name for alias in node.names]
  if isinstance(node, ast.ImportFrom) and node.module:
    return [f"{node.module}.{alias.name}" for alias in node.names]
  return []


def _room(module):
  top, *rest = module.split(".")
  if top == "jaxrec":
    return rest[0] if rest and rest[0] != "__init__" else None
  return top if top in ("experiments", "pallas_kernels") else None


def levels() -> dict[str, int]:
  """Returns the level of each room: those of jaxrec from the table of CONTRIBUTING, the other packages around them."""
  rows = re.findall(r"^\| (\d) \| (.*) \|$", (REPOSITORY / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)
  rooms = {name: int(level) for level, names in rows for name in re.findall(r"`(\w+)`", names)}
  return {**rooms, "experiments": max(rooms.values()) + 1, "pallas_kernels": -1}


def without_shortcuts(imports: dict[str, set[str]]) -> dict[str, set[str]]:
  """Returns the imports that no chain of other imports implies.

  >>> without_shortcuts({"a": {"b", "c"}, "b": {"c"}, "c": set()})
  {'a': {'b'}, 'b': {'c'}, 'c': set()}
  """
  reach = {room: _reached(imports, room) for room in imports}
  return {
    room: {there for there in direct if not any(there in reach[other] for other in direct - {there})}
    for room, direct in imports.items()
  }


def _reached(imports, room):
  found, waiting = set(), list(imports.get(room, ()))
  while waiting:
    here = waiting.pop()
    if here not in found:
      found.add(here)
      waiting += imports.get(here, ())
  return found


def architecture() -> str:
  """Returns the picture of the rooms by level, with lines down to what each imports."""
  imports = without_shortcuts(room_imports())
  level_of = levels()
  rows = [sorted(room for room in imports if level_of[room] == level) for level in sorted(set(level_of.values()))[::-1]]
  rows = _by_neighbours([row for row in rows if row], imports)
  width = max(len(row) for row in rows) * (BOX[0] + GAP) + 2 * GAP
  corners = {
    room: (
      (width - len(row) * (BOX[0] + GAP) + GAP) / 2 + index * (BOX[0] + GAP) + _aside(row, depth),
      GAP + ROW * depth,
    )
    for depth, row in enumerate(rows)
    for index, room in enumerate(row)
  }
  lines = [_line(corners[room], corners[there]) for room in corners for there in sorted(imports[room])]
  boxes = [_box(room, corner, level_of[room]) for room, corner in corners.items()]
  return _svg(width, GAP * 2 + ROW * (len(rows) - 1) + BOX[1], "What imports what in jaxrec", [*lines, *boxes])


def _aside(row, depth):
  """How far a room that is alone on its level stands to the left or right, so that lines from above pass it."""
  return (-1) ** depth * 0.7 * (BOX[0] + GAP) if len(row) == 1 and depth > 1 else 0


def _by_neighbours(rows, imports):
  """The rows, each in the order of the mean place of the rooms above that import from it, so that lines cross less."""
  ordered = [rows[0]]
  place = {room: (index + 0.5) / len(rows[0]) for index, room in enumerate(rows[0])}
  for row in rows[1:]:
    above = {room: [place[other] for other in place if room in imports[other]] or [0.5] for room in row}
    ordered.append(sorted(row, key=lambda room, above=above: (sum(above[room]) / len(above[room]), room)))
    place.update({room: (index + 0.5) / len(row) for index, room in enumerate(ordered[-1])})
  return ordered


def _line(corner, other):
  x, y = corner[0] + BOX[0] / 2, corner[1] + BOX[1]
  x2, y2 = other[0] + BOX[0] / 2, other[1]
  bend = (y2 - y) / 2
  path = f"M{x:g} {y:g}C{x:g} {y + bend:g} {x2:g} {y2 - bend:g} {x2:g} {y2:g}"
  return f'<path d="{path}" fill="none" stroke="{QUIET}" stroke-width="1.5"/>'


def _box(room, corner, level):
  colour = {-1: COLOURS[2], max(levels().values()): COLOURS[1]}.get(level, COLOURS[0])
  x, y = corner
  return (
    f'<rect x="{x:g}" y="{y:g}" width="{BOX[0]}" height="{BOX[1]}" rx="6" fill="{colour}" stroke="{INK}"/>'
    + _text(x + BOX[0] / 2, y + BOX[1] / 2 + 5, room, size=15)
  )


def masks() -> str:
  """Returns the picture of three masks over a packed row of two users, with the tiles of 8 x 8 that are computed."""
  user = jnp.array([[1] * 20 + [2] * 12])
  domain = jnp.array([[1, 1, 2, 1, 2, 2, 1, 3, 1, 2, 1, 1, 3, 2, 1, 2, 3, 1, 2, 1, 2, 3, 2, 2, 1, 3, 2, 1, 2, 3, 2, 1]])
  order, _ = sort_by_segment(user, domain)
  by_domain = IntervalMask.intra_domain(*(jnp.take_along_axis(x, order, axis=1) for x in (user, domain)))
  target = IntervalMask.hstu(jnp.array([32]), 32, num_targets=jnp.array([8]), max_attention_length=8)
  panels = [
    ("causal, two users in a row", IntervalMask.causal(user)),
    ("inside each domain, events sorted by it", by_domain),
    ("one user, a window of 8, 8 candidates", target),
  ]
  cell, tile = 9, 8
  side = cell * user.shape[1]
  parts = [_panel(mask, title, 20 + index * (side + 28), cell, tile) for index, (title, mask) in enumerate(panels)]
  return _svg(3 * side + 96, side + 66, "Masks of segment attention", parts)


def _panel(mask, title, left, cell, tile):
  reads = np.asarray(mask.to_dense(mask.shape[1]))[0]  # [N, S]
  size = len(reads)
  top = 34
  tiles = reads.reshape(size // tile, tile, size // tile, tile).any(axis=(1, 3))  # [T, T]
  side, block = cell * size, cell * tile
  live = "".join(f"M{left + j * block} {top + i * block}h{block}v{block}h-{block}z" for i, j in np.argwhere(tiles))
  dot = f"h{cell - 4}v{cell - 4}h-{cell - 4}z"
  marks = "".join(f"M{left + j * cell + 2} {top + i * cell + 2}{dot}" for i, j in np.argwhere(reads))
  share = f"{tiles.sum()} of {tiles.size} tiles"
  return (
    _text(left, 22, title, size=14, anchor="start")
    + f'<path d="{live}" fill="{COLOURS[0]}" stroke="{PAPER}"/><path d="{marks}" fill="{INK}"/>'
    + f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="none" stroke="{QUIET}"/>'
    + _text(left, top + side + 20, f"queries down, keys across; {share}", size=12, anchor="start")
  )


def screen(recorded: Path) -> str:
  """Returns the picture of a terminal from a file whose first line is the command, and the others what it printed."""
  command, *printed = recorded.read_text().rstrip("\n").splitlines()
  lines = [f"$ {command}", *printed]
  size, width, height = 13, 7.85, 18
  left, top = 18, 46
  body = [
    f'<text x="{left}" y="{top + index * height}" xml:space="preserve" textLength="{len(line) * width:.1f}" '
    f'lengthAdjust="spacingAndGlyphs">{html.escape(line)}</text>'
    for index, line in enumerate(lines)
    if line
  ]
  style = f'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="{size}" fill="{INK}"'
  whole = (max(map(len, lines)) * width + 2 * left, top + len(lines) * height)
  frame = (
    f'<rect x="1" y="1" width="{whole[0] - 2:g}" height="{whole[1] - 2:g}" rx="8" fill="none" stroke="{QUIET}"/>'
    f'<path d="M1 26h{whole[0] - 2:g}" stroke="{QUIET}"/>'
    + "".join(f'<circle cx="{18 + 16 * index}" cy="14" r="5" fill="{colour}"/>' for index, colour in enumerate(COLOURS))
  )
  return _svg(*whole, f"A terminal after {command}", [frame, f"<g {style}>", *body, "</g>"])


def _text(x, y, text, size, anchor="middle"):
  return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{INK}">{html.escape(text)}</text>'


def _svg(width: float, height: float, title: str, parts: Iterable[str]) -> str:
  body = "\n".join(parts)
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img" '
    f'font-family="Helvetica, Arial, sans-serif"><title>{title}</title>\n'
    f'<rect width="100%" height="100%" fill="{PAPER}"/>\n{body}\n</svg>\n'
  )


if __name__ == "__main__":
  for name, picture in pictures().items():
    (FOLDER / name).write_text(picture)
