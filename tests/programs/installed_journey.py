"""Installs the wheel in a new environment and walks from a shop's log to recommendations, outside the repository.

    python tests/programs/installed_journey.py --python=python3.11 --users=2000 --events=20

Prints the seconds of each command of README.md's first block, and checks the two tables at the end: every user of the
log and the ten strangers have their items, with raw ids and titles. Ends with code 1 at the first command that fails.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "cli")]


def main():
  """Makes the environment and the log, and runs the commands."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--python", default=sys.executable, help="interpreter that makes the environment")
  parser.add_argument("--users", type=int, default=2000)
  parser.add_argument("--events", type=int, default=20, help="events of each user; fewer than the 32 items")
  given = parser.parse_args()
  from test_journey import commands, write_log

  os.environ.pop("XLA_FLAGS", None)  # The tests' own, which other versions of JAX do not know.

  with tempfile.TemporaryDirectory() as folder:
    binaries, work = Path(folder, "environment", "bin"), Path(folder, "work")
    work.mkdir()
    _run("venv", [given.python, "-m", "venv", binaries.parent], folder)
    _run("wheel", [binaries / "pip", "wheel", "--quiet", "--no-deps", "-w", folder, TESTS.parent], folder)
    _run("install", [binaries / "pip", "install", "--quiet", *Path(folder).glob("jaxrec-*.whl")], folder)
    write_log(work / "log.csv", [f"u{i}" for i in range(given.users)], given.events)
    write_log(work / "new_users.csv", [f"new{i}" for i in range(10)], events=8)
    for arguments in commands():
      _run(shlex.join(["jaxrec", *arguments]), [binaries / "jaxrec", *arguments], work)
    check = CHECK.format(users=given.users)
    _run("check of the tables", [binaries / "python", "-c", check], work)


CHECK = """
import polars as pl
table, strangers = pl.read_parquet("recommendations.parquet"), pl.read_ndjson("new_users.jsonl")
assert table["user"].n_unique() == {users} and strangers["user"].n_unique() == 10
assert table["title"].null_count() == 0 and "food 3" in set(table["title"]) and "f3" in set(table["item"])
print(table.head(3))
"""


def _run(name, command, folder):
  environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
  start = time.monotonic()
  ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
  print(f"{time.monotonic() - start:7.1f} s  {name}", flush=True)
  if ended.returncode:
    print(ended.stdout[-4000:], ended.stderr[-4000:], sep="\n")
    sys.exit(1)
  if name.startswith("check"):
    print(ended.stdout)


if __name__ == "__main__":
  main()
