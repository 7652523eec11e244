"""Stage one, served: exact and approximate search of cached histories."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from candidates import NUM_CATEGORIES, NUM_ITEMS, candidate_batch

from jaxrec.inference import search
from jaxrec.models.ctr import build

RNG = np.random.default_rng(5)


def random_history(length, width=4, num_padding=0):
  keys = jnp.asarray(RNG.normal(size=(length, width)), jnp.float32)
  return search.cached(keys, jnp.arange(length) >= num_padding)


def sorted_by_hand(queries, history, k):
  scores = np.where(history.is_real, np.asarray(queries, np.float64) @ np.asarray(history.keys, np.float64), -np.inf)
  places = np.argsort(-scores, axis=1)[:, :k]
  return np.take_along_axis(scores, places, axis=1), places


@pytest.mark.parametrize(
  "length, num_candidates, k",
  [(1000, 130, 20), (1000, 3, 1), (333, 64, 20), (40, 65, 20), (64, 2, 64), (1000, 5, 63)],
)
def test_an_exact_search_finds_what_sorting_finds(length, num_candidates, k):
  history, queries = random_history(length), RNG.normal(size=(num_candidates, 4)).astype(np.float32)
  scores, places = search.search(queries, history, k)
  expected_scores, expected_places = sorted_by_hand(queries, history, k)
  real = expected_scores > -np.inf
  np.testing.assert_allclose(np.asarray(scores)[real], expected_scores[real], atol=1e-5)
  np.testing.assert_array_equal(places, np.where(real, expected_places, -1))


@pytest.mark.parametrize("recall", [1.0, 0.9])
def test_padding_is_never_found(recall):
  history = random_history(200, num_padding=197)
  scores, places = search.search(np.ones((2, 4), np.float32), history, 5, recall)
  assert (np.asarray(places) == -1).sum(axis=1).tolist() == [2, 2]
  assert (np.asarray(places)[:, :3] >= 197).all() and np.isfinite(np.asarray(scores)[:, :3]).all()
  assert (np.asarray(scores)[:, 3:] == -np.inf).all()


def test_an_approximate_search_finds_the_share_that_was_asked_for():
  history, queries = random_history(6400, width=8), RNG.normal(size=(64, 8)).astype(np.float32)
  exact = np.asarray(search.search(queries, history, 20)[1])
  for recall in (0.9, 0.97):
    scores, found = (np.asarray(x) for x in search.search(queries, history, 20, recall))
    share = np.mean([len(np.intersect1d(a, b)) / 20 for a, b in zip(exact, found, strict=True)])
    assert recall - 0.02 < share < 1
    all_scores = queries @ np.asarray(history.keys)
    np.testing.assert_allclose(scores, np.take_along_axis(all_scores, found, axis=1), atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_blocks_are_as_large_as_the_recall_allows():
  # .9: 95 blocks are enough; .99: 950.
  assert [search.block_size(6400, 20, recall) for recall in (0.5, 0.9, 0.99)] == [64, 64, 4]
  assert search.block_size(6401, 20, 0.5) == 1


def test_a_served_search_finds_what_the_model_keeps():
  model = build({"name": "dare", "width": 3, "attention_width": 2, "max_age": 6, "top_k": 3},
                num_items=NUM_ITEMS, num_categories=NUM_CATEGORIES)  # fmt: skip
  batch = candidate_batch([[2, 6, 5, 3, 8]] * 4, [5, 9, 3, 2])
  variables = model.init(jax.random.key(0), batch)
  history = search.history_keys(
    model, variables, batch.history_item[0], batch.history_category[0], batch.history_age[0]
  )
  queries = model.apply(variables, batch.item, batch.category, method="search_queries")
  output = model.apply(variables, batch)
  scores, places = search.search(queries, history, 3)
  np.testing.assert_array_equal(np.sort(places, axis=1), np.argwhere(output.kept)[:, 1].reshape(4, 3))
  np.testing.assert_allclose(scores, np.take_along_axis(np.asarray(output.score), np.asarray(places), 1), atol=1e-6)


@pytest.mark.parametrize("k, recall, text", [(0, 1.0, "k=0 must be"), (65, 1.0, "the 64 places"), (5, 0.0, "recall=")])
def test_what_cannot_be_searched_for_is_refused(k, recall, text):
  with pytest.raises(ValueError, match=text):
    search.search(np.ones((1, 4), np.float32), random_history(64), k, recall)


def test_no_candidate_is_refused():
  with pytest.raises(ValueError, match="has no candidate"):
    search.search(np.ones((0, 4), np.float32), random_history(64), 5)


def test_a_model_without_dot_products_has_nothing_to_cache():
  model = build({"name": "din"}, num_items=NUM_ITEMS, num_categories=NUM_CATEGORIES)
  with pytest.raises(ValueError, match="has no scores that are dot products"):
    search.history_keys(model, {}, np.ones(2, np.int32), np.ones(2, np.int32), np.ones(2, np.int32))
