"""A ranking model over HTTP: users, histories and posted events are answered as by the ranker; the rest is refused."""

import pytest

pytest.importorskip("fastapi", reason="the server needs pip install 'jaxrec[test]'")

from http_client import client_of  # noqa: E402
from random_ranker import DATA, events_of, random_ranker  # noqa: E402

EVENTS = [[str(item), time, actions] for item, time, actions in events_of(1)]
AFTER = EVENTS[-1][1] + 60


@pytest.fixture(scope="module")
def ranker():
  return random_ranker()


@pytest.fixture(scope="module")
def client(ranker):
  with client_of(ranker, warm=False) as client:
    yield client


def plain(events):
  """Returns events as JSON has them."""
  return [[item, time, {name: value.item() for name, value in actions.items()}] for item, time, actions in events]


def test_items_are_ranked_as_the_ranker_ranks_them(ranker, client):
  answer = client.post("/recommend", json={"user": "1", "k": 3}).json()
  assert [item["item"] for item in answer["items"]] == [item.item for item in ranker.rank("1", k=3)]
  assert answer["known"] == len(DATA.item_id[DATA.user_slice(1)]) and answer["version"] == "v1"
  some = client.post("/recommend", json={"user": "1", "allowed": ["5", "3", "3"], "exclude_seen": False}).json()
  assert sorted(item["item"] for item in some["items"]) == ["3", "5"]
  domain = DATA.domain_names[1]
  of_domain = client.post("/recommend", json={"user": "1", "domain": domain, "exclude_seen": False}).json()["items"]
  assert len(of_domain) == 4 and {item["domain"] for item in of_domain} == {domain}
  about = client.get("/about").json()
  assert (about["num_items"], about["actions"]) == (DATA.num_items, ["like", "reaction"])


def test_a_history_is_answered_like_the_user_who_has_it(client):
  of_user = client.post("/recommend", json={"user": "1", "k": 3, "show_history": 2}).json()
  of_history = client.post("/recommend", json={"history": plain(EVENTS), "k": 3, "show_history": 2}).json()
  assert of_history == {**of_user, "user": None}
  assert [event["time"] for event in of_history["history"]] == [event[1] for event in EVENTS[:-3:-1]]
  scores = [
    client.post("/score", json={"items": ["2", "7"], **given}).json()
    for given in ({"user": "1"}, {"user": "new", "history": plain(EVENTS)})
  ]
  assert scores[1] == {**scores[0], "user": "new"} and len(scores[0]["actions"]["like"]) == 2


def test_posted_events_are_read_after_those_of_the_data(ranker, client):
  before = client.post("/score", json={"user": "2", "items": ["2"]}).json()
  last = events_of(2)[-1][1] + 60
  event = ["2", last, DATA.domain_names[0], {"like": 1, "reaction": 2, "seconds": 9.5}]
  assert client.post("/events", json={"user": "2", "events": [event]}).json()["added"] == 1
  after = client.post("/score", json={"user": "2", "items": ["2"]}).json()
  whole = plain([[str(item), time, actions] for item, time, actions in events_of(2)])
  given = client.post("/score", json={"history": [*whole, event], "items": ["2"]}).json()
  assert after["known"] == before["known"] + 1
  assert after["scores"] == given["scores"] != before["scores"]


def test_without_a_known_item_nothing_is_ranked(client):
  event = ["no such item", 5, {"like": 0, "reaction": 0}]
  answer = client.post("/recommend", json={"history": [event]}).json()
  assert (answer["items"], answer["ranked_by"], answer["unknown"]) == ([], None, 1)
  assert client.post("/score", json={"history": [event], "items": ["1"]}).json()["scores"] is None


@pytest.mark.parametrize(
  "path, body, status, field, reason",
  [
    ("/score", {"history": [["1", 5]], "items": ["1"]}, 422, "history", "event 0: ['1', 5] has no actions"),
    ("/score", {"history": [["1", 5, {"like": 1}]], "items": ["1"]}, 422, "history", "lacks ['reaction']"),
    (
      "/score", {"history": [["1", 5, {"like": 1, "reaction": 3}]], "items": ["1"]}, 422, "history",
      "action 'reaction' is 3; the data have the classes 0 to 2",
    ),
    ("/score", {"user": "1", "items": ["1"], "at": 5}, 422, "at", "is earlier than the last event of a history"),
    ("/score", {"user": "1", "items": ["1"], "domain": "x"}, 422, "domain", "have domains of their own"),
    ("/score", {"items": ["1"]}, 422, "user", "give user or history"),
    ("/score", {"user": "77", "items": ["1"]}, 404, "user", "user '77' is neither in the data nor has posted"),
    ("/score", {"user": "1", "items": ["x"]}, 422, "items", "item 'x' is not in the prepared data"),
    ("/recommend", {"user": "1", "allowed": ["x"]}, 422, "allowed", "item 'x' is not in the prepared data"),
    ("/recommend", {"user": "1", "domain": "x"}, 422, "domain", "domain='x' is unknown; the data has"),
    ("/recommend", {"user": "1", "show_attention": True}, 422, "show_attention", "what a ranking model attends to"),
    ("/events", {"user": "1", "events": [["1", AFTER]]}, 422, "events", "has no actions; the model reads them"),
    ("/events", {"user": "1", "events": [["1", 5, {"like": 1, "love": 1}]]}, 422, "events", "['love'] are unknown"),
    (
      "/events", {"user": "1", "events": [["1", 5, {"like": 0.5, "reaction": 1}]]}, 422, "events",
      "action 'like' is 0.5, which is no binary action",
    ),
  ],
)  # fmt: skip
def test_what_it_cannot_answer_is_refused(client, path, body, status, field, reason):
  answer = client.post(path, json=body)
  assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)
  assert reason in answer.json()["error"]["reason"]
