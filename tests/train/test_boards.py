"""Boards: what they are told, what is missing, and MLflow and W&B where they are installed."""

import json
import sys

import pytest
import tiny_run

from jaxrec.train import boards, loop
from jaxrec.train.boards import check_boards, metric_name, open_boards
from jaxrec.train.writers import MetricsWriter


class Listener:
  """A board that notes what it is told."""

  package = "json"

  def __init__(self, *_):
    self.told, self.is_open = [], True

  def write(self, kind, step, values):
    self.told.append((kind, step, dict(values)))

  def close(self):
    self.is_open = False


def config_with(*names):
  config = tiny_run.get_config()
  config.train.boards = names
  return config


def test_a_board_is_told_what_the_file_is_told(tmp_path):
  listener = Listener()
  with MetricsWriter(str(tmp_path), "select", 0, open_boards=lambda: [listener]) as writer:
    writer.write("train", 4, 1, {"loss": 0.5})
    writer.write_timing("train", 4, {"seconds": 1.0})
    writer.write("validation", 4, 1, {"HR@10": 0.25})
  assert listener.told == [("train", 4, {"loss": 0.5}), ("validation", 4, {"HR@10": 0.25})]
  assert not listener.is_open
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["kind"] for line in lines] == ["train", "validation"]


def test_a_board_that_fails_is_warned_about_and_stops_nothing(tmp_path, caplog):
  class Unreachable(Listener):
    def write(self, kind, step, values):
      raise ConnectionError("no route to host")

  listener = Listener()
  with MetricsWriter(str(tmp_path), "select", 0, open_boards=lambda: [Unreachable(), listener]) as writer:
    writer.write("train", 4, 1, {"loss": 0.5})
  assert listener.told and "Unreachable did not take step 4: no route to host" in caplog.text


def test_a_board_of_ones_own_has_a_name(monkeypatch, tmp_path):
  monkeypatch.setitem(boards.BOARDS, "mine", Listener)
  check_boards(("mine",))
  (board,) = open_boards(config_with("mine"), str(tmp_path), "select", 0)
  assert isinstance(board, Listener)


def test_no_board_is_a_choice(tmp_path):
  assert open_boards(config_with(), str(tmp_path), "select", 0) == []


def test_an_unknown_board_is_refused_before_training(tmp_path):
  with pytest.raises(ValueError, match="config.train.boards=.* has .'comet'., which are unknown"):
    loop.run(config_with("comet"), str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow")])
def test_a_board_without_its_package_is_an_error_that_says_what_to_install(name, package, monkeypatch):
  monkeypatch.setattr(boards.importlib.util, "find_spec", lambda _: None)
  with pytest.raises(ValueError, match=rf"config.train.boards has '{name}', but {package} is not installed: pip inst"):
    check_boards((name,))


def test_tensorboard_may_be_missing(monkeypatch, tmp_path):
  monkeypatch.setattr(boards.importlib.util, "find_spec", lambda _: None)
  check_boards(("tensorboard",))
  assert open_boards(config_with("tensorboard"), str(tmp_path), "select", 0) == []


def test_names_of_metrics_have_characters_that_boards_allow():
  assert metric_name("validation", "domain/Toys & Games/NDCG@10") == "validation/domain/Toys _ Games/NDCG_10"


def test_wandb_is_told_steps_in_the_run_of_the_folder(monkeypatch, tmp_path):
  """Against a module in its place, which notes the calls."""
  calls = []

  class Run:
    def log(self, values, step):
      calls.append((values, step))

    def finish(self):
      calls.append("finish")

  module = type(sys)("wandb")
  module.init = lambda **options: calls.append(options) or Run()
  monkeypatch.setitem(sys.modules, "wandb", module)
  for _ in range(2):
    board = boards.WeightsAndBiases(config_with("wandb"), str(tmp_path), "select", 0)
    board.write("test", 7, {"HR@10": 0.5})
    board.close()
  assert calls[1:3] == [({"test/HR_10": 0.5}, 7), "finish"]
  assert calls[0]["id"] == calls[3]["id"] and calls[0]["resume"] == "allow"
  assert calls[0]["config"]["model"]["name"] == "hstu"


@pytest.fixture
def mlflow(monkeypatch):
  """MLflow with its file store."""
  pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'jaxrec[mlflow]'")
  monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
  monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "")  # Set by the board, and put back after the test.
  monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
  return sys.modules["mlflow"]


@pytest.mark.filterwarnings("ignore")  # Of packages that MLflow imports.
def test_mlflow_keeps_the_numbers_of_a_run_and_of_its_resumption_once(mlflow, tmp_path):
  for steps in ((1, 2, 3), (3, 4)):  # The second process makes step 3 again.
    board = boards.MLflow(config_with("mlflow"), str(tmp_path), "select", steps[0] - 1)
    for step in steps:
      board.write("train", step, {"loss": 1 / step})
    board.close()
  client = mlflow.MlflowClient(f"file:{tmp_path / 'mlruns'}")
  (run,) = client.search_runs([client.get_experiment_by_name("jaxrec").experiment_id])
  history = client.get_metric_history(run.info.run_id, "train/loss")
  assert sorted((metric.step, metric.value) for metric in history) == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
  assert run.data.params["model.name"] == "hstu" and run.info.status == "FINISHED"
