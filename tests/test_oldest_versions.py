"""The oldest versions that setup.py accepts are enough for a run, from a log to recommendations."""

import os
import re
import subprocess
import sys

import polars as pl
import pytest
from cli.test_journey import write_log
from conftest import REPOSITORY

PROGRAMS = (
  "prepare --source=table --raw=log.csv --out=data --user=user_id --item=sku --timestamp=time --domain=shop",
  "train --config=hstu --data=data --workdir=run --config.train.num_epochs=1 --noreport",
  "evaluate --workdir=run",
  "recommend --workdir=run --all --k=5 --out=recommendations.parquet",
  "recommend --workdir=run --histories=new_users.csv --out=new_users.jsonl",
)


def requirements():
  """Returns the entries of install_requires."""
  block = re.search(r"install_requires=\[(.*?)\n  \]", (REPOSITORY / "setup.py").read_text(encoding="utf-8"), re.DOTALL)
  return re.findall(r'^    "(.+)",$', block[1], re.MULTILINE)


def oldest(requirement):
  name, _, version = requirement.partition(">=")
  return f"{name}=={version}"


def test_every_dependency_has_an_oldest_version():
  assert len(requirements()) > 8
  assert all(re.fullmatch(r"[\w-]+>=\d+(\.\d+)+", requirement) for requirement in requirements())


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_oldest_versions_lead_from_a_log_to_recommendations(tmp_path):
  python = tmp_path / "environment" / "bin" / "python"
  run([sys.executable, "-m", "venv", python.parents[1]], tmp_path)
  install = [python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", *map(oldest, requirements())]
  installed = run(install, tmp_path, check=False)
  if installed.returncode:
    reason = re.search(r"No matching distribution found for \S+", installed.stderr)
    assert reason, installed.stderr
    pytest.skip(reason[0])
  write_log(tmp_path / "log.csv", [f"u{i}" for i in range(40)], events=12)
  write_log(tmp_path / "new_users.csv", [f"new{i}" for i in range(10)], events=3)
  for program in PROGRAMS:
    run([python, "-m", "jaxrec.cli", *program.split()], tmp_path)
  assert pl.read_parquet(tmp_path / "recommendations.parquet")["user"].n_unique() == 40
  assert pl.read_ndjson(tmp_path / "new_users.jsonl")["user"].n_unique() == 10


def run(command, folder, check=True):
  """Runs a command with the repository as the only further path, and returns it."""
  environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAXREC_CACHE": str(folder / "cache")}
  ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
  assert not check or ended.returncode == 0, f"{command}\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
  return ended
