"""`experiments.train` end to end, on a config that trains in one second."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_run
from conftest import REPOSITORY, xla_flags

from jaxrec.train import loop
from jaxrec.train.monitor import NonFiniteLossError
from jaxrec.train.runs import load_run
from jaxrec.train.writers import read_records


def tiny(**settings):
  """Returns the tiny config with overrides: `tiny(train__num_epochs=1)`."""
  config = tiny_run.get_config()
  for name, value in settings.items():
    group, key = name.split("__")
    config[group][key] = value
  return config


def command(workdir, *overrides, config="tiny_run"):
  program = [sys.executable, "-m", "experiments.train", "--noreport"]
  return [*program, f"--config=tests/{config}.py", f"--workdir={workdir}", *overrides]


def start(workdir, *overrides, config="tiny_run", **environment):
  return subprocess.Popen(
    command(workdir, *overrides, config=config),
    cwd=REPOSITORY,
    env={**os.environ, **environment},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process):
  output, _ = process.communicate()
  assert process.returncode == 0, output
  return output


def metrics_text(workdir):
  return (workdir / "metrics.jsonl").read_text()


def wait_for_step(process, workdir, step, phase="select"):
  """Waits until the metrics file has a record of that step or a later one."""
  path = workdir / "metrics.jsonl"
  while process.poll() is None:
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    if any(r["step"] >= step and r["phase"] == phase for r in map(json.loads, lines)):
      return
    time.sleep(0.01)
  raise AssertionError(process.communicate()[0])


def page_without_time(workdir):
  return re.sub(r"\d+:\d\d:\d\d", "", (workdir / "report.html").read_text())


PAIRS = ("AUC", "GAUC", "GAUC_category")  # They count pairs: rounding may swap one, which log_loss does not notice.
LOG_EACH_STEP = ("--config.train.log_every_steps=1", "--config.train.checkpoint_every_steps=5")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  """The workdir of an uninterrupted run with both phases, started from the command line."""
  workdir = tmp_path_factory.mktemp("uninterrupted")
  finish(start(workdir, *LOG_EACH_STEP, "--config.train.retrain=true", "--report"))
  return workdir


def test_a_run_killed_at_random_steps_and_restarted_writes_the_same_metrics_and_page(uninterrupted, tmp_path):
  for phase in ("select", "final"):
    process = start(tmp_path, *LOG_EACH_STEP, "--config.train.retrain=true")
    wait_for_step(process, tmp_path, random.randint(1, 17), phase)
    time.sleep(random.random() / 20)
    process.send_signal(signal.SIGKILL)
    process.communicate()
  finish(start(tmp_path, *LOG_EACH_STEP, "--config.train.retrain=true", "--report"))
  assert metrics_text(tmp_path) == metrics_text(uninterrupted)
  assert page_without_time(tmp_path) == page_without_time(uninterrupted)


def test_sigterm_saves_a_checkpoint_and_exits_with_143(uninterrupted, tmp_path):
  settings = ("--config.train.log_every_steps=1", "--config.train.retrain=true")
  process = start(tmp_path, *settings)
  wait_for_step(process, tmp_path, 3)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate()
  assert process.returncode == 143
  assert "stopped after step" in output and "the same command resumes" in output
  finish(start(tmp_path, *settings))
  assert metrics_text(tmp_path) == metrics_text(uninterrupted)


def test_the_summary_has_the_epoch_chosen_on_validation_and_both_test_metrics(uninterrupted):
  summary = json.loads((uninterrupted / "summary.json").read_text())
  validations = [r for r in read_records(str(uninterrupted / "metrics.jsonl")) if r["kind"] == "validation"]
  best = max(validations, key=lambda record: record["NDCG@10"])
  assert len(validations) == 3
  assert summary["select"]["best_epoch"] == best["epoch"] == summary["final"]["epochs"]
  assert summary["select"]["validation"]["NDCG@10"] == best["NDCG@10"]
  assert summary["select"]["test_of_selected"]["count"] == summary["final"]["test"]["count"] == 200


def test_a_run_writes_its_config_curves_and_tensorboard_events(uninterrupted):
  assert json.loads((uninterrupted / "config.json").read_text())["train"]["checkpoint_every_steps"] == 5
  assert (uninterrupted / "curves.png").stat().st_size > 1000
  assert list((uninterrupted / "tensorboard" / "select").iterdir())


def test_a_finished_run_can_be_loaded(uninterrupted):
  run = load_run(str(uninterrupted), phase="select")
  assert run.task.model.num_items == run.task.data.num_items == 96
  assert run.params["items"]["table"].shape[0] == 97
  assert run.step % 6 == 0


def test_a_workdir_with_a_run_of_another_config_is_refused(uninterrupted):
  with pytest.raises(ValueError, match=r"config.seed was 42, is 7.*Give another --workdir"):
    config = tiny(train__retrain=True, train__log_every_steps=1)
    config.seed = 7
    loop.run(config, str(uninterrupted))


def test_two_devices_give_the_result_of_one(tmp_path):
  settings = ("--config.data.rows_per_batch=20", "--config.train.num_epochs=1", "--config.train.accumulate=2")
  both = {"XLA_FLAGS": xla_flags(2)}
  processes = [start(tmp_path / "one", *settings), start(tmp_path / "two", *settings, **both)]
  for process in processes:
    finish(process)
  assert_same_metrics(tmp_path / "one", tmp_path / "two")


@pytest.fixture(scope="module")
def click_run(tmp_path_factory):
  """The workdir of a click-through run on one device."""
  workdir = tmp_path_factory.mktemp("click")
  finish(start(workdir, "--config.train.retrain=true", config="tiny_click"))
  return workdir


@pytest.mark.exhaustive
def test_click_through_on_eight_devices_equals_one(click_run, tmp_path):
  eight = {"XLA_FLAGS": xla_flags(8)}
  finish(start(tmp_path, "--config.train.retrain=true", config="tiny_click", **eight))
  assert_same_metrics(click_run, tmp_path, but=PAIRS, rtol=1e-4)


def test_a_killed_click_through_run_writes_the_metrics_of_an_uninterrupted_one(click_run, tmp_path):
  process = start(tmp_path, "--config.train.retrain=true", config="tiny_click")
  wait_for_step(process, tmp_path, random.randint(1, 5))
  process.send_signal(signal.SIGKILL)
  process.communicate()
  finish(start(tmp_path, "--config.train.retrain=true", config="tiny_click"))
  assert metrics_text(tmp_path) == metrics_text(click_run)


def assert_same_metrics(one, other, but=(), rtol=2e-5):
  """Asserts equal records up to the order of summation, except for the metrics in `but`."""
  left, right = (read_records(str(workdir / "metrics.jsonl")) for workdir in (one, other))
  assert [list(record) for record in left] == [list(record) for record in right]
  for a, b in zip(left, right, strict=True):
    for name in a:
      if isinstance(a[name], str):
        assert a[name] == b[name]
      elif name not in but:
        np.testing.assert_allclose(a[name], b[name], rtol=rtol, err_msg=name)


def test_a_non_finite_loss_stops_the_run_and_keeps_the_checkpoint(tmp_path):
  config = tiny(train__checkpoint_every_steps=1, train__log_every_steps=1)
  config.optimizer.learning_rate = 1e38
  with pytest.raises(
    NonFiniteLossError, match=r"step 2: .*loss is nan.*The batch held the users \d+, \d+.*learning_rate"
  ):
    loop.run(config, str(tmp_path))
  assert load_run(str(tmp_path), "latest").step == 1
  assert [record["step"] for record in read_records(str(tmp_path / "metrics.jsonl"))] == [1]


def test_a_run_stops_when_validation_does_not_improve(tmp_path):
  config = tiny(train__patience=1)
  config.optimizer.learning_rate = 0.0
  summary = loop.run(config, str(tmp_path))
  assert (summary["select"]["best_epoch"], summary["select"]["epochs"]) == (1, 2)


def test_profile_writes_a_trace(tmp_path):
  loop.run(tiny(train__num_epochs=4, train__evaluate_every_epochs=4), str(tmp_path), profile=True)
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_bfloat16_trains_and_keeps_float32_parameters(tmp_path):
  loop.run(tiny(train__dtype="bfloat16", train__num_epochs=1, train__average=0.9), str(tmp_path))
  assert {str(leaf.dtype) for leaf in load_run(str(tmp_path)).params["items"].values()} == {"float32"}
  assert read_records(str(tmp_path / "metrics.jsonl"))[0]["loss"] < 14


def test_a_flag_sets_a_field_of_the_model_that_the_config_does_not_name(tmp_path):
  finish(
    start(tmp_path, "--config.model.feed_forward=6", "--config.model.dropout_on=output", "--config.train.num_epochs=1")
  )
  assert json.loads((tmp_path / "config.json").read_text())["model"]["feed_forward"] == 6
  assert "feed_forward" in load_run(str(tmp_path)).params["layers_0"]


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("--config.train.batch_size=abc", "invalid literal for int() with base 10: 'abc'"),
    ("--config.train.batchsize=3", "config.train.batchsize is unknown; did you mean config.train.batch_size?"),
    ("--config.trian.batch_size=3", 'Did you mean "train" instead of "trian"?'),
    ("--config.model.tables=2", "model 'hstu' has no field ['tables']; it has "),
    ("--config.model.feed_forward=wide", "config.model.feed_forward='wide' must be of type int"),
    ("--config.train.dtype=float16", "config.train.dtype='float16' is unknown; use one of ('float32', 'bfloat16')"),
  ],
)
def test_a_wrong_override_exits_with_one_line_instead_of_a_traceback(tmp_path, override, message):
  result = subprocess.run(command(tmp_path, override), cwd=REPOSITORY, capture_output=True, text=True)
  assert result.returncode == 1
  assert message in result.stderr
  assert "Traceback" not in result.stderr
