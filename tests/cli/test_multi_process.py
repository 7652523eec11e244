"""`experiments.train` in several processes on this machine: same metrics, one writer, restart after a process dies.

The item table is sharded over the processes; `parallel_devices.py` shards parameters.
"""

import random
import signal
import socket

import pytest
import tiny_run
from test_train import PAIRS, assert_same_metrics, finish, metrics_text, start, wait_for_step

from jaxrec.data.preparation.prepare import prepare
from jaxrec.train import loop

SETTINGS = (
  "--config.data.rows_per_batch=20", "--config.train.num_epochs=2", "--config.train.log_every_steps=1",
  "--config.train.checkpoint_every_steps=4", "--config.tables.placement=sharded",
)  # fmt: skip
PER_DEVICE = ("tables/rows",)  # Summed over devices: an item that two devices look up counts twice.


def start_all(workdir, *overrides, settings=SETTINGS, config="tiny_run", count=2):
  """Starts the processes of a run; each has one device."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  cluster = (f"--coordinator_address={address}", f"--num_processes={count}", "--heartbeat_timeout_seconds=10")
  return [
    start(workdir, *settings, *cluster, f"--process_id={index}", *overrides, config=config) for index in range(count)
  ]


def config():
  """The config of `SETTINGS`."""
  settings = tiny_run.get_config()
  for override in SETTINGS:
    name, value = override.removeprefix("--config.").split("=")
    settings.update_from_flattened_dict({name: int(value) if value.isdigit() else value})
  return settings


def end_of(process, seconds=200):
  """Waits for a process and returns its exit code and output."""
  output, _ = process.communicate(timeout=seconds)
  return process.returncode, output


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
  """The workdir of a run of one process."""
  workdir = tmp_path_factory.mktemp("one")
  loop.run(config(), str(workdir))
  return workdir


@pytest.mark.slow
def test_two_processes_that_open_half_of_the_shards_train_as_one_and_resume_after_either_is_killed(tmp_path):
  settings = config()
  prepare("synthetic", out=tmp_path / "data", shards=4, **settings.data.options.to_dict())
  settings.data.source, settings.data.prepared, settings.data.options = "", str(tmp_path / "data"), {}
  loop.run(settings, str(tmp_path / "one"))
  (tmp_path / "two").mkdir()
  overrides = ("--config.data.source=", f"--config.data.prepared={tmp_path / 'data'}")
  killed_at = kill_one_and_start_again(tmp_path / "two", random.randint(0, 1), *overrides)
  assert metrics_text(tmp_path / "two").startswith(killed_at)  # Repeated steps after the checkpoint have equal values.
  assert_same_metrics(tmp_path / "one", tmp_path / "two", but=PER_DEVICE)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_one_two_and_four_processes_over_eight_shards_end_with_the_same_metrics(tmp_path):
  prepare("synthetic", out=tmp_path / "data", shards=8, **config().data.options.to_dict())
  overrides = (
    "--config.data.source=",
    f"--config.data.prepared={tmp_path / 'data'}",
    "--config.data.rows_per_batch=24",
  )
  for count in (1, 2, 4):
    (tmp_path / str(count)).mkdir()
    for process in start_all(tmp_path / str(count), *overrides, count=count):
      finish(process)
    assert_same_metrics(tmp_path / "1", tmp_path / str(count), but=PER_DEVICE)


@pytest.mark.exhaustive
def test_two_processes_that_read_all_data_train_as_one_and_resume_after_either_is_killed(one_process, tmp_path):
  killed_at = kill_one_and_start_again(tmp_path, victim=random.randint(0, 1))
  assert metrics_text(tmp_path).startswith(killed_at)
  assert_same_metrics(one_process, tmp_path, but=PER_DEVICE)


@pytest.mark.slow
def test_two_processes_with_the_same_rows_stop_at_sigterm_and_one_process_resumes(one_process, tmp_path):
  processes = start_all(tmp_path, "--config.parallel.model=2")
  wait_for_step(processes[0], tmp_path, 3)
  processes[1].send_signal(signal.SIGTERM)
  ends = [end_of(process) for process in processes]
  assert [code for code, _ in ends] == [143, 143]
  assert all("'data': 1, 'fsdp': 1, 'model': 2" in output for _, output in ends)
  assert "resumes after step" in finish(start(tmp_path, *SETTINGS))
  assert_same_metrics(one_process, tmp_path, but=PER_DEVICE)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_click_through_in_two_processes_equals_one(tmp_path):
  finish(start(tmp_path / "one", config="tiny_click"))
  for process in start_all(tmp_path / "two", "--report", config="tiny_click", settings=()):
    finish(process)
  assert_same_metrics(tmp_path / "one", tmp_path / "two", but=PAIRS, rtol=1e-4)
  assert "Trained on several hosts" in (tmp_path / "two" / "report.html").read_text()


def kill_one_and_start_again(workdir, victim, *overrides):
  """Kills one of two processes, then resumes and finishes the run; returns the metrics written before."""
  processes = start_all(workdir, *overrides)
  wait_for_step(processes[0], workdir, 6)
  processes[victim].send_signal(signal.SIGKILL)
  code, output = end_of(processes[1 - victim])
  assert code not in (0, 143), output
  processes[victim].communicate()
  metrics = metrics_text(workdir)
  for process in start_all(workdir, *overrides):
    assert "resumes after step" in finish(process)
  return metrics[: metrics.rindex("\n") + 1]
