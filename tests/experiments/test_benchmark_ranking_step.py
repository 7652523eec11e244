"""The benchmark of ranking steps: it runs, and a pass takes the time of its steps."""

import pytest

from experiments.benchmarks import ranking_step


def test_a_small_run_times_every_case():
  (record,) = ranking_step.measure([10], ["impression"], [0.0], 4, 8, 0, 1)
  assert record["unit"] == "impression" and record["steps"] > 1 and record["events_kept"] == 1
  assert record["pass_seconds"] == pytest.approx(record["step_seconds"] * record["steps"], rel=1e-2, abs=1e-3)
  assert ranking_step.table([record]).count("\n") == 2
