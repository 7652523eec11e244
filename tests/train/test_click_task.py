"""Training of click-through models: loop, resuming, best parameters, configs, and a tiny model of its own."""

import dataclasses
import json
import os
import signal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from experiments import analyze_click_through
from experiments.configs import _click_through
from jaxrec.cli import sweep
from jaxrec.data.prepared import TEST, TRAIN, VALIDATION
from jaxrec.evaluation.metrics import auc
from jaxrec.parallel import make_mesh
from jaxrec.train import click_task, loop, writers
from jaxrec.train.click_task import ClickTask, default_config
from jaxrec.train.monitor import Interrupted
from jaxrec.train.runs import load_run
from jaxrec.train.saved_config import saved_config

OPTIONS = {"num_users": 60, "num_categories": 8, "items_per_category": 12, "mean_events": 40.0, "group_size": 2}


def tiny_config(**train):
  """A few dozen users with planted interest; seconds."""
  config = default_config()
  config.name = "tiny"
  config.data.source = "planted_interest"
  config.data.options = OPTIONS
  config.data.history_length = 12
  config.data.min_events = 20
  config.data.targets_per_user = 4
  config.model = {"name": "dare", "width": 4, "top_k": 5, "hidden": (8,), "auxiliary_hidden": (8,)}
  config.train.update({"batch_size": 64, "evaluate_every_steps": 4, "log_every_steps": 2, **train})
  return config


@flax.struct.dataclass
class Output:
  logit: Float[Array, " B"]
  auxiliary_logit: None = None


class Popularity(nn.Module):
  """A learned number for each item: a model need not be one of ours."""

  num_items: int

  @nn.compact
  def __call__(self, batch, deterministic=True):
    seen = self.variable("batch_stats", "batches", jnp.zeros, ())
    if not deterministic:
      seen.value += 1
    return Output(nn.Embed(self.num_items + 1, 1)(jnp.asarray(batch.item))[:, 0])


def popularity_task(config):
  task = ClickTask.from_config(config)
  return dataclasses.replace(task, model=Popularity(task.data.num_items))


def test_a_run_keeps_its_best_parameters_and_scores_the_test_candidates_with_them(tmp_path):
  summary = loop.run(tiny_config(num_epochs=4), str(tmp_path), make_task=popularity_task)
  records = writers.read_records(str(tmp_path / "metrics.jsonl"))
  validation = {r["step"]: r["AUC"] for r in records if r["kind"] == "validation"}
  selected = summary["select"]
  assert selected["best_step"] == max(validation, key=validation.get)
  assert selected["validation"]["AUC"] == max(validation.values())
  assert set(selected["test_of_selected"]) == {"AUC", "GAUC", "GAUC_category", "log_loss", "count"}
  assert selected["test_of_selected"] == {k: v for k, v in records[-1].items() if k in selected["test_of_selected"]}
  assert loop.run(tiny_config(num_epochs=4), str(tmp_path)) == summary


def test_training_lowers_the_loss_and_beats_chance(tmp_path):
  loop.run(tiny_config(num_epochs=8), str(tmp_path))
  losses = [r["main"] for r in writers.read_records(str(tmp_path / "metrics.jsonl")) if r["kind"] == "train"]
  assert losses[-1] < losses[0] - 0.03


def test_a_resumed_run_writes_the_numbers_of_an_uninterrupted_one(tmp_path, monkeypatch):
  whole = loop.run(tiny_config(), str(tmp_path / "whole"), make_task=popularity_task)
  steps = []

  def stop_after_five(self, step):
    steps.append(step)
    self.number = signal.SIGTERM if step == 5 else 0
    return bool(self.number)

  with monkeypatch.context() as patch, pytest.raises(Interrupted, match="stopped after step 5 of"):
    patch.setattr(loop.StopSignal, "requested", stop_after_five)
    loop.run(tiny_config(), str(tmp_path / "cut"), make_task=popularity_task)
  resumed = loop.run(tiny_config(), str(tmp_path / "cut"), make_task=popularity_task)
  assert steps == [1, 2, 3, 4, 5]
  assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}
  assert (tmp_path / "cut/metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()


def test_training_stops_early(tmp_path):
  config = tiny_config(num_epochs=50, patience=2, evaluate_every_steps=1)
  config.optimizer.learning_rate = 0.0
  summary = loop.run(config, str(tmp_path), make_task=popularity_task)
  assert (summary["select"]["steps"], summary["select"]["best_step"]) == (3, 1)


MESH = make_mesh({"data": 1, "fsdp": 1, "model": 1}, jax.devices()[:1])


def test_the_running_statistics_are_kept_beside_the_parameters():
  task = popularity_task(tiny_config())
  state = task.init_state(MESH, 10)
  step = task.train_step(MESH, state, 10)
  for start in (0, 8):
    state, scalars = step(state, task.examples.batch(TRAIN, np.arange(start, start + 8)))
  assert float(state.model_state["batch_stats"]["batches"]) == 2
  assert int(state.step) == 2 and float(scalars["auxiliary"]) == 0


def test_what_is_evaluated_has_the_mean_statistics_of_the_batches():
  task = ClickTask.from_config(tiny_config())
  state = task.init_state(None, 10)
  batches = [task.examples.batch(TRAIN, np.arange(start, start + 16)) for start in (0, 16)]
  renewed = task.renewed_statistics(state, batches)
  variables = {"params": state.params, **state.model_state}
  features = [task.model.apply(variables, batch, deterministic=True).features for batch in batches]
  features = [np.asarray(x, np.float64) for x in features]
  found = renewed.model_state["batch_stats"]["head"]["norm"]
  np.testing.assert_allclose(found["mean"], np.mean([x.mean(axis=0) for x in features], axis=0), atol=1e-7)
  np.testing.assert_allclose(found["variance"], np.mean([x.var(axis=0, ddof=1) for x in features], axis=0), rtol=1e-4)
  assert jax.tree.structure(renewed) == jax.tree.structure(state)
  assert renewed.params is state.params


def test_a_model_without_such_statistics_keeps_its_state():
  task = popularity_task(tiny_config())
  state = task.init_state(None, 10)
  assert task.renewed_statistics(state, [task.examples.batch(TRAIN, np.arange(8))]) is state


def test_evaluation_reads_the_statistics_of_the_latest_batches(tmp_path):
  found = {}
  for count in (0, 1):
    workdir = str(tmp_path / str(count))
    config = tiny_config(statistics_batches=count, num_epochs=1, evaluate_every_steps=2)
    loop.run(config, workdir)
    records = writers.read_records(os.path.join(workdir, "metrics.jsonl"))
    found[count] = {kind: [x for x in records if x["kind"] == kind] for kind in ("train", "validation")}
  assert found[0]["train"] == found[1]["train"]  # Training does not read them.
  assert found[0]["validation"] != found[1]["validation"]


def test_a_model_without_batch_norm_and_with_added_ages_is_trained_from_a_config(tmp_path):
  config = tiny_config(num_epochs=1)
  config.model.update({"batch_norm": False, "age_mode": "add"})
  selected = loop.run(config, str(tmp_path))["select"]
  assert np.isfinite(selected["test_of_selected"]["AUC"])
  model = load_run(str(tmp_path)).task.model
  assert (model.batch_norm, model.age_mode) == (False, "add")


def test_scores_do_not_depend_on_the_size_of_the_batches():
  config = tiny_config()
  task = ClickTask.from_config(config)
  state = task.init_state(None, 10)
  whole = task.evaluate(state, TEST, MESH)
  config.eval.batch_size = 7
  assert task.evaluate(state, TEST, MESH) == pytest.approx(whole, rel=1e-5)
  batch = task.examples.batch(TEST, np.arange(whole["count"]))
  logit = task.model.apply({"params": state.params, **state.model_state}, batch, deterministic=True).logit
  assert whole["AUC"] == pytest.approx(auc(np.asarray(logit), batch.label), abs=1e-6)


def test_retraining_trains_on_the_validation_candidates_too():
  task = ClickTask.from_config(tiny_config())
  select, final = (task.plan(phase, 1, MESH) for phase in ("select", "final"))
  sizes = [task.examples.num_examples(split) for split in (TRAIN, VALIDATION)]
  assert select.timetable.num_steps == sizes[0] // 64 and final.timetable.num_steps == sum(sizes) // 64
  seen = {(u, i) for k in range(final.timetable.num_steps) for u, i in pairs(final.batches[k])}
  assert seen <= {
    pair
    for split, n in zip((TRAIN, VALIDATION), sizes, strict=True)
    for pair in pairs(task.examples.batch(split, np.arange(n)))
  }
  assert not seen <= set(pairs(task.examples.batch(TRAIN, np.arange(sizes[0]))))


def pairs(batch):
  return zip(batch.user_id.tolist(), batch.item.tolist(), strict=True)


def test_trainings_with_other_seeds_are_compared_on_the_same_candidates():
  def items(split, seed, **data):
    config = tiny_config()
    config.seed = seed
    config.data.update(data)
    examples = ClickTask.from_config(config).examples
    return examples.batch(split, np.arange(30)).item.tolist()

  assert items(TEST, 1) == items(TEST, 2) and items(TRAIN, 1) != items(TRAIN, 2)
  assert items(TEST, 1, held_out_seed=-1) == items(TEST, 2, held_out_seed=1) != items(TEST, 2, held_out_seed=-1)


def packed_config(**train):
  """Four targets of a user share a row: rows of 12 candidates."""
  config = tiny_config(**{"batch_size": 48, "num_epochs": 1, **train})
  config.data.targets_per_row = 4
  return config


def test_rows_of_several_targets_train_a_model(tmp_path):
  summary = loop.run(packed_config(), str(tmp_path))
  assert np.isfinite(summary["select"]["test_of_selected"]["AUC"])
  assert summary["select"]["steps"] == ClickTask.from_config(packed_config()).examples.num_examples(TRAIN) // 48


def test_packed_candidates_on_several_microbatches_give_the_gradients_of_a_whole_batch():
  losses = []
  for accumulate in (1, 2):
    config = packed_config(accumulate=accumulate)
    config.model.batch_norm = False  # Its statistics are those of a microbatch.
    task = ClickTask.from_config(config)
    state = task.init_state(MESH, 10)
    step = task.train_step(MESH, state, 10)
    for k in range(2):
      state, scalars = step(state, task.plan("select", 1, MESH).batches[k])
    losses.append(float(scalars["loss"]))
  assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_batch_holds_whole_rows():
  with pytest.raises(ValueError, match=r"train.batch_size=50 must be divisible by .* = 12"):
    ClickTask.from_config(packed_config(batch_size=50)).plan("select", 1, MESH)
  config = packed_config()
  config.data.label = "like"
  with pytest.raises(ValueError, match="config.data.targets_per_row=4 must be 0 with config.data.label"):
    click_task.check_config(config)


def test_a_run_from_before_the_setting_keeps_its_candidates():
  saved = tiny_config().to_dict()
  del saved["data"]["held_out_seed"]
  assert saved_config(saved, default_config()).data.held_out_seed == -1


def test_microbatches_give_the_gradients_of_a_whole_batch():
  """The popularity model has no batch norm, whose statistics are those of a microbatch."""
  losses = []
  for accumulate in (1, 2):
    task = popularity_task(tiny_config(accumulate=accumulate))
    state = task.init_state(MESH, 10)
    step = task.train_step(MESH, state, 10)
    for k in range(3):
      state, scalars = step(state, task.plan("select", 1, MESH).batches[k])
    losses.append(float(scalars["loss"]))
  assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_workdir_of_another_config_is_refused(tmp_path):
  writers.write_json(str(tmp_path / "config.json"), json.loads(json.dumps(tiny_config().to_dict())))
  (tmp_path / "metrics.jsonl").touch()
  with pytest.raises(ValueError, match="config.train.num_epochs was 2, is 3"):
    loop.run(tiny_config(num_epochs=3), str(tmp_path))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"train.batch_size": 0}, "config.train.batch_size=0 must be at least 1"),
    ({"train.batchsize": 1}, "did you mean config.train.batch_size"),
    ({"eval.metric": "MRR"}, "must be one of"),
    ({"data.source": ""}, "config.data.source is empty"),
  ],
)
def test_wrong_settings_are_errors(change, message):
  config = tiny_config()
  for name, value in change.items():
    group, key = name.split(".")
    config[group][key] = value
  with pytest.raises(ValueError, match=message):
    click_task.check_config(config)


def test_a_choice_of_a_config_is_a_variant_and_perhaps_widths():
  norm = {"evaluation_norm": "running", "init_scale": 0.01}
  config = _click_through.config("ctr", "twin_hard-4", width=16)
  assert (config.name, config.model.to_dict()) == ("ctr_twin_hard_4", {"name": "twin_hard", "width": 4} | norm)
  config = _click_through.config("ctr", "dare-4-64", width=16)
  widths = {"width": 4, "attention_width": (24, 24, 16), "attention_init_scale": 0.01}
  assert (config.name, config.model.to_dict()) == ("ctr_dare_4_64", {"name": "dare", **widths} | norm)
  for wrong in ("bert", "dare-4-64-8", "dare-4-60", "dare-a"):
    with pytest.raises(ValueError, match=f"choice='{wrong}'"):
      _click_through.config("ctr", wrong, width=16)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_the_sweep_trains_this_task(tmp_path):
  config = tmp_path / "tiny.py"
  config.write_text(
    "from test_click_task import tiny_config\n\n\ndef get_config():\n  return tiny_config(num_epochs=1)\n"
  )
  jobs = sweep.make_jobs([str(config)], ["model.name=twin"], [1])
  assert "python -m experiments.train --config=" in sweep.plan(jobs, str(tmp_path))
  assert sweep.run_jobs(jobs, str(tmp_path), sweep.train_here) == []
  table = sweep.write_table(jobs, str(tmp_path), ["AUC"])
  assert "test_of_selected/AUC" in table and "model.name=twin" in table


def test_finished_runs_can_be_looked_into(tmp_path):
  summary = loop.run(tiny_config(num_epochs=1), str(tmp_path / "dare"))
  with pytest.raises(ValueError, match="holds a run of task 'click_through'; this needs one of task 'sequential'"):
    load_run(str(tmp_path / "dare"), task="sequential")
  numbers = analyze_click_through.analyze([["DARE", str(tmp_path / "dare")]], str(tmp_path / "look"), [2, 4], 3)
  assert numbers["convergence"]["DARE"][summary["select"]["best_step"]] == summary["select"]["validation"]["AUC"]
  ndcg = numbers["search_ndcg"]["DARE"][0]
  assert min(ndcg["clicked"], ndcg["not clicked"]) <= ndcg["all"] <= max(ndcg["clicked"], ndcg["not clicked"])
  assert 0 <= numbers["discriminability"]["DARE"][0]["2"] <= np.log(2)
  assert numbers["gradients"]["steps"] == 3 and numbers["gradients"]["norm_attention"] > 0
  assert len(numbers["mutual_information"]) == len(numbers["attention"]["DARE"][0]) == 8
  assert json.loads((tmp_path / "look/numbers.json").read_text())["search_ndcg"]["DARE"] == [ndcg]
