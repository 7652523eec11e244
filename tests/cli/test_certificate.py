"""The certificate of negative transfer: which runs it makes, and what it says of them."""

import json

import numpy as np
import pytest

from experiments import compare_runs
from jaxrec.analysis.paired_bootstrap import UserValues
from jaxrec.cli import certificate
from jaxrec.cli.certificate import PAIRS, checked_config, compare, domains_with_targets, report, runs_of, verdicts
from jaxrec.data.prepared import PreparedData

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
CONFIG = """
import tiny_run

def get_config(model="hstu"):
  config = tiny_run.get_config()
  config.data.options = {"num_users": 60, "num_items": 48, "mean_events": 8.0}
  config.train.num_epochs = 1
  if model != "hstu":
    config.model = {"name": model, "width": 8, "num_layers": 1, "num_heads": 1, "hidden": 8, "max_positions": 16}
  return config
"""


@pytest.fixture
def config(tmp_path):
  path = tmp_path / "small.py"
  path.write_text(CONFIG)
  return path


def loaded(path, model="hstu"):
  namespace = {}
  exec(path.read_text(), namespace)
  return namespace["get_config"](model)


def test_the_variants_differ_in_what_an_event_may_attend_to(config):
  runs = runs_of(checked_config(loaded(config), 5), certificate.VARIANTS, [1, 2], ["books", "films"], 1.5)
  assert [run.name for run in runs[:7]] == [
    "merged-1", "target_domain-1", "intra-1", "intra_target_domain-1", "apart-1", "single1-1", "single2-1",
  ]  # fmt: skip
  assert len({run.name for run in runs}) == len(runs) == 14
  models = {run.variant: run.config.model for run in runs[:7]}
  assert {name: (m.name, m.target_domain, m.get("tape"), m.get("states")) for name, m in models.items()} == {
    "merged": ("hstu", False, None, None), "target_domain": ("hstu", True, None, None),
    "intra": ("multi_domain_hstu", False, False, "none"),
    "intra_target_domain": ("multi_domain_hstu", True, True, "none"), "apart": ("hstu", False, None, None),
    "single": ("hstu", False, None, None),
  }  # fmt: skip
  assert [run.config.data.only_domain for run in runs[4:7]] == ["", "books", "films"]
  assert [run.config.data.domains_apart for run in runs[3:6]] == [False, True, False]
  size = runs[0].config.train.batch_size
  assert [run.config.train.batch_size for run in runs[3:6]] == [size, round(1.5 * size), size]
  assert {(run.config.eval.protocol, run.config.eval.metric, run.config.seed) for run in runs[7:]} == {
    ("full_per_domain", "NDCG@5", 2)
  }


def test_the_domains_of_a_user_are_counted():
  data = PreparedData.from_columns(user=[0, 0, 0, 2], item_id=[1, 2, 3, 1], domain_id=[1, 2, 2, 1])
  assert certificate.mean_domains(data) == 1.5


def test_a_model_without_attention_inside_a_domain_has_fewer_variants(config):
  one = checked_config(loaded(config, "sasrec"), 10)
  assert certificate.variants_for(one) == ("merged", "target_domain", "apart", "single")
  with pytest.raises(ValueError, match=r"--variants=\['intra'\] are not among .*'sasrec'"):
    runs_of(one, ["intra"], [1], [])


@pytest.mark.parametrize(
  ("group", "key", "value", "text"),
  [
    ("multi_objective", "objectives", ("cross_domain_attention",), "one objective and all domains"),
    ("data", "only_domain", "books", "one objective and all domains"),
    ("train", "retrain", True, "must be False here"),
  ],
)
def test_configs_that_the_variants_cannot_be_made_from_are_refused(config, group, key, value, text):
  one = loaded(config)
  one[group][key] = value
  with pytest.raises(ValueError, match=text):
    checked_config(one, 10)


def test_with_several_targets_a_user_there_is_no_model_for_each_domain(config):
  one = loaded(config)
  one.eval.targets = "all"
  assert certificate.variants_for(checked_config(one, 10)) == tuple(certificate.MODELS)
  with pytest.raises(ValueError, match=r"--variants=\['single'\] are not among .* eval.targets='all'"):
    runs_of(one, ["single"], [1], [])


def test_domains_without_a_target_have_no_model_of_their_own():
  data = PreparedData.from_columns(
    user=[0] * 5 + [1] * 5, item_id=[1, 2, 3, 1, 2] * 2, domain_id=[1, 2, 3, 1, 2, 1, 2, 3, 2, 1]
  )
  assert domains_with_targets(data) == ["domain 1", "domain 2"]
  with pytest.raises(ValueError, match="the data have one domain"):
    domains_with_targets(PreparedData.from_columns(user=[0] * 3, item_id=[1, 2, 3], domain_id=[1, 1, 1]))


def test_negative_transfer_is_said_where_it_is_and_nowhere_else():
  rng = np.random.default_rng(0)
  user, domain = np.arange(400), np.repeat([1, 2], 200)
  merged = rng.random((3, 400))
  noise = 0.01 * rng.normal(size=(2, 3, 400))
  values = {"merged": merged, "intra": merged + 0.02 * (domain == 2) - 0.02 * (domain == 1) + noise[0],
            "target_domain": merged + 0.5, "intra_target_domain": merged + 0.4 + noise[1]}  # fmt: skip
  record = compare(
    {name: UserValues(user, domain, value) for name, value in values.items()}, PAIRS, ["books", "films"], 200
  )
  assert record["differences"]["intra - merged"]["films"]["mean"] == pytest.approx(0.02, abs=0.002)
  assert verdicts(record["differences"]) == [
    "intra is above merged by two standard errors: in 'films'. Other domains do harm there.",
    "intra_target_domain is above target_domain by two standard errors nowhere.",
  ]
  del record["differences"]["intra - merged"]
  assert verdicts(record["differences"])[-1].startswith("No negative transfer is shown by attention inside each domain")
  assert "+0.0200" not in report(record, 10) and "target_domain - merged" in report(record, 10)


def test_the_command_trains_the_variants_and_compares_them_user_by_user(config, call, tmp_path):
  arguments = [f"--config={config}", f"--out={tmp_path}/out", "--seeds=1", "--variants=merged,single,apart", "--k=3"]
  listed = call(certificate, *arguments, "--dry_run")
  assert listed.split() == [f"{tmp_path}/out/runs/{name}-1" for name in ("merged", "single1", "single2", "apart")]
  text = call(certificate, *arguments, "--resamples=100")
  record = json.loads((tmp_path / "out" / "certificate.json").read_text())
  means, differences = record["means"], record["differences"]["single - merged"]
  difference = differences.pop("")
  assert 40 < difference["count"] <= 60  # Users with enough events to hold two out.
  assert record["differences"]["apart - merged"][""]["count"] == difference["count"]
  parts = [(one["count"], one["mean"]) for one in differences.values()]
  assert sum(count for count, _ in parts) == difference["count"]
  assert difference["mean"] == pytest.approx(np.average([mean for _, mean in parts], weights=[n for n, _ in parts]))
  assert set(means["merged"]) == {"", *list(means["single"])} and "NDCG@3 within the target's domain" in text
  trainings = record["trainings"]
  assert sorted(trainings) == ["apart-1", "merged-1", "single1-1", "single2-1"]
  assert {one["best_epoch"] for one in trainings.values()} == {1}  # Of one epoch: all end at their best.
  assert text.splitlines()[-2].startswith("At its best when training ended, and perhaps still learning: merged-1, sin")
  assert call(certificate, *arguments, "--resamples=100") == text


def test_runs_that_were_better_before_their_end_are_not_named():
  assert certificate.unfinished({"merged-1": {"best_step": 60, "steps": 90}}) == []


def test_any_runs_compare_as_those_of_the_certificate(config, call, tmp_path):
  out = tmp_path / "out"
  call(certificate, f"--config={config}", f"--out={out}", "--seeds=1", "--variants=merged,apart", "--resamples=100")
  runs = [f"--run={name}={out}/runs/{name}-1" for name in ("merged", "apart")]
  text = call(compare_runs, *runs, "--resamples=100", f"--out={tmp_path}/compared.json")
  found = json.loads((tmp_path / "compared.json").read_text())
  assert found["differences"] == json.loads((out / "certificate.json").read_text())["differences"]
  assert "apart - merged" in text
