"""Files of the repository as the site shows them: a page for each with highlighted lines, and links to these."""

from __future__ import annotations

import html
import os
import subprocess
from pathlib import Path, PurePosixPath

REPOSITORY = Path(__file__).resolve().parents[1]
# Where the source is published, such as https://example.org/jaxrec/blob/main/{path}#L{line}; unset: pages of the site.
SOURCE_URL = os.environ.get("JAXREC_SOURCE_URL", "")
PICTURES = {".png", ".svg"}


def tracked_files() -> list[str]:
  """Returns the paths of the files that git tracks or would track; outside of a checkout, of all files."""
  command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
  try:
    listing = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.splitlines()
  except (FileNotFoundError, subprocess.CalledProcessError):
    listing = [path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.rglob("*.*")]
  return sorted(path for path in listing if (REPOSITORY / path).is_file())


def source_link(path: str, line: int = 1) -> str:
  """Returns the address of a line of a file, from a page of the site."""
  return SOURCE_URL.format(path=path, line=line) if SOURCE_URL else f"source/{path}.html#L-{line}"


def write_source_pages(folder: Path, paths: list[str]) -> None:
  """Writes a page for each file, with highlighted and numbered lines, and for each folder a list of what is in it."""
  for path in paths:
    page = folder / f"{path}.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(_listing(path) if (REPOSITORY / path).is_dir() else _highlighted(path))


def _listing(path):
  names = sorted(name for file in tracked_files() if (name := _child(file, path)))
  links = "".join(f"<li><code>{html.escape(name)}</code></li>" for name in dict.fromkeys(names))
  return _page(path, f"<ul>{links}</ul>", "")


def _child(file, folder):
  """The entry of a folder that a file is or is in; empty if it is not below the folder."""
  below = file.removeprefix(f"{folder}/")
  return "" if below == file else below.split("/")[0]


def _highlighted(path):
  from pygments import highlight
  from pygments.formatters import HtmlFormatter
  from pygments.lexers import TextLexer, get_lexer_for_filename
  from pygments.util import ClassNotFound

  try:
    lexer = get_lexer_for_filename(path)
  except ClassNotFound:
    lexer = TextLexer()
  text = (REPOSITORY / path).read_text(errors="replace")
  form = HtmlFormatter(linenos="inline", lineanchors="L", anchorlinenos=True, wrapcode=True)
  return _page(path, highlight(text, lexer, form), form.get_style_defs(".highlight"))


def _page(path, body, style):
  home = "../" * len(PurePosixPath(path).parts)
  style += (
    "body { margin: 1rem; font-family: sans-serif } pre { font-size: 14px; line-height: 1.35; overflow-x: auto } "
    ":target { background: #fff3b0 } .linenos { color: #767676; text-decoration: none }"
  )
  name = html.escape(path)
  return (
    f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
    f'<meta name="viewport" content="width=device-width"><meta name="robots" content="noindex"><style>{style}</style>'
    f'</head><body><p><a href="{home}index.html">jaxrec</a> / <code>{name}</code></p>{body}</body></html>\n'
  )
