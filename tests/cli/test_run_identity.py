"""Programs on a run whose data, config or files are no longer what they were."""

import errno
import json
import shutil
import signal

import numpy as np
import pytest
from absl import flags

from jaxrec.cli import evaluate, process, recommend, sweep
from jaxrec.data.preparation.prepare import prepare
from jaxrec.train import loop
from jaxrec.train.monitor import Interrupted
from jaxrec.train.writers import MetricsWriter
from tests import tiny_run
from tests.train.test_task import DATA, DomainTask
from tests.train.test_task import config as domain_config

# ml_collections 1.1 loads config files by a deprecated function of Python.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

OPTIONS = {"num_users": 60, "num_items": 48, "mean_events": 12.0}


def prepare_data(folder, seed=0):
  prepare("synthetic", out=folder, overwrite=True, seed=seed, **OPTIONS)


def config_of(data):
  config = tiny_run.get_config()
  config.data.source, config.data.prepared, config.data.options = "", str(data), {}
  config.train.num_epochs = 1
  return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A folder with prepared data and a finished run."""
  folder = tmp_path_factory.mktemp("whole")
  prepare_data(folder / "data")
  loop.run(config_of(folder / "data"), str(folder / "run"))
  return folder


@pytest.fixture
def folder(whole, tmp_path):
  """A copy of it; the run looks for its data in the copy."""
  shutil.copytree(whole, tmp_path / "copy")
  for file in ("run/config.json",):
    path = tmp_path / "copy" / file
    path.write_text(path.read_text().replace(str(whole), str(tmp_path / "copy")))
  return tmp_path / "copy"


def call(program, monkeypatch, *arguments):
  values = flags.FlagValues()
  program.define_flags(values)
  values([program.__name__, *arguments])
  monkeypatch.setattr(program, "FLAGS", values)
  program.main([program.__name__])


def refusals(folder, monkeypatch):
  """What evaluate, recommend and train say."""
  texts = []
  for program, arguments in ((evaluate, ("--nobaselines",)), (recommend, ("--random=1",))):
    with pytest.raises(SystemExit) as stop:
      call(program, monkeypatch, f"--workdir={folder / 'run'}", *arguments)
    texts.append(str(stop.value))
  with pytest.raises(ValueError) as error:
    loop.run(config_of(folder / "data"), str(folder / "run"))
  return [*texts, process.describe(error.value)]


def test_other_data_of_the_same_sizes_are_refused_by_every_program(folder, monkeypatch):
  prepare_data(folder / "data", seed=9)
  for text in refusals(folder, monkeypatch):
    assert "holds a run that is of other data: " in text and "item_id" in text
    assert "Use the data that it was trained on" in text


def test_data_without_an_item_are_refused_with_both_numbers(folder, monkeypatch):
  shutil.rmtree(folder / "data")
  prepare("synthetic", out=folder / "data", **{**OPTIONS, "num_items": 96})
  for text in refusals(folder, monkeypatch):
    assert "items: 48 when trained, 96 now" in text


def test_a_changed_column_is_refused_by_every_program(folder, monkeypatch):
  items = np.load(folder / "data" / "item_id.npy")
  items[: len(items) // 3] = 1
  np.save(folder / "data" / "item_id.npy", items)
  for text in refusals(folder, monkeypatch):
    assert "data: item_id changed after the folder was written" in text


def test_the_same_data_in_another_folder_are_accepted(folder, monkeypatch, capsys):
  summary = json.loads((folder / "run" / "summary.json").read_text())
  (folder / "data").rename(folder / "moved")
  assert loop.run(config_of(folder / "moved"), str(folder / "run")) == summary
  config = json.loads((folder / "run" / "config.json").read_text())
  config["data"]["prepared"] = str(folder / "moved")
  (folder / "run" / "config.json").write_text(json.dumps(config))
  call(recommend, monkeypatch, f"--workdir={folder / 'run'}", "--random=1")
  assert capsys.readouterr().out.startswith("User ")


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda path: path.unlink(), "config.json is missing, though metrics.jsonl, summary.json, select/checkpoints"),
    (lambda path: path.write_text(path.read_text()[:200]), "config.json is damaged, it is no JSON"),
    (lambda path: path.write_bytes(b""), "config.json is damaged, it is no JSON"),
    (lambda path: path.write_text("[]"), "config.json is damaged, it holds '[]' and not a dict"),
    (lambda path: path.write_text('{"train": 5}'), "config.json: not the config of a run"),
  ],
)
def test_a_missing_or_damaged_config_is_refused_by_every_program(folder, monkeypatch, damage, message):
  damage(folder / "run" / "config.json")
  for text in refusals(folder, monkeypatch):
    assert message in text
  for file in ("summary.json", "select/result.json"):  # The same for a run that is not finished.
    (folder / "run" / file).unlink()
  assert all("config.json" in text for text in refusals(folder, monkeypatch))


def test_the_config_of_another_run_is_noticed_by_the_checkpoints(folder, monkeypatch):
  path = folder / "run" / "config.json"
  path.write_text(path.read_text().replace('"seed": 42', '"seed": 7'))
  with pytest.raises(SystemExit, match="6 is of another config: config.seed was 42, is 7|config.seed was 42, is 7"):
    call(recommend, monkeypatch, f"--workdir={folder / 'run'}", "--random=1")


@pytest.mark.parametrize("file", ["summary.json", "select/result.json", "data.json"])
@pytest.mark.parametrize("content", ["", '{"counts": ', "null"])
def test_a_damaged_file_of_a_finished_run_is_named(folder, file, content):
  (folder / "run" / file).write_text(content)
  if file == "select/result.json":
    (folder / "run" / "summary.json").unlink()
  with pytest.raises(ValueError, match=f"run/{file} is damaged, it (is no JSON|holds 'None')"):
    loop.run(config_of(folder / "data"), str(folder / "run"))


class OtherTask(DomainTask):
  """The same on data with another event."""

  def fingerprint(self):
    return {**DATA.fingerprint, "hashes": {**DATA.fingerprint["hashes"], "item_id": "another"}}


class SameTask(DomainTask):
  def fingerprint(self):
    return DATA.fingerprint


def test_a_run_does_not_resume_with_other_data_or_another_config(tmp_path, monkeypatch):
  with monkeypatch.context() as patch, pytest.raises(Interrupted):
    patch.setattr(
      loop.StopSignal, "requested", lambda stop, step: step == 5 and not setattr(stop, "number", signal.SIGTERM)
    )
    loop.run(domain_config(), str(tmp_path), make_task=SameTask)
  with pytest.raises(ValueError, match="is of other data: other values in item_id"):
    loop.run(domain_config(), str(tmp_path), make_task=OtherTask)
  (tmp_path / "data.json").unlink()
  with pytest.raises(ValueError, match=r"select/checkpoints/5 is of other data: other values in item_id"):
    loop.run(domain_config(), str(tmp_path), make_task=OtherTask)
  (tmp_path / "data.json").unlink()
  other = domain_config()
  other.optimizer.learning_rate = 0.1
  (tmp_path / "config.json").write_text(json.dumps(other.to_dict()))
  with pytest.raises(ValueError, match="5 is of another config: config.optimizer.learning_rate was 0.3, is 0.1"):
    loop.run(other, str(tmp_path), make_task=SameTask)
  (tmp_path / "config.json").write_text(json.dumps(domain_config().to_dict()))
  assert loop.run(domain_config(), str(tmp_path), make_task=SameTask)["select"]["steps"] > 5


def test_a_sweep_does_not_mix_results_of_different_data(folder, monkeypatch, capsys):
  path = folder / "config.py"
  path.write_text(
    "from tests import tiny_run\n\ndef get_config():\n  config = tiny_run.get_config()\n"
    f"  config.data.source, config.data.prepared, config.data.options = '', {str(folder / 'data')!r}, {{}}\n"
    "  config.train.num_epochs = 1\n  return config\n"
  )
  arguments = (f"--configs={path}", f"--out={folder / 'sweep'}", "--in_process", "--metrics=MRR")
  call(sweep, monkeypatch, *arguments, "--seeds=42")
  table = capsys.readouterr().out
  call(sweep, monkeypatch, *arguments, "--seeds=42")
  assert capsys.readouterr().out == table
  prepare_data(folder / "data", seed=9)
  for seeds in ("--seeds=42", "--seeds=42,43"):
    with pytest.raises(SystemExit, match="was trained on other data than the data of today: .*item_id.*another --out"):
      call(sweep, monkeypatch, *arguments, seeds)


@pytest.mark.parametrize("name", ["gs://bucket/run", "a[1]", "a\\b"])
def test_a_workdir_that_checkpoints_cannot_have_is_refused_before_training(tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match="workdir="):
    loop.run(domain_config(), name, make_task=DomainTask)
  for program, flag in ((evaluate, "--workdir"), (recommend, "--workdir")):
    with pytest.raises(SystemExit, match="URL|cannot write below"):
      call(program, monkeypatch, f"{flag}={name}", *(("--random=1",) if program is recommend else ()))
  with pytest.raises(SystemExit, match="URL|cannot write below"):
    call(sweep, monkeypatch, "--configs=nowhere.py", f"--out={name}")
  assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_workdir_should_be_is_one_line(tmp_path, monkeypatch):
  (tmp_path / "run").write_text("")
  with pytest.raises(OSError) as error:
    loop.run(domain_config(), str(tmp_path / "run"), make_task=DomainTask)
  assert process.describe(error.value).endswith(
    f"'{tmp_path / 'run'}'; something that is no folder has the name of a folder: move it, or choose another folder"
  )


def test_metrics_that_cannot_be_written_name_the_file(tmp_path):
  class Full:
    name = "run/metrics.jsonl"

    def write(self, text):
      raise OSError(errno.ENOSPC, "No space left on device")

    def close(self):
      pass

  with MetricsWriter(str(tmp_path), "select", 0) as writer:
    writer._files["metrics"].close()
    writer._files["metrics"] = Full()
    with pytest.raises(OSError, match="No space left on device: 'run/metrics.jsonl'"):
      writer.write("train", 1, 1, {"loss": 1.0})
