"""The benchmark of tables: it runs, and skips what does not fit with a reason."""

import json
import os
import subprocess
import sys

import numpy as np
from conftest import REPOSITORY

from experiments.benchmarks import tables


def test_a_small_run_prints_one_line_per_implementation_and_a_table(tmp_path):
  out = tmp_path / "lines.jsonl"
  command = [sys.executable, "-m", "experiments.benchmarks.tables", "--smoke", "--implementations=adamw,dense"]
  done = subprocess.run(
    [*command, f"--out={out}"], cwd=REPOSITORY, capture_output=True, text=True, env=dict(os.environ)
  )
  assert done.returncode == 0, done.stderr
  ours, dense = (json.loads(line) for line in out.read_text().splitlines())
  assert (ours["implementation"], dense["implementation"]) == ("adamw", "dense")
  assert ours["first_loss"] == dense["first_loss"] and 0 < ours["least_ms"] <= ours["median_ms"]
  assert len([line for line in done.stdout.splitlines() if line.startswith("|")]) == 4


def test_a_size_that_does_not_fit_is_skipped_with_the_reason():
  record = tables.measure("dense", 3 * 10**7, (4, 6, 5), 2, max_gib=12)
  assert record["skipped"] == "does not fit: 28.6 GiB of arrays"
  assert "does not fit" in tables.table([record])


def test_a_step_looks_up_equally_many_rows_of_large_and_small_tables():
  seen = [len(np.unique(tables.problem(num_rows, (128, 50, 128), 1)["input"])) for num_rows in (10**5, 10**6, 10**7)]
  assert max(seen) < 1.1 * min(seen)
