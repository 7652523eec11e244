"""Every path from a model to a score gives the same number."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from http_client import client_of
from known_scores import known_data
from random_models import random_model

import jaxrec
from jaxrec.serving import load_artifact
from jaxrec.serving.artifact import write_artifact
from jaxrec.serving.incremental_recommender import with_states

ITEMS = ["b1", "b2", "b3", "f4", "f5", "f6"]
EVENTS = [("f4", 1_700_000_000), ("b2", 1_700_000_600), ("b1", 1_700_090_000), ("f6", 1_700_090_007)]
AT = 1_700_100_000  # The time of the target, which is a film.


def scores_in_training(made):
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


@pytest.mark.unchecked_shapes  # A symbolic size is no int.
@pytest.mark.parametrize("name", ["SASRec", "HSTU", "MultiDomainHSTU"])
def test_all_paths_give_the_scores_of_training(name, tmp_path):
  pytest.importorskip("flatbuffers", reason="jax.export writes programs with flatbuffers: pip install 'jaxrec[test]'")
  made = random_model(name)
  expected = scores_in_training(made)
  same = functools.partial(np.testing.assert_allclose, desired=expected, atol=1e-5)
  given = {"domain": "films", "at": AT}
  same(made.score(ITEMS, histories=[EVENTS], **given)[0])
  incremental, artifact = with_states(made, 10**8), load_artifact(write_artifact(made, tmp_path / "artifact"))
  for length in range(1, len(EVENTS) + 1):
    found = incremental.score(ITEMS, histories={"eve": EVENTS[:length]}, **given)[0]
  same(found)
  assert incremental.states.counters.hits == len(EVENTS) - 1
  same(artifact.score(ITEMS, histories=[EVENTS], **given)[0])
  for served in (made, incremental, artifact):
    with client_of(served) as client:
      body = {"items": ITEMS, "history": EVENTS, **given}
      same(client.post("/score", json=body).json()["scores"])
      best = client.post("/recommend", json={"history": EVENTS, "k": 1, "exclude_seen": False, **given}).json()
      films = {item: float(expected[ITEMS.index(item)]) for item in ("f4", "f5", "f6")}
      assert best["items"][0]["item"] == max(films, key=films.get)


def test_the_data_of_the_paths_are_those_of_the_models():
  assert known_data().items["raw_id"].to_list() == ITEMS
