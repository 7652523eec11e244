"""`evaluate` and `recommend` understand runs of generative ranking."""

import json
import re

import numpy as np
import polars as pl
import pytest

import jaxrec
from jaxrec.cli import evaluate, export, recommend, serve
from jaxrec.cli.ranking_runs import ranking_text
from jaxrec.serving.item_ranker import RankedItem
from jaxrec.train import loop
from jaxrec.train.ranking_task import default_config
from jaxrec.train.runs import load_run


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
  for predictor in ("model", "item", "user", "item and user", "ids", "truth"):
    assert re.search(rf"like +{predictor} +0\.\d{{4}}", text)
  scores = json.loads((workdir / "evaluation_test.json").read_text())
  assert scores["model"]["RIG"] == pytest.approx(summary["select"]["test_of_selected"]["RIG"], abs=1e-6)
  assert scores["item"]["count"] == 20
  bins = scores["reliability"]["like"]
  assert sum(one["count"] for one in bins) == 20 and "ECE" in text
  error = sum(one["count"] * abs(one["predicted"] - one["observed"]) for one in bins) / 20
  assert scores["model"]["ECE/like"] == pytest.approx(error) and scores["model"]["count"] == 20


def test_recommend_ranks_by_weights(trained, call):
  text = call(
    recommend, f"--workdir={trained[0]}", "--user=3", "--k=2", "--weights=like=1,seconds=0.01", "--noexclude_seen"
  )
  found = re.findall(r"[12]\. (\d\.\d{3})  \d+  \(like (0\.\d{3}), .*seconds (\d+\.\d{3})\)", text)
  assert text.startswith("User 3\n") and len(found) == 2
  for score, like, seconds in np.array(found, float):
    assert score == pytest.approx(like + 0.01 * seconds, abs=2e-3)


def test_tables_hold_what_is_printed(trained, call, tmp_path):
  users, out = tmp_path / "users.txt", tmp_path / "ranked.parquet"
  users.write_text("3\n5\n")
  options = (f"--workdir={trained[0]}", "--k=2", "--weights=like=1")
  assert "2 users, 4 recommendations: " in call(
    recommend, *options, f"--users_file={users}", "--noexclude_seen", f"--out={out}"
  )
  rows = pl.read_parquet(out)
  assert rows.columns[:6] == ["user", "rank", "item", "title", "domain", "score"]
  assert rows["user"].to_list() == ["3", "3", "5", "5"] and rows["score"].to_list() == rows["like"].to_list()
  text = call(recommend, *options, "--user=5", "--noexclude_seen")
  assert re.findall(r"[12]\. \d\.\d{3}  (\d+)", text) == rows["item"].to_list()[2:]


def test_users_who_have_seen_everything_have_no_row(trained, call, tmp_path):
  text = call(recommend, f"--workdir={trained[0]}", "--all", "--part_size=3", f"--out={tmp_path / 'all.csv'}")
  found = re.search(r"20 users, (\d+) recommendations(?: \((\d+) without a row)?", text)
  assert pl.read_csv(tmp_path / "all.csv")["user"].n_unique() == 20 - int(found[2] or 0)


def test_a_file_of_histories_is_ranked_like_the_user_who_has_them(trained, call, tmp_path):
  data = load_run(str(trained[0])).task.data
  events = data.user_slice(3)
  columns = {"item": data.items["raw_id"].gather(data.item_id[events] - 1), "timestamp": data.timestamp[events]}
  columns |= {name: values[events] for name, values in data.actions.items()}
  known = pl.DataFrame({"user": ["anna"] * len(columns["timestamp"]), **columns})
  stranger = known[:1].with_columns(user=pl.lit("bert"), item=pl.lit("no such item"))
  pl.concat([known, stranger]).sample(fraction=1, shuffle=True, seed=1).write_csv(tmp_path / "new.csv")
  options = f"--workdir={trained[0]}", "--k=3", "--noexclude_seen"
  text = call(recommend, *options, f"--histories={tmp_path / 'new.csv'}")
  of_user = call(recommend, *options, f"--user={data.user_raw_id(3)}").strip().split("\n", 1)[1]
  assert text.strip() == (
    f"User anna\n{of_user}\n\nUser bert (1 events of unknown items skipped)\n"
    "  no known item in the history: nothing to predict from"
  )
  out = tmp_path / "new.jsonl"
  assert "(1 without a row" in call(recommend, *options, f"--histories={tmp_path / 'new.csv'}", f"--out={out}")
  assert pl.read_ndjson(out)["item"].to_list() == re.findall(r"\d\. \d\.\d{3}  (\d+)", of_user)
  known.drop("like").write_csv(tmp_path / "new.csv")
  with pytest.raises(SystemExit, match="like"):
    call(recommend, *options, f"--histories={tmp_path / 'new.csv'}")


def test_weights_need_a_ranking_run(call, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"task": "sequential"}))
  with pytest.raises(SystemExit, match="--weights ranks by predicted actions"):
    call(recommend, f"--workdir={tmp_path}", "--user=3", "--weights=like=1")


def test_characters_that_do_not_print_are_escaped():
  item = RankedItem(1, "f6", "He\x1b[2Jat", "films", 0.5, {"like": 0.5})
  assert ranking_text("a\nb", [item]) == "User a\\nb\n  1. 0.500  He\\x1b[2Jat  (like 0.500)"


def test_flags_that_make_no_sense_for_a_ranking_run_are_refused(trained, call):
  with pytest.raises(SystemExit, match="domain='opera' is unknown; the data has"):
    call(recommend, f"--workdir={trained[0]}", "--user=3", "--domain=opera")
  with pytest.raises(SystemExit, match="a ranking run does not take --hold_out: `jaxrec evaluate`"):
    call(recommend, f"--workdir={trained[0]}", "--user=3", "--hold_out")
  with pytest.raises(SystemExit, match="at=5 is earlier than the last event"):
    call(recommend, f"--workdir={trained[0]}", "--user=3", "--at=5")
  with pytest.raises(SystemExit, match="does not take --ks, --exclude_seen"):
    call(evaluate, f"--workdir={trained[0]}", "--ks=5", "--exclude_seen")
  with pytest.raises(SystemExit, match=r"weights name \['love'\]"):
    call(recommend, f"--workdir={trained[0]}", "--all", "--weights=love=1", "--out=a.csv")
  with pytest.raises(SystemExit, match="must be like like=1"):
    call(recommend, f"--workdir={trained[0]}", "--user=3", "--weights=like")


def test_what_needs_user_vectors_names_what_to_use_instead(trained):
  with pytest.raises(ValueError, match="holds a run of task 'ranking'.* jaxrec.serving.ActionRanker, .*jaxrec serve"):
    jaxrec.load(trained[0])


@pytest.mark.unchecked_shapes  # A symbolic size is no int.
def test_a_ranking_run_is_exported(trained, call, tmp_path):
  pytest.importorskip("flatbuffers", reason="jax.export writes programs with flatbuffers: pip install 'jaxrec[test]'")
  assert call(export, f"--workdir={trained[0]}", f"--out={tmp_path / 'artifact'}").split() == [
    str(tmp_path / "artifact")
  ]
  signature = json.loads((tmp_path / "artifact/signature.json").read_text())
  assert (signature["task"], signature["score"], signature["longest_history"]) == ("ranking", {"like": 1.0}, 11)


def test_a_ranking_run_is_served(trained, call, monkeypatch):
  pytest.importorskip("fastapi", reason="the server needs pip install 'jaxrec[test]'")
  from jaxrec.serving.server.draining_server import DrainingServer
  from jaxrec.serving.server.forms import ScoreForm

  served = []

  def run(server):
    served.append(server.config.app.state.service.answers)
    server.started = True

  monkeypatch.setattr(DrainingServer, "run", run)
  monkeypatch.setattr(serve.signal, "signal", lambda *_: None)
  assert "serving " in call(serve, f"--workdir={trained[0]}")
  (answer,) = served[0].run([ScoreForm(user="3", items=["2", "1"])])
  assert answer["scores"] == answer["actions"]["like"] and len(answer["scores"]) == 2
  with pytest.raises(SystemExit, match="state_bytes=9 is for models of sequential recommendation"):
    call(serve, f"--workdir={trained[0]}", "--state_bytes=9")
