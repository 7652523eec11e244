"""Every notebook runs, has the same cells as its script, and holds the outputs of one complete run."""

import json
import os
import re
import runpy
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY

FOLDER = REPOSITORY / "notebooks"
SCRIPTS, NOTEBOOKS = sorted(FOLDER.glob("*.py")), sorted(FOLDER.glob("*.ipynb"))
IN_EVERY_RUN = ("01_train_a_recommender",)  # `make test-all` runs the others too.
IN_A_PROCESS_OF_ITS_OWN = ("09_tables_on_eight_devices",)  # It sets the number of devices, once for a process.
SECONDS = 90  # Of two cores.
OTHERS = [pytest.mark.exhaustive]
RUNS = [pytest.param(path, id=path.stem, marks=[] if path.stem in IN_EVERY_RUN else OTHERS) for path in SCRIPTS]
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def script_cells(text: str) -> list[str]:
  """The cells of a script in the percent format, comment signs of the text cells removed."""
  cells = []
  for cell in text.split("\n# %%")[1:]:
    kind, _, body = cell.partition("\n")
    lines = body.strip("\n").split("\n")
    cells.append("\n".join(line.removeprefix("#").removeprefix(" ") if "markdown" in kind else line for line in lines))
  return cells


def code_cells(path) -> list[dict]:
  """The code cells of a notebook."""
  return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def outputs(path, kind: str) -> list[dict]:
  """The outputs of one kind of all cells: "stream", "display_data", "error", ..."""
  return [output for cell in code_cells(path) for output in cell["outputs"] if output["output_type"] == kind]


def test_cells_of_a_script_are_cut_at_the_marks():
  assert script_cells("header\n# %% [markdown]\n# # Title\n#\n# text\n\n# %%\na = 1\n\nb = 2\n") == [
    "# Title\n\ntext",
    "a = 1\n\nb = 2",
  ]


def test_every_script_has_its_notebook():
  assert SCRIPTS and [path.stem for path in SCRIPTS] == [path.stem for path in NOTEBOOKS]


def test_the_table_of_contents_lists_every_notebook_in_order():
  rows = re.findall(r"^\| \[(\w+)\]\((\w+)\.ipynb\) \| \S", (FOLDER / "README.md").read_text(), flags=re.MULTILINE)
  assert rows == [(path.stem, path.stem) for path in NOTEBOOKS]


@each_notebook
def test_notebook_and_script_hold_the_same_cells(path):
  cells = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
  assert cells == script_cells(path.with_suffix(".py").read_text()), "run `make notebooks`"


@each_notebook
def test_notebook_holds_the_outputs_of_one_run_from_top_to_bottom(path):
  cells = code_cells(path)
  assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "run `make notebooks`"
  assert outputs(path, "error") == []
  messages = "".join("".join(output["text"]) for output in outputs(path, "stream") if output["name"] == "stderr")
  assert not re.search("warning|error", messages, re.IGNORECASE), messages
  assert any("image/png" in output["data"] for output in outputs(path, "display_data"))


@each_notebook
def test_notebook_ends_in_assertions(path):
  lines = "".join(code_cells(path)[-1]["source"]).splitlines()
  assert any(line.startswith("assert ") for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("path", RUNS)
def test_script_runs(path, tmp_path, monkeypatch, optimized):
  pyplot = pytest.importorskip("matplotlib.pyplot")
  monkeypatch.chdir(tmp_path)
  if path.stem in IN_A_PROCESS_OF_ITS_OWN:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "MPLBACKEND": "agg"}
    subprocess.run([sys.executable, str(path)], check=True, env=environment)
    return
  start = time.process_time()  # The machine may be busy.
  with pyplot.rc_context():
    runpy.run_path(str(path))
  pyplot.close("all")
  assert time.process_time() - start < 2 * SECONDS


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_first_notebook_runs_in_a_kernel(tmp_path, monkeypatch):
  nbclient = pytest.importorskip("nbclient", reason="needs jaxrec[notebooks]")
  nbformat = pytest.importorskip("nbformat", reason="needs jaxrec[notebooks]")
  monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
  notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
  nbclient.NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
