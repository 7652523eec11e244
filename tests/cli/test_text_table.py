"""Text tables: alignment, Markdown, short rows and refusals."""

import pytest

from jaxrec.cli.text_table import text_table

ROWS = [["run", "n", "MRR"], ["a", "12", "0.5"], ["long", "3"]]


def test_columns_are_aligned_by_letter_and_the_last_letter_repeats():
  assert text_table(ROWS, "lr").splitlines() == ["run    n  MRR", "a     12  0.5", "long   3"]


def test_markdown_has_a_rule_with_the_alignment():
  assert text_table(ROWS, "lr", markdown=True).splitlines() == [
    "| run  |  n | MRR |", "|:-----|---:|----:|", "| a    | 12 | 0.5 |", "| long |  3 |     |",
  ]  # fmt: skip


def test_columns_without_alignment_are_not_padded():
  assert text_table(ROWS, "-", markdown=True).splitlines() == [
    "| run | n | MRR |", "|---|---|---|", "| a | 12 | 0.5 |", "| long | 3 | |",
  ]  # fmt: skip


@pytest.mark.parametrize(
  "rows, align, message",
  [
    ([], "l", "needs a header"),
    (ROWS, "c", "letters of 'lr-'"),
    (ROWS, "", "letters of 'lr-'"),
    ([["a"], ["b", "c"]], "l", r"row \['b', 'c'\] is longer than the header \['a'\]"),
  ],
)
def test_wrong_arguments_are_refused(rows, align, message):
  with pytest.raises(ValueError, match=message):
    text_table(rows, align)
