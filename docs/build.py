"""Builds the site: `python -m docs.build`, or `make docs`. A warning of Sphinx is an error.

Pages and site go to `build/docs`, which git ignores; open `build/docs/html/index.html`. Search needs no server.
`JAXREC_SOURCE_URL=https://.../{path}#L{line}` makes links to source lines lead there; without it the site shows them.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from docs import notebooks, papers, pictures, reference
from docs.assemble import assemble
from docs.repository import REPOSITORY, SOURCE_URL, write_source_pages

OUT = REPOSITORY / "build" / "docs"


def write_pages(folder: Path) -> None:
  """Writes the pages that Sphinx reads, and the pictures they show."""
  site = assemble({"papers": papers.page(), **notebooks.pages()})
  folder.mkdir(parents=True)
  for name, text in site.pages.items():
    (folder / f"{name}.md").write_text(text)
  for name, text in reference.pages().items():
    (folder / f"{name}.rst").write_text(text)
  for path, name in site.pictures.items():
    shutil.copyfile(REPOSITORY / path, folder / name)
  notebooks.write_pictures(folder)
  for name, text in pictures.pictures().items():
    (folder / f"docs_pictures_{name}").write_text(text)


def build(out: Path = OUT) -> int:
  """Builds the site in a folder, which is emptied before; returns the exit status of Sphinx."""
  from sphinx.cmd.build import main

  shutil.rmtree(out, ignore_errors=True)
  write_pages(out / "pages")
  options = ["--quiet", "--fail-on-warning", "--keep-going", "-c", str(REPOSITORY / "docs")]
  status = main([*options, "-b", "html", "-d", str(out / "cache"), str(out / "pages"), str(out / "html")])
  if not SOURCE_URL:
    write_source_pages(out / "html" / "source", linked_files(out / "html"))
  return status


def linked_files(site: Path) -> list[str]:
  """Returns the paths of all files of the repository that a page of the site links to."""
  pages = (page.read_text() for page in site.glob("*.html"))
  return sorted({path for page in pages for path in re.findall(r'href="source/([^"#]+)\.html(?:#[^"]*)?"', page)})


if __name__ == "__main__":
  sys.exit(build())
