"""Items that never occur in training: features of items give them a vector by which they are found."""

import jax
import numpy as np
import pytest
from known_scores import known_data
from ml_collections import ConfigDict

from jaxrec import parallel
from jaxrec.data.item_features import with_item_columns
from jaxrec.data.prepared import TEST, TRAIN, PreparedData
from jaxrec.recommenders import fit
from jaxrec.serving import load_artifact
from jaxrec.serving.artifact import write_artifact
from jaxrec.train.runs import load_run
from jaxrec.train.sequence_task import SequenceTask
from tests import tiny_run

KINDS, EACH, COLD = 6, 10, 3  # Items of each kind, of which the last are cold.


def planted_data():
  """Returns data in which an item of kind c is followed by one of kind c + 1; test events are of cold items."""
  rng = np.random.default_rng(0)
  users, length = 300, 9
  kind = (rng.integers(0, KINDS, users)[:, None] + np.arange(length)) % KINDS
  within = rng.integers(0, EACH - COLD, (users, length))
  within[:, -1] = rng.integers(0, EACH, users)
  split = np.zeros((users, length), int)
  split[:, -2:] = 1, TEST
  data = PreparedData.from_columns(
    user=np.repeat(np.arange(users), length), item_id=(1 + kind * EACH + within).ravel(), split=split.ravel(),
    num_items=KINDS * EACH,
  )  # fmt: skip
  return with_item_columns(data, {"kind": [f"kind {c}" for c in range(KINDS) for _ in range(EACH)]})


def config_of(features=("kind",), **train):
  config = tiny_run.get_config()
  config.model = ConfigDict({"name": "sasrec", "width": 16, "num_layers": 1, "max_positions": 16, "hidden": 16})
  config.data.features, config.data.max_length, config.data.row_length = features, 8, 32
  config.objective = ConfigDict({"name": "full_softmax"})
  config.train.batch_size, config.train.num_epochs, config.train.evaluate_every_epochs = 32, 12, 12
  config.eval.beyond_accuracy = 10
  config.train.update(train)
  return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """Returns the recommenders of runs with features and without."""
  folder = tmp_path_factory.mktemp("cold")
  data = planted_data().save(folder / "data")
  return {
    name: fit(data, config_of(names), workdir=folder / name) for name, names in (("with", ("kind",)), ("without", ()))
  }


def test_cold_items_are_found_by_their_features_and_at_chance_without(runs):
  found = {}
  for name, made in runs.items():
    workdir = made.data.path.parent / name
    run = load_run(str(workdir))
    found[name] = run.task.evaluate(run.state, TEST, parallel.make_mesh())
  assert found["with"]["cold/count"] == found["without"]["cold/count"] > 50
  assert found["with"]["cold/HR@10"] > 0.8
  assert found["without"]["cold/HR@10"] < 0.3  # 10 of 60 items are 0.17.
  assert found["with"]["warm/HR@10"] > 0.8


def test_a_recommender_ranks_with_the_vectors_of_features(runs):
  made = runs["with"]
  matrix, items = made.item_vectors(), made.params["items"]
  rows = np.asarray(items["table"] * items["has_id"] + items["features"] @ items["projection"])[1:]
  np.testing.assert_allclose(matrix, rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-5)
  cold = matrix.reshape(KINDS, EACH, -1)[:, -COLD:]
  np.testing.assert_allclose(cold, cold[:, :1] + 0 * cold, atol=1e-6)  # Nothing but their kind is known of them.


@pytest.mark.unchecked_shapes  # A symbolic size is no int.
def test_an_artifact_has_the_vectors_of_the_recommender(runs, tmp_path):
  pytest.importorskip("flatbuffers", reason="jax.export writes programs with flatbuffers: pip install 'jaxrec[test]'")
  made, cold = runs["with"], str(KINDS * EACH)
  artifact = load_artifact(write_artifact(made, tmp_path / "artifact"))
  np.testing.assert_array_equal(artifact.item_vectors(), made.item_vectors())
  histories = [[("1",), (cold,)], [("12",)]]  # Cold items are read, too.
  np.testing.assert_allclose(
    artifact.user_vectors(histories=histories), made.user_vectors(histories=histories), atol=1e-5
  )


def test_features_are_data_that_training_leaves_as_they_are(runs):
  run = load_run(str(runs["with"].data.path.parent / "with"))
  items, data = run.params["items"], run.task.data
  kind = np.asarray(items["features"]).argmax(axis=1)
  np.testing.assert_array_equal(kind[1:], np.repeat(np.arange(KINDS), EACH))
  known = np.isin(np.arange(data.num_items + 1), [0, *data.item_id[data.split == TRAIN]])
  np.testing.assert_array_equal(np.asarray(items["has_id"])[:, 0], known)
  moments = sum(x.size for x in jax.tree.leaves(run.state.opt_state))
  trained = sum(x.size for x in jax.tree.leaves(run.params)) - items["features"].size - known.size
  assert moments == 2 * trained + 2  # Both moments, and two counts of steps.


def test_a_run_goes_on_with_an_item_that_has_events_now(runs, tmp_path):
  before = runs["with"]
  item = KINDS * EACH  # A cold one.
  data = before.data
  changed = with_item_columns(
    PreparedData.from_columns(
      offsets=data.offsets, item_id=np.where(data.item_id == 1, item, data.item_id), split=data.split,
      num_items=item + 1,
    ),
    {"kind": [*data.items["kind"], "kind 2"]},
  )  # fmt: skip
  config = config_of(num_epochs=1, start_from=str(data.path.parent / "with"))
  config.train.evaluate_every_epochs = 1
  made = fit(changed, config, workdir=tmp_path / "more")
  has_id = np.asarray(made.params["items"]["has_id"])[:, 0]
  assert has_id[[1, item, item + 1]].tolist() == [0, 1, 0]
  new, same_kind = made.item_vectors()[[item, 2 * EACH + EACH - 1]]
  np.testing.assert_allclose(new, same_kind, atol=1e-6)


def test_a_run_with_other_categories_cannot_go_on(runs, tmp_path):
  data = runs["with"].data
  changed = with_item_columns(data, {"kind": [*data.items["kind"][:-1], "another kind"]})
  with pytest.raises(ValueError, match="features.*6.*7"):
    fit(changed, config_of(start_from=str(data.path.parent / "with")), workdir=tmp_path / "more")
  with pytest.raises(ValueError, match="another model: config.data.features was .'kind'., is .."):
    fit(data, config_of((), start_from=str(data.path.parent / "with")), workdir=tmp_path / "ids")


def test_a_sharded_table_with_features_is_refused():
  config = config_of()
  config.tables.placement = "sharded"
  data = with_item_columns(known_data(), {"kind": ["a"] * 6})
  with pytest.raises(ValueError, match="config.data.features: the item table must be a parameter"):
    SequenceTask.from_data(config, data).init_state(None, 10)
