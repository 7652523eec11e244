"""The benchmark of ranking steps: it runs, and an impression a step costs more steps."""

from experiments.benchmarks import ranking_step


def test_a_small_run_times_both_units():
  records = list(ranking_step.measure([10], ["user", "impression"], [0.0], 4, 8, 1))
  user, impression = records
  assert (user["unit"], impression["unit"]) == ("user", "impression") and user["steps"] == 1 < impression["steps"]
  assert ranking_step.table(records).count("\n") == 3 and user["events_kept"] == 1
