"""Rolling cuts: which runs there are, what is reported, and that nothing after a cut is known at it."""

import json

import numpy as np
import pytest

from jaxrec.cli import rolling
from jaxrec.cli.rolling import checked_config, windows_of
from jaxrec.train import click_task, runs

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
CONFIG = """
import tiny_run

def get_config():
  config = tiny_run.get_config()
  config.data.options = {"num_users": 40, "num_items": 48, "mean_events": 12.0}
  config.train.num_epochs = 1
  return config
"""


@pytest.fixture
def config(tmp_path):
  path = tmp_path / "small.py"
  path.write_text(CONFIG)
  return path


def loaded(path):
  namespace = {}
  exec(path.read_text(), namespace)
  return namespace["get_config"]()


def test_the_runs_differ_in_their_cuts_and_seeds(config):
  checked = checked_config(loaded(config), 5, True)
  assert (checked.eval.targets, checked.train.retrain, checked.eval.ks) == ("all", True, (1, 5, 10))
  first, second = windows_of(checked, [(1, 2, 3), (2, 3, 4)], [7, 8])
  assert [*first.configs, *second.configs] == ["cut1-7", "cut1-8", "cut2-7", "cut2-8"]
  one = second.configs["cut2-8"]
  assert (one.seed, tuple(one.data.time_cuts), one.name) == (8, (2, 3, 4), "tiny_run_cut2")


def test_configs_that_have_no_ranking_or_cuts_of_their_own_are_refused(config):
  with pytest.raises(ValueError, match="ranks no catalogue"):
    checked_config(click_task.default_config(), 10, True)
  one = loaded(config)
  one.data.time_cuts = (1, 2, 3)
  with pytest.raises(ValueError, match="is set by this program"):
    checked_config(one, 10, True)


def test_the_command_trains_at_each_cut_and_stands_beside_recent_popularity(config, call, tmp_path):
  arguments = [f"--config={config}", f"--out={tmp_path}/out", "--cuts=2", "--first=0.5", "--seeds=3", "--noretrain"]
  arguments += ["--config.eval.recent_days=(1,)"]
  listed = call(rolling, *arguments, "--dry_run").splitlines()
  assert [line.split()[0].rpartition("/")[2] for line in listed] == ["cut1-3", "cut2-3"]
  text = call(rolling, *arguments)
  record = json.loads((tmp_path / "out" / "rolling.json").read_text())
  first, second = record["windows"]
  assert list(first["metrics"]) == ["hstu", "popularity", "random", "popularity_1d"]
  assert first["times"][1:] == second["times"][:2]
  assert second["training"] == first["training"] + first["validation"]
  counts = [one["metrics"]["hstu"][0]["count"] for one in record["windows"]]
  values = [one["metrics"]["hstu"][0]["NDCG@10"] for one in record["windows"]]
  assert record["all"]["hstu"]["NDCG@10"] == [pytest.approx(np.average(values, weights=counts))]
  assert counts[0] + first["metrics"]["hstu"][0]["without_history"] == first["test"]
  assert "over all targets" in text and "of 2 cuts" in text and "popularity_1d" in text
  of_run = runs.load_run(f"{tmp_path}/out/runs/cut1-3").task.data
  assert of_run.timestamp.max() < first["times"][2]
  assert call(rolling, *arguments) == text


def test_edges_can_be_given(config, call, tmp_path):
  arguments = [f"--config={config}", f"--out={tmp_path}/out", "--dry_run", "--times=10,20,30,86400"]
  assert call(rolling, *arguments).splitlines() == [
    f"{tmp_path}/out/runs/cut1-42  validation 1970-01-01 00:00, test 1970-01-01 00:00 to 1970-01-01 00:00",
    f"{tmp_path}/out/runs/cut2-42  validation 1970-01-01 00:00, test 1970-01-01 00:00 to 1970-01-02",
  ]
  with pytest.raises(SystemExit, match="--times=10,20 must be three times"):
    call(rolling, *arguments[:-1], "--times=10,20")
