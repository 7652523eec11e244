"""Folders that appear complete or not at all: replacing them, what killed processes leave, and full disks."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import REPOSITORY

from jaxrec.data import whole_folder as folders
from jaxrec.data.prepared import PreparedData
from jaxrec.data.whole_folder import FolderExistsError, remove_leftovers, whole_folder


def write(path, text, overwrite=False):
  with whole_folder(path, overwrite) as folder:
    (folder / "file").write_text(text)


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def data_of(*items):
  return PreparedData.from_columns(user=[0] * len(items), item_id=items)


def test_a_replaced_folder_is_there_at_every_moment(tmp_path):
  out, missed, done = tmp_path / "out", [], threading.Event()
  write(out, "0")

  def watch():
    while not done.is_set():
      missed.append(not os.path.exists(out / "file"))

  watcher = threading.Thread(target=watch)
  watcher.start()
  for text in map(str, range(200)):
    write(out, text, overwrite=True)
  done.set()
  watcher.join()
  assert not any(missed) and len(missed) > 100
  assert (out / "file").read_text() == "199"
  assert names(tmp_path) == ["out"]


def test_without_an_exchange_of_names_a_folder_is_replaced_too(tmp_path, monkeypatch):
  monkeypatch.setattr(folders, "_exchange", lambda *_: False)
  write(tmp_path / "out", "old")
  write(tmp_path / "out", "new", overwrite=True)
  assert (tmp_path / "out" / "file").read_text() == "new"
  assert names(tmp_path) == ["out"]


def test_a_folder_that_was_moved_aside_comes_back(tmp_path):
  aside = tmp_path / ".out.replaced.abcd1234"
  (aside / "out").mkdir(parents=True)
  (aside / "out" / "file").write_text("old")
  remove_leftovers(tmp_path / "out")
  assert (tmp_path / "out" / "file").read_text() == "old"
  assert names(tmp_path) == ["out"]


def test_a_link_stays_and_the_folder_behind_it_is_replaced(tmp_path):
  write(tmp_path / "disk" / "data", "old")
  (tmp_path / "out").symlink_to(tmp_path / "disk" / "data")
  write(tmp_path / "out", "new", overwrite=True)
  assert (tmp_path / "out").is_symlink()
  assert (tmp_path / "disk" / "data" / "file").read_text() == "new"


def test_of_two_processes_that_write_a_folder_the_later_one_is_refused(tmp_path):
  with pytest.raises(FolderExistsError, match="out: exists already; another process has written it meanwhile"):
    with whole_folder(tmp_path / "out", overwrite=False) as folder:
      (folder / "file").write_text("late")
      write(tmp_path / "out", "early")
  assert (tmp_path / "out" / "file").read_text() == "early"
  assert names(tmp_path) == ["out"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
  script = (
    "import os, pathlib, signal\nfrom jaxrec.data.whole_folder import whole_folder\n"
    f"with whole_folder(pathlib.Path({str(tmp_path / 'out')!r}), False) as folder:\n"
    "  (folder / 'item_id.npy').write_text('half')\n  os.kill(os.getpid(), signal.SIGKILL)\n"
  )
  subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=False)
  (left,) = names(tmp_path)
  for mine in (".out.original", ".out.unfinished.copy", "out.unfinished.abcd1234", ".other.unfinished.abcd1234"):
    (tmp_path / mine).mkdir()
  with whole_folder(tmp_path / "out", overwrite=False) as alive:
    remove_leftovers(tmp_path / "out")
    assert alive.exists()
  assert left not in names(tmp_path)
  assert len(names(tmp_path)) == 5


def test_preparing_again_removes_what_was_left_before_it_reads_anything(tmp_path):
  (tmp_path / ".out.unfinished.abcd1234").mkdir()
  data_of(1, 2).save(tmp_path / "out")
  (tmp_path / ".out.unfinished.abcd1234").mkdir()
  with pytest.raises(FolderExistsError, match="exists already; remove it"):
    data_of(1, 2).save(tmp_path / "out")
  assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
  "error", [OSError(errno.ENOSPC, "No space left on device"), OSError("1000209 requested and 786400 written")]
)
def test_a_full_disk_is_one_line_with_folder_and_space(tmp_path, monkeypatch, error):
  def fail(*_):
    raise error

  monkeypatch.setattr(np, "save", fail)
  with pytest.raises(
    OSError, match=r"out: cannot be written .*; [\d,]+ bytes are free there; free some space"
  ) as raised:
    data_of(1, 2).save(tmp_path / "out")
  assert "\n" not in str(raised.value) and (error.strerror or str(error)) in str(raised.value)
  assert names(tmp_path) == []


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match=r"file/out: cannot be written \((Not a directory|File exists)\)"):
    data_of(1, 2).save(tmp_path / "file" / "out")
  with pytest.raises(FolderExistsError, match="file: exists already"):
    data_of(1, 2).save(tmp_path / "file")


def test_a_url_is_no_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match="out='gs:/bucket/data' is a URL"):
    data_of(1, 2).save("gs://bucket/data")
  assert names(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_preparation_says_so_and_leaves_nothing(tmp_path, number):
  script = (
    "import signal, sys, time, numpy\nfrom absl import app\nfrom jaxrec.cli import prepare\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # Ignored in what a shell starts in the background.
    "save = numpy.save\nnumpy.save = lambda *x: (save(*x), print('writing', flush=True), time.sleep(30))\n"
    "prepare.define_flags()\napp.run(prepare.main)\n"
  )
  command = [sys.executable, "-c", script, "--source=synthetic", "--num_users=5", f"--out={tmp_path / 'out'}"]
  process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "writing\n"
  time.sleep(0.05)
  process.send_signal(number)
  _, text = process.communicate(timeout=20)
  assert process.returncode == 128 + number
  assert text.splitlines()[-1] == f"prepare: stopped; {tmp_path / 'out'} is as it was before"
  assert "Traceback" not in text
  assert names(tmp_path) == []
