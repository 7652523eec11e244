"""Next-item models with `num_actions` add a vector of what the user did to each event, in training and for requests."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from known_scores import DAY, known_data

import jaxrec
from jaxrec.batches import next_item_batch
from jaxrec.cli.history_files import read_histories
from jaxrec.data.preparation.prepare import prepare
from jaxrec.data.prepared import PreparedData
from jaxrec.models.batch_check import check_batch
from jaxrec.serving.artifact import write_artifact
from jaxrec.serving.incremental_recommender import with_states
from jaxrec.train.config import default_config
from jaxrec.train.sequence_task import SequenceTask

SIZES = {"width": 8, "num_layers": 1, "num_heads": 2, "max_positions": 8, "num_actions": 3}
MODEL = jaxrec.SASRec(num_items=6, **SIZES)
BATCH = next_item_batch(np.array([[5, 3, 1, 2]], np.int32))
NAMES = {"action_names": {"action": ["buy", "cart", "view"]}}


@functools.cache
def params():
  rng, found = np.random.default_rng(0), jax.jit(MODEL.init)(jax.random.key(0), BATCH)["params"]
  return jax.tree.map(lambda x: x + 0.5 * rng.normal(size=x.shape).astype(x.dtype), found)


@functools.cache
def recommender():
  data = known_data(action=[1, 2, 0, 3, 1, 1, 2, 3])
  config = default_config()
  config.data.max_length = 8
  return jaxrec.Recommender(MODEL, params(), dataclasses.replace(data, meta={**data.meta, **NAMES}), config)


def encode(*action):
  batch = BATCH.replace(action=np.array([action], np.int32) if action else None)
  return np.asarray(MODEL.apply({"params": params()}, batch))[0]


def test_an_action_changes_what_is_predicted_after_its_event_and_not_before():
  one, other = encode(1, 2, 3, 0), encode(1, 2, 1, 0)
  np.testing.assert_array_equal(one[:2], other[:2])
  assert np.abs(one[2:] - other[2:]).max(axis=1).min() > 1e-3


def test_a_batch_without_actions_is_one_of_events_with_action_0():
  np.testing.assert_array_equal(encode(), encode(0, 0, 0, 0))


def test_an_action_that_the_model_has_no_vector_for_is_refused():
  batch = BATCH.replace(action=np.array([[1, 4, 0, 0]], np.int32))
  with pytest.raises(ValueError, match=r"batch.action\[0, 1\] = 4 is outside 0..3: the model has num_actions=3"):
    check_batch(batch, MODEL)


@pytest.mark.parametrize(
  ("action", "message"),
  [
    ([1, 4, 2, 1], "config.model.num_actions=3 is less than 4, the largest action of the data"),
    (None, "config.model.num_actions=3, but the data has no actions; see --action of prepare"),
  ],
)
def test_a_model_of_other_actions_than_the_data_is_refused_before_training(action, message):
  config = default_config()
  config.model = {"name": "sasrec", **SIZES}
  data = PreparedData.from_columns(user=[0] * 4, item_id=[1, 2, 3, 1], action=action)
  with pytest.raises(ValueError, match=message):
    SequenceTask.from_data(config, data)


def test_a_stranger_with_the_events_and_actions_of_a_user_has_the_users_vector():
  events = [("b1", 0, None, "buy"), ("f4", DAY, "films", "cart"), ("b2", 2 * DAY), ("f5", 3 * DAY, None, 3)]
  expected = recommender().user_vectors(users=["ann"])
  np.testing.assert_allclose(recommender().user_vectors(histories=[events]), expected, atol=1e-6)
  without = recommender().user_vectors(histories=[[event[:2] for event in events]])
  assert np.abs(without - expected).max() > 1e-3


@pytest.mark.parametrize("action", ["sell", -1, 1.5, True])
def test_an_unknown_action_of_a_stranger_is_refused(action):
  message = f"history 0, event 0: action {action!r} must be one of 'buy', 'cart', 'view', or a whole number, 0 for none"
  with pytest.raises(ValueError, match=message):
    recommender().user_vectors(histories=[[("b1", 0, None, action)]])


def test_what_cannot_read_actions_refuses_the_model(tmp_path):
  with pytest.raises(NotImplementedError, match="num_actions=3: a history with actions is read at once"):
    with_states(recommender(), 10**6)
  with pytest.raises(NotImplementedError, match="a model that reads actions cannot be exported"):
    write_artifact(recommender(), tmp_path / "artifact")


def test_actions_of_strangers_are_read_from_the_column_of_the_prepared_table(tmp_path):
  log = tmp_path / "log.csv"
  log.write_text("user,item,timestamp,did\n" + "".join(f"u{i},s{i},{i},view\n" for i in range(4)))
  data = prepare("table", log, action="did")
  (tmp_path / "new.csv").write_text("user,item,timestamp,did\nu9,s2,7,view\n")
  assert read_histories(str(tmp_path / "new.csv"), data, with_actions=True) == {"u9": [("s2", 7, None, "view")]}
  assert read_histories(str(tmp_path / "new.csv"), data) == {"u9": [("s2", 7)]}
