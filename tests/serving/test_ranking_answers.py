"""A ranking model over HTTP: the actions of every path are the same, and what it cannot answer is refused."""

import jax
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the server needs pip install 'jaxrec[test]'")

from http_client import client_of  # noqa: E402

import jaxrec  # noqa: E402
from jaxrec.batches import ActionType  # noqa: E402
from jaxrec.data.batches.ranking_batches import RankingBatches, RankingOptions, history_batch  # noqa: E402
from jaxrec.data.batches.ranking_rows import Examples, RankingColumns  # noqa: E402
from jaxrec.data.generators.planted_actions import planted_actions  # noqa: E402
from jaxrec.models.ranking import RankingModel  # noqa: E402
from jaxrec.serving.action_ranker import ActionRanker, action_values  # noqa: E402

DATA = planted_actions(num_users=3, num_genres=2, items_per_genre=4, mean_events=6.0)
ACTIONS = (ActionType("like", "binary"), ActionType("reaction", "multi_class", 3))
LENGTH = 6


@pytest.fixture(scope="module")
def ranker():
  columns = RankingColumns(DATA, ("domain",))
  model = RankingModel(
    num_items=DATA.num_items, actions=ACTIONS, heads=ACTIONS, max_positions=LENGTH, features=(("domain", 2),), width=8,
    num_layers=1, num_heads=1, head_width=8, value_width=8, attention_length=LENGTH, implementation="reference",
  )  # fmt: skip
  batch = history_batch(columns, "one_token", DATA.offsets[:-1], DATA.offsets[1:], 16)
  params = jax.jit(model.init)(jax.random.key(0), batch)["params"]
  params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), params)
  return ActionRanker(model, params, DATA, columns, "one_token", max_length=LENGTH)


@pytest.fixture(scope="module")
def client(ranker):
  with client_of(ranker, warm=False) as client:
    yield client


def with_one_more_event():
  """Returns the data with an event of item 1 for each user, at the time of the last one: the request."""
  ends = DATA.offsets[1:]
  last = ends - 1

  def more(values, new):
    return np.insert(np.asarray(values), ends, new)

  return jaxrec.PreparedData.from_columns(
    offsets=DATA.offsets + np.arange(len(DATA.offsets)),
    item_id=more(DATA.item_id, 1), domain_id=more(DATA.domain_id, 1),
    timestamp=more(DATA.timestamp, DATA.timestamp[last]), num_items=DATA.num_items, item_domain=DATA.item_domain(),
    actions={name: more(values, 0) for name, values in DATA.actions.items()},
    action_kinds={name: meta["kind"] for name, meta in DATA.action_meta.items()},
  )  # fmt: skip


def values_in_training(ranker):
  """Returns name -> [3, V], the predictions at the target of a training batch, one item at a time."""
  data = with_one_more_event()
  end = data.offsets[1:]
  first = np.maximum(data.offsets[:-1], end - LENGTH)
  options = RankingOptions(max_length=LENGTH, layout="one_token", packing=False)
  columns = RankingColumns(data, ("domain",))
  batch = RankingBatches(columns, Examples(first, end - 1, end), options, 1000, shuffle=False)[0]
  row, place = np.nonzero(batch.weight)
  assert row.tolist() == [0, 1, 2]
  run, found = jax.jit(lambda batch: ranker.model.apply({"params": ranker.params}, batch)), []
  for item in range(1, DATA.num_items + 1):
    batch.item_id[row, place], batch.features["domain"][row, place] = item, DATA.item_domain()[item]
    output = {name: np.asarray(x)[row, place] for name, x in run(batch).items()}
    found.append({name: x for head in ACTIONS for name, x in action_values(head, output[head.name]).items()})
  return {name: np.stack([one[name] for one in found], axis=1) for name in found[0]}


def test_training_mfalcon_and_http_give_the_same_actions(ranker, client):
  expected = values_in_training(ranker)
  cached = ranker.values(np.arange(3), np.tile(np.arange(1, DATA.num_items + 1), (3, 1)))
  items = DATA.items["raw_id"].to_list()
  for user in range(3):
    answer = client.post("/score", json={"user": DATA.user_raw_id(user), "items": items}).json()
    assert set(answer["actions"]) == set(expected) == {"like", "reaction:0", "reaction:1", "reaction:2"}
    for name, values in expected.items():
      np.testing.assert_allclose(cached[name][user], values[user], atol=1e-5)
      np.testing.assert_allclose(answer["actions"][name], values[user], atol=1e-5)
    assert answer["scores"] == answer["actions"]["like"]
    assert np.ptp(answer["scores"]) > 1e-3


def test_items_are_ranked_as_the_ranker_ranks_them(ranker, client):
  answer = client.post("/recommend", json={"user": "1", "k": 3}).json()
  assert [item["item"] for item in answer["items"]] == [item.item for item in ranker.rank("1", k=3)]
  assert answer["known"] == len(DATA.item_id[DATA.user_slice(1)]) and answer["version"] == "v1"
  some = client.post("/recommend", json={"user": "1", "allowed": ["5", "3", "3"], "exclude_seen": False}).json()
  assert sorted(item["item"] for item in some["items"]) == ["3", "5"]
  assert client.get("/about").json()["num_items"] == DATA.num_items


@pytest.mark.parametrize(
  "path, body, status, field, reason",
  [
    ("/score", {"history": [["1", 5]], "items": ["1"]}, 422, "history", "takes no history: it ranks for users"),
    ("/score", {"user": "1", "items": ["1"], "at": 5}, 422, "at", "takes no at"),
    ("/score", {"items": ["1"]}, 422, "user", "give user"),
    ("/score", {"user": "77", "items": ["1"]}, 404, "user", "user '77' is not in the data"),
    ("/score", {"user": "1", "items": ["x"]}, 422, "items", "item 'x' is not in the prepared data"),
    ("/recommend", {"user": "1", "allowed": ["x"]}, 422, "allowed", "item 'x' is not in the prepared data"),
    ("/events", {"user": "1", "events": [["1", 5]]}, 422, "events", "reads events with actions"),
  ],
)  # fmt: skip
def test_what_it_cannot_answer_is_refused(client, path, body, status, field, reason):
  answer = client.post(path, json=body)
  assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)
  assert reason in answer.json()["error"]["reason"]
