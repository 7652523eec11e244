import html
import re

import pytest
from test_house import LEVEL_IN_JAXREC

from docs import pictures


@pytest.mark.parametrize("name", ["architecture.svg", "demo.svg", "masks.svg"])
def test_a_picture_is_that_of_the_code(name):
  assert (pictures.FOLDER / name).read_text() == pictures.pictures()[name], "run `python -m docs.pictures`"


def test_every_room_is_drawn_and_lines_go_down():
  imports, level = pictures.room_imports(), pictures.levels()
  assert set(imports) == {*LEVEL_IN_JAXREC, "experiments", "pallas_kernels"}
  assert all(level[there] < level[room] for room in imports for there in imports[room])


def test_an_import_that_a_chain_implies_is_not_drawn():
  imports = {"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}, "d": set()}
  assert pictures.without_shortcuts(imports) == {"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": set()}


def test_the_screen_has_every_line_that_the_demo_printed_and_no_path_of_a_machine():
  printed = (pictures.FOLDER / "demo.txt").read_text()
  screen = pictures.screen(pictures.FOLDER / "demo.txt")
  assert all(html.escape(line) in screen for line in printed.splitlines())
  assert not re.search(r"(?<![\w.])/\w+/", printed)
  assert len(screen) < 150_000
