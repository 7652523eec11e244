"""Programs restart themselves once with huge pages and the same arguments."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from jaxrec.cli.process import restart_with_huge_pages
print("start", flush=True)
restart_with_huge_pages()
print(os.environ.get("GLIBC_TUNABLES", ""), *sys.argv[1:])
"""


def run(tmp_path, **environment):
  script = tmp_path / "program.py"
  script.write_text(PROGRAM)
  kept = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
  command = [sys.executable, str(script), "--config.name=a b", "x"]
  done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True)
  return done.stdout.splitlines()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="huge pages are enabled through glibc")
def test_a_program_restarts_once_with_its_arguments(tmp_path):
  lines = run(tmp_path, PYTHONPATH=os.getcwd())
  assert lines[:2] == ["start", "start"]
  assert len(lines) == 3
  assert "hugetlb=1" in lines[2] and lines[2].endswith("--config.name=a b x")


def test_tunables_set_by_the_user_are_kept(tmp_path):
  lines = run(tmp_path, PYTHONPATH=os.getcwd(), GLIBC_TUNABLES="glibc.malloc.check=0")
  assert lines == ["start", "glibc.malloc.check=0 --config.name=a b x"]
