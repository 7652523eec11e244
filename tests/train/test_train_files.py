"""Configs, metrics files, early stopping and the losses that the loop reads."""

import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest

from jaxrec.train import click_task, config, curves, loop, ranking_task
from jaxrec.train.config import check_config, check_groups_read, default_config
from jaxrec.train.monitor import EarlyStopping, Interrupted, LossMonitor, NonFiniteLossError, StopSignal
from jaxrec.train.writers import MetricsWriter, read_records


def config_with(**settings):
  config = default_config()
  config.data.source = "synthetic"
  for name, value in settings.items():
    group, key = name.split("__")
    with config.ignore_type():
      config[group][key] = value
  return config


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"train__batchsize": 3}, "config.train.batchsize is unknown; did you mean config.train.batch_size?"),
    ({"train__batch_size": "3"}, "config.train.batch_size='3' must be of type int, for example 128"),
    ({"train__retrain": 1}, "config.train.retrain=1 must be of type bool"),
    ({"train__patience": True}, "config.train.patience=True must be of type int"),
    ({"train__accumulate": 0}, "config.train.accumulate=0 must be at least 1"),
    (
      {"multi_objective__reweight_every": 4},
      "config.multi_objective.reweight_every=4 needs config.multi_objective.objectives",
    ),
    ({"train__average": 1.0}, "config.train.average=1.0 must be at least 0 and below 1"),
    ({"optimizer__learning_rate": math.nan}, "config.optimizer.learning_rate=nan must be a finite number"),
    ({"optimizer__learning_rate": -1.0}, "config.optimizer.learning_rate=-1.0 must not be negative"),
    ({"optimizer__schedule": "step"}, "config.optimizer.schedule='step' is unknown; use one of"),
    ({"eval__metric": "NDCG@7"}, "config.eval.metric='NDCG@7' is not computed"),
    ({"eval__metric": "sampled/MRR"}, "config.eval.metric='sampled/MRR' is not computed"),
    ({"eval__sampled_negatives": -1}, "config.eval.sampled_negatives=-1 must not be negative"),
    (
      {"data__train_users": "some"},
      "config.data.train_users='some' is unknown; use one of ('all', 'without_held_out')",
    ),
    ({"data__row_length": 100}, "config.data.row_length=100 must be 0 or at least"),
    ({"data__source": ""}, "config.data.source is empty"),
    ({"tables__num_items": -1}, "config.tables.num_items=-1 must be at least 0 and below 2147483646"),
    ({"tables__num_items": 2**31}, "config.tables.num_items=2147483648 must be at least 0 and below 2147483646"),
  ],
)
def test_a_config_that_does_not_fit_is_explained(settings, message):
  with pytest.raises(ValueError) as error:
    check_config(config_with(**settings))
  assert message in str(error.value)


@pytest.mark.parametrize(
  ("settings", "reader"),
  [
    ({"data__mask_probability": 0.3}, {"data__task": "masked_item"}),
    ({"data__reveal_domain": True}, {"data__task": "masked_item"}),
    ({"multi_objective__weighting": {"name": "mgda"}}, {"multi_objective__objectives": ("cross_domain_attention",)}),
    ({"multi_objective__gate": True}, {"multi_objective__objectives": ("cross_domain_attention",)}),
    ({"tables__placement": "parameter", "tables__capacity": 9}, {"tables__placement": "sharded"}),
    ({"tables__rounding": "stochastic"}, {"tables__dtype": "bfloat16"}),
    ({"tables__optimizer": "sgd", "tables__second_moment": "element"}, {"tables__optimizer": "adamw"}),
  ],
)
def test_a_setting_that_nothing_reads_is_refused(settings, reader):
  *_, (changed, _) = settings.items()
  ((name, _),) = reader.items()
  with pytest.raises(ValueError) as error:
    check_groups_read(config_with(**settings), config.GROUPS)
  assert f"config.{changed.replace('__', '.')}=" in str(error.value)
  assert f"is read by nothing where config.{name.replace('__', '.')}=" in str(error.value)
  check_groups_read(config_with(**settings | reader), config.GROUPS)


def test_unread_settings_of_ranking_are_refused_and_runs_that_have_begun_go_on(tmp_path):
  settings = ranking_task.default_config()
  settings.data.source, settings.data.session_gap = "planted_actions", 60
  message = (
    r"session_gap=60 is read by nothing where config.data.unit='user': make that one of \('session',\), or leave"
  )
  with pytest.raises(ValueError, match=message):
    loop.run(settings, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()
  (tmp_path / "config.json").write_text("{}")  # What a run leaves that fails at its start.
  with pytest.raises(ValueError, match=message):
    loop.run(settings, str(tmp_path))
  (tmp_path / "metrics.jsonl").touch()
  loop._check_config(settings, str(tmp_path))


@pytest.mark.parametrize("default", [default_config, click_task.default_config])
@pytest.mark.parametrize("seed", [-1, 2**32 - 1, 2**40, True, 1.5])
def test_a_seed_outside_its_range_is_named(default, seed):
  config = default()
  config.data.source = "planted_interest"
  check_config_of = check_config if default is default_config else click_task.check_config
  config.seed = 2**32 - 2
  check_config_of(config)
  with config.ignore_type():
    config.seed = seed
  with pytest.raises(ValueError, match=rf"config\.seed={seed} must be an integer in 0\.\.4294967294"):
    check_config_of(config)


def test_click_through_data_without_negatives_is_refused_before_training():
  config = click_task.default_config()
  config.data.source, config.data.negatives = "planted_interest", 0
  with pytest.raises(ValueError, match="config.data.negatives=0 must be at least 1"):
    click_task.check_config(config)


def test_the_epoch_may_be_chosen_by_a_sampled_metric_that_is_computed():
  check_config(config_with(eval__metric="sampled/NDCG@10", eval__sampled_negatives=100))


def test_a_missing_setting_is_named():
  config = config_with()
  del config.train.dtype
  with pytest.raises(ValueError, match="config.train.dtype is missing"):
    check_config(config)


def test_settings_of_model_objective_and_source_are_left_to_them():
  check_config(config_with(model__anything=1, objective__anything=2, data__options={"anything": 3}))


def write_some(workdir):
  with MetricsWriter(str(workdir), "select", restored_step=0) as writer:
    for step in (1, 2, 3):
      writer.write("train", step, 1, {"loss": 1.0 / step})
    writer.write("validation", 3, 1, {"NDCG@10": 0.5})
    writer.write("test", 3, 1, {"NDCG@10": 0.25})


def test_records_after_the_restored_step_are_dropped(tmp_path):
  write_some(tmp_path)
  MetricsWriter(str(tmp_path), "select", restored_step=2).close()
  assert [record["step"] for record in read_records(str(tmp_path / "metrics.jsonl"))] == [1, 2]


def test_a_test_record_is_dropped_as_it_will_be_written_again(tmp_path):
  write_some(tmp_path)
  MetricsWriter(str(tmp_path), "select", restored_step=3).close()
  assert [r["kind"] for r in read_records(str(tmp_path / "metrics.jsonl"))] == ["train"] * 3 + ["validation"]


def test_records_of_another_phase_are_left_alone(tmp_path):
  write_some(tmp_path)
  before = (tmp_path / "metrics.jsonl").read_text()
  MetricsWriter(str(tmp_path), "final", restored_step=0).close()
  assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_line_that_was_cut_short_is_dropped(tmp_path):
  write_some(tmp_path)
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"phase": "sel')
  assert len(read_records(str(tmp_path / "metrics.jsonl"))) == 5


def test_numbers_come_back_exactly(tmp_path):
  write_some(tmp_path)
  assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[2])["loss"] == 1.0 / 3


def test_curves_are_drawn_from_the_records(tmp_path):
  write_some(tmp_path)
  path = curves.plot(str(tmp_path))
  assert Path(path).read_bytes()[:4] == b"\x89PNG"


def test_a_domain_may_have_a_name_that_is_no_formula(tmp_path):
  with MetricsWriter(str(tmp_path), "select", restored_step=0) as writer:
    writer.write("validation", 3, 1, {"NDCG@10": 0.5, "domain/$\\frac{$/NDCG@10": 0.5})
  assert curves.plot(str(tmp_path))


class Late:
  """A scalar that notes when it is read, as a value that is still being computed would block."""

  def __init__(self, value, reads):
    self._value, self._reads = value, reads

  def __array__(self, dtype=None, copy=None):
    self._reads.append(self._value)
    return np.asarray(self._value, dtype)


def monitor_of(every_steps=2):
  written = []
  losses = LossMonitor(
    every_steps, lambda step: [10 * step, 10 * step + 1], lambda step, means: written.append((step, means))
  )
  return losses, written


def test_a_loss_is_read_one_step_late():
  losses, reads = monitor_of()[0], []
  for step in (1, 2, 3):
    losses.push(step, {"loss": Late(float(step), reads)})
    assert reads == [float(s) for s in range(1, step)]
  losses.drain()
  assert losses.last_loss == 3.0


def test_the_mean_of_each_interval_is_written():
  losses, written = monitor_of()
  for step in (1, 2, 3, 4, 5):
    losses.push(step, {"loss": np.float32(step)})
  losses.drain()
  assert written == [(2, {"loss": 1.5}), (4, {"loss": 3.5})]


def test_an_unfinished_interval_goes_on_after_a_restart():
  losses, _ = monitor_of()
  losses.push(1, {"loss": np.float32(1)})
  losses.drain()
  kept = json.loads(json.dumps(losses.get_state()))
  resumed, written = monitor_of()
  resumed.set_state(kept)
  resumed.push(2, {"loss": np.float32(2)})
  resumed.drain()
  assert written == [(2, {"loss": 1.5})]


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_a_number_that_is_not_finite_names_the_step_and_the_users(name):
  losses, written = monitor_of(every_steps=1)
  losses.push(7, {"loss": np.float32(1), name: np.float32("inf")})
  with pytest.raises(NonFiniteLossError, match=rf"step 7: {name} is inf. The batch held the users 70, 71\. .*kept"):
    losses.drain()
  assert written == []


def test_early_stopping_goes_on_where_it_was():
  stopping = EarlyStopping("MRR", patience=2)
  stopping.update(1, 10, {"MRR": 0.5})
  stopping.update(2, 20, {"MRR": 0.4})
  resumed = EarlyStopping("MRR", patience=2)
  resumed.set_state(json.loads(json.dumps(stopping.get_state())))
  assert not resumed.should_stop
  resumed.update(3, 30, {"MRR": 0.5})  # An equal one is no improvement.
  assert resumed.should_stop
  assert (resumed.best_epoch, resumed.best_step, resumed.best_values) == (1, 10, {"MRR": 0.5})


def test_without_patience_training_never_stops_early():
  stopping = EarlyStopping("MRR", patience=0)
  for epoch in range(1, 9):
    stopping.update(epoch, epoch, {"MRR": 0.0})
  assert not stopping.should_stop


def test_a_signal_is_seen_after_the_step_and_handlers_come_back():
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(Interrupted), StopSignal() as stop, stop.deferred():
    assert not stop.requested(1)
    signal.raise_signal(signal.SIGTERM)
    assert stop.requested(2)
    assert stop.number == signal.SIGTERM
  assert signal.getsignal(signal.SIGTERM) == before
