"""A run on a larger catalogue that begins with what an earlier one learned."""

import functools
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxrec import parallel
from jaxrec.data.prepared import PreparedData
from jaxrec.train import loop
from jaxrec.train.checkpoint import Checkpoints, load_state
from jaxrec.train.earlier_run import first_state
from jaxrec.train.identity import RunIdentity
from jaxrec.train.saved_step import to_dict
from jaxrec.train.sequence_task import SequenceTask
from jaxrec.train.writers import write_json
from tests import tiny_run

MONDAY, TUESDAY = 11, 14  # Items.


def data_of(num_items, seed=0, **names):
  rng = np.random.default_rng(seed)
  items = rng.integers(1, num_items + 1, 90)
  return PreparedData.from_columns(user=np.repeat(np.arange(18), 5), item_id=items, num_items=num_items, **names)


def config_of(kind="parameter", **train):
  config = tiny_run.get_config()
  config.train.num_epochs, config.train.batch_size, config.data.max_length = 1, 18, 4
  config.optimizer.schedule = "linear" if kind != "sharded" else "constant"
  if kind == "masked":
    config.data.task, config.data.mask_probability = "masked_item", 0.3
    config.model = ConfigDict({"name": "bert4rec", "width": 8, "num_layers": 1, "num_heads": 1, "max_positions": 4})
  config.tables.placement = "sharded" if kind == "sharded" else "parameter"
  config.train.update(train)
  return config


def task_of(config, data):
  task = SequenceTask.from_data(config, data)
  return task, task.init_state(parallel.make_mesh(), 10)


def save_run(folder, config, data):
  """Saves a run of which every number has been changed by training, and returns its arrays by name."""
  task, state = task_of(config, data)
  state = jax.tree.map(lambda x: x + 3 if x.ndim == 0 else x + 1 + x[:1], state)
  identity = RunIdentity(str(folder), config, data.fingerprint)
  write_json(str(folder / "config.json"), config.to_dict())
  identity.save_data()
  with Checkpoints(str(folder / "select" / "checkpoints"), task.item_table, identity) as checkpoints:
    checkpoints.save(state, {}, None)
  return flat(task, state)


@pytest.fixture(scope="module")
def monday(tmp_path_factory):
  """The workdir of a run whose item table is a parameter."""
  workdir = tmp_path_factory.mktemp("monday")
  save_run(workdir, config_of(), data_of(MONDAY))
  return str(workdir)


def flat(task, state):
  leaves = jax.tree_util.tree_leaves_with_path(to_dict(state, task.item_table))
  return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


@pytest.mark.parametrize("kind", ["parameter", "masked", "sharded"])
def test_known_rows_are_taken_over_and_new_ones_are_as_initialised(tmp_path, kind):
  for name in ("monday", "tuesday"):
    (tmp_path / name / "select").mkdir(parents=True)
  before = save_run(tmp_path / "monday", config_of(kind), data_of(MONDAY))
  config = config_of(kind, start_from=str(tmp_path / "monday"))
  task, fresh = task_of(config, data_of(TUESDAY))
  initial, found = flat(task, fresh), flat(task, first_state(task, str(tmp_path / "tuesday"), "select", fresh))
  tables = [name for name, array in initial.items() if "items" in name.split("/") and array.ndim]
  assert len(tables) >= 3  # The table and both moments.
  for name, array in found.items():
    if name in tables:
      np.testing.assert_array_equal(array[: MONDAY + 1], before[name][: MONDAY + 1], name)
      np.testing.assert_array_equal(array[MONDAY + 1 : TUESDAY + 1], initial[name][MONDAY + 1 : TUESDAY + 1], name)
      if kind == "masked":  # The token follows the items.
        np.testing.assert_array_equal(array[TUESDAY + 1], before[name][MONDAY + 1], name)
      assert "mu" not in name.split("/") or not array[MONDAY + 1 : TUESDAY + 1].any()
    elif array.ndim:
      np.testing.assert_array_equal(array, before[name], name)
  started = json.loads((tmp_path / "tuesday" / "select" / "started_from.json").read_text())
  assert (started["known_items"], started["new_items"]) == (MONDAY, TUESDAY - MONDAY)


def test_steps_and_schedule_begin_anew_and_moments_keep_their_count(monday, tmp_path):
  (tmp_path / "select").mkdir()
  task, fresh = task_of(config_of(start_from=monday), data_of(TUESDAY))
  state = first_state(task, str(tmp_path), "select", fresh)
  adam, _, schedule = state.opt_state
  assert (int(state.step), int(schedule.count), int(adam.count)) == (0, 0, 3)


def test_a_run_begins_with_the_parameters_of_an_earlier_one(tmp_path):
  run = {}
  for name, num_items, source in (("monday", MONDAY, ""), ("tuesday", TUESDAY, str(tmp_path / "monday"))):
    config = config_of(start_from=source)
    config.optimizer.learning_rate = 0.0 if source else 0.01
    make_task = functools.partial(SequenceTask.from_data, data=data_of(num_items))
    run[name] = loop.run(config, str(tmp_path / name), make_task=make_task)
  started = run["tuesday"]["select"]["started_from"]
  assert (started["known_items"], started["new_items"]) == (MONDAY, TUESDAY - MONDAY)
  assert started["checkpoint"] == str(tmp_path / "monday" / "select" / "checkpoints" / "1")
  assert "started_from" not in run["monday"]["select"]
  before, now = (
    item_rows(tmp_path / name, num_items) for name, num_items in (("monday", MONDAY), ("tuesday", TUESDAY))
  )
  np.testing.assert_array_equal(now[: MONDAY + 1], before)  # Tuesday's rate is 0.


def item_rows(workdir, num_items):
  task, like = task_of(config_of(), data_of(num_items))
  state, _ = load_state(str(workdir / "select" / "checkpoints"), like)
  return np.asarray(state.params["items"]["table"])


WRONG = {
  "no run": ({"start_from": "nowhere"}, {}, FileNotFoundError, "must be the --workdir of a training run"),
  "other items": ({}, {"raw_items": [f"i{n}" for n in range(TUESDAY)]}, ValueError, "their first items are others"),
  "other users": ({}, {"raw_users": [f"u{n}" for n in range(18)]}, ValueError, "their first users are others"),
}


@pytest.mark.parametrize(("train", "names", "kind", "message"), WRONG.values(), ids=WRONG)
def test_data_that_do_not_extend_those_of_the_earlier_run_are_refused(monday, tmp_path, train, names, kind, message):
  task, fresh = task_of(config_of(**{"start_from": monday, **train}), data_of(TUESDAY, **names))
  with pytest.raises(kind, match=message):
    first_state(task, str(tmp_path), "select", fresh)


def test_another_model_is_refused(monday, tmp_path):
  config = config_of(start_from=monday)
  config.model.attention_length = 2
  task, fresh = task_of(config, data_of(TUESDAY))
  with pytest.raises(ValueError, match="is a run of another model: config.model.attention_length was 16, is 2"):
    first_state(task, str(tmp_path), "select", fresh)


def test_a_schedule_of_a_sharded_table_cannot_begin_anew(monday, tmp_path):
  config = config_of("sharded", start_from=monday)
  config.optimizer.schedule = "linear"
  task, fresh = task_of(config, data_of(TUESDAY))
  with pytest.raises(ValueError, match="set config.optimizer.schedule='constant'"):
    first_state(task, str(tmp_path), "select", fresh)
