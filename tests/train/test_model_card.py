"""The model card that a run leaves in its workdir, and runs on a hub: one commit, one whole folder."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_run

from jaxrec.data.whole_folder import FolderExistsError
from jaxrec.train import loop
from jaxrec.train.hub import MANIFEST, pull_run, push_run
from jaxrec.train.model_card import model_card, write_model_card
from jaxrec.train.runs import load_run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A trained run of two domains."""
  config = tiny_run.get_config()
  config.train.num_epochs = 1
  path = tmp_path_factory.mktemp("card") / "run"
  loop.run(config, str(path))
  (path / "report.html").write_text("names a user")
  return path


class FolderHub:
  """A hub whose repositories are folders; it answers as `huggingface_hub.HfApi` does."""

  def __init__(self, root: Path):
    self.root, self.commits = root, []

  def create_repo(self, repo_id, *, private, exist_ok):
    assert exist_ok
    (self.root / repo_id).mkdir(parents=True, exist_ok=True)
    self.private = private

  def upload_folder(self, *, repo_id, folder_path, commit_message, delete_patterns):
    assert delete_patterns == ["*"]
    shutil.rmtree(self.root / repo_id)
    shutil.copytree(folder_path, self.root / repo_id)
    self.commits.append(commit_message)

  def snapshot_download(self, repo_id, *, revision, local_dir):
    shutil.copytree(self.root / repo_id, local_dir, dirs_exist_ok=True)
    return local_dir


@pytest.fixture
def hub(tmp_path):
  return FolderHub(tmp_path / "hub")


def files(folder):
  return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def test_other_hosts_read_no_records_for_the_card(tmp_path, monkeypatch):
  with pytest.raises(FileNotFoundError, match="the run is not finished"):
    write_model_card(str(tmp_path))
  monkeypatch.setattr("jax.process_index", lambda: 1)
  assert not Path(write_model_card(str(tmp_path))).exists()


def test_a_finished_run_has_a_card_of_its_records(workdir):
  card = (workdir / "model_card.md").read_text()
  assert card == model_card(str(workdir))
  summary = json.loads((workdir / "summary.json").read_text())
  test = summary["select"]["test_of_selected"]
  assert "200 users, 96 items, 2 domains" in card
  assert "chosen by NDCG@10 on validation events: 1 of 1" in card
  assert f"| test | all | {test['count']:,} | {test['HR@1']:.4f} |" in card
  assert f"| test | film | {test['domain/film/count']:,} | {test['domain/film/HR@1']:.4f} |" in card
  assert "knew the time of the event to predict" in card and "fewer than 1,000 targets" in card
  assert f"device {summary['machine']['device']}" in card and f"{summary['seconds']:,.0f} seconds" in card


def test_a_card_has_the_fields_that_a_hub_reads(workdir):
  lines = (workdir / "model_card.md").read_text().splitlines()
  assert lines[0] == "---" and "library_name: jaxrec" in lines[: lines[1:].index("---") + 1]


def test_an_unfinished_run_has_no_card(workdir, tmp_path):
  shutil.copytree(workdir, tmp_path / "run")
  (tmp_path / "run" / "summary.json").unlink()
  with pytest.raises(FileNotFoundError, match="summary.json is not there; the run is not finished"):
    model_card(str(tmp_path / "run"))


def test_a_pulled_run_is_the_pushed_one(workdir, hub, tmp_path):
  push_run(str(workdir), "someone/tiny", api=hub)
  pulled = tmp_path / "pulled"
  pull_run("someone/tiny", str(pulled), api=hub)
  assert hub.private and hub.commits == ["Run run"]
  for name in files(pulled):
    assert (pulled / name).read_bytes() == (workdir / name).read_bytes()
  before, after = (load_run(str(path)) for path in (workdir, pulled))
  assert before.step == after.step and (before.params["items"]["table"] == after.params["items"]["table"]).all()


def test_what_names_users_stays_here(workdir, hub):
  push_run(str(workdir), "someone/tiny", api=hub)
  names = files(hub.root / "someone" / "tiny")
  assert "README.md" in names and "config.json" in names
  assert not {"report.html", "timing.jsonl", ".lock"} & set(names)


def test_files_of_an_earlier_push_are_gone(workdir, hub):
  hub.create_repo("someone/tiny", private=True, exist_ok=True)
  (hub.root / "someone" / "tiny" / "old.bin").write_text("old")
  push_run(str(workdir), "someone/tiny", api=hub)
  assert "old.bin" not in files(hub.root)


DAMAGES = {
  "config.json is not what was pushed": lambda folder: (folder / "config.json").write_text("{}"),
  "summary.json is missing": lambda folder: (folder / "summary.json").unlink(),
  "holds no run of jaxrec": lambda folder: (folder / MANIFEST).unlink(),
  "files.json is no JSON": lambda folder: (folder / MANIFEST).write_text("{"),
  "which is outside of the run": lambda folder: (folder / MANIFEST).write_text('{"../x": ""}'),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_a_damaged_repository_leaves_nothing_behind(workdir, hub, tmp_path, message):
  push_run(str(workdir), "someone/tiny", api=hub)
  DAMAGES[message](hub.root / "someone" / "tiny")
  target = tmp_path / "target"
  target.mkdir()
  with pytest.raises(ValueError, match=message):
    pull_run("someone/tiny", str(target / "run"), api=hub)
  assert list(target.iterdir()) == []


def test_a_download_that_breaks_off_leaves_nothing_behind(workdir, hub, tmp_path):
  push_run(str(workdir), "someone/tiny", api=hub)

  def breaks(repo_id, *, revision, local_dir):
    Path(local_dir, "config.json").write_text("{")
    raise ConnectionError("the line is cut")

  hub.snapshot_download = breaks
  with pytest.raises(ConnectionError):
    pull_run("someone/tiny", str(tmp_path / "run"), api=hub)
  assert files(tmp_path / "run") == [] and not (tmp_path / "run").exists()


def test_a_folder_that_exists_is_not_touched(workdir, hub, tmp_path):
  push_run(str(workdir), "someone/tiny", api=hub)
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "file").write_text("mine")
  with pytest.raises(FolderExistsError):
    pull_run("someone/tiny", str(tmp_path / "mine"), api=hub)
  assert files(tmp_path / "mine") == ["file"]


def test_the_hub_has_the_functions_that_are_called():
  """The signatures of `huggingface_hub.HfApi`, where it is installed."""
  import inspect

  api = pytest.importorskip("huggingface_hub").HfApi
  called = {
    "create_repo": {"repo_id", "private", "exist_ok"},
    "upload_folder": {"repo_id", "folder_path", "commit_message", "delete_patterns"},
    "snapshot_download": {"repo_id", "revision", "local_dir"},
  }
  for name, arguments in called.items():
    assert arguments <= set(inspect.signature(getattr(api, name)).parameters)
