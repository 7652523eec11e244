"""The table of click-through models: its grid, the choice of a scale, and a whole table of tiny runs."""

import json

import pytest
from absl import flags

from experiments import click_table

CONFIG = """
import tiny_click


def get_config(choice="twin"):
  config = tiny_click.get_config()
  config.name = f"tiny_{choice}"
  config.model.update({"name": choice, "init_scale": 0.01})
  if choice == "dare":
    config.model.attention_init_scale = 0.01
  config.train.num_epochs = 1
  return config
"""
OVERRIDES = ["optimizer.learning_rate=1e-3"]
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections loads files so.


@pytest.fixture
def config(tmp_path):
  path = tmp_path / "tiny.py"
  path.write_text(CONFIG)
  return str(path)


@pytest.fixture
def given(monkeypatch, config, tmp_path):
  """Sets the flags of the program."""

  def give(*arguments):
    values = flags.FlagValues()
    click_table.define_flags(values)
    values(["click_table", f"--config_file={config}", f"--out={tmp_path / 'out'}", *arguments])
    monkeypatch.setattr(click_table, "FLAGS", values)
    return values

  return give


def test_a_shared_table_has_one_scale_and_decoupled_tables_have_pairs(config):
  jobs = click_table.scale_jobs(config, ["twin", "dare"], ["0.01", "1.0"], OVERRIDES, [1, 2])
  assert [len(found) for found in jobs.values()] == [4, 8]
  scales = {tuple(job.resolved["model"][key.split(".")[1]] for key in click_table.SCALES) for job in jobs["dare"]}
  assert scales == {(a, b) for a in (0.01, 1.0) for b in (0.01, 1.0)}
  assert {job.resolved["optimizer"]["learning_rate"] for job in jobs["twin"]} == {1e-3}
  with pytest.raises(ValueError, match="--variants: 'bert' is not one of"):
    click_table.scale_jobs(config, ["bert"], ["1.0"], [], [1])


def test_the_best_scale_is_that_of_the_best_mean_on_validation(config):
  jobs = click_table.scale_jobs(config, ["twin"], ["0.01", "0.1", "1.0"], OVERRIDES, [1, 2])["twin"]
  found = [0.9, 0.5, 0.75, 0.75, 0.6, 0.8]  # Means .7, .75 and .7.
  results = {
    job.key: {"summary": {"select": {"validation": {"AUC": value}, "test_of_selected": {"AUC": 1 - value}}}}
    for job, value in zip(jobs, found, strict=True)
  }
  assert dict(click_table.best_overrides(jobs, results, "AUC"))["model.init_scale"] == "0.1"


def test_the_plan_counts_the_runs_of_both_steps(given, config):
  values = given("--variants=twin,dare", "--scales=0.01,1.0", "--minutes=2")
  jobs = click_table.scale_jobs(config, values.variants, values.scales, [], [1])
  text = click_table.plan(jobs, values.variants, [1, 2, 3], [1])
  assert "then 4 runs of the other seeds" in text and text.endswith("10 runs, 20 minutes at 2 minutes each")


def test_a_table_of_tiny_runs_names_scales_counts_differences_and_searches(given, config, tmp_path):
  values = given("--variants=twin,sdim", "--scales=0.1", "--resamples=100", "--in_process", "--min_samples=10",
                 "--min_count=1", "--max_rare=12")  # fmt: skip
  jobs = click_table.scale_jobs(config, values.variants, values.scales, [], [1])
  record = json.loads(json.dumps(click_table.make_table(jobs, [1])))
  assert record["scales"] == {name: {"model.init_scale": "0.1"} for name in ("twin", "sdim")}
  assert set(record["baselines"]) == {"popularity", "category counts", "counts"}
  assert set(record["minus_base"]) == {"sdim"} and set(record["minus_counts"]) == {"twin", "sdim"}
  difference = record["models"]["sdim"][0]["AUC"] - record["models"]["twin"][0]["AUC"]
  assert record["minus_base"]["sdim"]["AUC"]["mean"] == pytest.approx(difference, abs=1e-6)
  assert set(record["search"]["sdim"][0]) == {"information_rows"}  # Hash buckets have no scores.
  quality = record["search"]["twin"][0]
  assert quality["information_rows"] > 0 and 0 < quality["information"] <= 1 and 0 < quality["planted"] <= 1
  assert record["search"]["recency"][0]["information_rows"] == quality["information_rows"]
  runs = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
  validated = {run["summary"]["name"]: run["summary"]["select"]["validation"]["AUC"] for run in runs}
  assert {f"tiny_{name}": values for name, (values,) in record["validation"].items()} == validated
  lines = click_table.as_table(record).splitlines()
  assert [line.split("|")[1].strip() for line in lines[2:]] == [
    "popularity", "category counts", "counts", "recency", "twin", "sdim",
  ]  # fmt: skip


def test_a_base_that_is_no_variant_is_refused(given, config):
  values = given("--variants=dare", "--base=twin")
  jobs = click_table.scale_jobs(config, values.variants, ["1.0"], [], [1])
  with pytest.raises(ValueError, match="--base=twin is none of --variants=dare"):
    click_table.make_table(jobs, [1])
