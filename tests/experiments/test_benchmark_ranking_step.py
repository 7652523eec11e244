"""The benchmark of ranking steps: it runs, and a pass takes the time of its steps."""

import pytest

from experiments.benchmarks import ranking_step


def test_a_small_run_times_every_case():
  (record,) = ranking_step.measure([10], [ranking_step.Case("impression")], 4, 8, 0, 1)
  assert record["unit"] == "impression" and record["steps"] > 1 and record["events_kept"] == 1
  assert record["pass_seconds"] == pytest.approx(record["step_seconds"] * record["steps"], rel=1e-2, abs=1e-3)
  assert ranking_step.table([record]).count("\n") == 2


def test_weightings_are_timed_in_turn_and_mgda_says_its_weights():
  cases = [ranking_step.Case("user", weighting=name) for name in ("fixed", "mgda-full")]
  records = list(ranking_step.measure([10], cases, 4, 8, 0, 1))
  assert [r["weighting"] for r in records] == ["fixed", "mgda-full"] and "weights" not in records[0]
  for weights in records[1]["weights"].values():
    assert len(weights) == 3 and sum(weights) == pytest.approx(1, abs=1e-3) and min(weights) >= 0
