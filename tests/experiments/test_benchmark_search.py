"""The benchmark of searches: it runs, and a wrong result gets no time."""

import json
import os
import subprocess
import sys

from conftest import REPOSITORY

from experiments.benchmarks import search


def test_a_small_run_prints_one_line_per_variant_and_width_and_a_table(tmp_path):
  out = tmp_path / "lines.jsonl"
  command = [sys.executable, "-m", "experiments.benchmarks.search", "--smoke", f"--out={out}"]
  done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=dict(os.environ))
  assert done.returncode == 0, done.stderr
  records = [json.loads(line) for line in out.read_text().splitlines()]
  assert [(r["candidates"], r["variant"], r["width"]) for r in records] == [
    (candidates, variant, width) for candidates in (3, 70) for variant in search._variants(1, 0.5) for width in (16, 8)
  ]
  assert all(r["least_us"] <= r["median_us"] <= r["most_us"] for r in records)
  assert all(r["recall"] == 1 for r in records if r["variant"] in ("selection", "exact", "sorted", "numpy", "faiss"))
  assert all(0.8 <= r["recall"] <= 1 for r in records if r["variant"] in ("bfloat16", "int8"))
  assert len([line for line in done.stdout.splitlines() if line.startswith("|")]) == 2 + len(records)


def test_a_wrong_result_gets_no_time(monkeypatch):
  monkeypatch.setattr(
    search.history_search, "exact_top_k", lambda scores, count, k: (scores[:, :k], search.jnp.argsort(scores)[:, :k])
  )
  records = list(search.measure([8], [3], 640, 5, 1, 0.95))
  wrong = {r["variant"]: r["wrong"] for r in records if "wrong" in r}
  assert set(wrong) == {"selection", "exact", "bfloat16", "int8"}
  assert not any("median_us" in r for r in records if "wrong" in r)
  assert "not those of the positions" in search.table(records)
