"""Progress in a terminal and in a file; what a user is told about the size of a step."""

import logging
import time

import pytest
from ml_collections import ConfigDict

import jaxrec
from experiments.configs import abxi
from jaxrec import parallel
from jaxrec.data.generators.synthetic import synthetic_data
from jaxrec.train import optimizer, progress
from jaxrec.train.config import default_config
from jaxrec.train.sequence_task import SequenceTask, training_options
from jaxrec.train.task import Plan
from jaxrec.train.timetable import Timetable


def test_a_file_gets_lines_without_carriage_returns(capsys):
  bar = progress.progress_bar(total=3, desc="train", unit="step")
  for _ in range(3):
    bar.update()
  bar.close()
  text = capsys.readouterr().err
  assert "\r" not in text and text.endswith("\n")
  assert "3/3" in text.splitlines()[-1]


def test_time_left_leaves_compilation_out():
  times = Timetable.from_config(default_config().train, steps_per_epoch=10, num_epochs=1)
  speed = progress.Speed("select", Plan(times, [], count=lambda batch: {"users": 1}), first_step=1)
  time.sleep(0.3)  # Compiles.
  speed.add(None, 1.0)
  assert speed._bar.format_dict["elapsed"] < 0.3 and speed._bar.format_dict["initial"] == 1
  speed.close()


def test_users_of_a_step_are_said_where_devices_change_them(caplog):
  data = jaxrec.synthetic_data(num_users=60, num_items=24)
  config = default_config()
  config.data.update(ConfigDict({"max_length": 64, "row_length": 512}))
  config.train.batch_size, config.train.accumulate = 4, 8
  with caplog.at_level(logging.WARNING):
    options = training_options(config, data, 0, parallel.make_mesh({"data": 1}))
  assert options.rows_per_batch == 8
  assert "users, not 4: its 1 rows are rounded up to 8, a multiple of 8" in caplog.text


@pytest.mark.parametrize(
  ("weighting", "every", "is_told"),
  [({"name": "set_point"}, 1, True), ({"name": "set_point", "base_updates": 20}, 1, False),
   ({"name": "pareto", "start_after": 25}, 4, True), ({"name": "pareto", "start_after": 25}, 1, False)],
)  # fmt: skip
def test_a_second_objective_that_would_never_act_is_told(monkeypatch, weighting, every, is_told):
  told = []
  monkeypatch.setattr(optimizer.logging, "warning", lambda text, *values: told.append(text % values))
  config = abxi.get_config("hstu-autocdsr")
  config.multi_objective.weighting, config.multi_objective.reweight_every = weighting, every
  SequenceTask.from_data(config, synthetic_data(num_users=20, num_domains=2)).train_step(parallel.make_mesh(), None, 84)
  assert is_told == any(
    "only the first objective has a weight in the first 100 steps, and there are 84" in x for x in told
  )
