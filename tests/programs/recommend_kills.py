"""Kills `recommend --all` at random moments and starts it again: its table must be that of an undisturbed call.

    python tests/programs/recommend_kills.py --workdir=runs/ml1m --kills=6 --part_size=256

Prints for each call what ended it, its seconds, users a second (of all parts after the first, which compiles) and its
peak memory (VmHWM). Ends with code 1 if the tables differ, or if one has a user twice or lacks one.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import polars as pl

REPOSITORY = Path(__file__).resolve().parents[2]
ROW = "{:<28} {:>8} {:>8} {:>10} {:>9}"


class Call(NamedTuple):
  """What ended a call, its seconds, the parts that it wrote with the seconds from the first to the last, and MB."""

  code: int
  seconds: float
  parts: int
  between: float
  megabytes: float


def main():
  """Runs the calls as the flags say and compares the tables."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True, help="of a finished training run")
  parser.add_argument("--kills", type=int, default=6)
  parser.add_argument("--part_size", type=int, default=256)
  parser.add_argument("--k", type=int, default=50)
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args()
  print(ROW.format("call", "seconds", "parts", "users/s", "peak MB"))
  with tempfile.TemporaryDirectory() as folder:
    command = ["--all", f"--workdir={options.workdir}", f"--part_size={options.part_size}", f"--k={options.k}"]
    undisturbed, killed = Path(folder, "undisturbed.parquet"), Path(folder, "killed.parquet")
    reference = finish(command, undisturbed, options.part_size)
    rng = random.Random(options.seed)
    for _ in range(options.kills):
      until = rng.randint(0, max(reference.parts // options.kills, 1)), rng.uniform(0, 0.05)
      show("killed", run(command, killed, until), options.part_size)
      if killed.exists():
        break
    finish(command, killed, options.part_size)
    check(pl.read_parquet(undisturbed), pl.read_parquet(killed))


def finish(command, out, part_size):
  """Runs a call to its end, unless its table is there; returns it."""
  if out.exists():
    return None
  call = run(command, out)
  show("undisturbed" if out.stem == "undisturbed" else "resumed, to the end", call, part_size)
  assert call.code == 0 and out.exists(), call
  return call


def run(command, out, kill_after=None):
  """Runs a call, and kills it so many parts, and then seconds, after its first new part; returns a `Call`."""
  environment = {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"} | os.environ
  program = [sys.executable, "-m", "jaxrec.cli", "recommend", f"--out={out}", *command]
  parts = Path(f"{out}.parts")
  before, seen, start = set(parts.glob("0*.parquet")), {}, time.monotonic()
  process = subprocess.Popen(program, cwd=REPOSITORY, env=environment, stdout=sys.stderr)
  while True:
    ended, status, usage = os.wait4(process.pid, os.WNOHANG)
    for path in set(parts.glob("0*.parquet")) - before - set(seen):
      seen[path] = time.monotonic()
    if ended:
      break
    if kill_after is not None and len(seen) > kill_after[0]:
      time.sleep(kill_after[1])
      os.kill(process.pid, signal.SIGKILL)
      kill_after = None
    time.sleep(0.002)
  process.returncode = os.waitstatus_to_exitcode(status)
  between = max(seen.values()) - min(seen.values()) if seen else 0
  return Call(process.returncode, time.monotonic() - start, len(seen), between, usage.ru_maxrss / 1000)


def show(name, call, part_size):
  speed = f"{(call.parts - 1) * part_size / call.between:,.0f}" if call.between else ""
  name = f"{name} ({call.code})"
  print(ROW.format(name, f"{call.seconds:.1f}", call.parts, speed, f"{call.megabytes:,.0f}"), flush=True)


def check(expected, found):
  """Raises unless the tables are equal and have each user and rank once."""
  twice = len(found) - len(found.unique(["user", "rank"]))
  missing = len(set(expected["user"]) - set(found["user"]))
  print(
    f"{found['user'].n_unique():,} users, {len(found):,} rows; {twice} rows twice, {missing} users missing", end="; "
  )
  same = expected.equals(found)
  print("equal to the undisturbed table" if same else "NOT equal to the undisturbed table")
  if twice or missing or not same:
    sys.exit(1)


if __name__ == "__main__":
  main()
