"""Text tables: alignment, Markdown, short rows and refusals."""

import pytest

from jaxrec.cli.evaluate import table
from jaxrec.cli.prepare import summary
from jaxrec.cli.summary_table import summary_table
from jaxrec.cli.text_table import text_table
from jaxrec.data.prepared import PreparedData

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


def test_a_domain_called_all_has_a_row_beside_the_total():
  metrics = {
    "MRR": 0.25,
    "count": 3,
    "domain/all/MRR": 0.5,
    "domain/all/count": 1,
    "domain/b/MRR": 0.1,
    "domain/b/count": 2,
  }
  lines = [line.split() for line in table({"hstu": metrics}, ("all", "b"), ()).splitlines()]
  assert lines[1:] == [["(all)", "hstu", "3", "0.2500"], ["all", "hstu", "1", "0.5000"], ["b", "hstu", "2", "0.1000"]]
  data = PreparedData.from_columns(
    user=[0, 0, 0], item_id=[1, 2, 3], domain_id=[1, 2, 2], domain_names=("all", "(all)")
  )
  assert [line.split()[:4] for line in summary(data).splitlines()[1:4]] == [
    ["all", "1", "1", "1"], ["(all)", "1", "2", "2"], ["((all))", "1", "3", "3"],
  ]  # fmt: skip


def test_control_characters_of_names_are_escaped_in_tables():
  names = ("a\x1b[31mred", "b\nall")
  data = PreparedData.from_columns(user=[0, 0], item_id=[1, 2], domain_id=[1, 2], domain_names=names)
  lines = summary(data).splitlines()
  assert [line.split()[0] for line in lines[1:4]] == ["a\\x1b[31mred", "b\\nall", "all"]
  assert (
    text_table([["\u202egnp", "\x07"], ["\ud800", "\xa0"]])
    == "\\u202egnp  \\x07\n\\ud800      \xa0".rstrip("\xa0").rstrip()
  )


def test_a_summary_says_what_a_run_began_with():
  started = {"checkpoint": "runs/monday/select/checkpoints/9", "known_items": 3, "new_items": 1200}
  select = {"best_epoch": 2, "validation": {"MRR": 0.5, "count": 1}, "started_from": started}
  text = summary_table({"select": select, "seconds": 3})
  assert text.endswith("best epoch 2; 3 seconds; began with runs/monday/select/checkpoints/9, 1,200 new items")
