"""The HTTP server answers as the recommender does, and refuses what it cannot answer with field and reason."""

import asyncio
import gc
import re
import threading
import time
import types

import httpx
import numpy as np
import pytest
from http_client import client_of
from known_scores import DAY, FirstOfTargetDomain, HoursSinceLastEvent, NextItem, known_data, recommender
from random_models import random_model
from test_readme import code_blocks

from jaxrec.cli import serve
from jaxrec.serving.event_attention import event_attention
from jaxrec.serving.histories import histories_of_events
from jaxrec.serving.incremental_recommender import with_states
from jaxrec.serving.server.app import freeze_heap, make_app, warm
from jaxrec.serving.server.batcher import Batcher
from jaxrec.serving.server.forms import EventsForm, RecommendForm, ScoreForm
from jaxrec.serving.server.model_source import ModelSource
from jaxrec.serving.server.refusals import RefusedRequest
from jaxrec.serving.server.server_settings import ServerSettings


@pytest.fixture(scope="module")
def client():
  with client_of(recommender()) as client:
    yield client


def ids(answer):
  return [item["item"] for item in answer.json()["items"]]


def test_a_user_of_the_data_gets_what_the_recommender_recommends(client):
  answer = client.post("/recommend", json={"user": "cyd", "k": 2, "show_history": 5})
  assert answer.json() == {
    "user": "cyd", "ranked_by": "model", "known": 1, "unknown": 0, "version": "v1",
    "items": [
      {"rank": 1, "item": "f4", "title": "Alien", "domain": "films", "score": 0.0},
      {"rank": 2, "item": "f5", "title": "Brazil", "domain": "films", "score": -1.0},
    ],
    "history": [{"item": "b3", "title": "Dune", "domain": "books", "time": 7 * DAY}],
  }  # fmt: skip


def test_strangers_get_recommendations_for_their_history(client):
  assert ids(client.post("/recommend", json={"history": [["b1", 5], ["x9", 6], ["f4", 7]], "k": 1})) == ["f5"]
  popular = client.post("/recommend", json={"history": [], "k": 2}).json()
  assert (popular["ranked_by"], [x["item"] for x in popular["items"]]) == ("popularity", ["f4", "f5"])
  given = {"history": [["b1", 5]], "allowed": ["f6", "b1", "b3"], "exclude_seen": False}
  assert ids(client.post("/recommend", json=given)) == ["b3", "f6", "b1"]


def test_scores_are_in_the_order_of_the_items(client):
  answer = client.post("/score", json={"history": [["b1", 5]], "items": ["b3", "b2", "b1"]})
  assert answer.json()["scores"] == [-1, 0, -5]
  assert client.post("/score", json={"history": [], "items": ["b3"]}).json()["scores"] is None


def test_posted_events_continue_the_history_of_a_user(client):
  assert client.post("/recommend", json={"user": "dan"}).status_code == 404
  posted = client.post("/events", json={"user": "dan", "events": [["b1", 5], ["x9", 6]]})
  assert posted.json() == {"user": "dan", "added": 1, "unknown": 1, "known": 1}
  assert ids(client.post("/recommend", json={"user": "dan", "k": 1})) == ["b2"]
  assert client.post("/events", json={"user": "bob", "events": [["b3", 8 * DAY]]}).json()["known"] == 4
  assert ids(client.post("/recommend", json={"user": "bob", "k": 9})) == ["b1", "b2"]
  late = client.post("/events", json={"user": "bob", "events": [["b1", 5]]})
  assert late.json() == {
    "error": {"field": "events", "reason": "event 0 is earlier than the last event of the user, at 691200"}
  }


@pytest.mark.parametrize(
  ("path", "body", "status", "field", "reason"),
  [
    ("/recommend", {}, 422, "user", "give user or history"),
    ("/recommend", {"user": "eve"}, 404, "user", "user 'eve' is neither in the data nor has posted events"),
    ("/recommend", {"user": "ann", "k": 0}, 422, "k", "greater than or equal to 1"),
    ("/recommend", {"user": "ann", "k": "many"}, 422, "k", "valid integer"),
    ("/recommend", {"user": "ann", "color": "red"}, 422, "color", "Extra inputs are not permitted"),
    ("/recommend", {"user": ["ann"]}, 422, "user", "valid"),
    ("/recommend", {"user": "ann", "domain": "music"}, 422, "domain", "is unknown; the data has 'books', 'films'"),
    ("/recommend", {"user": "ann", "at": 5}, 422, "at", "earlier than the last event"),
    ("/recommend", {"user": "ann", "at": 1e300}, 422, "at", "give seconds, not milliseconds"),
    ("/recommend", {"user": "ann", "allowed": ["x9"]}, 422, "allowed", "none of the 1 allowed items"),
    ("/recommend", {"user": "ann", "allowed": [[]]}, 422, "allowed", "entry 0: Input should be a valid"),
    ("/recommend", {"user": "ann", "allowed": []}, 422, "allowed", "at least 1 item"),
    ("/recommend", {"history": "b1"}, 422, "history", "valid list"),
    ("/recommend", {"history": [["b1"]]}, 422, "history", "event 0: .* has no time"),
    ("/recommend", {"history": [["b1", 5], ["b2", 4]]}, 422, "history", "event 1 is earlier than event 0"),
    ("/recommend", {"history": [["x9", 5]], "unknown": "raise"}, 422, "history", "event 0: item .* not in the data"),
    ("/recommend", {"history": [["b1", 5, ["films"]]]}, 422, "history", "domain .* is unknown"),
    ("/recommend", {"history": [["b1", 10**400]]}, 422, "history", "give seconds, not milliseconds"),
    ("/recommend", {"history": [[{"a": 1}, 5]]}, 422, "history", "must be an id of the raw data"),
    ("/recommend", {"history": [None]}, 422, "history", "must be .item, time., "),
    ("/recommend", {"history": [["b1", 5]] * 10_001}, 422, "history", "at most 10000 items"),
    ("/score", {"user": "ann", "items": ["x9"]}, 422, "items", "x9"),
    ("/score", {"user": "ann"}, 422, "items", "Field required"),
    ("/events", {"user": "ann", "events": [["b1", "noon"]]}, 422, "events", "event 0: time 'noon' must be seconds"),
    ("/nowhere", {}, 404, None, "Not Found"),
  ],
)
def test_a_wrong_request_is_refused_with_field_and_reason(client, path, body, status, field, reason):
  answer = client.post(path, json=body)
  error = answer.json()["error"]
  assert (answer.status_code, error["field"]) == (status, field)
  assert re.search(reason, error["reason"]), error["reason"]


def test_malformed_and_oversized_bodies_are_refused(client):
  answer = client.post("/recommend", content=b'{"user": ', headers={"Content-Type": "application/json"})
  assert answer.status_code == 400 and "the body is no JSON" in answer.json()["error"]["reason"]
  answer = client.post("/recommend", json={"user": "a" * 2_000_000})
  assert answer.status_code == 413
  assert client.get("/recommend").status_code == 405


def test_one_wrong_request_of_a_batch_leaves_the_others_alone():
  made = recommender(model=HoursSinceLastEvent)
  service = make_app(made, "v1", ServerSettings()).state.service
  forms = [
    ScoreForm(history=[["b1", 0]], items=["b2"], at=3600), ScoreForm(history=[["b1", 7200]], items=["b2"], at=3600),
    ScoreForm(history=[["b1", 7200]], items=["b2", "x9"]), ScoreForm(history=[["b1", 0]], items=["b1", "b2"], at=7200),
    RecommendForm(user="cyd", k=1), RecommendForm(user="cyd", k=3), RecommendForm(user="cyd", domain="books", k=1),
  ]  # fmt: skip
  answers = service.answers.run(forms)
  assert [answer["scores"] for answer in (answers[0], answers[3])] == [[1], [2, 2]]
  assert [answers[1].field, answers[2].field] == ["at", "items"]
  assert [[item["item"] for item in answer["items"]] for answer in answers[4:]] == [["b1"], ["b1", "b2", "f4"], ["b1"]]


def test_a_model_with_a_target_domain_names_the_field(client):
  with client_of(recommender(model=FirstOfTargetDomain)) as client:
    assert client.post("/recommend", json={"user": "ann"}).json()["error"]["field"] == "domain"
    assert ids(client.post("/recommend", json={"user": "cyd", "domain": "films", "k": 1})) == ["f4"]
    assert client.get("/about").json()["needs_domain"]


def test_the_page_needs_nothing_from_elsewhere(client):
  page = client.get("/")
  assert page.headers["content-type"].startswith("text/html")
  assert "default-src 'none'" in page.headers["content-security-policy"]
  assert "http://" not in page.text and "https://" not in page.text and "src=" not in page.text
  about = client.get("/about").json()
  assert (about["users"], about["domains"], about["num_items"]) == (["ann", "bob", "cyd"], ["books", "films"], 6)
  assert client.get("/items", params={"query": "bra"}).json() == [{"item": "f5", "title": "Brazil"}]
  assert client.get("/items", params={"query": "(("}).json() == []


def test_the_history_is_shown_with_what_the_model_attended_to(client):
  made, history = random_model("HSTU"), [["b1", 5], ["x9", 6], ["f4", 7]]
  body = {"history": history, "show_history": 2, "show_attention": True, "at": 9}
  with client_of(made, warm=False) as other:
    assert other.get("/about").json()["no_attention"] is None
    shown = other.post("/recommend", json=body).json()["history"]
    assert "attention" not in other.post("/recommend", json={**body, "show_attention": False}).json()["history"][0]
  (expected,) = event_attention(made, histories_of_events(made.data, [history]), at=9)
  assert [event["item"] for event in shown] == ["f4", "b1"]
  np.testing.assert_allclose([event["attention"] for event in shown], expected[::-1], rtol=1e-6)
  refused = client.post("/recommend", json=body)
  assert (refused.status_code, refused.json()["error"]["field"]) == (422, "show_attention")
  assert client.get("/about").json()["no_attention"] == "NextItem is no sequential model with attention weights"


def test_health_and_metrics(client):
  assert client.get("/healthz").json() == {"status": "ok", "version": "v1"}
  client.post("/recommend", json={"user": "ann"})
  lines = client.get("/metrics").text.splitlines()
  values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
  assert float(values['jaxrec_requests_total{path="/recommend",status="200"}']) >= 1
  assert float(values["jaxrec_batch_requests_count"]) >= 1 and values["jaxrec_queue_requests"] == "0.0"


def test_requests_that_arrive_together_share_a_batch_and_a_full_queue_refuses():
  seen, go = [], threading.Event()

  def run(batch):
    seen.append(list(batch))
    go.wait(5)
    return [RefusedRequest(422, None, "odd") if number % 2 else number for number in batch]

  async def main():
    batcher = Batcher(run, max_batch=3, wait_seconds=0.01, max_queue=4)
    await batcher.start()
    first = asyncio.create_task(batcher.submit(0))
    while not seen:
      await asyncio.sleep(0.001)
    others = [asyncio.create_task(batcher.submit(number)) for number in (2, 3, 4, 6)]
    await asyncio.sleep(0.001)
    with pytest.raises(RefusedRequest, match="4 requests are waiting already; try again later"):
      await batcher.submit(8)
    others[2].cancel()
    go.set()
    found = await asyncio.gather(first, *others, return_exceptions=True)
    await batcher.close()
    return found

  found = asyncio.run(main())
  assert [x if isinstance(x, int) else type(x) for x in found] == [0, 2, RefusedRequest, asyncio.CancelledError, 6]
  assert seen == [[0], [2, 3, 6]]


def test_a_late_answer_is_a_504_and_a_full_queue_a_429():
  made, go = recommender(), threading.Event()
  app = make_app(made, "v1", ServerSettings(timeout_seconds=0.2, max_queue=1, max_batch=1))
  service, answer = app.state.service, app.state.service.answers.run
  service.answers.run = lambda forms: (go.wait(5), answer(forms))[1]

  async def main():
    async with app.router.lifespan_context(app):
      transport = httpx.ASGITransport(app)
      async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        waiting = []
        for _ in range(3):
          waiting.append(asyncio.create_task(client.post("/recommend", json={"user": "ann"})))
          await asyncio.sleep(0.05)
        found = await asyncio.gather(*waiting)
        go.set()
        return [*found, await client.post("/recommend", json={"user": "ann"})]

  found = asyncio.run(main())
  assert [answer.status_code for answer in found] == [504, 504, 429, 200]
  assert found[0].json()["error"]["reason"] == "no answer within 0.2 s" and found[2].headers["retry-after"] == "1"


def test_a_body_that_does_not_arrive_is_a_408():
  app = make_app(recommender(), "v1", ServerSettings(timeout_seconds=0.05))
  sent = []

  async def receive():
    await asyncio.sleep(60)

  async def send(message):
    sent.append(message)

  scope = {"type": "http", "method": "POST", "path": "/recommend", "query_string": b"", "asgi": {"version": "3.0"}}
  scope |= {"headers": [(b"content-type", b"application/json"), (b"content-length", b"9")], "http_version": "1.1"}
  asyncio.run(app(scope, receive, send))
  assert sent[0]["status"] == 408 and b"the body has not arrived within 0.05 s" in sent[1]["body"]


def test_collections_of_garbage_do_not_look_at_what_is_loaded():
  loaded = [[] for _ in range(1000)]
  freeze_heap()
  assert not {id(x) for x in loaded} & {id(x) for x in gc.get_objects()}


def test_a_newer_model_is_used_without_a_lost_request():
  version, loads = ["v1"], []

  def load():
    loads.append(version[0])
    if version[0] == "v2":
      raise OSError("is being written")
    return recommender(model=HoursSinceLastEvent)

  source = ModelSource(load, lambda: version[0])
  with client_of(recommender(model=NextItem), source, reload_seconds=0.02, max_batch=1) as client:
    client.post("/events", json={"user": "dan", "events": [["b1", 5]]})
    request = {"user": "dan", "items": ["b2", "b3"], "at": 3605}
    assert client.post("/score", json=request).json()["scores"] == [0, -1]
    version[0] = "v2"
    deadline = time.monotonic() + 20
    while len(loads) < 2 and time.monotonic() < deadline:
      assert client.post("/score", json=request).json()["scores"] == [0, -1]
    version[0] = "v3"
    while client.get("/healthz").json()["version"] != "v3" and time.monotonic() < deadline:
      assert client.post("/score", json=request).status_code == 200
    assert client.post("/score", json=request).json()["scores"] == [1, 1]  # Dan's events are there still.
    assert 'jaxrec_reloads_total{result="ok"} 1.0' in client.get("/metrics").text


def test_the_states_of_users_are_used_and_counted():
  made = random_model("HSTU")
  with client_of(with_states(made, 10**8)) as client:
    client.post("/events", json={"user": "dan", "events": [["b1", 5], ["f4", 60]]})
    for events in ([], [["f5", 90]]):
      if events:
        client.post("/events", json={"user": "dan", "events": events})
      history = [("b1", 5), ("f4", 60), *map(tuple, events)]
      found = client.post("/score", json={"user": "dan", "items": ["b2", "f6"]}).json()["scores"]
      np.testing.assert_allclose(found, made.score(["b2", "f6"], histories=[history])[0], atol=1e-5)
    assert "jaxrec_states_hits 1.0" in client.get("/metrics").text


def test_events_that_a_later_data_set_holds_are_not_read_twice():
  made = recommender()
  service = make_app(made, "v1", ServerSettings()).state.service
  service.posted.add("cyd", [("b1", 6 * DAY), ("b3", 7 * DAY), ("b2", 7 * DAY)])
  assert service.answers.histories.of_user("cyd").item_id.tolist() == [3, 2]


def test_batches_of_all_sizes_are_compiled_before():
  sizes = []
  made = recommender()
  made.__dict__["_queries"] = lambda batch, users: (sizes.append(len(users)), type(made)._queries(made, batch, users))[
    1
  ]
  warm(made, 4)
  assert set(sizes) == {1, 2}  # Of 4 requests too: this model has config.eval.batch_size=2.


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
  monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: None if name == "uvicorn" else object())
  with pytest.raises(ImportError, match=r"uvicorn not installed; .*pip install 'jaxrec\[serving\]'"):
    serve.check_packages()


def test_the_requests_of_the_readme_are_accepted():
  page = "\n".join(block for _, block in code_blocks("jaxrec/serving/README.md", "bash"))
  found = re.findall(r"^curl -s localhost:8000/(\w+) .*-d '(.*)'$", page, flags=re.MULTILINE)
  forms = {"recommend": RecommendForm, "score": ScoreForm, "events": EventsForm}
  assert {path for path, _ in found} == set(forms)
  for path, body in found:
    forms[path].model_validate_json(body)


def test_the_command_needs_one_model(call):
  for arguments in ([], ["--workdir=a", "--artifact=b"]):
    with pytest.raises(SystemExit, match="ValueError: give exactly one of --workdir and --artifact"):
      call(serve, *arguments)


def test_the_version_of_a_run_changes_with_its_checkpoints(tmp_path, monkeypatch):
  monkeypatch.setattr(serve, "FLAGS", types.SimpleNamespace(artifact=None, phase=None, workdir=str(tmp_path)))
  assert serve._version().endswith(": no checkpoint")
  (tmp_path / "select" / "checkpoints" / "9").mkdir(parents=True)
  (tmp_path / "select" / "checkpoints" / "10.orbax-checkpoint-tmp").mkdir()
  before = serve._version()
  assert "/select/9-" in before and serve._version() == before
  (tmp_path / "select" / "checkpoints" / "10").mkdir()
  assert "/select/10-" in serve._version()
  (tmp_path / "final" / "checkpoints" / "3").mkdir(parents=True)
  assert "/final/3-" in serve._version()


def test_a_closing_server_compiles_no_more():
  made = recommender()
  made.__dict__["_queries"] = None  # Would be called.
  warm(made, 4, lambda: True)


def test_settings_have_ranges():
  with pytest.raises(ValueError, match="max_queue=0 must be at least 1"):
    ServerSettings(max_queue=0)
  assert known_data().find_user("eve") is None
