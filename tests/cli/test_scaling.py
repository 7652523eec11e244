"""Scaling studies: the sizes of the runs, resuming, and what is written of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY

from jaxrec.cli import scaling, sweep
from jaxrec.cli.scaling import Size, parse_size, scaled, scaling_jobs
from jaxrec.cli.sweep_results import read_results

# ml_collections 1.1 loads config files by a deprecated function of Python.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

CONFIG = str(Path(__file__).parents[1] / "tiny_run.py")
STREAMING = str(REPOSITORY / "experiments" / "configs" / "streaming.py")


def test_widths_of_heads_and_hidden_layers_scale_with_the_model():
  (job,) = scaling_jobs([CONFIG], [Size(width=24)], [], [1])
  model = job.resolved["model"]
  assert (model["width"], model["head_width"], model["value_width"]) == (24, 24, 24)


def test_tables_of_positions_follow_the_length():
  (job,) = scaling_jobs([CONFIG], [Size(length=10)], ["data.row_length=32"], [1])
  assert job.resolved["data"]["max_length"] == 10 and job.resolved["data"]["row_length"] == 20
  assert job.resolved["model"]["max_positions"] == job.resolved["model"]["attention_length"] == 10


def test_what_is_not_scaled_stays_as_in_the_config():
  assert scaled(scaling_jobs([CONFIG], [Size()], [], [1])[0].resolved, Size()) == ()


def test_cheap_sizes_of_all_configs_come_first():
  sizes = [Size(layers=1, share=0.5), Size(layers=2, share=1.0)]
  configs = [f"{STREAMING}:{model}" for model in ("hstu", "sasrec")]
  jobs = scaling_jobs(configs, sizes, [], [1, 2])
  found = [(job.resolved["model"]["num_layers"], job.resolved["model"]["name"], job.seed) for job in jobs]
  assert found == [(layers, model, seed) for layers in (1, 2) for model in ("hstu", "sasrec") for seed in (1, 2)]


@pytest.mark.parametrize("text", ["2x16x64", "twox16x64x1", "2x16x64x0", "0x16x64x1", "2x16x64x1x1"])
def test_what_is_no_size_is_refused(text):
  with pytest.raises(ValueError, match=text):
    parse_size(text)


@pytest.mark.parametrize(
  ("size", "overrides", "message"),
  [
    (Size(width=9), ["model.num_heads=2", "model.head_width=4"], "a fraction|must be divisible"),
    (Size(layers=1), ["model.layerz=2"], "layerz"),
  ],
)
def test_sizes_that_a_model_cannot_have_are_refused_before_any_run(size, overrides, message):
  with pytest.raises(ValueError, match=message):
    scaling_jobs([CONFIG], [size], overrides, [1])


def test_the_same_size_twice_is_refused():
  with pytest.raises(ValueError, match="are the same run"):
    scaling_jobs([CONFIG], [Size(layers=1), Size(layers=1, width=8)], [], [1])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  """A study of two sizes, and its jobs; the second size is not trained, it has numbers of its own."""
  out = str(tmp_path_factory.mktemp("scaling"))
  jobs = scaling_jobs([CONFIG], [Size(share=0.5), Size()], ["train.num_epochs=1"], [1])
  assert sweep.run_jobs(jobs[:1], out, scaling.measuring(sweep.train_here)) == []
  first = read_results(out)[jobs[0].key]["summary"]
  second = first | {"scaling": first["scaling"] | {"share": 1.0, "flops": 9e9, "loss": first["scaling"]["loss"] / 2}}
  assert sweep.run_jobs(jobs, out, lambda job, workdir: second) == []
  return out, jobs


def test_a_run_has_its_compute_and_its_held_out_loss(study):
  out, jobs = study
  found = read_results(out)[jobs[0].key]["summary"]["scaling"]
  assert (found["layers"], found["width"], found["length"], found["share"], found["steps"]) == (1, 8, 16, 0.5, 3)
  assert found["flops"] == 3 * found["flops_per_step"] > 0
  assert 0 < found["loss"] < 3 * np.log(96) and found["encoder_parameters"] == found["parameters"] - 97 * 8


def test_a_study_goes_on_where_it_was_interrupted(study, tmp_path):
  out, jobs = study
  copy = str(tmp_path / "copy")
  shutil.copytree(out, copy)
  started = []

  def train(job, workdir):
    started.append(job.key)
    return read_results(out)[job.key]["summary"]

  more = scaling_jobs([CONFIG], [Size(share=0.5), Size(), Size(share=0.25)], ["train.num_epochs=1"], [1])
  with pytest.raises(KeyError):
    sweep.run_jobs(more, copy, train)
  assert started == [more[2].key]


def test_the_outcome_is_a_table_and_says_that_two_points_are_no_law(study):
  out, jobs = study
  text = scaling.write_outcome(jobs, out, "HR@10")
  assert Path(out, "table.md").read_text() == text + "\n"
  assert text.count("\n| tiny_run | 1 | 8 | 16 |") == 2
  assert "The points do not support a power law in FLOPs: " in text and "at least 5 are needed" in text
  written = json.loads(Path(out, "scaling.json").read_text())
  assert [point["share"] for point in written["curves"][0]["points"]] == [0.5, 1.0]
  assert written["curves"][0]["flops"]["law"] is None


def test_the_plot_is_a_png(study):
  pytest.importorskip("matplotlib")
  out, jobs = study
  scaling.write_outcome(jobs, out, "HR@10")
  assert Path(out, "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_a_metric_that_is_not_reported_is_named(study):
  out, jobs = study
  with pytest.raises(ValueError, match="metric='HR@3' is not reported; there are HR@1"):
    scaling.write_outcome(jobs, out, "HR@3")


def test_a_sweep_is_no_study(study, tmp_path):
  _, jobs = study
  plain = {"select": {"test_of_selected": {"HR@10": 0.5}}}
  sweep.run_jobs(jobs, str(tmp_path), lambda job, workdir: plain)
  with pytest.raises(ValueError, match="has no compute"):
    scaling.write_outcome(jobs, str(tmp_path), "HR@10")
