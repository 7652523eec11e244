"""The rules of the house that a program can check: layout, imports, sizes, doctests, what must not be in git."""

import ast
import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

PACKAGES = ["docs", "experiments", "jaxrec", "pallas_kernels"]
TOP_LEVEL = {
  *(".ci", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "pyproject.toml"),
  *("setup.py", "docs", "experiments", "jaxrec", "notebooks", "pallas_kernels", "tests"),
}

# A package imports packages on its own level or below.
LEVEL = {"notebooks": 2, "docs": 2, "experiments": 2, "jaxrec": 1, "pallas_kernels": 0}
# The same for every folder and module of jaxrec: it imports from lower levels and from itself.
LEVEL_IN_JAXREC = {
  "cli": 7,
  "analysis": 6, "device_report": 6, "recommenders": 6,
  "train": 5, "serving": 5,
  "evaluation": 4,
  "objectives": 3,
  "models": 2,
  "layers": 1, "data": 1,
  "batches": 0, "embedding": 0, "multi_objective": 0, "parallel": 0,
}  # fmt: skip
# Modules that may import upwards for now, and why.
UPWARDS: dict[str, str] = {}
# Rooms that work on their own, and what else of ours they may import.
STANDALONE = {"embedding": ["pallas_kernels.integers", "pallas_kernels.varying"], "multi_objective": []}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60  # without the docstring
LONG_FUNCTIONS: dict[str, str] = {}  # "path:function" -> why it is better in one piece
MAX_TRACKED_BYTES = 500_000


def tracked_files(pattern: str = "*") -> list[Path]:
  """The files of the project: what git tracks, and what is new and not ignored."""
  command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", pattern]
  try:
    listing = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
  except (FileNotFoundError, subprocess.CalledProcessError):
    pytest.skip("not a git checkout")
  return [REPOSITORY / line for line in listing.splitlines() if (REPOSITORY / line).is_file()]


def source_files(*folders: str) -> list[Path]:
  """The Python files below some folders of the project."""
  return sorted(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))


def relative(path: Path) -> str:
  """The path as it is written in messages and in the tables above."""
  return path.relative_to(REPOSITORY).as_posix()


def module_name(path: Path) -> str:
  """The dotted name of a source file: `jaxrec/data/batches/packing.py` is `jaxrec.data.batches.packing`."""
  return relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported_modules(path: Path) -> set[str]:
  """Every module that a file imports, at the top or inside a function; `from a import b` counts as `a` and `a.b`."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{relative(path)}:{node.lineno}: relative import"
      names.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
  return names


def room_of(module: str) -> str | None:
  """The folder or module of jaxrec that a dotted name belongs to; None for anything else and for jaxrec itself."""
  parts = module.split(".")
  return parts[1] if parts[0] == "jaxrec" and len(parts) > 1 else None


def test_the_top_level_stays_as_it_is():
  assert {relative(path).split("/")[0] for path in tracked_files()} == TOP_LEVEL


def test_packages_import_downwards_only():
  upwards = [
    f"{relative(path)} imports {name}"
    for folder, level in LEVEL.items()
    for path in source_files(folder)
    for name in sorted(imported_modules(path))
    if LEVEL.get(name.split(".")[0], -1) > level
  ]
  assert upwards == []


def test_a_file_name_is_unique_inside_jaxrec():
  """A model may share its name with its layer, and a program with what it runs."""
  rooms = {}
  for path in source_files("jaxrec"):
    if path.name != "__init__.py" and room_of(module_name(path)) != "cli":
      rooms.setdefault(path.name, []).append(room_of(module_name(path)))
  assert {n: r for n, r in rooms.items() if len(r) > 1 and sorted(r) != ["layers", "models"]} == {}


def test_every_room_of_jaxrec_has_a_level():
  rooms = {room_of(module_name(path)) for path in source_files("jaxrec")} - {None}
  assert rooms == set(LEVEL_IN_JAXREC)


def test_jaxrec_imports_downwards_only():
  upwards = [
    f"{relative(path)} imports {name}"
    for path in source_files("jaxrec")
    for name in sorted(imported_modules(path))
    if (here := room_of(module_name(path))) and (there := room_of(name)) and module_name(path) not in UPWARDS
    if there != here and LEVEL_IN_JAXREC.get(there, 0) >= LEVEL_IN_JAXREC[here]
  ]
  assert upwards == []


def test_kernels_stand_alone():
  ours = {"experiments", "jaxrec", "notebooks", "tests"}
  assert [
    path for path in source_files("pallas_kernels") if {n.split(".")[0] for n in imported_modules(path)} & ours
  ] == []


@pytest.mark.parametrize("room", STANDALONE)
def test_standalone_rooms_import_nothing_else_of_ours(room):
  allowed = (f"jaxrec.{room}", *STANDALONE[room])
  found = [
    f"{relative(path)} imports {name}"
    for path in source_files(f"jaxrec/{room}")
    for name in sorted(imported_modules(path))
    if name.split(".")[0] in ("experiments", "jaxrec", "notebooks", "pallas_kernels", "tests")
    if name != "pallas_kernels" and not f"{name}.".startswith(tuple(f"{module}." for module in allowed))
  ]
  assert found == []


def test_files_stay_short():
  lengths = {relative(path): len(path.read_text().splitlines()) for path in tracked_files("*.py")}
  assert {path: lines for path, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_functions_stay_short():
  long = {
    f"{relative(path)}:{node.name}"
    for path in source_files(*PACKAGES)
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef) and code_lines(node) > MAX_FUNCTION_LINES
  }
  assert long == set(LONG_FUNCTIONS)


def code_lines(node: ast.FunctionDef) -> int:
  """Lines of a function without its docstring."""
  return node.end_lineno - node.lineno + 1 - len((ast.get_docstring(node) or "").splitlines())


def test_every_folder_of_a_package_is_a_package():
  folders = {path.parent for path in source_files(*PACKAGES)}
  assert [relative(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_no_file_names_a_machine_or_a_person():
  machine = re.compile(r"(?<![\w.:/-])/(?:work|root|home|Users|mnt|opt|farm)/|/tmp/[a-z]|[.]pyenv")
  found = [
    f"{relative(path)}:{number}: {line.strip()[:100]}"
    for path in tracked_files()
    for number, line in enumerate(path.read_bytes().decode("utf-8", "ignore").splitlines(), 1)
    if machine.search(line)
  ]
  assert found == []


def test_no_data_in_git():
  data = re.compile(r"\.(dat|tfrecord|npz|npy|parquet|gz|zip)$")
  large = [relative(p) for p in tracked_files() if data.search(p.name) or p.stat().st_size > MAX_TRACKED_BYTES]
  assert large == []


def test_ruff_finds_nothing():
  result = subprocess.run([sys.executable, "-m", "ruff", "check"], cwd=REPOSITORY, capture_output=True, text=True)
  assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", source_files(*PACKAGES), ids=relative)
def test_docstring_examples_hold(path):
  """Reads docstrings from the source: a decorated function hides its own from the doctest module's finder."""
  runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
  names = vars(importlib.import_module(module_name(path)))
  for name, docstring, line in doctest_examples(path):
    runner.run(doctest.DocTestParser().get_doctest(docstring, dict(names), name, relative(path), line))
  assert runner.summarize(verbose=False).failed == 0


def doctest_examples(path: Path) -> list[tuple[str, str, int]]:
  """Name, text and line of each docstring of a file that has examples."""
  nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
  found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, nodes)]
  documented = [
    (getattr(node, "name", path.stem), ast.get_docstring(node), getattr(node, "lineno", 0)) for node in found
  ]
  return [entry for entry in documented if ">>>" in (entry[1] or "")]


@pytest.mark.parametrize("path", sorted((REPOSITORY / "experiments" / "configs").glob("[!_]*.py")), ids=relative)
def test_every_config_is_a_lab_note_with_a_config(path):
  module = importlib.import_module(module_name(path))
  assert f"--config=experiments/configs/{path.name}" in module.__doc__ or f"make {path.stem}" in module.__doc__
  assert module.get_config().name.startswith(path.stem)


def test_importing_all_of_jaxrec_is_quick_and_touches_no_device():
  """Uses all public names, which are loaded on first use; counts processor time, as the machine may be busy."""
  program = (
    "import time, jax; start = time.process_time(); import jaxrec\n"
    "for name in jaxrec.__all__: getattr(jaxrec, name)\n"
    "print(time.process_time() - start)"
  )
  environment = {**os.environ, "JAX_PLATFORMS": "there_is_no_such_platform"}
  command = [sys.executable, "-c", program]
  runs = [subprocess.run(command, env=environment, capture_output=True, text=True, cwd=REPOSITORY) for _ in range(3)]
  assert [run.stderr for run in runs if run.returncode] == []
  assert min(float(run.stdout) for run in runs) < 2
