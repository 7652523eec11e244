"""What the README tells a reader to type works."""

import importlib
import re
import shlex
import subprocess
import sys

import pytest
from conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()


def code_blocks(language: str) -> list[str]:
  """The fenced blocks of one language, in order."""
  return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
  """Every shell command of the README that starts with `program`, cut into words, continuation lines joined."""
  lines = "\n".join(code_blocks("bash")).replace("\\\n", " ").splitlines()
  return [words for line in lines if (words := shlex.split(line, comments=True)) and words[0] == program]


EXPERIMENTS = [words for words in commands("python") if words[1:2] == ["-m"]]


@pytest.mark.parametrize("block", code_blocks("python"), ids=lambda block: block.split("\n\n")[1].split("\n")[0])
def test_python_block_runs_alone(block, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  exec(compile(block, "README.md", "exec"), {})


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
