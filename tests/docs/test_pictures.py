import pytest
from test_house import LEVEL_IN_JAXREC

from docs import pictures


@pytest.mark.parametrize("name", ["architecture.svg", "masks.svg"])
def test_a_picture_is_that_of_the_code(name):
  assert (pictures.FOLDER / name).read_text() == pictures.pictures()[name], "run `python -m docs.pictures`"


def test_every_room_is_drawn_and_lines_go_down():
  imports, level = pictures.room_imports(), pictures.levels()
  assert set(imports) == {*LEVEL_IN_JAXREC, "experiments", "pallas_kernels"}
  assert all(level[there] < level[room] for room in imports for there in imports[room])


def test_an_import_that_a_chain_implies_is_not_drawn():
  imports = {"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}, "d": set()}
  assert pictures.without_shortcuts(imports) == {"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": set()}
