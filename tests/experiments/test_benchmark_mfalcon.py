"""The benchmark of M-FALCON: it runs, and its variants agree."""

from experiments.benchmarks import mfalcon


def test_a_small_run_times_every_variant_and_they_agree():
  records = list(mfalcon.measure(20, 10, [4, 16], 8, 1, 1))
  assert [(r["variant"], r["microbatch"]) for r in records] == [
    ("one by one", 1), ("history again", 4), ("cached", 4), ("history again", 16), ("cached", 16),
  ]  # fmt: skip
  assert all(r["largest_difference"] < 1e-5 and r["seconds"] > 0 for r in records)
  assert mfalcon.table(records).count("\n") == 6
