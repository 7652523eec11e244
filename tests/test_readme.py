"""The commands and code blocks of the READMEs work."""

import importlib
import re
import shlex
import subprocess
import sys

import pytest
from conftest import REPOSITORY

FOLDERS = ("experiments", "jaxrec", "pallas_kernels")
READMES = ["README.md"] + sorted(
  path.relative_to(REPOSITORY).as_posix() for folder in FOLDERS for path in (REPOSITORY / folder).rglob("README.md")
)


def code_blocks(path: str, language: str) -> list[tuple[int, str]]:
  """Returns the fenced blocks of one language, in order, each with the line number of its fence."""
  text = (REPOSITORY / path).read_text()
  found = re.finditer(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
  return [(text.count("\n", 0, match.start()) + 1, match[1]) for match in found]


def commands(program: str) -> list[list[str]]:
  """Returns every shell command that starts with `program`, split into words, continuation lines joined."""
  blocks = [block for path in READMES for _, block in code_blocks(path, "bash")]
  lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
  return [words for line in lines if (words := shlex.split(line, comments=True)) and words[0] == program]


EXPERIMENTS = [words for words in commands("python") if words[1:2] == ["-m"]]


@pytest.mark.parametrize("path", [path for path in READMES if code_blocks(path, "python")])
def test_python_blocks_run_in_order(path, tmp_path, monkeypatch):
  """Runs the blocks of one file in one namespace; a traceback has the line numbers of the file."""
  monkeypatch.chdir(tmp_path)
  namespace = {"__name__": "__main__"}
  for line, block in code_blocks(path, "python"):
    exec(compile("\n" * line + block, path, "exec"), namespace)


def test_make_targets_exist():
  targets = re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
  assert {words[1] for words in commands("make")} <= set(targets)


@pytest.mark.parametrize("words", EXPERIMENTS, ids=lambda words: words[2])
def test_flags_of_the_commands_exist(words):
  given = {word.split("=")[0].lstrip("-") for word in words[3:]}
  help_text = subprocess.run(
    [sys.executable, "-m", words[2], "--helpfull"], cwd=REPOSITORY, capture_output=True, text=True
  ).stdout
  known = set(re.findall(r"^\s+-+(?:\[no\])?([a-z_]+)", help_text, flags=re.MULTILINE))
  assert {name for name in given if "." not in name} <= known


@pytest.mark.parametrize("words", [w for w in EXPERIMENTS if "--config=" in " ".join(w)], ids=lambda words: words[2])
def test_configs_and_overrides_of_the_commands_exist(words):
  flags = dict(word.removeprefix("--").split("=", 1) for word in words[3:])
  path, _, choice = flags["config"].partition(":")
  module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
  config = module.get_config(choice) if choice else module.get_config()
  for name in flags:
    if name.startswith("config."):
      *groups, key = name.split(".")[1:]
      group = config
      for part in groups:
        group = group[part]
      assert key in group, name
