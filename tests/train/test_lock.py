"""One process at a time writes to a folder."""

import errno
import os
import signal
import subprocess
import sys

import jax
import pytest
from absl import logging
from test_task import DomainTask, config

from jaxrec.train import lock, loop
from jaxrec.train.lock import FolderLock

OWNER = """
import sys, time
from jaxrec.train.lock import FolderLock
with FolderLock(sys.argv[1]):
  print("locked", flush=True)
  time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path):
  """A process that holds the lock of `tmp_path`."""
  process = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "locked\n"
  yield process
  process.kill()
  process.communicate()


def test_a_second_process_is_refused_until_the_first_is_killed(owner, tmp_path):
  with pytest.raises(ValueError, match=rf"is in use by process {owner.pid} on {os.uname().nodename}; wait"):
    loop.run(config(), str(tmp_path), make_task=DomainTask)
  assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]
  owner.send_signal(signal.SIGKILL)
  owner.wait()
  with FolderLock(str(tmp_path)):  # Nothing stale is left.
    assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_folder_is_locked_by_whatever_name(tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "link").symlink_to(tmp_path / "run")
  with FolderLock(str(tmp_path / "run")), pytest.raises(ValueError, match="is in use"):
    FolderLock(str(tmp_path / "link")).__enter__()


def test_a_lock_ends_with_its_run_also_with_an_error(tmp_path):
  def broken(settings):
    raise ValueError("no data")

  for _ in range(2):
    with pytest.raises(ValueError, match="no data"):
      loop.run(config(), str(tmp_path), make_task=broken)


def test_of_several_processes_the_first_one_takes_the_lock(tmp_path, monkeypatch):
  with FolderLock(str(tmp_path)):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with FolderLock(str(tmp_path)):
      pass


def test_where_there_are_no_locks_it_is_logged(tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(errno.ENOTSUP, "not supported")

  warnings = []
  monkeypatch.setattr(lock.fcntl, "flock", refuse)
  monkeypatch.setattr(logging, "warning", lambda text, *values: warnings.append(text % values))
  with FolderLock(str(tmp_path)):
    pass
  assert len(warnings) == 1 and "cannot be locked" in warnings[0]


def test_a_folder_whose_lock_cannot_be_opened_is_used_with_a_warning(tmp_path, monkeypatch):
  warnings = []
  (tmp_path / ".lock").mkdir()  # Or the file system is read-only, and a finished run is only read.
  monkeypatch.setattr(logging, "warning", lambda text, *values: warnings.append(text % values))
  with FolderLock(str(tmp_path)):
    pass
  assert "Is a directory" in warnings[0]
