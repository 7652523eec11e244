"""What the last layer attends to at a request, by event of the history."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known_scores import recommender
from random_models import random_model

from jaxrec.layers.attention import SIZES, sizes_by_layer
from jaxrec.serving.event_attention import event_attention, why_no_attention
from jaxrec.serving.histories import histories_of_events

EVENTS = [
  ("f4", 1_700_000_000),
  ("b2", 1_700_000_600),
  ("b1", 1_700_090_000),
  ("f6", 1_700_090_007),
  ("b3", 1_700_090_008),
]
GIVEN = {"domain": "films", "at": 1_700_100_000}


def shares_of(made, events=EVENTS, **given):
  return event_attention(made, histories_of_events(made.data, [events]), **{**GIVEN, **given})[0]


def batch_of(made):
  (found,) = made._batches(histories_of_events(made.data, [EVENTS]), GIVEN["domain"], GIVEN["at"], None)
  return found[1].batch


@pytest.mark.parametrize("name", ["SASRec", "HSTU", "STUModel", "MultiDomainHSTU"])
def test_shares_of_domains_are_those_of_the_sums_that_layers_store(name):
  made = random_model(name)
  shares = shares_of(made)
  batch = jax.tree.map(jnp.asarray, batch_of(made))
  model = made.model.clone(num_domains=2)  # Which only the sums by domain need to know.
  run = jax.jit(lambda params: model.apply({"params": params}, batch, mutable=[SIZES])[1])
  sizes = np.asarray(sizes_by_layer(run(made.params)[SIZES])[-1].sizes)[0, len(EVENTS) - 1]  # [H, G + 1]
  *by_domain, own = np.mean(sizes / sizes.sum(axis=1, keepdims=True), axis=0)
  domains = np.array([2, 1, 1, 2, 1])
  found = [shares[:-1][domains[:-1] == domain].sum() for domain in (1, 2)]
  np.testing.assert_allclose([*found, shares[-1]], [*by_domain[1:3], own], atol=1e-6)
  assert np.isclose(shares.sum(), 1) and len(set(shares.tolist())) >= 3


def test_softmax_shares_are_the_weights_of_the_definition():
  made = random_model("SASRec")
  batch = jax.tree.map(jnp.asarray, batch_of(made))
  attention = made.params["layers_0"]["attention"]
  params = {"params": made.params}

  def inputs(model):
    added = model.domain_embedding(batch)
    return model.embedding(model.input_vectors(batch.item_id), batch.item_id, batch.position, True, added)

  x = np.asarray(made.model.apply(params, method=inputs))[0, : len(EVENTS)]  # [E, M]
  centered = x[-1] - x[-1].mean()
  normalized = centered / np.sqrt(np.mean(centered**2) + 1e-8)
  project = lambda name, x: (x @ attention[name]["kernel"] + attention[name]["bias"]).reshape(*x.shape[:-1], 2, 4)  # noqa: E731
  scores = np.einsum("hd,ehd->he", project("query", normalized), project("key", x)) / 2
  expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
  np.testing.assert_allclose(shares_of(made), expected.mean(axis=0), atol=1e-5)


def test_events_of_other_domains_are_not_read_where_attention_is_inside_a_domain():
  shares = shares_of(random_model("MultiDomainHSTU"))
  assert (shares[[0, 3]] == 0).all() and (shares[[1, 2, 4]] > 0).all()


def test_what_goes_to_the_mask_token_is_not_given_to_an_event():
  shares = shares_of(random_model("BERT4Rec"))
  assert (shares > 0).all() and 0.05 < shares.sum() < 0.95


def test_events_before_those_that_are_read_have_no_share():
  made = random_model("HSTU")
  many = [("f4", 1_600_000_000)] * 38 + EVENTS
  shares = shares_of(made, many)
  assert np.isnan(shares[:3]).all() and np.isclose(shares[3:].sum(), 1)
  assert event_attention(made, histories_of_events(made.data, [[]]))[0].size == 0


def test_models_without_attention_by_event_say_why():
  made = recommender()
  assert why_no_attention(random_model("HSTU").model) is None
  assert "bottleneck" in why_no_attention(random_model("HSTU").model.clone(num_bottlenecks=2))
  with pytest.raises(NotImplementedError, match="NextItem is no sequential model"):
    shares_of(made)
