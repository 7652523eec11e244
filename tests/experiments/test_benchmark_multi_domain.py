"""The benchmark of intra-domain attention: it runs, and counts query-key pairs correctly."""

import json
import os
import subprocess
import sys

from conftest import REPOSITORY

from experiments.benchmarks import multi_domain


def test_the_program_measures_a_small_size_and_appends_whole_lines(tmp_path):
  out = tmp_path / "lines.jsonl"
  program = [sys.executable, "-m", "experiments.benchmarks.multi_domain", "--smoke", "--width=8", "--repetitions=2"]
  done = subprocess.run(
    [*program, f"--out={out}"], cwd=REPOSITORY, capture_output=True, text=True, env=dict(os.environ)
  )
  assert done.returncode == 0, done.stderr
  records = [json.loads(line) for line in out.read_text().splitlines()]
  assert [(r["encoder"], r["domains"]) for r in records] == [("full", 1), ("intra", 2), ("intra_tape_ddsr", 2)]
  assert [r["pairs"] for r in records] == [32 * 33 // 2, *2 * [2 * (16 * 17 // 2)]]
  assert all(r["least_ms"] <= r["median_ms"] <= r["most_ms"] for r in records)
  assert len([line for line in done.stdout.splitlines() if line.startswith("|")]) == 2 + len(records)


def test_every_domain_has_equally_many_events():
  row = multi_domain.random_row(64, 16)
  assert sorted(row.domain_id[0].tolist()) == sorted([*range(1, 17)] * 4)
