"""Training of generative ranking: loop, resume, devices, settings."""

import dataclasses
import json
import signal

import jax
import numpy as np
import pytest

from jaxrec.data.prepared import TEST, VALIDATION
from jaxrec.parallel import make_mesh
from jaxrec.train import loop, ranking_task, writers
from jaxrec.train.monitor import Interrupted
from jaxrec.train.ranking_task import RankingTask, default_config

MESH = make_mesh({"data": 1, "fsdp": 1, "model": 1}, jax.devices()[:1])


def tiny_config(**train):
  """Thirty users with planted actions; seconds."""
  config = default_config()
  config.name = "tiny"
  config.data.source = "planted_actions"
  config.data.options = {"num_users": 30, "num_genres": 2, "items_per_genre": 4, "mean_events": 12.0}
  config.data.max_length = 16
  config.model = {
    "name": "ranking", "width": 8, "num_layers": 1, "num_heads": 1, "head_width": 8, "value_width": 8, "head_hidden": 0,
    "implementation": "reference",
  }  # fmt: skip
  config.optimizer.learning_rate = 1e-2
  config.train.update({"batch_size": 10, "num_epochs": 4, "log_every_steps": 1, "evaluate_every_epochs": 2, **train})
  return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("ranking")
  return workdir, loop.run(tiny_config(retrain=True), str(workdir))


def test_training_lowers_every_loss_and_measures_every_action(whole):
  workdir, summary = whole
  records = [r for r in writers.read_records(str(workdir / "metrics.jsonl")) if r["phase"] == "select"]
  losses = [[r[name] for name in ("like", "reaction", "seconds")] for r in records if r["kind"] == "train"]
  assert (np.array(losses[-1]) < np.array(losses[0])).all()
  test = summary["select"]["test_of_selected"]
  assert {"AUC/like", "accuracy/reaction", "RMSE/seconds", "RIG", "NE/like", "calibration/seconds"} <= set(test)
  assert test["count"] == 30 and summary["final"]["test"]["count"] == 30


def test_a_resumed_run_writes_the_numbers_of_an_uninterrupted_one(whole, tmp_path, monkeypatch):
  workdir, summary = whole

  def stop_after_five(self, step):
    self.number = signal.SIGTERM if step == 5 else 0
    return bool(self.number)

  with monkeypatch.context() as patch, pytest.raises(Interrupted, match="stopped after step 5 of"):
    patch.setattr(loop.StopSignal, "requested", stop_after_five)
    loop.run(tiny_config(retrain=True), str(tmp_path))
  assert {**loop.run(tiny_config(retrain=True), str(tmp_path)), "seconds": 0} == {**summary, "seconds": 0}
  assert (tmp_path / "metrics.jsonl").read_text() == (workdir / "metrics.jsonl").read_text()


@pytest.mark.parametrize("layout", ["interleaved", "one_token"])
def test_predictions_do_not_depend_on_batches_or_packing(layout):
  config = tiny_config()
  config.data.layout = layout
  found = []
  for packing, batch_size in ((True, 256), (False, 7)):
    config.data.packing, config.eval.batch_size = packing, batch_size
    task = RankingTask.from_config(config)
    state = task.init_state(MESH, 10)
    predictions, labels, users = task.predictions(state.params, TEST, MESH)
    order = np.argsort(users, kind="stable")
    found.append([x[order] for x in (*predictions.values(), *labels.values(), users)])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *found)
  is_test = task.data.split == TEST
  np.testing.assert_array_equal(found[0][3], task.data.actions["like"][is_test])


def test_inputs_and_heads_can_be_chosen():
  config = tiny_config()
  config.data.update({"actions": ("like",), "heads": ("seconds",), "features": ("domain",), "context": ("user",)})
  config.data.request = ("hour", "reaction")
  config.eval.metric = "RIG/seconds"
  task = RankingTask.from_config(config)
  state = task.init_state(MESH, 10)
  params = state.params
  assert set(task.evaluate(state, VALIDATION, MESH)) >= {"RMSE/seconds", "RIG"}
  step = task.train_step(MESH, state, 10)
  state, scalars = step(state, task.plan("select", 1, MESH).batches[0])
  assert np.isfinite(float(scalars["loss"])) and [head.name for head in task.model.heads] == ["seconds"]
  assert set(params) >= {"context", "item_features_domain", "item_features_hour"}
  assert "like_table" in params["action_embedding"]


def test_validation_events_are_trained_on_in_the_final_phase():
  task = RankingTask.from_config(tiny_config())
  counts = [
    sum(int(plan.batches[i].weight.sum()) for i in range(plan.timetable.num_steps))
    for plan in (task.plan(phase, 1, MESH) for phase in ("select", "final"))
  ]
  assert counts == [(task.data.split == 0).sum(), (task.data.split <= 1).sum()]


def test_stochastic_length_shortens_training_but_not_evaluation():
  config = tiny_config()
  config.data.stochastic_length, config.data.stochastic_rule = 1.4, "uniform"
  short, plain = RankingTask.from_config(config), RankingTask.from_config(tiny_config())
  plans = [task.plan("select", 1, MESH) for task in (short, plain)]
  assert plans[0].batches.events_kept < 0.9 < plans[1].batches.events_kept == 1
  state = plain.init_state(MESH, 10)
  assert short.evaluate(state, TEST, MESH) == plain.evaluate(state, TEST, MESH)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"data.layout": "two"}, "config.data.layout='two' is unknown"),
    ({"data.stochastic_length": 0.5}, "alpha=0.5 must be above 1"),
    ({"data.heads": ("love",)}, r"config.data.heads has \['love'\]; the data has the actions \['like'"),
    ({"data.request": ("like",)}, r"config.data.request has \['like'\], which are predicted"),
    ({"eval.metric": "NE/like"}, "config.eval.metric='NE/like' must be one of"),
    ({"train.accumulate": 2}, "gradients_at='full'"),
    ({"data.source": "synthetic", "data.options": {"num_users": 5}}, "'synthetic' have no typed actions"),
    ({"model": {"name": "ranking", "width": 8, "depth": 2}}, r"no free field \['depth'\]"),
    ({"multi_objective.weighting": {"name": "best"}}, "weighting name='best'"),
  ],
)
def test_wrong_settings_are_errors(change, message):
  config = tiny_config()
  for name, value in change.items():
    *group, key = name.split(".")
    (config[group[0]] if group else config)[key] = value
  with pytest.raises(ValueError, match=message):
    task = RankingTask.from_config(config)
    task.init_state(MESH, 10)


def test_the_config_survives_json(whole):
  workdir, _ = whole
  config = default_config()
  config.update(json.loads((workdir / "config.json").read_text()))
  ranking_task.check_config(config)
  assert dataclasses.is_dataclass(RankingTask.from_config(config).model)
