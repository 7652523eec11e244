"""The benchmark of the operations around attention: it runs, and a wrong result gets no time."""

import json
import os
import subprocess
import sys

from conftest import REPOSITORY

from experiments.benchmarks import neighbours


def test_the_program_measures_small_sizes_and_appends_whole_lines(tmp_path):
  out = tmp_path / "lines.jsonl"
  program = [sys.executable, "-m", "experiments.benchmarks.neighbours", "--smoke", f"--out={out}"]
  flags = ["--workloads=hstu_256,softmax_2048_4k"]
  done = subprocess.run(program + flags, cwd=REPOSITORY, capture_output=True, text=True, env=dict(os.environ))
  assert done.returncode == 0, done.stderr
  records = [json.loads(line) for line in out.read_text().splitlines()]
  assert [(r["workload"], r["variant"]) for r in records] == [
    *(("hstu_256", variant) for variant in ("library", "fused", "without")),
    *(("softmax_2048_4k", variant) for variant in ("dense", "checkpoint", "library")),
  ]
  assert all(r["least_ms"] <= r["median_ms"] <= r["most_ms"] and r["temporary_bytes"] > 0 for r in records)
  assert len([line for line in done.stdout.splitlines() if line.startswith("|")]) == 2 + len(records)


def test_a_wrong_result_gets_no_time(monkeypatch):
  monkeypatch.setattr(neighbours, "_dense_softmax", lambda query, items, target, temperature: query @ items[0])
  dense, *others = neighbours.measure({"one": neighbours.SMALL["softmax"]}, 1)
  assert "median_ms" in dense  # The others are compared with the first variant.
  assert all("differs by" in record["wrong"] and "median_ms" not in record for record in others)
  assert "differs by" in neighbours.table([dense, *others])
