"""metrics.jsonl and the checkpoints that depend on it."""

import json
import os
import shutil

import pytest
from test_finite_state import stop_after
from test_task import DomainTask, config

from jaxrec.train import loop
from jaxrec.train.checkpoint import Checkpoints
from jaxrec.train.monitor import Interrupted
from jaxrec.train.writers import LostRecordsError, MetricsWriter, read_records


def settings(retrain=False):
  changed = config()
  changed.train.log_every_steps, changed.train.checkpoint_every_steps, changed.train.retrain = 1, 2, retrain
  return changed


def train(workdir, retrain=False, **options):
  return loop.run(settings(retrain), str(workdir), make_task=DomainTask, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  train(workdir)
  return (workdir / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
  """The workdir of a run that was stopped after step 11."""
  workdir = tmp_path_factory.mktemp("stopped")
  with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
    stop_after(patch, 11)
    train(workdir)
  return workdir


@pytest.fixture
def stopped(stopped_once, tmp_path):
  """A copy of it, to be damaged."""
  return shutil.copytree(stopped_once, tmp_path, dirs_exist_ok=True)


CUTS = {
  "the end is cut off": lambda text: text[:-40],
  "the last record is gone": lambda text: text[: text[:-1].rindex(b"\n") + 1],
  "half is gone": lambda text: text[: len(text) // 2],
  "all is gone": lambda text: b"",
  "a record is there twice": lambda text: text[: text.index(b"\n") + 1] + text,
  "a digit has changed": lambda text: text.replace(b'"step": 3', b'"step": 4'),
  "a page is zero": lambda text: text[:100] + bytes(60) + text[160:],
}


@pytest.mark.parametrize("what", CUTS)
def test_records_that_were_lost_are_noticed(stopped, what):
  path = stopped / "metrics.jsonl"
  damaged = CUTS[what](path.read_bytes())
  path.write_bytes(damaged)
  with pytest.raises(LostRecordsError, match=r"records were lost: .*metrics.jsonl.*--resume_with_changes"):
    train(stopped)
  assert path.read_bytes() == damaged  # To be repaired from a copy.


def test_a_removed_file_is_noticed(stopped):
  (stopped / "metrics.jsonl").unlink()
  with pytest.raises(LostRecordsError, match="holds 0 of the"):
    train(stopped)


def test_a_run_goes_on_without_lost_records_on_request_and_notes_it(stopped, whole):
  path = stopped / "metrics.jsonl"
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(b"".join(lines[:4]))
  summary = train(stopped, resume_with_changes=True)
  assert [(entry["phase"], entry["after_step"]) for entry in summary["changes"]] == [("select", 11)]
  assert "records were lost" in summary["changes"][0]["changes"][0]
  assert path.read_bytes() == b"".join(lines[:4]) + whole[len(b"".join(lines)) :]


@pytest.mark.parametrize("more", [b'{"phase": "select", "st', b"\n\n", b"\x00" * 50, b'{"phase": "select"}\n'])
def test_what_follows_the_records_of_the_checkpoint_is_cut_off_whatever_it_is(stopped, whole, more):
  with open(stopped / "metrics.jsonl", "ab") as file:
    file.write(more)
  train(stopped)
  assert (stopped / "metrics.jsonl").read_bytes() == whole


def test_records_of_the_first_phase_are_missed_when_the_second_begins(tmp_path, monkeypatch):
  begin = loop.run_phase

  def only_select(task, workdir, phase, *rest):
    if phase == "final":
      raise Interrupted(15, "killed between the phases")
    return begin(task, workdir, phase, *rest)

  with monkeypatch.context() as patch, pytest.raises(Interrupted):
    patch.setattr(loop, "run_phase", only_select)
    train(tmp_path, retrain=True)
  path = tmp_path / "metrics.jsonl"
  text = path.read_bytes()
  path.write_bytes(text[: text.index(b"\n") + 1])
  with pytest.raises(LostRecordsError, match="records were lost"):
    train(tmp_path, retrain=True)
  path.write_bytes(text + b"half a line of the second ph")
  train(tmp_path, retrain=True)
  assert path.read_bytes().startswith(text + b'{"phase": "final"')


def test_records_are_on_disk_before_the_checkpoint_that_depends_on_them(tmp_path, monkeypatch):
  synced, saved = [0], []
  fsync, save = os.fsync, Checkpoints.save

  def note_sync(descriptor):
    fsync(descriptor)
    if os.readlink(f"/proc/self/fd/{descriptor}").endswith("metrics.jsonl"):
      synced.append((tmp_path / "metrics.jsonl").stat().st_size)

  def note_save(self, state, position, best_step):
    saved.append((position["log"]["records"]["bytes"], synced[-1], (tmp_path / "metrics.jsonl").stat().st_size))
    return save(self, state, position, best_step)

  monkeypatch.setattr(os, "fsync", note_sync)
  monkeypatch.setattr(Checkpoints, "save", note_save)
  train(tmp_path)
  assert len(saved) > 5
  assert all(length == on_disk == written for length, on_disk, written in saved)


def test_a_writer_continues_length_and_hash(tmp_path):
  with MetricsWriter(str(tmp_path), "select", 0) as writer:
    writer.write("train", 1, 1, {"loss": 1.0})
    before = writer.saved_records()
    writer.write("train", 2, 1, {"loss": 0.5})
    after = writer.saved_records()
  with MetricsWriter(str(tmp_path), "select", 1, before) as writer:
    assert writer.saved_records() == before
    writer.write("train", 2, 1, {"loss": 0.5})
    assert json.loads(json.dumps(writer.saved_records())) == after


def test_a_line_that_is_no_record_is_named(tmp_path):
  path = tmp_path / "timing.jsonl"
  path.write_text('{"phase": "select", "step": 1}\n\x00\x00\n{"phase": "select", "step": 2}\n')
  with pytest.raises(ValueError, match=r"timing.jsonl:2 is not a record"):
    read_records(str(path))
