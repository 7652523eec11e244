"""The benchmark of attention: it runs, it counts, and it gives no time to a wrong result."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import REPOSITORY

from experiments.benchmarks import attention
from experiments.benchmarks.attention import Workload, compute, make_problem, measure, reference_by_chunks, small
from pallas_kernels import segment_attention


def test_the_program_measures_small_sizes_and_appends_whole_lines(tmp_path):
  out = tmp_path / "lines.jsonl"
  program = [sys.executable, "-m", "experiments.benchmarks.attention", "--smoke", f"--out={out}"]
  flags = ["--workloads=silu_1024,silu_1024_domains4", "--implementations=xla,reference,torch"]
  done = subprocess.run(program + flags, cwd=REPOSITORY, capture_output=True, text=True, env=dict(os.environ))
  assert done.returncode == 0, done.stderr
  assert "silu_1024_domains4: xla" in done.stderr
  records = [json.loads(line) for line in out.read_text().splitlines()]
  assert [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")] == records
  assert [(r["workload"], r["implementation"]) for r in records] == [
    (name, i) for name in ("silu_1024", "silu_1024_domains4") for i in ("xla", "reference", "torch")
  ]
  for record in records[:2]:
    assert record["least_ms"] <= record["median_ms"] <= record["most_ms"]
    assert {"tflops", "temporary_bytes", "device", "cpu_cores", "jax", "python", "difference"} <= record.keys()
  assert records[0]["tile"] and records[0]["tiles"] > 0
  assert "skipped" in records[2] and "median_ms" not in records[2]
  rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
  assert len(rows) == 2 + len(records)


def test_a_wrong_result_gets_no_time(monkeypatch):
  def without_the_scale(*args, implementation, **options):
    if implementation == "xla":
      options["scale"] = 1.0
    return segment_attention(*args, implementation=implementation, **options)

  monkeypatch.setattr(attention, "segment_attention", without_the_scale)
  chosen = {"one": small(attention.workloads()["silu_1024"])}
  wrong, right = measure(chosen, ["xla", "reference"], 1)
  assert "out differs by" in wrong["wrong"] and "median_ms" not in wrong
  assert "median_ms" in right and "wrong" not in right
  assert "out differs by" in attention.table([wrong, right])


def test_tiles_are_counted_for_kernels_that_cannot_run_here():
  causal = Workload(4096, 2, width=8, value_width=8)
  counts = {}
  for workload in (causal, replace(causal, domains=4)):  # domains of 1,024
    problem = make_problem(workload)
    for name in attention.IMPLEMENTATIONS:
      counts.setdefault(name, []).append(attention.live_tiles(workload, name, problem))
  assert counts["reference"] == counts["torch"] == [{}, {}]
  # Of each row: queries of tiles of 512 reach 1, 1, 2, 2, 3, 3, 4, 4 tiles of 1,024 keys, and of their domain one.
  assert counts["tpu"] == [{"tile": "512x1024", "tiles": 2 * 20}, {"tile": "512x1024", "tiles": 2 * 8}]
  # A triangle of 32 by 32 tiles, and four of 8 by 8.
  assert counts["gpu"] == [{"tile": "128x128", "tiles": 2 * 528}, {"tile": "128x128", "tiles": 2 * 4 * 36}]
  assert counts["xla"] == [{"tile": "128x128", "tiles": 2 * 528}, {"tile": "128x128", "tiles": 2 * 4 * 36}]


def test_a_kernel_without_its_device_gets_its_tiles_and_the_reason():
  chosen = {"domains": small(attention.workloads()["silu_1024_domains4"])}
  records = list(measure(chosen, ["tpu", "gpu"], 1))
  for record in records:
    assert record["tiles"] == 2 and "median_ms" not in record  # the only tile of each row
    assert record["skipped"].startswith(f"there is no {record['implementation'].upper()}")
  assert "| domains | tpu | there is no TPU; interpreted, kernels have no times | | 2 |" in attention.table(records)


def test_a_wrong_gradient_is_found():
  expected = {"out": np.ones(3), "q": np.ones(3)}
  with pytest.raises(attention.WrongResultError, match=r"q differs by 0.5 of its largest number"):
    attention.check({"out": np.ones(3), "q": np.array([1, 1, 0.5])}, expected, 1e-3)
  with pytest.raises(attention.WrongResultError, match="out differs by nan"):
    attention.check({"out": np.full(3, np.nan), "q": np.ones(3)}, expected, 1e-3)
  with pytest.raises(attention.WrongResultError, match="got"):
    attention.check({"out": np.ones(3)}, expected, 1e-3)


@pytest.mark.parametrize("workload", [Workload(96, 2, 2, 8, 8, bias="both", sequences=3), Workload(96, 2, domains=4)])
def test_the_definition_in_chunks_is_the_definition(workload, monkeypatch):
  monkeypatch.setattr(attention, "CHUNK", 96 * 96)  # few queries at a time
  problem = make_problem(workload)

  def dense(*args, **options):
    return segment_attention(*args, implementation="reference", **options)

  results = [jax.jit(lambda x, f=f: compute(workload, f, x))(problem) for f in (reference_by_chunks, dense)]
  assert attention.check(*results, 1e-5) < 1e-5


def test_domains_are_balanced_and_padding_ends_a_packed_row():
  problem = make_problem(Workload(64, 3, domains=4, sequences=5))
  assert {tuple(np.bincount(row)[1:]) for row in np.asarray(problem["domain_id"])} == {(16, 16, 16, 16)}
  for row in np.asarray(problem["sequence_id"]):
    assert row[-1] == 0 and set(row) == set(range(6)) and (np.diff(row[row > 0]) >= 0).all()


def test_useful_operations_are_those_of_the_live_pairs():
  # Rows of 3 tokens have 1 + 2 + 3 pairs; with widths 4 and 5, forward 2 * (4 + 5), backward 2 * (3 * 4 + 2 * 5).
  workload = Workload(3, 2, heads=7, width=4, value_width=5)
  assert attention.useful_flops(workload, make_problem(workload)) == 6 * 2 * 7 * (18 + 44)


def test_unknown_names_are_refused():
  program = [sys.executable, "-m", "experiments.benchmarks.attention"]
  for flag, text in (("--workloads=sil", "--workloads=sil names none of"), ("--implementations=cuda", "knows xla")):
    done = subprocess.run([*program, flag], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode and text in done.stderr
