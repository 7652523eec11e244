"""Every notebook runs, and is the same as the script beside it."""

import json
import runpy

import pytest
from conftest import REPOSITORY

SCRIPTS = sorted((REPOSITORY / "notebooks").glob("*.py"))
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def script_cells(text: str) -> list[str]:
  """The cells of a script in the percent format, comment signs of the text cells removed."""
  cells = []
  for cell in text.split("\n# %%")[1:]:
    kind, _, body = cell.partition("\n")
    lines = body.strip("\n").split("\n")
    cells.append("\n".join(line.removeprefix("#").removeprefix(" ") if "markdown" in kind else line for line in lines))
  return cells


def test_cells_of_a_script_are_cut_at_the_marks():
  assert script_cells("header\n# %% [markdown]\n# # Title\n#\n# text\n\n# %%\na = 1\n\nb = 2\n") == [
    "# Title\n\ntext",
    "a = 1\n\nb = 2",
  ]


def test_every_script_has_its_notebook():
  assert SCRIPTS and [path.stem for path in SCRIPTS] == [path.stem for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_and_script_hold_the_same_cells(path):
  cells = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
  assert cells == script_cells(path.with_suffix(".py").read_text()), "run `make notebooks`"


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script_runs(path, tmp_path, monkeypatch):
  pyplot = pytest.importorskip("matplotlib.pyplot")
  monkeypatch.chdir(tmp_path)
  runpy.run_path(str(path))
  pyplot.close("all")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
  nbclient = pytest.importorskip("nbclient", reason="needs jaxrec[notebooks]")
  nbformat = pytest.importorskip("nbformat", reason="needs jaxrec[notebooks]")
  monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
  notebook = nbformat.read(path, as_version=4)
  nbclient.NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
