"""Training on prepared shards: what a plan derives, and what a resumed run compares."""

import numpy as np
import pytest

from jaxrec import parallel
from jaxrec.data.prepared import PreparedData
from jaxrec.train import loop, sequence_task
from jaxrec.train.monitor import EarlyStopping
from jaxrec.train.sequence_task import SequenceTask
from tests import tiny_run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Forty users in four shards."""
  items = np.random.default_rng(0).integers(1, 10, 240)
  whole = PreparedData.from_columns(user=np.repeat(np.arange(40), 6), item_id=items)
  return whole.save(tmp_path_factory.mktemp("data") / "data", shards=4)


def plan_of(data, **settings):
  config = tiny_run.get_config()
  config.train.batch_size = 10
  config.data.update(settings)
  return SequenceTask.from_data(config, data).plan("select", 2, parallel.make_mesh())


def test_rows_are_a_multiple_of_the_shards_and_an_epoch_holds_all_users(data):
  plan = plan_of(data)
  assert plan.identity["shards"] == 4 and plan.identity["rows_per_batch"] % 4 == 0
  steps = plan.timetable.steps_per_epoch
  assert sum(plan.count(plan.batches[step])["users"] for step in range(steps)) == 40
  assert sorted(user for step in range(1, steps + 1) for user in plan.users(step)) == list(range(40))


def test_given_rows_that_the_shards_do_not_divide_are_refused(data):
  with pytest.raises(ValueError, match="rows_per_batch=6 must be divisible by the 4 shards of the data"):
    plan_of(data, rows_per_batch=6)


def test_a_run_does_not_resume_on_another_number_of_shards(data):
  plan = plan_of(data, rows_per_batch=8)
  stopping = EarlyStopping("NDCG@10", 0)
  with pytest.raises(ValueError, match="the run began with shards=8, now it is 4 prepared shards of the data; resume"):
    loop._set_position({"rows_per_batch": 8, "shards": 8}, plan, 1, plan.iterator(), stopping)


def test_a_host_opens_its_part_unless_the_config_asks_for_all_events(monkeypatch):
  monkeypatch.setattr(parallel, "host_shard", lambda mesh: parallel.HostShard(1, 2))
  config = tiny_run.get_config()
  assert sequence_task._part_of_shards(config) == (1, 2)
  for group, name, value in (("data", "train_users", "without_held_out"), ("eval", "beyond_accuracy", 10)):
    config = tiny_run.get_config()
    config[group][name] = value
    assert sequence_task._part_of_shards(config) == (0, 1)
