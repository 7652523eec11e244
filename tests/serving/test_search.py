"""Exact and approximate search of cached histories."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from candidates import NUM_CATEGORIES, NUM_ITEMS, candidate_batch

from jaxrec.models.ctr import build
from jaxrec.serving import history_search

RNG = np.random.default_rng(5)


def random_history(length, width=4, num_padding=0):
  """Returns random keys, padded on the left, and the cached history."""
  keys = RNG.normal(size=(length, width)).astype(np.float32)
  return keys, history_search.cache_keys(jnp.asarray(keys), jnp.arange(length) >= num_padding)


def sorted_by_numpy(queries, keys, k, num_padding=0):
  scores = np.asarray(queries, np.float64) @ keys.T
  scores[:, :num_padding] = -np.inf
  positions = np.argsort(-scores, axis=1)[:, :k]
  return np.take_along_axis(scores, positions, axis=1), positions


@pytest.mark.parametrize(
  "length, num_padding, num_candidates, k",
  [(1000, 0, 130, 20), (1000, 7, 3, 1), (333, 0, 128, 20), (40, 0, 129, 20), (1000, 937, 2, 63), (640, 300, 5, 20)],
)
def test_an_exact_search_finds_what_sorting_finds(length, num_padding, num_candidates, k):
  keys, history = random_history(length, num_padding=num_padding)
  queries = RNG.normal(size=(num_candidates, 4)).astype(np.float32)
  scores, positions = history_search.search(queries, history, k)
  expected_scores, expected_positions = sorted_by_numpy(queries, keys, k, num_padding)
  np.testing.assert_allclose(scores, expected_scores, atol=1e-5)
  np.testing.assert_array_equal(positions, expected_positions)


@pytest.mark.parametrize("size", history_search._BLOCKS)
def test_blocks_of_every_size_give_the_same_result(size, monkeypatch):
  monkeypatch.setattr(history_search, "_BLOCKS", (size,))
  keys, history = random_history(2000, num_padding=70)
  queries = RNG.normal(size=(3, 4)).astype(np.float32)
  scores = queries @ np.asarray(history.keys)
  found = history_search.exact_top_k(jnp.asarray(scores), jnp.int32(1930), 20)
  expected_scores, expected = sorted_by_numpy(queries, keys, 20, 70)
  np.testing.assert_allclose(found[0], expected_scores, atol=1e-5)
  np.testing.assert_array_equal(np.asarray(history.position)[np.asarray(found[1])], expected)


def test_long_histories_are_searched_in_smaller_tiles(monkeypatch):
  monkeypatch.setattr(history_search, "_TILE_SCORES", 1000 * 16)
  keys, history = random_history(1000)
  queries = RNG.normal(size=(37, 4)).astype(np.float32)
  assert history_search.tile_size(history.keys.shape[1]) == 8
  np.testing.assert_array_equal(history_search.search(queries, history, 7)[1], sorted_by_numpy(queries, keys, 7)[1])


@pytest.mark.parametrize("dtype, error, least", [("float32", 1e-6, 1.0), ("bfloat16", 0.01, 0.97), ("int8", 0.02, 0.9)])
def test_a_smaller_cache_has_nearly_the_same_scores_and_finds_nearly_the_same(dtype, error, least):
  """The padding has keys of its own, far larger than those of the events, which must not set the scale."""
  keys = RNG.normal(size=(3000, 16)).astype(np.float32)
  keys[:100] *= 1000
  history = history_search.cache_keys(jnp.asarray(keys), jnp.arange(3000) >= 100, dtype)
  assert history.keys.dtype == dtype and (history.scale is not None) == (dtype == "int8")
  queries = RNG.normal(size=(40, 16)).astype(np.float32)
  scores, positions = map(np.asarray, history_search.search(queries, history, 20))
  true = np.take_along_axis(queries.astype(np.float64) @ keys.T, positions, axis=1)
  assert np.abs(scores - true).max() < error * np.abs(true).max()
  expected = sorted_by_numpy(queries, keys, 20, 100)[1]
  assert np.mean([len(np.intersect1d(a, b)) / 20 for a, b in zip(positions, expected, strict=True)]) >= least


def test_rounded_keys_of_a_row_of_zeros_are_zeros():
  history = history_search.cache_keys(jnp.zeros((5, 3)), jnp.ones(5, bool), "int8")
  assert not np.asarray(history.keys).any() and np.isfinite(history_search.search(np.ones((1, 3)), history, 2)[0]).all()
  with pytest.raises(ValueError, match="dtype='float8' must be one of"):
    history_search.cache_keys(jnp.zeros((5, 3)), jnp.ones(5, bool), "float8")


@pytest.mark.parametrize("recall", [1.0, 0.9])
@pytest.mark.parametrize("num_real", [0, 1, 3, 17])
def test_padding_is_never_found(recall, num_real):
  _, history = random_history(200, num_padding=200 - num_real)
  scores, positions = (np.asarray(x) for x in history_search.search(-np.ones((2, 4), np.float32), history, 5, recall))
  found = positions >= 0
  assert (found.sum(axis=1) == min(num_real, 5)).all() or (recall < 1 and found.any())
  assert (positions[found] >= 200 - num_real).all()
  np.testing.assert_array_equal(found, np.isfinite(scores))


def test_an_approximate_search_has_the_given_recall():
  keys, history = random_history(6400, width=8)
  queries = RNG.normal(size=(64, 8)).astype(np.float32)
  exact = np.asarray(history_search.search(queries, history, 20)[1])
  for recall in (0.9, 0.97):
    scores, found = (np.asarray(x) for x in history_search.search(queries, history, 20, recall))
    found_fraction = np.mean([len(np.intersect1d(a, b)) / 20 for a, b in zip(exact, found, strict=True)])
    assert recall - 0.02 < found_fraction < 1
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ keys.T, found, axis=1), atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_blocks_are_as_large_as_the_recall_allows():
  # .9: 95 blocks are enough; .99: 950.
  assert [history_search.block_size(6400, 20, recall) for recall in (0.5, 0.9, 0.99)] == [64, 64, 4]
  assert history_search.block_size(6401, 20, 0.5) == 1


def test_a_search_finds_the_events_that_the_model_keeps():
  model = build({"name": "dare", "width": 3, "attention_width": 2, "max_age": 6, "top_k": 3},
                num_items=NUM_ITEMS, num_categories=NUM_CATEGORIES)  # fmt: skip
  batch = candidate_batch([[2, 6, 5, 3, 8]] * 4, [5, 9, 3, 2])
  variables = jax.jit(model.init)(jax.random.key(0), batch)
  history = history_search.history_keys(
    model, variables, batch.history_item[0], batch.history_category[0], batch.history_age[0]
  )
  queries = model.apply(variables, batch.item, batch.category, method="search_queries")
  output = jax.jit(model.apply)(variables, batch)
  scores, positions = history_search.search(queries, history, 3)
  np.testing.assert_array_equal(np.sort(positions, axis=1), np.argwhere(output.kept)[:, 1].reshape(4, 3))
  np.testing.assert_allclose(scores, np.take_along_axis(np.asarray(output.score), np.asarray(positions), 1), atol=1e-6)


@pytest.mark.parametrize(
  "k, recall, text", [(0, 1.0, "k=0 must be"), (65, 1.0, r"k=65 must be in 1\.\.64"), (5, 0.0, "recall=")]
)
def test_k_and_recall_out_of_range_are_refused(k, recall, text):
  with pytest.raises(ValueError, match=text):
    history_search.search(np.ones((1, 4), np.float32), random_history(64)[1], k, recall)


def test_a_search_without_candidates_is_refused():
  with pytest.raises(ValueError, match="has no candidate"):
    history_search.search(np.ones((0, 4), np.float32), random_history(64)[1], 5)


def test_a_model_without_dot_products_has_nothing_to_cache():
  model = build({"name": "din"}, num_items=NUM_ITEMS, num_categories=NUM_CATEGORIES)
  with pytest.raises(ValueError, match="has no scores that are dot products"):
    history_search.history_keys(model, {}, np.ones(2, np.int32), np.ones(2, np.int32), np.ones(2, np.int32))


def test_only_tpus_use_approx_max_k_for_an_approximate_search():
  _, history = random_history(640)
  find = jax.jit(lambda queries, history: history_search.search(queries, history, 5, recall=0.9))
  shapes = (
    jax.ShapeDtypeStruct((3, 4), jnp.float32),
    jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), history),
  )
  lowered = {name: jax.export.export(find, platforms=[name])(*shapes).mlir_module() for name in ("tpu", "cpu")}
  assert "ApproxTopK" in lowered["tpu"] and "ApproxTopK" not in lowered["cpu"]


@pytest.mark.parametrize("name, wrong", [("item", NUM_ITEMS + 1), ("category", NUM_CATEGORIES + 1), ("item", -1)])
def test_an_id_outside_the_catalogue_is_refused(name, wrong):
  model = build({"name": "dare", "width": 4, "top_k": 2}, num_items=NUM_ITEMS, num_categories=NUM_CATEGORIES)
  history = {"item": np.array([1, 2]), "category": np.array([1, 1]), "age": np.array([2, 1])}
  with pytest.raises(ValueError, match=rf"{name} holds ids .*{wrong}.*, but the model knows 0\.\."):
    history_search.history_keys(model, {}, **history | {name: np.array([1, wrong])})
