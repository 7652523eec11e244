"""The benchmark of items without training events: what it takes out, and that it resumes."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.benchmarks import cold_items
from jaxrec.data.item_features import with_item_columns
from jaxrec.data.prepared import TEST, PreparedData


def movies():
  rng = np.random.default_rng(0)
  titles = [f"Film {i} ({1950 + i})" for i in range(40)]
  data = PreparedData.from_columns(user=np.repeat(np.arange(30), 6), item_id=rng.integers(1, 41, 180), titles=titles)
  return cold_items.with_decades(with_item_columns(data, {"genres": [("war", "film")[i % 2] for i in range(40)]}))


def test_a_share_of_the_items_occurs_in_test_events_only():
  before, data = movies(), cold_items.without_cold_items(movies(), 0.25, seed=3)
  assert before.items["decade"].to_list()[:12] == ["195"] * 10 + ["196"] * 2
  gone = set(before.item_id) - set(data.item_id[data.split < TEST])
  assert len(gone) >= 8 and data.num_items == 40 and data.num_users == 30
  assert data.item_id[data.split == TEST].tolist() == before.item_id[before.split == TEST].tolist()
  assert 0 < np.isin(data.item_id, list(gone)).sum() < 30


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:.*config.data.source")
def test_both_runs_are_measured_and_a_finished_one_is_not_trained_again(tmp_path, monkeypatch):
  config = cold_items.config_of(1, 8)
  config.model = ConfigDict({"name": "sasrec", "width": 4, "num_layers": 1, "max_positions": 8, "hidden": 4})
  config.optimizer.warmup_steps, config.optimizer.schedule = 0, "constant"
  arguments = movies(), config, [1], 0.25, str(tmp_path)
  records = list(cold_items.measure(*arguments))
  assert [record["variant"] for record in records] == ["features", "ids", "popularity"]
  assert records[0]["warm/count"] + records[0]["cold/count"] == 30 and records[0]["cold/count"] > 0
  assert len(cold_items.table(records).splitlines()) == 5
  monkeypatch.setattr("jaxrec.train.sequence_task.make_train_step", None)
  assert list(cold_items.measure(*arguments)) == records
