"""A page of HTML that needs nothing else: no script, no network, light and dark, for phones and wide screens.

Functions take text and escape it; those that take parts take what other functions here returned.
"""

from __future__ import annotations

import html
import os
from collections.abc import Sequence

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # Loads and runs nothing, whatever the text is.


def write_page(path: str, title: str, *parts: str) -> None:
  """Writes a page that is either complete or not there.

  Args:
    path: of the file; replaced if it exists.
    title: text.
    *parts: HTML of the functions below.
  """
  head = (
    '<!doctype html><html lang="en"><meta charset="utf-8">'
    f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{html.escape(title)}</title><style>{_STYLE}</style><main><h1>{html.escape(title)}</h1>"
  )
  with open(f"{path}.tmp", "w", encoding="utf-8", errors="replace") as file:
    file.write("\n".join([head, *filter(None, parts), "</main></html>\n"]))
  os.replace(f"{path}.tmp", path)


def section(title: str, *parts: str) -> str:
  """Returns a section with a heading."""
  return f"<section><h2>{html.escape(title)}</h2>\n" + "\n".join(filter(None, parts)) + "</section>"


def paragraph(text: str, kind: str = "") -> str:
  """Returns a paragraph; kind is "lead", "note" or ""."""
  return f'<p class="{kind}">{html.escape(text)}</p>'


def facts(values: dict[str, str]) -> str:
  """Returns a row of numbers with their names."""
  cells = (f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in values.items())
  return f'<dl class="facts">{"".join(cells)}</dl>'


def table(title: str, rows: Sequence[Sequence[str]], texts: int = 1) -> str:
  """Returns a table that scrolls sideways in a box of its own where it is wider than the screen.

  Args:
    title: what the table shows.
    rows: cells as text; the first row is the header.
    texts: how many columns at the left are text; the others are numbers.

  >>> table("Sizes", [["item", "count"], ["<b>", "3"]]).split("<tbody>")[1].removesuffix("</tbody></table></div>")
  '<tr><td>&lt;b&gt;</td><td class="n">3</td></tr>'
  """
  head, *body = (_row("td" if i else "th", cells, texts) for i, cells in enumerate(rows))
  name = html.escape(title)
  return (
    f'<div class="scroll" tabindex="0" role="region" aria-label="{name}"><table><caption>{name}</caption>'
    f"<thead>{head}</thead><tbody>{''.join(body)}</tbody></table></div>"
  )


def _row(tag, cells, texts):
  kinds = ["", ' class="n"']
  return f"<tr>{''.join(f'<{tag}{kinds[i >= texts]}>{html.escape(x)}</{tag}>' for i, x in enumerate(cells))}</tr>"


def figure(title: str, drawing: str | None, note: str = "") -> str:
  """Returns a figure with its title above; nothing where there is no drawing.

  Args:
    title: text, with what the axes do not say.
    drawing: an <svg> element of `jaxrec.analysis.run_figures`.
    note: text below the drawing.
  """
  if drawing is None:
    return ""
  name = html.escape(title)
  named = drawing.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)
  return f"<figure><figcaption>{name}</figcaption>{named}{paragraph(note, 'note')}</figure>"


def side_by_side(*parts: str) -> str:
  """Returns parts next to each other where there is room for them, else below each other."""
  return f'<div class="grid">{"".join(parts)}</div>' if any(parts) else ""


def folded(title: str, *parts: str, is_open: bool = False) -> str:
  """Returns parts that a click on the title shows."""
  return f"<details{' open' if is_open else ''}><summary>{html.escape(title)}</summary>{''.join(parts)}</details>"


def numbered(title: str, lines: Sequence[tuple[str, str, str]], mark: int | None = None) -> str:
  """Returns a list with a title.

  Args:
    title: text.
    lines: text, what to say of it in small letters, and a number at the right, of each entry.
    mark: index of the entry to mark.
  """
  kinds = ["", ' class="mark"']
  entries = (
    f"<li{kinds[i == mark]}><div><span>{html.escape(text)} <small>{html.escape(small)}</small></span>"
    f"<data>{html.escape(number)}</data></div></li>"
    for i, (text, small, number) in enumerate(lines)
  )
  return f"<div><h4>{html.escape(title)}</h4><ol>{''.join(entries)}</ol></div>"


def box(title: str, *parts: str) -> str:
  """Returns parts in a frame with a title."""
  return f"<article><h3>{html.escape(title)}</h3>{''.join(parts)}</article>"


_STYLE = """
:root{color-scheme:light dark;--ink:#1c2128;--soft:#57606a;--paper:#fff;--box:#f6f8fa;--line:#d0d7de;--mark:#dcf3e3}
@media(prefers-color-scheme:dark){:root{--ink:#e2e6ea;--soft:#9aa4af;--paper:#14171b;--box:#1c2127;--line:#373e47;
--mark:#1d4029}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
main{max-width:76rem;margin:0 auto;padding:1rem}
h1{font-size:1.6rem;line-height:1.2;margin:.5rem 0}
h2{font-size:1.25rem;margin:2.2rem 0 .6rem;padding-bottom:.2rem;border-bottom:1px solid var(--line)}
h3{font-size:1.05rem;margin:0 0 .5rem}
h4{font-size:.9rem;margin:0;color:var(--soft);font-weight:600}
p{margin:.5rem 0;max-width:46rem}
.lead{font-size:1.15rem}
.note,small,dt,caption,summary{color:var(--soft);font-size:.875rem}
.facts{display:flex;flex-wrap:wrap;gap:.6rem;margin:1rem 0}
.facts div{background:var(--box);border:1px solid var(--line);border-radius:6px;padding:.45rem .8rem;
flex:1 0 auto;min-width:7rem;max-width:100%}
dd{margin:0;font-size:1.2rem;font-weight:600;font-variant-numeric:tabular-nums}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1.2rem 2rem;margin:1rem 0}
figure{margin:0;max-width:38rem}
figcaption{font-weight:600;margin-bottom:.3rem}
svg{display:block;width:100%;height:auto}
svg text{font-family:inherit!important}
.scroll{overflow:auto;max-width:max-content;max-height:40rem;margin:.6rem 0;border:1px solid var(--line);
border-radius:6px}
table{border-collapse:collapse;overflow-wrap:normal}
caption{text-align:left;padding:.4rem .7rem;font-weight:600;position:sticky;left:0}
th,td{padding:.25rem .7rem;border-top:1px solid var(--line);text-align:left;vertical-align:top}
th{background:var(--box);white-space:nowrap}
td{min-width:4rem;max-width:28rem}
.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
summary{cursor:pointer;padding:.3rem 0}
article{border:1px solid var(--line);border-radius:6px;padding:.8rem 1rem;margin:.8rem 0}
ol{margin:.3rem 0;padding-left:2rem}
li div{display:flex;justify-content:space-between;gap:1rem}
li data{color:var(--soft);font-variant-numeric:tabular-nums;white-space:nowrap}
.mark{background:var(--mark);border-radius:4px;font-weight:600}
"""
