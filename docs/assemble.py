"""Pages of the site from the templates of `docs/pages` and the Markdown files of the repository.

A template is Markdown. It takes text from other files, which is written there and nowhere else:

    <!-- include: README.md#Limits -->     a section with its heading
    <!-- body: README.md#Install -->       a section without its heading
    <!-- body: CHANGELOG.md -->            a file without its title
    <!-- intro: experiments/README.md --> what stands between the title of a file and its first section
    <!-- home: CONTRIBUTING.md -->        nothing; links to the file lead to this page

Links, relative to the file that has the text, are rewritten: to the page that shows the file or section, or to a
page with the lines of the file. A link that leads nowhere is an error.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, field
from pathlib import Path

from docs import markdown
from docs.repository import PICTURES, REPOSITORY, SOURCE_URL, source_link

TEMPLATES = REPOSITORY / "docs" / "pages"
RESULTS = "experiments/results"
_DIRECTIVE = re.compile(r"^<!-- (include|body|intro|home): ([^#\s]+)(?:#(.+?))? -->$", flags=re.MULTILINE)


@dataclass
class Site:
  """The pages of a site.

  pages: name without suffix -> Markdown.
  pictures: path in the repository -> file name in the folder of the pages.
  files: paths in the repository, folders too, that need a page of their own because something links to them.
  """

  pages: dict[str, str] = field(default_factory=dict)
  pictures: dict[str, str] = field(default_factory=dict)
  files: set[str] = field(default_factory=set)


def assemble(generated: dict[str, tuple[str, str]]) -> Site:
  """Returns the site.

  Args:
    generated: name -> path and Markdown of pages that other programs make. Links are relative to the path, and links to
      the path lead to the page.

  Raises:
    ValueError: a link or an include that leads nowhere; the message has page, text and target.
  """
  templates = {path.stem: (f"docs/pages/{path.name}", path.read_text()) for path in sorted(TEMPLATES.glob("*.md"))}
  templates.update({f"results_{path.stem}": (f"docs/pages/{path.name}", _whole_file(path)) for path in _result_pages()})
  templates.update(generated)
  places = _places(templates)
  site = Site()
  for name, (path, text) in templates.items():
    own = markdown.with_links(text, _Rewrite(site, places, path, name))
    site.pages[name] = _DIRECTIVE.sub(lambda match, name=name: _included(match, site, places, name), own)
  return site


def _result_pages():
  return sorted(path for path in (REPOSITORY / RESULTS).glob("*.md") if path.name != "README.md")


def _whole_file(path: Path) -> str:
  """A template that is one file, with its title."""
  title = markdown.headings(path.read_text())[0].text
  return f"# {title}\n\n<!-- body: {path.relative_to(REPOSITORY).as_posix()} -->\n"


def _taken(kind: str, path: str, title: str | None) -> tuple[str, int]:
  """Text that an include stands for, and how many levels its headings have to go down."""
  if kind == "home":
    return "", 0
  page = (REPOSITORY / path).read_text()
  if title is None:
    first, *others = [heading.line for heading in markdown.headings(page)]
    return "\n".join(page.splitlines()[first + 1 : others[0] if kind == "intro" else None]), 0
  body, level = markdown.section(page, title)
  return (f"{'#' * level} {title}\n{body}", 2 - level) if kind == "include" else (body, 1 - level)


def _included(match, site, places, name):
  text, shift = _taken(*match.groups())
  return markdown.shifted(markdown.with_links(text, _Rewrite(site, places, match[2], name)), shift)


def _places(templates) -> dict[tuple[str, str], tuple[str, str]]:
  """Returns (file, anchor) -> (page, anchor) of all files and sections that a page shows; the first page wins."""
  places = {}
  for name, (path, text) in templates.items():
    places[path, ""] = (name, "")
    places.update({(path, anchor): (name, anchor) for anchor in markdown.anchors(text)})
    for kind, file, title in _DIRECTIVE.findall(text):
      if not title:
        places.setdefault((file, ""), (name, ""))
      elif kind == "body":
        places.setdefault((file, markdown.slug(title)), (name, ""))
      for anchor in markdown.anchors(_taken(kind, file, title or None)[0]):
        places.setdefault((file, anchor), (name, anchor))
        places[path, anchor] = (name, anchor)
  return places


@dataclass
class _Rewrite:
  """Opening and target of a link in a file -> the link on a page of the site."""

  site: Site
  places: dict[tuple[str, str], tuple[str, str]]
  path: str
  page: str

  def __call__(self, opening: str, target: str) -> str:
    if re.match(r"[a-z]+:", target):
      return f"{opening}{target})"
    if opening.startswith("[!["):
      opening = markdown.with_links(opening, self)
    relative, _, anchor = target.partition("#")
    folder = posixpath.dirname(self.path)
    file = posixpath.normpath(posixpath.join(folder, relative)) if relative else self.path
    if not (REPOSITORY / file).exists() and (file, "") not in self.places:
      raise ValueError(f"{self.path}: the link {opening}{target}) leads nowhere; it must be relative to that file")
    if Path(file).suffix in PICTURES:
      return f"{opening}{self._picture(file)})"
    readme = posixpath.join(file, "README.md")
    file = readme if (REPOSITORY / readme).is_file() else file
    return f"{opening}{self._address(file, anchor, target)})"

  def _picture(self, file):
    return self.site.pictures.setdefault(file, file.replace("/", "_"))

  def _address(self, file, anchor, target):
    if (file, anchor) in self.places:
      page, place = self.places[file, anchor]
      return f"{page}.md#{place}" if place else f"{page}.md"
    if Path(file).suffix == ".md" and anchor:
      raise ValueError(f"{self.path}: no page shows the section of {target!r}; it has {_known(self.places, file)}")
    self.site.files.add(file)
    if (REPOSITORY / file).is_dir() and not SOURCE_URL:
      return f"site:source/{file}.html"
    line = int(anchor.removeprefix("L") or 1)
    return source_link(file, line) if SOURCE_URL else f"site:{source_link(file, line)}"


def _known(places, file):
  return sorted(anchor for path, anchor in places if path == file and anchor)
