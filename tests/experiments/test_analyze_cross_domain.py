"""`experiments.analyze_cross_domain` on runs that train in a second."""

import json

import pytest
from absl import flags

from experiments import analyze_cross_domain
from jaxrec.train import loop
from jaxrec.train.config import default_config


def config_of(objectives=(), only_domain=""):
  config = default_config()
  config.name = "planted"
  config.data.source = "planted"
  config.data.options = {"num_users": 24, "items_per_domain": 8, "mean_events": 8.0}
  config.data.only_domain = only_domain
  config.data.max_length = 8
  config.model = {"name": "sasrec", "width": 4, "num_layers": 1, "num_heads": 1, "hidden": 4, "max_positions": 8}
  config.objective = {"name": "full_softmax"}
  config.multi_objective.objectives = objectives
  config.train.num_epochs = 2
  config.train.evaluate_every_epochs = 2
  config.train.batch_size = 12
  config.train.log_every_steps = 1
  config.eval.ks = (1, 10)
  return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """A plain run, one with AutoCDSR, and one of the target domain alone."""
  folder = tmp_path_factory.mktemp("runs")
  settings = {"base": {}, "autocdsr": {"objectives": ("cross_domain_attention",)}, "alone": {"only_domain": "target"}}
  for name, options in settings.items():
    loop.run(config_of(**options), str(folder / name))
  return folder


@pytest.fixture
def call(monkeypatch, capsys):
  """Calls the program with flags, as from a shell, and returns what it printed."""

  def run(*arguments):
    values = flags.FlagValues()
    analyze_cross_domain.define_flags(values)
    values(["analyze_cross_domain", *arguments])
    monkeypatch.setattr(analyze_cross_domain, "FLAGS", values)
    analyze_cross_domain.main(["analyze_cross_domain"])
    return capsys.readouterr().out

  return run


def write_sweep(runs):
  records = [
    {"key": name, "workdir": str(runs / name), "summary": json.loads((runs / name / "summary.json").read_text())}
    for name in ("base", "autocdsr")
  ]
  (runs / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_everything_is_written_for_a_model_before_and_after(runs, call, tmp_path):
  write_sweep(runs)
  names = f"--runs={runs}/base,{runs}/autocdsr"
  text = call(names, f"--single={runs}/alone", f"--sweep={runs}", "--k=3", f"--out={tmp_path}")
  numbers = json.loads((tmp_path / "analysis.json").read_text())
  strata = numbers["strata"]["base"]
  assert strata["all"]["count"] == sum(
    strata[name]["count"] for name in ("single right", "cross right", "both", "none")
  )
  assert 0 < strata["all"]["mean"] < 1
  after, change = numbers["strata"]["autocdsr"]["all"]["mean"], numbers["change"]["autocdsr"]["all"]["mean"]
  assert strata["all"]["mean"] + change == pytest.approx(after)
  assert [len(values) for values in numbers["weights"]["autocdsr"].values()] == [4] * 5
  assert set(numbers["usefulness"]["base"]) == {"all", "planted", "own chain"}
  assert numbers["usefulness"]["base"]["all"]["own"]["count"] == 24
  fixed, automatic = numbers["sweep"]
  assert fixed.keys() == {"0.0"} and automatic.keys() == {"pareto"}
  assert {path.name for path in tmp_path.glob("*.png")} == {
    f"{n}.png" for n in ("strata", "weights", "usefulness", "sweep")
  }
  assert text.splitlines()[1].startswith("base ") and text.splitlines()[2].startswith("autocdsr ")


def test_without_single_domain_models_all_users_are_one_stratum(runs, call, tmp_path):
  assert "all (24 users)" in call(f"--runs={runs}/base", f"--out={tmp_path}")
  assert {path.name for path in tmp_path.glob("*.png")} == {"strata.png", "usefulness.png"}


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ("--runs={0}/alone", "only_domain='target', but --runs are of several domains and --single of one of them"),
    ("--runs={0}/base --single={0}/base", "only_domain='', but --runs are of several domains"),
    ("--runs={0}/base --single={0}/alone,{0}/alone", "--single has several runs of the same domain"),
    ("--runs={0}/nowhere", "must be the --workdir of a training run"),
    ("--runs={0}/base --sweep={0}/base", "has no complete run; pass the --out of an experiments.sweep"),
  ],
)
def test_what_cannot_be_analysed_ends_with_a_sentence(runs, call, tmp_path, arguments, message):
  with pytest.raises(SystemExit, match=message):
    call(*arguments.format(runs).split(), f"--out={tmp_path}")
