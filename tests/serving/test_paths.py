"""Every path from a model to a score gives the same number.

| path | sequential models | ranking model |
|---|---|---|
| training | a training batch | the same, one candidate at a time |
| served | `Recommender`, each history at once | `ActionRanker`, which is M-FALCON |
| event by event | `with_states` | |
| artifact | `load_artifact` | |
| loader | the code in the artifact's README | the same |
| HTTP | over each of the first three that are served | over `ActionRanker` |
"""

import jax.numpy as jnp
import numpy as np
import pytest
import random_ranker
from http_client import client_of
from known_scores import known_data
from random_models import random_model
from readme_loader import loader

import jaxrec
from jaxrec.serving import load_artifact
from jaxrec.serving.artifact import write_artifact
from jaxrec.serving.incremental_recommender import with_states
from jaxrec.serving.ranking_artifact import write_ranking_artifact

ITEMS = ["b1", "b2", "b3", "f4", "f5", "f6"]
EVENTS = [("f4", 1_700_000_000), ("b2", 1_700_000_600), ("b1", 1_700_090_000), ("f6", 1_700_090_007)]
AT = 1_700_100_000  # The time of the target, which is a film.
GIVEN = {"domain": "films", "at": AT}
SEQUENTIAL = {"training", "served", "event by event", "artifact", "loader", "HTTP", "HTTP, states", "HTTP, artifact"}
PATHS = {
  **dict.fromkeys(("SASRec", "HSTU", "MultiDomainHSTU"), SEQUENTIAL),
  "RankingModel": {"training", "served", "loader", "HTTP"},
}


@pytest.mark.unchecked_shapes  # A symbolic size is no int.
@pytest.mark.parametrize("name", PATHS)
def test_all_paths_give_the_scores_of_training(name, tmp_path):
  pytest.importorskip("flatbuffers", reason="jax.export writes programs with flatbuffers: pip install 'jaxrec[test]'")
  pytest.importorskip("fastapi", reason="the server needs pip install 'jaxrec[test]'")
  found = (_ranking if name == "RankingModel" else _sequential)(name, tmp_path / "artifact")
  assert set(found) == PATHS[name]
  expected = found.pop("training")
  assert np.ptp(expected) > 1e-3
  for path, scores in found.items():
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5, err_msg=path)


def _sequential(name, folder):
  made = random_model(name)
  states, artifact = with_states(made, 10**8), load_artifact(write_artifact(made, folder))
  for length in range(1, len(EVENTS) + 1):
    by_event = states.score(ITEMS, histories={"eve": EVENTS[:length]}, **GIVEN)[0]
  assert states.states.counters.hits == len(EVENTS) - 1
  ids, domains = [made.data.item_index(item) for item, _ in EVENTS], made.data.item_domain()
  history = [(item, int(domains[item]), time) for item, (_, time) in zip(ids, EVENTS, strict=True)]
  return {
    "training": _scores_in_training(made),
    "served": made.score(ITEMS, histories=[EVENTS], **GIVEN)[0],
    "event by event": by_event,
    "artifact": artifact.score(ITEMS, histories=[EVENTS], **GIVEN)[0],
    "loader": loader(folder)(history, 2, AT)[1:],
    "HTTP": _over_http(made),
    "HTTP, states": _over_http(states),
    "HTTP, artifact": _over_http(artifact),
  }


def _ranking(_, folder):
  ranker, data = random_ranker.random_ranker(), random_ranker.DATA
  items, users = np.arange(1, data.num_items + 1), range(data.num_users)
  predict = loader(write_ranking_artifact(ranker, folder))
  with client_of(ranker, warm=False) as client:
    body = {"items": data.items["raw_id"].to_list()}
    answers = [client.post("/score", json={**body, "user": data.user_raw_id(user)}).json() for user in users]
  assert all(answer["scores"] == answer["actions"]["like"] for answer in answers)
  by_user = {
    "loader": [predict(random_ranker.events_of(user), items) for user in users],
    "HTTP": [answer["actions"] for answer in answers],
  }
  by_name = {"training": random_ranker.values_in_training(ranker)}
  by_name["served"] = ranker.values(np.array(users), np.tile(items, (len(users), 1)))
  names = ("like", "reaction:0", "reaction:1", "reaction:2")
  assert all(set(values) == set(names) for values in (*by_name.values(), *by_user["loader"], *by_user["HTTP"]))
  found = {path: [values[name] for name in names] for path, values in by_name.items()}  # [values, U, V] each
  return found | {path: [[one[name] for one in values] for name in names] for path, values in by_user.items()}


def _scores_in_training(made):
  """Returns the scores at the last event of a training batch, whose target follows it at the time `AT`."""
  events = [*EVENTS, ("f5", AT)]
  items = [made.data.item_index(item) for item, _ in events]
  data = jaxrec.PreparedData.from_columns(
    user=[0] * len(events), item_id=items, domain_id=made.data.item_domain()[items], num_items=6,
    timestamp=[time for _, time in events], split=[0] * len(events),
  )  # fmt: skip
  options = jaxrec.TrainingOptions(max_length=8, row_length=8, rows_per_batch=1)
  batch = next(iter(jaxrec.training_batches(data, options)))
  position = int(np.flatnonzero(np.asarray(batch.target_item)[0] == 5)[-1])
  variables = {"params": made.params}
  query = made.model.apply(variables, batch)[0, position]
  return jnp.dot(made.model.apply(variables, method="item_vectors")[1:], query)


def _over_http(served):
  with client_of(served) as client:
    scores = client.post("/score", json={"items": ITEMS, "history": EVENTS, **GIVEN}).json()["scores"]
    best = client.post("/recommend", json={"history": EVENTS, "k": 1, "exclude_seen": False, **GIVEN}).json()
  films = {item: scores[ITEMS.index(item)] for item in ("f4", "f5", "f6")}
  assert best["items"][0]["item"] == max(films, key=films.get)
  return scores


def test_the_data_of_the_paths_are_those_of_the_models():
  assert known_data().items["raw_id"].to_list() == ITEMS
