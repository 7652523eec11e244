"""Pages of experiments/results: what is made from lines is made from today's lines."""

import results_pages


def test_made_pages_are_those_of_their_lines():
  for name, page in results_pages.PAGES.items():
    assert (results_pages.RESULTS / name).read_text() == page(), "run `python tests/results_pages.py`"
