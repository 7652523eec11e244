"""Epochs beside other libraries: what they train on, and the record of our own."""

import json

import numpy as np

from experiments.benchmarks import epoch, other_libraries
from experiments.configs import demo


def test_other_libraries_get_the_training_events_and_the_settings_of_the_config(tmp_path):
  config = demo.get_config()
  epoch.write_problem(config, 7, 3, tmp_path / "problem.npz")
  columns = np.load(tmp_path / "problem.npz")
  settings = json.loads(str(columns["settings"]))
  assert (settings["width"], settings["negatives"], settings["steps"]) == (config.model.width, 7, 3)
  data = epoch.load.load_data(config.data)
  assert len(columns["item"]) == np.count_nonzero(data.split == 0) < data.num_events
  assert (np.diff(columns["user"]) >= 0).all() and set(columns["user"]) == set(range(data.num_users))


def test_an_epoch_is_the_mean_step_times_the_steps_of_an_epoch():
  record = epoch.own_epoch(demo.get_config(), steps=2)
  assert record["steps"] == 2 and record["peak_gib"] > 0
  np.testing.assert_allclose(record["epoch_s"], record["step_ms"] * record["steps_of_an_epoch"] / 1e3, atol=0.1)


def test_the_clock_leaves_out_the_first_steps(monkeypatch):
  now = iter([10.0, 16.0])  # At the end of the second and of the fifth step.
  monkeypatch.setattr(other_libraries.time, "perf_counter", lambda: next(now))
  clock = other_libraries.Clock({"untimed": 2, "steps": 3})
  assert [clock.step() for _ in range(5)] == [False] * 4 + [True]
  record = clock.record(in_epoch=10, users_per_step=4)
  assert (record["step_ms"], record["epoch_s"], record["users_per_s"]) == (2000, 20, 2)


def test_negatives_of_each_position_are_a_change_of_the_config():
  arguments = epoch.own_arguments("jaxrec", ["--config=demo.py", "--config.seed=2", "--negatives=5"], negatives=5)
  changes = ["--config.objective.num_negatives=5", "--config.objective.sharing=position"]
  assert arguments == ["--config=demo.py", "--config.seed=2", *changes]
