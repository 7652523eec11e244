import pytest

from docs import papers
from docs.assemble import assemble


def test_every_equation_leads_to_code_and_tests_or_says_why_not():
  for paper in papers.papers():
    for equation in paper["equation"]:
      assert all(papers.definition(name).line for name in equation.get("code", []))
      assert all(papers.place_of_test(name).line for name in equation.get("tests", []))


def test_the_four_papers_are_there_with_what_is_missing():
  counts = {
    paper["arxiv"]: (sum("code" in e for e in paper["equation"]), sum("missing" in e for e in paper["equation"]))
    for paper in papers.papers()
  }
  assert set(counts) == {"2402.17152", "2505.21811", "2508.20945", "2410.02604"}
  assert all(done > 2 and missing for done, missing in counts.values())


def test_numbered_equations_are_those_that_public_sources_number():
  numbers = {paper["arxiv"]: {e["number"] for e in paper["equation"]} for paper in papers.papers()}
  assert {"(1)", "(2)", "(3)"} <= numbers["2402.17152"]
  assert {"(1)", "(2)"} <= numbers["2508.20945"]


def test_a_paper_whose_numbers_are_unknown_says_so_and_gives_none():
  for paper in papers.papers():
    is_numbered = any(e["number"].startswith("(") for e in paper["equation"])
    assert is_numbered != ("numbers" in paper), paper["arxiv"]
    assert paper.get("numbers", "") in papers.page()[1]


@pytest.mark.parametrize(
  "name", ["jaxrec.layers.hstu.NoLayer", "jaxrec.layers.hstu.HSTULayer.gone", "jaxrec_of_before.layers", "docs.gone"]
)
def test_a_name_that_is_gone_is_an_error(name):
  with pytest.raises(ValueError, match=name):
    papers.definition(name)


@pytest.mark.parametrize("name", ["layers/test_layers.py::test_gone", "layers/test_gone.py::test_a", "test_house.py"])
def test_a_test_that_is_gone_is_an_error(name):
  with pytest.raises(ValueError, match=name):
    papers.place_of_test(name)


def test_lines_are_those_of_the_definitions():
  place = papers.definition("jaxrec.layers.hstu.HSTULayer.project")
  assert (papers.REPOSITORY / place.path).read_text().splitlines()[place.line - 1].startswith("  def project(")


def test_the_page_has_a_link_to_every_place():
  page = assemble({"papers": papers.page()}).pages["papers"]
  for paper in papers.papers():
    for equation in paper["equation"]:
      for place in map(papers.definition, equation.get("code", [])):
        assert f"source/{place.path}.html#L-{place.line})" in page
