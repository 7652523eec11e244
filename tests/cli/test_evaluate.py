"""`experiments.evaluate`, `experiments.recommend` and `experiments.sweep` on a run that trains in one second."""

import json
import re
import shutil

import pytest

from jaxrec.cli import evaluate, recommend, sweep
from jaxrec.data.preparation.from_events import from_events
from jaxrec.train import loop
from jaxrec.train.sequence_task import evaluate_baselines
from tests import tiny_run

# ml_collections 1.1 loads config files by a deprecated function of Python.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """The workdir of a finished run and its summary."""
  workdir = tmp_path_factory.mktemp("run")
  config = tiny_run.get_config()
  config.train.num_epochs = 1
  return workdir, loop.run(config, str(workdir))


def test_a_checkpoint_has_the_metrics_of_its_training_run(trained, call):
  workdir, summary = trained
  call(evaluate, f"--workdir={workdir}", "--phase=select")
  scores = json.loads((workdir / "evaluation_test.json").read_text())
  assert scores["hstu"] == pytest.approx(summary["select"]["test_of_selected"], abs=1e-12)
  assert scores["step"] == summary["select"]["best_step"]


def test_the_table_has_a_row_for_each_domain_and_ranker(trained, call):
  text = call(evaluate, f"--workdir={trained[0]}", "--split=validation", "--ks=5")
  lines = [re.split(r" {2,}", line) for line in text.splitlines()]
  assert lines[0] == ["domain", "ranker", "users", "HR@5", "NDCG@5", "MRR"]
  rankers = ["hstu", "popularity", "random"]
  assert [line[:2] for line in lines[1:10]] == [
    [domain, name] for domain in ("all", "book", "film") for name in rankers
  ]
  assert int(lines[1][2]) == int(lines[4][2]) + int(lines[7][2]) == 200


def test_protocol_overrides_the_candidates_of_the_config(trained, call):
  workdir = trained[0]
  call(evaluate, f"--workdir={workdir}", f"--out={workdir}/pooled.json")
  call(evaluate, f"--workdir={workdir}", f"--out={workdir}/each.json", "--protocol=full_per_domain")
  pooled, each = (json.loads((workdir / f"{name}.json").read_text()) for name in ("pooled", "each"))
  assert each["eval"]["protocol"] == "full_per_domain"
  assert each["random"]["MRR"] > pooled["random"]["MRR"]  # Half as many candidates.


def test_lists_and_cold_targets_are_in_tables_of_their_own(trained, call):
  workdir = trained[0]
  text = call(evaluate, f"--workdir={workdir}", f"--out={workdir}/lists.json", "--beyond_accuracy=5", "--ks=1")
  scores = json.loads((workdir / "lists.json").read_text())
  assert "The lists of the first 5:\ndomain  ranker" in text and "\ncold     random" in text
  assert scores["random"]["Coverage@5"] > scores["popularity"]["Coverage@5"]
  assert scores["popularity"]["Novelty@5"] < scores["random"]["Novelty@5"] and scores["popularity"]["Gini@5"] > 0.5
  assert scores["hstu"]["warm/count"] + scores["hstu"]["cold/count"] == scores["hstu"]["count"]


def test_all_events_after_a_cut_are_ranked_beside_the_popularity_of_the_last_days():
  config = tiny_run.get_config()
  config.eval.update(targets="all", recent_days=(1, 2), ks=(1,))
  day, events = 86_400, []
  for user in range(6):  # Item 0 every day until the third, item 1 from then on; each user has an item of its own.
    events += [(user, f"own{user}", 0), *((user, "01"[time >= 3], time * day) for time in range(1, 7))]
  events.append((6, "1", 6 * day))
  columns = dict(zip(("user", "item", "timestamp"), map(list, zip(*events, strict=True)), strict=True))
  data = from_events(columns, split="by_time", validation_time=4 * day, test_time=5 * day)
  scores = evaluate_baselines(config, data, 2)
  assert [*scores] == ["popularity", "random", "popularity_1d", "popularity_2d"]
  assert scores["popularity_2d"]["count"] == 12 and scores["popularity_2d"]["without_history"] == 1
  # Item 1 has been seen, but a target stays a candidate. Item 0 has as many events in all: a tie, if not seen.
  assert scores["popularity_1d"]["HR@1"] == 1.0 and scores["popularity_2d"]["new_users"] == 0
  config.eval.exclude_seen = False
  scores = evaluate_baselines(config, data, 2)
  assert (scores["popularity"]["HR@1"], scores["popularity_1d"]["HR@1"]) == (0.0, 1.0)


def test_all_targets_of_leave_one_out_data_are_the_first_ones(trained, call):
  workdir = trained[0]
  text = call(evaluate, f"--workdir={workdir}", f"--out={workdir}/every.json", "--targets=all", "--ks=1")
  assert "0 of these targets belong to users without an event before the split" in text
  call(evaluate, f"--workdir={workdir}", f"--out={workdir}/first.json", "--ks=1")
  every, first = (json.loads((workdir / f"{name}.json").read_text())["hstu"] for name in ("every", "first"))
  assert {name: every[name] for name in first} == first and every["without_history"] == 0


def test_sampled_metrics_are_in_a_separate_table(trained, call):
  workdir = trained[0]
  text = call(evaluate, f"--workdir={workdir}", f"--out={workdir}/sampled.json", "--sampled_negatives=20", "--ks=1")
  assert "Among 20 sampled negatives; not comparable with full ranking:\ndomain" in text
  scores = json.loads((workdir / "sampled.json").read_text())
  assert scores["random"]["sampled/HR@1"] == pytest.approx(1 / 21, abs=0.05)
  assert scores["hstu"]["sampled/MRR"] > scores["hstu"]["MRR"]


def test_recommendations_are_printed_as_titles(trained, call):
  text = call(recommend, f"--workdir={trained[0]}", "--user=7", "--random=2", "--k=3", "--history=2")
  users = text.strip().split("\n\n")
  assert len(users) == 3
  assert users[0].startswith("User 7\n")
  assert len(re.findall(r"[123]\. +-?\d\.\d{3}  (?:book|film): \w+ \d+", users[0])) == 3


def test_a_held_out_event_is_shown_with_its_rank(trained, call):
  text = call(recommend, f"--workdir={trained[0]}", "--user=7", "--domain=film", "--hold_out")
  assert re.search(r"chosen next: (book|film): .*, rank \d+", text)


@pytest.mark.parametrize(
  "arguments,message",
  [
    (["--user=nobody"], "user 'nobody' is not in the prepared data .200 users such as '0'"),
    (["--user=7", "--domain=opera"], "domain='opera' is unknown; the data has 'book', 'film'"),
    ([], "no user given; use --user=<id>"),
  ],
)
def test_wrong_flags_of_recommend_exit_with_one_line(trained, call, arguments, message):
  with pytest.raises(SystemExit, match=message):
    call(recommend, f"--workdir={trained[0]}", *arguments)


def test_a_folder_without_a_run_exits_with_one_line(tmp_path, call):
  with pytest.raises(SystemExit, match="must be the --workdir of a training run"):
    call(evaluate, f"--workdir={tmp_path}")


def test_a_checkpoint_of_another_config_exits_with_the_difference(trained, tmp_path, call):
  workdir = tmp_path / "copy"
  shutil.copytree(trained[0], workdir)
  config = json.loads((workdir / "config.json").read_text())
  config["model"]["width"] = 4
  (workdir / "config.json").write_text(json.dumps(config))
  with pytest.raises(SystemExit, match="6 is of another config: config.model.width was 8, is 4"):
    call(evaluate, f"--workdir={workdir}")


def test_a_sweep_trains_the_missing_runs_and_prints_the_table(tmp_path, call):
  grid = ["--configs=tests/tiny_run.py", "--override=train.num_epochs=1", f"--out={tmp_path}", "--in_process"]
  assert "1 runs, 0 complete" in call(sweep, *grid, "--seeds=1", "--dry_run")
  call(sweep, *grid, "--seeds=1")
  text = call(sweep, *grid, "--seeds=1,2", "--metrics=MRR")
  assert re.search(r"\| train.num_epochs=1 \| 2 \|.* 0\.\d{4} ± 0\.\d{4} \|", text)
  assert "2 runs, 2 complete" in call(sweep, *grid, "--seeds=1,2", "--dry_run")
