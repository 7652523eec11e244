"""The benchmark of the input pipeline: every variant makes the same tokens, and a slow store is slow."""

import time

import numpy as np

from experiments.benchmarks import input_pipeline
from jaxrec.data.batches.sharded_training import make_training_batches
from jaxrec.data.batches.training import TrainingOptions

SIZES = {"events": 1500, "rows": 8, "length": 32, "count": 1}


def test_every_variant_but_the_processes_is_measured(tmp_path):
  records = list(input_pipeline.measured(tmp_path, **SIZES, workers=()))
  assert [record["variant"] for record in records] == [
    "one piece", "8 shards", "thread", "store of 50 MB/s", "store of 200 MB/s", "put"
  ]  # fmt: skip
  tokens = {record["variant"]: record["tokens"] for record in records}
  assert tokens["one piece"] == tokens["thread"] == tokens["store of 50 MB/s"] > 8 * 16
  assert all(record["tokens_per_second"] > 0 and record["examples_per_second"] > 0 for record in records)


def test_batches_over_a_mount_are_the_same_and_take_the_time_of_their_pages():
  data = input_pipeline.some_data(SIZES["events"], SIZES["length"])
  options = TrainingOptions(rows_per_batch=8, max_length=32, row_length=32)
  slow = make_training_batches(input_pipeline.over_a_mount(data, 0.5), options)
  started = time.monotonic()
  batch = slow[0]
  assert time.monotonic() - started > 6 * 4096 / 0.5e6  # Each of three columns is read from two pages at least.
  np.testing.assert_array_equal(batch.item_id, make_training_batches(data, options)[0].item_id)
