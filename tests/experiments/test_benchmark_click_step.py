"""The benchmark of click-through steps: it runs, and batches have whole rows."""

from experiments.benchmarks import click_step
from experiments.configs import ctr_styles


def test_a_small_run_has_one_record_per_case_and_whole_rows_in_a_batch():
  config = click_step.smallest(ctr_styles.get_config("dare-4"))
  records = list(click_step.measure(config, ["dare"], [0, 5], steps=1))
  assert [(r["variant"], r["targets_per_row"], r["batch_size"]) for r in records] == [("dare", 0, 64), ("dare", 5, 60)]
  assert all(r["examples_per_second"] > 0 and r["step_ms"] > 0 for r in records)
  assert len(click_step.table(records).splitlines()) == 4
