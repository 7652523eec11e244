"""A ranking model over HTTP: items are ranked as by the ranker, and what it cannot answer is refused."""

import pytest

pytest.importorskip("fastapi", reason="the server needs pip install 'jaxrec[test]'")

from http_client import client_of  # noqa: E402
from random_ranker import DATA, random_ranker  # noqa: E402


@pytest.fixture(scope="module")
def ranker():
  return random_ranker()


@pytest.fixture(scope="module")
def client(ranker):
  with client_of(ranker, warm=False) as client:
    yield client


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
