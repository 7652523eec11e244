"""`experiments.train` in several real processes on this machine: same numbers, one writer, deaths and restarts."""

import signal
import socket

import pytest
from test_train import assert_same_metrics, finish, metrics_text, start, wait_for_step

from jaxrec.train.writers import read_records

SETTINGS = (
  "--config.data.rows_per_batch=20", "--config.train.num_epochs=2", "--config.train.log_every_steps=1",
  "--config.train.checkpoint_every_steps=4",
)  # fmt: skip


def start_two(workdir, *overrides):
  """Starts both processes of a run; each has one device."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  cluster = (f"--coordinator_address={address}", "--num_processes=2", "--heartbeat_timeout_seconds=10")
  return [start(workdir, *SETTINGS, *cluster, f"--process_id={index}", *overrides) for index in range(2)]


def end_of(process, seconds=60):
  """Exit code and output of a process that must end by itself."""
  output, _ = process.communicate(timeout=seconds)
  return process.returncode, output


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
  """The workdir of a run of two processes that nothing disturbed, and what they printed."""
  workdir = tmp_path_factory.mktemp("two")
  return workdir, [finish(process) for process in start_two(workdir)]


def test_two_processes_give_the_metrics_of_one_and_the_first_writes_them(two_processes, tmp_path):
  finish(start(tmp_path, *SETTINGS))
  workdir, outputs = two_processes
  assert_same_metrics(tmp_path, workdir)
  assert '"best_epoch"' in outputs[0]
  assert len(read_records(str(workdir / "metrics.jsonl"))) == 12 + 2 + 1  # Steps, validations, the test.


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_process_is_killed_the_other_ends_and_a_restart_repeats_the_run(two_processes, tmp_path, victim):
  processes = start_two(tmp_path)
  wait_for_step(processes[0], tmp_path, 6)
  processes[victim].send_signal(signal.SIGKILL)
  code, output = end_of(processes[1 - victim])
  assert code not in (0, 143), output
  processes[victim].communicate()
  for process in start_two(tmp_path):
    assert "goes on after step" in finish(process)
  assert metrics_text(tmp_path) == metrics_text(two_processes[0])


def test_sigterm_to_one_process_saves_and_one_process_can_go_on(two_processes, tmp_path):
  processes = start_two(tmp_path)
  wait_for_step(processes[0], tmp_path, 3)
  processes[1].send_signal(signal.SIGTERM)
  assert [end_of(process)[0] for process in processes] == [143, 143]
  assert "goes on after step" in finish(start(tmp_path, *SETTINGS))
  assert_same_metrics(tmp_path, two_processes[0])
