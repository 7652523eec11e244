import re

import pytest
from conftest import REPOSITORY
from test_house import tracked_files

from docs import markdown, notebooks
from docs.assemble import TEMPLATES, assemble

PAPERS = "docs/pages/papers.md"


def pages() -> list[str]:
  """Every Markdown file of the repository but the templates of the site, whose links are those of its pages."""
  files = (path for path in tracked_files("*.md") if path.parent != TEMPLATES)
  return [path.relative_to(REPOSITORY).as_posix() for path in files]


def broken_links(text: str, folder) -> list[str]:
  """The targets of a page that are no file, or no heading of the file."""
  found = []
  for target in markdown.links(text):
    file, _, anchor = target.partition("#")
    if re.match(r"[a-z]+:", target):
      continue
    path = folder / file
    is_page = not file or path.suffix == ".md"
    there = text if not file else path.read_text() if is_page and path.is_file() else ""
    if not path.exists() or (anchor and is_page and anchor not in markdown.anchors(there)):
      found.append(target)
  return found


def test_links_of_every_page_of_markdown_lead_to_a_file_and_a_heading():
  broken = {page: broken_links((REPOSITORY / page).read_text(), (REPOSITORY / page).parent) for page in pages()}
  assert {page: links for page, links in broken.items() if links} == {}


def test_broken_links_are_seen(tmp_path):
  (tmp_path / "there.md").write_text("# A\n\n## B c\n")
  text = "# Here\n[a](there.md#b-c) [b](there.md#d) [c](gone.md) ![d](gone.png) [e](#here) [f](#gone) `[g](gone)`"
  assert broken_links(text, tmp_path) == ["there.md#d", "gone.md", "gone.png", "#gone"]


def test_every_page_of_the_site_can_be_reached():
  site = assemble({"papers": (PAPERS, "# Papers"), **notebooks.pages()})
  in_tables = {
    line.strip()
    for text in site.pages.values()
    for tree in re.findall(r"```\{toctree\}\n(.*?)```", text, flags=re.DOTALL)
    for line in tree.splitlines()
  }
  left = {page for page in site.pages if page not in in_tables and not page.startswith(("results_", "notebook_"))}
  assert left == {"index"} and {"results_*", "notebook_*"} <= in_tables


def test_a_link_that_leads_nowhere_is_an_error():
  with pytest.raises(ValueError, match="papers.md: .*gone.md.* leads nowhere"):
    assemble({"papers": (PAPERS, "# Papers\n\n[a](gone.md)")})
  with pytest.raises(ValueError, match="papers.md: no page shows the section of 'install.md#gone'"):
    assemble({"papers": (PAPERS, "# Papers\n\n[a](install.md#gone)")})


def test_an_include_of_a_section_that_is_gone_is_an_error():
  with pytest.raises(ValueError, match="0 headings are 'Gone'"):
    assemble({"papers": (PAPERS, "# Papers\n\n<!-- body: README.md#Gone -->")})


def test_links_of_included_text_lead_to_the_page_that_has_the_section():
  site = assemble({"papers": (PAPERS, "# Papers")})
  assert "](train.md#generative-ranking-configtaskranking)" in site.pages["quickstart"]
  assert "](results_quality.md)" in site.pages["results"]
  assert "site:source/LICENSE.html#L-1" not in site.pages["install"]


def test_notebooks_are_pages_with_their_pictures(tmp_path):
  site = assemble({"papers": (PAPERS, "# Papers"), **notebooks.pages()})
  notebooks.write_pictures(tmp_path)
  shown = {name for text in site.pages.values() for name in re.findall(r"```\{image\} (\S+)", text)}
  assert shown == {path.name for path in tmp_path.iterdir()} and len(shown) > 3
  assert "](notebook_01_train_a_recommender.md)" in site.pages["notebooks"]
