"""`evaluate` and `recommend` understand runs of generative ranking."""

import json
import re

import numpy as np
import pytest

from jaxrec.batches import ActionType
from jaxrec.cli import evaluate, recommend
from jaxrec.data.prepared import PreparedData
from jaxrec.evaluation.action_baselines import evaluate_averages
from jaxrec.train import loop
from jaxrec.train.ranking_task import default_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("ranking")
  config = default_config()
  config.name, config.data.source, config.data.max_length = "tiny", "planted_actions", 12
  config.data.options = {"num_users": 20, "num_genres": 2, "items_per_genre": 4, "mean_events": 8.0}
  config.model = {"name": "ranking", "width": 8, "num_layers": 1, "num_heads": 1, "implementation": "reference"}
  config.train.num_epochs = 1
  return workdir, loop.run(config, str(workdir))


def test_evaluate_compares_the_model_with_averages(trained, call):
  workdir, summary = trained
  text = call(evaluate, f"--workdir={workdir}")
  for predictor in ("model", "item", "user", "item and user"):
    assert re.search(rf"like +{predictor} +0\.\d{{4}}", text)
  scores = json.loads((workdir / "evaluation_test.json").read_text())
  assert scores["model"]["RIG"] == pytest.approx(summary["select"]["test_of_selected"]["RIG"], abs=1e-6)
  assert scores["item"]["count"] == 20


def test_recommend_ranks_by_weights(trained, call):
  text = call(
    recommend, f"--workdir={trained[0]}", "--user=3", "--k=2", "--weights=like=1,seconds=0.01", "--noexclude_seen"
  )
  found = re.findall(r"[12]\. (\d\.\d{3})  \d+  \(like (0\.\d{3}), .*seconds (\d+\.\d{3})\)", text)
  assert text.startswith("User 3\n") and len(found) == 2
  for score, like, seconds in np.array(found, float):
    assert score == pytest.approx(like + 0.01 * seconds, abs=2e-3)


def test_flags_that_make_no_sense_for_a_ranking_run_are_refused(trained, call):
  with pytest.raises(SystemExit, match="a ranking run takes"):
    call(recommend, f"--workdir={trained[0]}", "--user=3", "--domain=mystery")
  with pytest.raises(SystemExit, match="must be like like=1"):
    call(recommend, f"--workdir={trained[0]}", "--user=3", "--weights=like")


def test_averages_by_hand():
  data = PreparedData.from_columns(
    user=[0, 0, 0, 1, 1, 1], item_id=[1, 2, 1, 1, 2, 2], split=[0, 0, 2, 0, 0, 2],
    actions={"stars": [5, 1, 4, 3, 3, 2]}, action_kinds={"stars": "regression"},
  )  # fmt: skip
  found = evaluate_averages(data, (ActionType("stars", "regression", mean=3.0, scale=2.0),), 2)
  item = {1: (5 + 3 + 5 * 3) / 7, 2: (1 + 3 + 5 * 3) / 7}
  assert found["item"]["MAE/stars"] == pytest.approx((abs(item[1] - 4) + abs(item[2] - 2)) / 2)
  assert found["user"]["MAE/stars"] == pytest.approx(1)  # Both users have the overall average, 3.
  assert found["item and user"] == pytest.approx(found["item"])
