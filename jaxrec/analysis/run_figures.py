"""Drawings for the page of a run, as SVG that takes the colour of its text from the page.

Each function returns an <svg> element, or None where matplotlib is not installed.
"""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

_INK = "#010203"  # Stands for the text colour of the page.
_COLOURS = ("#3b82d6", "#d9730d", "#2c9a5b", "#c9559b", "#8b6fd0", "#7f8790")  # Readable on white and on black.
_DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 2)))
_SETTINGS = {
  "font.size": 12, "text.parse_math": False, "axes.edgecolor": _INK, "axes.labelcolor": _INK, "text.color": _INK,
  "xtick.color": _INK, "ytick.color": _INK, "grid.color": _INK, "grid.alpha": 0.15, "axes.grid": True,
  "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
  "svg.fonttype": "none", "lines.markersize": 4,
}  # fmt: skip
MOST_LINES = len(_COLOURS)
Line = tuple[str, Sequence[float], Sequence[float]]


def is_available() -> bool:
  """Whether matplotlib is installed."""
  return importlib.util.find_spec("matplotlib") is not None


def draw_lines(name: str, lines: Sequence[Line], xlabel: str, ylabel: str, *, log: bool = False) -> str | None:
  """Draws a line for each entry, with a legend where there are several.

  Args:
    name: of the drawing, unique in its page.
    lines: label, x and y of each; at most `MOST_LINES`.
    xlabel, ylabel: with units.
    log: whether both axes are logarithmic; else x begins at 0.
  """

  def draw(axes):
    from matplotlib.ticker import LogFormatter

    for (label, x, y), colour, dash in zip(lines, _COLOURS, _DASHES, strict=False):
      marker = "o" if len(x) < 20 else None
      axes.plot(x, y, color=colour, linestyle=dash, marker=marker, label=_label(label))
    if log:
      axes.set(xscale="log", yscale="log")
      for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,.0f}")
        axis.set_minor_formatter(LogFormatter())
    else:
      axes.set_xlim(left=0)
      axes.xaxis.get_major_locator().set_params(integer=True)
    if len(lines) > 1:
      axes.figure.legend(loc="outside lower center", ncols=2)
    axes.set(xlabel=xlabel, ylabel=ylabel)

  return _svg(name, draw)


def draw_histogram(name: str, edges: Sequence[float], counts: Sequence[int], xlabel: str, ylabel: str) -> str | None:
  """Draws counts as bars between edges.

  Args:
    name: of the drawing, unique in its page.
    edges: one more than counts.
    counts: heights.
    xlabel, ylabel: with units.
  """

  def draw(axes):
    axes.stairs(counts, edges, fill=True, color=_COLOURS[0])
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set(xlabel=xlabel, ylabel=ylabel)

  return _svg(name, draw)


def _svg(name: str, draw: Callable[[Any], None]) -> str | None:
  """Draws without a window or global state; the same input gives the same text."""
  if not is_available():
    return None
  import matplotlib
  from matplotlib.figure import Figure

  file = io.StringIO()
  with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}), warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Glyph")  # The browser has fonts for all scripts.
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    draw(figure.subplots())
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
  text = file.getvalue()
  return text[text.index("<svg") :].replace(_INK, "currentColor")


def _label(text: str, longest: int = 24) -> str:
  """Matplotlib takes a label that begins with an underscore for none."""
  short = text if len(text) <= longest else f"{text[: longest - 1]}…"
  return f"\u200b{short}" if short.startswith("_") else short
