"""An exported ranking model: its tokens are those of the data pipeline, and what cannot be exported is refused."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from random_ranker import ACTIONS, DATA, LENGTH, events_of, random_ranker, values_in_training
from readme_loader import loader

pytest.importorskip("flatbuffers", reason="jax.export writes programs with flatbuffers: pip install 'jaxrec[test]'")

from jaxrec.batches import ActionType  # noqa: E402
from jaxrec.data.batches.ranking_batches import history_batch  # noqa: E402
from jaxrec.data.batches.ranking_rows import LAYOUTS, RankingColumns  # noqa: E402
from jaxrec.serving import load_artifact  # noqa: E402
from jaxrec.serving.ranking_artifact import history_tokens, write_ranking_artifact  # noqa: E402

ALL = (*ACTIONS, ActionType("seconds", "regression", 2, mean=30, scale=10))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokens_are_those_of_the_data_pipeline(layout):
  columns, first, end = RankingColumns(DATA, ("domain",)), DATA.offsets[:-1], DATA.offsets[1:]
  most = int((end - first).max()) + 2
  size = most * (2 if layout == "interleaved" else 1)
  expected = history_batch(columns, layout, first, end, size)

  ends = list(zip(first, end, strict=True))

  def padded(values, dtype):
    rows = [np.pad(np.asarray(values[low:high], dtype), (0, most - (high - low))) for low, high in ends]
    return jnp.stack(rows)

  actions = {name: padded(x, "float32" if name == "seconds" else "int32") for name, x in DATA.actions.items()}
  time = padded(columns.events.seconds(np.arange(len(DATA.item_id))), "int32")
  features = {"domain": jnp.asarray(columns.item_features["domain"], jnp.int32)}
  found = history_tokens(layout, padded(DATA.item_id, "int32"), time, actions, features)
  for field in dataclasses.fields(found):
    if field.name not in ("user_id", "actions", "features"):
      np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name), err_msg=field.name)
  np.testing.assert_array_equal(found.features["domain"], expected.features["domain"])
  for name, values in expected.actions.items():
    np.testing.assert_array_equal(found.actions[name], values)


@pytest.mark.unchecked_shapes  # A symbolic size is no int.
def test_two_tokens_an_event_and_numbers_are_exported_too(tmp_path):
  ranker = random_ranker("interleaved", ALL)
  predict = loader(write_ranking_artifact(ranker, tmp_path / "artifact"))
  expected = values_in_training(ranker)
  found = predict(events_of(1), [3, 5])
  assert list(found) == ["like", "reaction:0", "reaction:1", "reaction:2", "seconds"]
  for name, values in found.items():
    np.testing.assert_allclose(values, expected[name][1, [2, 4]], rtol=1e-5, atol=1e-5)
  signature = json.loads((tmp_path / "artifact/signature.json").read_text())
  assert signature["score"] == {"like": 1.0} and signature["longest_history"] == LENGTH - 1


@pytest.mark.unchecked_shapes  # A symbolic size is no int.
def test_an_artifact_ranks_as_its_model(tmp_path):
  ranker = random_ranker("interleaved", ALL)
  folder = write_ranking_artifact(ranker, tmp_path / "artifact")
  found = load_artifact(folder)
  assert (found.value_names, found.read_actions) == (ranker.value_names, ranker.read_actions)
  histories = found.histories([events_of(user) for user in range(3)])
  items, at = np.tile(np.arange(1, DATA.num_items + 1), (3, 1)), int(histories.timestamp.max()) + 3600
  for time in (None, at):
    of_model = ranker.values_after(histories, items, time)
    for name, values in found.values_after(histories, items, time).items():
      np.testing.assert_allclose(values, of_model[name], rtol=1e-4, atol=1e-5)
  history = found.histories([events_of(1)])
  assert [item[:4] for item in found.rank_history(history)] == [item[:4] for item in ranker.rank("1")]
  with pytest.raises(ValueError, match="user 'ann' is not in the prepared data"):
    found.rank("ann")
  signature = json.loads((folder / "signature.json").read_text())
  del signature["data"]["actions"]
  (folder / "signature.json").write_text(json.dumps(signature))
  with pytest.raises(ValueError, match="was written by an earlier version, without its actions; export again"):
    load_artifact(folder)


@pytest.mark.unchecked_shapes  # A symbolic size is no int.
def test_an_artifact_of_a_ranking_model_is_served(tmp_path):
  pytest.importorskip("fastapi", reason="the server needs pip install 'jaxrec[test]'")
  from http_client import client_of

  ranker = random_ranker()
  made = load_artifact(write_ranking_artifact(ranker, tmp_path / "artifact"))
  events = [[str(item), time, {name: x.item() for name, x in actions.items()}] for item, time, actions in events_of(1)]
  with client_of(made, warm=True) as client:
    assert client.post("/events", json={"user": "ann", "events": events[:2]}).json()["known"] == 2
    client.post("/events", json={"user": "ann", "events": events[2:]})
    items = client.post("/recommend", json={"user": "ann", "k": 3}).json()["items"]
    about = client.get("/about").json()
  assert [item["item"] for item in items] == [item.item for item in ranker.rank("1", k=3)]
  assert (about["actions"], about["needs_domain"], about["users"]) == (["like", "reaction"], False, [])


@pytest.mark.parametrize("setting, reads", [("context", "users"), ("request", "events")])
def test_a_model_that_reads_more_than_the_history_is_refused(setting, reads, tmp_path):
  more = {"context": ("user",)} if setting == "context" else {"request": ("hour",)}
  ranker = dataclasses.replace(random_ranker(), columns=RankingColumns(DATA, ("domain",), **more))
  with pytest.raises(NotImplementedError, match=f"config.data.{setting} reads {reads} of its data"):
    write_ranking_artifact(ranker, tmp_path / "artifact")
  assert not (tmp_path / "artifact").exists()
