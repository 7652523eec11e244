"""The commands and code blocks of the READMEs work, and their tables are those of the code."""

import importlib
import importlib.util
import json
import re
import shlex
import statistics
import sys

import pytest
import settings_tables
from absl import flags
from conftest import REPOSITORY
from test_house import LEVEL_IN_JAXREC

from jaxrec.cli import sweep
from jaxrec.data.generators.planted_actions import planted_actions
from jaxrec.data.preparation.prepare import PrepareOptions, reader_parameters
from jaxrec.train.task import task_class

FOLDERS = ("experiments", "jaxrec", "notebooks", "pallas_kernels", "tests")
READMES = ["README.md"] + sorted(
  path.relative_to(REPOSITORY).as_posix() for folder in FOLDERS for path in (REPOSITORY / folder).rglob("README.md")
)
PAGES = [*READMES, "CONTRIBUTING.md"]
REUSE = "docs/pages/reuse.md"  # The other pages of the site take their code from the READMEs.
RUN_ELSEWHERE = {"import faiss": "tests/cli/test_recommend.py"}  # Blocks that need packages or files of their own.
MAX_LINES = 150  # Of README.md: it is a door, the manuals are behind it.


def code_blocks(path: str, language: str) -> list[tuple[int, str]]:
  """Returns the fenced blocks of one language, in order, each with the line number of its fence."""
  text = (REPOSITORY / path).read_text()
  found = re.finditer(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
  return [(text.count("\n", 0, match.start()) + 1, match[1]) for match in found]


def shell_commands() -> list[list[str]]:
  """Returns every shell command of the pages, split into words, continuation lines joined."""
  blocks = [block for path in PAGES for _, block in code_blocks(path, "bash")]
  lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
  return [words for line in lines if (words := shlex.split(line, comments=True))]


def program_commands() -> list[tuple[str, list[str]]]:
  """Returns module and arguments of every `python -m <program of ours>`, also behind `srun` or inside quotes, and of
  every `jaxrec <program>`."""
  found = []
  for words in shell_commands():
    if words[0] == "jaxrec":
      found.append((f"jaxrec.cli.{words[1].replace('-', '_')}", words[2:]))
    words = [part for word in words for part in (shlex.split(word) if "python -m" in word else [word])]
    if "-m" in words and (rest := words[words.index("-m") + 1 :])[0].split(".")[0] in ("experiments", "jaxrec"):
      found.append((f"jaxrec.cli.{rest[1]}", rest[2:]) if rest[0] == "jaxrec.cli" else (rest[0], rest[1:]))
  return found


PROGRAMS = program_commands()


def parsed(module: str, arguments: list[str], monkeypatch) -> flags.FlagValues:
  """Returns the flags of a program as its command line sets them; an unknown flag or setting raises."""
  if module.startswith("experiments.") and importlib.util.find_spec(f"jaxrec.cli.{module.split('.')[-1]}"):
    module = f"jaxrec.cli.{module.split('.')[-1]}"  # The door leads there.
  program = importlib.import_module(module)
  argv = getattr(program, "rewrite_arguments", list)([module, *arguments])
  monkeypatch.setattr(sys, "argv", argv)  # Overrides of a config are looked for there.
  monkeypatch.chdir(REPOSITORY)
  values = flags.FlagValues()
  program.define_flags(values)
  values(argv)
  return values


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A folder of prepared data, from which configs by name derive their sizes."""
  path = tmp_path_factory.mktemp("readme") / "data"
  planted_actions(num_users=20, num_genres=2, items_per_genre=12).save(path)
  return path


@pytest.mark.parametrize("path", [path for path in [*READMES, REUSE] if code_blocks(path, "python")])
def test_python_blocks_run_in_order(path, tmp_path, monkeypatch):
  """Runs the blocks of one file in one namespace; a traceback has the line numbers of the file."""
  monkeypatch.chdir(tmp_path)
  namespace = {"__name__": "__main__"}
  for line, block in code_blocks(path, "python"):
    if any(text in block for text in RUN_ELSEWHERE):
      continue
    exec(compile("\n" * line + block, path, "exec"), namespace)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections loads config files so.
@pytest.mark.parametrize(("module", "arguments"), PROGRAMS, ids=[f"{i}-{name}" for i, (name, _) in enumerate(PROGRAMS)])
def test_flags_configs_and_settings_of_the_commands_exist(module, arguments, monkeypatch, prepared):
  if any(argument.startswith("--config=") and ".py" not in argument for argument in arguments):
    arguments = [f"--data={prepared}" if argument.startswith("--data=") else argument for argument in arguments]
  values = parsed(module, arguments, monkeypatch)
  if "config" in values and values["config"].value is not None:
    config = values["config"].value
    task_class(config.task).check_config(config)
  if module.endswith(".sweep"):
    assert sweep.make_jobs(values.configs, values.override, [int(seed) for seed in values.seeds])
  if module.endswith(".prepare"):
    own = {"source", "raw", "out", "overwrite", "sources", "extends", "shards", "item_features"}
    given = {name for name in values if values[name].present} - own
    assert given <= {*reader_parameters(values.source), *vars(PrepareOptions())}


def test_programs_of_the_commands_are_the_doors():
  assert {"experiments.prepare", "experiments.train"} <= {module for module, _ in PROGRAMS}


def test_make_targets_exist():
  targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
  assert {words[1] for words in shell_commands() if words[0] == "make"} <= set(targets)


def test_the_first_page_stays_a_door():
  assert len((REPOSITORY / "README.md").read_text().splitlines()) <= MAX_LINES


def test_results_of_the_first_page_are_recorded():
  pair = r"(\.\d+) / (\.\d+) \| "
  found = re.findall(rf"`(\w+)` \| {2 * pair}(?:{pair}|not measured \| )", (REPOSITORY / "README.md").read_text())
  assert len(found) >= 4
  for name, *shown in found:
    folder = REPOSITORY / "experiments" / "results" / name
    seeds = [folder, *folder.glob("seed_*")]
    select = [json.loads((seed / "select.json").read_text()) for seed in seeds]
    phases = [[seed[phase] for seed in select] for phase in ("validation", "test_of_selected")]
    if (folder / "final.json").exists():
      phases.append([json.loads((seed / "final.json").read_text())["test"] for seed in seeds])
    means = [
      statistics.fmean(seed[metric] for seed in of_phase) for of_phase in phases for metric in ("HR@10", "NDCG@10")
    ]
    expected = [f"{mean:.4f}"[1:] for mean in means]
    assert [text for text in shown if text] == expected, name


def test_settings_tables_are_those_of_the_code():
  page = settings_tables.PAGE.read_text()
  groups = {(task, group) for task, group in re.findall(r"<!-- settings: (\w+) (\w+) -->", page)}
  assert groups >= {("sequential", group) for group in settings_tables.TASKS["sequential"]}
  assert page == settings_tables.with_tables(page), "run `python tests/settings_tables.py`"


def test_levels_of_contributing_are_those_of_the_import_test():
  page = (REPOSITORY / "CONTRIBUTING.md").read_text()
  rows = re.findall(r"^\| (\d) \| (.*) \|$", page, flags=re.MULTILINE)
  assert {name: int(level) for level, names in rows for name in re.findall(r"`(\w+)`", names)} == LEVEL_IN_JAXREC
