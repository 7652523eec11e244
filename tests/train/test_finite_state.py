"""States that are not finite are neither evaluated nor saved, and a run goes on with other settings on request."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from test_task import DATA, DomainTask, config

from jaxrec.data.batches.evaluation import evaluation_batches
from jaxrec.evaluation.protocols import ranking_metrics
from jaxrec.train import loop, monitor
from jaxrec.train.config import default_config
from jaxrec.train.finite_state import FiniteCheck
from jaxrec.train.monitor import LossMonitor, NonFiniteLossError, NonFiniteStateError
from jaxrec.train.optimizer import make_optimizer
from jaxrec.train.state import TrainState
from jaxrec.train.writers import read_records

STEPS = DomainTask(config()).plan("select", 1, None).timetable.steps_per_epoch


def poisoned(step, change, lowest_rate=0.0):
  """Returns a task whose state is changed after a step, where the learning rate is high enough; losses are finite."""

  class Poisoned(DomainTask):
    def train_step(self, mesh, like, total_steps):
      make = super().train_step(mesh, like, total_steps)

      def train_step(state, batch):
        state, scalars = make(state, batch)
        is_due = int(state.step) == step and self.config.optimizer.learning_rate > lowest_rate
        return (change(state) if is_due else state), scalars

      return train_step

  return Poisoned


def nan_params(state):
  return state.replace(params=jax.tree.map(lambda x: x * jnp.nan, state.params))


def one_infinite_moment(state):
  def infinite(x):
    return x.at[(0,) * x.ndim].set(jnp.inf) if jnp.issubdtype(x.dtype, jnp.floating) else x

  return state.replace(opt_state=jax.tree.map(infinite, state.opt_state))


def saved_steps(workdir, phase="select"):
  return sorted(int(path.name) for path in (workdir / phase / "checkpoints").iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  loop.run(config(), str(workdir), make_task=DomainTask)
  return workdir


@pytest.mark.parametrize(
  ("step", "change", "message"),
  [
    (STEPS, nan_params, rf"step {STEPS}: 16 of 16 values of params/Embed_0/embedding became NaN or infinite"),
    (STEPS, one_infinite_moment, r"1 of 16 values of opt_state/0/mu/Embed_0/embedding .*\(and 1 more arrays"),
    (3, nan_params, r"steps 1 to 3: 16 of 16 values of params"),  # Saved, not evaluated.
    (4 * STEPS, nan_params, r"values of params.*--resume_with_changes"),  # The last step of the phase.
  ],
)
def test_a_state_that_is_not_finite_is_neither_evaluated_nor_saved(whole, tmp_path, step, change, message):
  with pytest.raises(NonFiniteStateError, match=message):
    loop.run(config(), str(tmp_path), make_task=poisoned(step, change))
  assert all(saved < step for saved in saved_steps(tmp_path))
  records = read_records(str(tmp_path / "metrics.jsonl"))
  assert [r for r in records if r["kind"] == "validation" and r["step"] >= step] == []
  loop.run(config(), str(tmp_path), make_task=DomainTask)  # Without the fault, from a good checkpoint or anew.
  assert (tmp_path / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


def test_the_last_step_of_the_final_phase_is_checked_before_the_test_events_are_scored(tmp_path):
  settings = config()
  settings.train.retrain, settings.train.num_epochs = True, 1
  faults = poisoned(STEPS, nan_params)

  class OnlyInFinal(faults):
    def train_step(self, mesh, like, total_steps):
      is_final = (tmp_path / "select/result.json").exists()
      return (faults if is_final else DomainTask).train_step(self, mesh, like, total_steps)

  with pytest.raises(NonFiniteStateError):
    loop.run(settings, str(tmp_path), make_task=OnlyInFinal)
  assert not (tmp_path / "summary.json").exists()
  assert [r["phase"] for r in read_records(str(tmp_path / "metrics.jsonl")) if r["kind"] == "test"] == ["select"]


@pytest.mark.parametrize("field", ["params", "opt_state", "average", "tables", "model_state"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_part_of_the_state_is_checked(field, dtype):
  good = {"rows": jnp.zeros((5, 2), dtype), "ids": jnp.arange(3)}
  state = TrainState(jnp.array(1), good, good, good, good, good)
  FiniteCheck(0).check(1, state)
  bad = state.replace(**{field: {**good, "rows": good["rows"].at[3, 1].set(-jnp.inf)}})
  with pytest.raises(NonFiniteStateError, match=f"step 1: 1 of 10 values of {field}/rows"):
    FiniteCheck(0).check(1, bad)


def test_a_state_is_checked_once():
  check, bad = FiniteCheck(4), TrainState(jnp.array(4), jnp.array(jnp.nan), None)
  check.check(4, bad)
  with pytest.raises(NonFiniteStateError, match="steps 5 to 7"):
    check.check(7, bad)


def test_a_run_that_diverged_goes_on_with_a_lower_learning_rate_on_request(tmp_path):
  task = poisoned(STEPS + 1, nan_params, lowest_rate=1.0)
  fast, slow = config(), config()
  fast.optimizer.learning_rate, slow.optimizer.learning_rate = 2.0, 0.1
  fast.train.checkpoint_every_steps = slow.train.checkpoint_every_steps = 1
  with pytest.raises(NonFiniteStateError):
    loop.run(fast, str(tmp_path), make_task=task)
  with pytest.raises(ValueError, match="config.optimizer.learning_rate may change .*--resume_with_changes"):
    loop.run(slow, str(tmp_path), make_task=task)
  summary = loop.run(slow, str(tmp_path), resume_with_changes=True, make_task=task)
  changes = ["config.optimizer.learning_rate was 2.0, is 0.1"]
  assert summary["changes"] == [{"phase": "select", "after_step": STEPS, "changes": changes}]
  assert json.loads((tmp_path / "changes.json").read_text()) == summary["changes"]
  assert json.loads((tmp_path / "config.json").read_text())["optimizer"]["learning_rate"] == 0.1
  rates = {r["step"]: r["learning_rate"] for r in read_records(str(tmp_path / "metrics.jsonl")) if r["kind"] == "train"}
  assert (rates[2], rates[2 * STEPS]) == (2.0, pytest.approx(0.1))
  assert loop.run(slow, str(tmp_path), make_task=task) == summary


def stop_after(monkeypatch, step):
  monkeypatch.setattr(loop.StopSignal, "requested", lambda stop, now: now == step and not setattr(stop, "number", 15))


def test_clipping_may_begin_in_a_run_and_its_length_may_change(tmp_path, monkeypatch):
  with monkeypatch.context() as patch, pytest.raises(monitor.Interrupted):
    stop_after(patch, STEPS + 1)
    loop.run(config(), str(tmp_path), make_task=DomainTask)
  changed = config()
  changed.train.num_epochs = 1
  with pytest.raises(ValueError, match="the run has made 5 steps.*num_epochs=1 ends after 4; set it to 2 or more"):
    loop.run(changed, str(tmp_path), resume_with_changes=True, make_task=DomainTask)
  changed.optimizer.clip_norm, changed.train.num_epochs = 1.0, 5
  summary = loop.run(changed, str(tmp_path), resume_with_changes=True, make_task=DomainTask)
  assert summary["select"]["epochs"] == 5
  assert [change["after_step"] for change in summary["changes"]] == [STEPS + 1]


@pytest.mark.parametrize(
  ("group", "key", "value"), [("data", "max_length", 7), ("model", "name", "sasrec"), ("train", "average", 0.9)]
)
def test_what_makes_another_run_is_refused_with_the_flag_too(whole, tmp_path, group, key, value):
  for name in ("config.json", "metrics.jsonl"):
    (tmp_path / name).write_text((whole / name).read_text())
  changed = config()
  changed[group][key] = value
  with pytest.raises(ValueError, match=f"holds a run of another config: config.{group}.{key}"):
    loop.run(changed, str(tmp_path), resume_with_changes=True, make_task=DomainTask)


def test_a_setting_that_fails_at_the_start_may_be_mended_in_the_same_folder(tmp_path):
  wrong = config()
  wrong.optimizer.warmup_steps = 1_000
  with pytest.raises(ValueError, match="warmup_steps=1000 must be less than"):
    loop.run(wrong, str(tmp_path), make_task=DomainTask)
  mended = config()
  mended.data.max_length = 7
  loop.run(mended, str(tmp_path), make_task=DomainTask)
  assert json.loads((tmp_path / "config.json").read_text())["data"]["max_length"] == 7


def test_a_finished_run_keeps_its_settings(whole):
  changed = config()
  changed.optimizer.learning_rate = 0.1
  with pytest.raises(ValueError, match="learning_rate was 0.3, is 0.1"):
    loop.run(changed, str(whole), resume_with_changes=True, make_task=DomainTask)


def test_the_state_of_the_optimizer_is_the_same_with_and_without_clipping():
  settings = default_config().optimizer
  plain = make_optimizer(settings, 10).init(jnp.zeros(3))
  settings.clip_norm = 0.5
  assert jax.tree.structure(make_optimizer(settings, 10).init(jnp.zeros(3))) == jax.tree.structure(plain)


def test_queries_that_are_not_finite_are_not_ranked():
  vectors = np.ones((DATA.num_items + 1, 2), np.float32)
  batches = list(evaluation_batches(DATA, 1, 16, 8))
  queries = np.ones((16, 2), np.float32)
  queries[3, 1] = np.nan
  with pytest.raises(ValueError, match=f"query vectors of 1 users, {batches[0].user[3]} among them, are not finite"):
    ranking_metrics(lambda batch: queries, vectors, DATA, batches)


def test_rows_that_pad_a_batch_may_be_anything():
  vectors = np.ones((DATA.num_items + 1, 2), np.float32)
  batches = [dataclasses.replace(batch) for batch in evaluation_batches(DATA, 1, 64, 8)]

  def queries(batch):
    return np.where(batch.user[:, None] < 0, np.nan, np.ones((len(batch.user), 2))).astype(np.float32)

  assert sum((batch.user < 0).sum() for batch in batches) > 0
  assert ranking_metrics(queries, vectors, DATA, batches)["count"] == DATA.num_users


def test_batches_without_targets_warn_once(monkeypatch):
  warnings, written = [], []
  monkeypatch.setattr(logging, "warning", lambda text, *values, **_: warnings.append(text % values))
  losses = LossMonitor(1, lambda step: [], lambda step, means: written.append(means))
  for step, loss in enumerate((3, 0, 0), 1):
    losses.push(step, {"loss": np.float32(loss)})
  losses.drain()
  assert [text.split(", and")[0] for text in warnings] == [
    "step 2: the loss is exactly 0: no target of the batch has weight"
  ]
  assert written == [{"loss": 3.0}, {"loss": 0.0}, {"loss": 0.0}]


def test_a_loss_that_is_not_finite_says_how_to_go_on():
  losses = LossMonitor(1, lambda step: [], lambda step, means: None)
  losses.push(1, {"loss": np.float32("nan")})
  with pytest.raises(NonFiniteLossError, match="learning_rate.*--resume_with_changes.*delete its folder"):
    losses.drain()
