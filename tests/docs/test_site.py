"""The built site: no warning, no broken link. Needs `jaxrec[docs]`."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.exhaustive


class Page(HTMLParser):
  """The links and anchors of a page, and what it would load from elsewhere."""

  def __init__(self, text: str):
    super().__init__()
    self.links, self.anchors, self.loads = [], set(), []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    values = dict(attributes)
    self.anchors.update(values[name] for name in ("id", "name") if values.get(name))
    address = values.get("href") or values.get("src")
    if address and tag != "a" and address.startswith(("http:", "https:", "//")):
      self.loads.append(address)
    elif address and not address.startswith(("http:", "https:", "mailto:", "data:", "javascript:")):
      self.links.append(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
  """The site, built as `make docs` does."""
  pytest.importorskip("sphinx", reason="pip install '.[docs]'")
  out = tmp_path_factory.mktemp("site") / "docs"
  program = f"import sys; from pathlib import Path; from docs.build import build; sys.exit(build(Path({str(out)!r})))"
  result = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
  assert result.returncode == 0, result.stdout + result.stderr
  return out / "html"


def broken_links(site: Path) -> list[str]:
  """Page and target of every link that leads to no file or to no anchor of it."""
  pages = {path: Page(path.read_text()) for path in site.rglob("*.html") if "_static" not in path.parts}
  found = []
  for path, page in pages.items():
    for link in page.links:
      file, _, anchor = unquote(link).partition("#")
      target = (path.parent / file.partition("?")[0]).resolve() if file else path
      if not target.is_file() or (anchor and target in pages and anchor not in pages[target].anchors):
        found.append(f"{path.relative_to(site)}: {link}")
  return found


def test_the_site_has_no_broken_link_and_loads_nothing_from_elsewhere(site):
  assert broken_links(site) == []
  assert [load for path in site.glob("*.html") for load in Page(path.read_text()).loads] == []


def test_search_works_without_a_server(site):
  index = (site / "searchindex.js").read_text()
  assert index.startswith("Search.setIndex(")  # A script, so that a page from a file may load it.
  assert "segment_attention" in index and "stochastic" in index


def test_no_page_names_a_machine(site):
  assert [path.name for path in site.rglob("*.html") if str(REPOSITORY) in path.read_text()] == []


def test_broken_links_are_seen(tmp_path):
  (tmp_path / "a.html").write_text('<a href="b.html#there">1</a><a href="b.html#gone">2</a><img src="gone.png">')
  (tmp_path / "b.html").write_text('<p id="there"></p>')
  assert broken_links(tmp_path) == ["a.html: b.html#gone", "a.html: gone.png"]
