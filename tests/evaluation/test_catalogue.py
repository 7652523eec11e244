"""Ranks and best items over the whole catalogue, against values worked out by hand and a plain NumPy count."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.evaluation import catalogue, chunked_scores
from jaxrec.evaluation.catalogue import RowShards, sampled_target_ranks, target_ranks, top_k_items

# One query of 1, so that scores are the vectors: item 1 scores 3, items 2 and 3 score 2, item 4 scores 1. Row 0 would
# win if it counted.
VECTORS = np.array([[9.0], [3.0], [2.0], [2.0], [1.0]], np.float32)


def _rank(target, **options):
  return int(target_ranks(np.ones((1, 1), np.float32), VECTORS, np.array([target]), **options)[0])


def _small_integers(rng, *shape):
  """Vectors whose products are exact, so that ties are ties in any order of summation."""
  return rng.integers(-2, 3, shape).astype(np.float32)


def _counted_ranks(queries, vectors, target, seen=None, item_domain=None, target_domain=None):
  ranks = []
  for row, item in enumerate(target):
    rivals = set(range(1, len(vectors))) - {item} - set([] if seen is None else seen[row].tolist())
    if item_domain is not None:
      rivals = {rival for rival in rivals if item_domain[rival] == target_domain[row]}
    scores = vectors @ queries[row]
    ranks.append(1 + sum(scores[rival] >= scores[item] for rival in rivals))
  return ranks


def test_the_best_item_ranks_first_and_padding_never_counts():
  assert _rank(1) == 1


def test_ties_count_against_the_model():
  assert _rank(2) == 3
  assert _rank(3) == 3


def test_seen_items_are_no_rivals_however_often_they_are_listed():
  assert _rank(4, seen_items=np.array([[1, 1, 2, 0]])) == 2


def test_a_seen_target_stays_a_candidate_by_default():
  assert _rank(4, seen_items=np.array([[4, 1]])) == 3


def test_a_seen_target_ranks_last_of_all_where_asked():
  assert _rank(1, seen_items=np.array([[1, 4]]), seen_target="remove") == 5
  assert _rank(2, seen_items=np.array([[1, 4]]), seen_target="remove") == 2


def test_candidates_can_be_those_of_the_target_domain():
  domains = np.array([0, 1, 1, 2, 2])
  assert _rank(2, item_domain=domains, target_domain=np.array([1])) == 2
  assert _rank(3, item_domain=domains, target_domain=np.array([2])) == 1


def test_seen_items_of_another_domain_change_nothing():
  domains = np.array([0, 1, 1, 2, 2])
  assert _rank(4, item_domain=domains, target_domain=np.array([2]), seen_items=np.array([[1, 2]])) == 2


def test_rows_without_target_get_rank_zero():
  assert _rank(0) == 0


def test_a_model_that_says_nan_ranks_last_not_first():
  broken = np.full((5, 1), np.nan, np.float32)
  assert target_ranks(np.ones((1, 1), np.float32), broken, np.array([2])).tolist() == [4]


@pytest.mark.parametrize(
  "num_items,width,num_rows", [(7, 50, 3), (300, 50, 70), (3883, 50, 600), (1000, 7, 1), (1500, 64, 130)]
)
def test_a_collapsed_model_ranks_every_target_last(num_items, width, num_rows):
  rng = np.random.default_rng(0)
  vectors = np.broadcast_to(rng.normal(size=width).astype(np.float32), (num_items + 1, width))
  queries = rng.normal(size=(num_rows, width)).astype(np.float32)
  target = rng.integers(1, num_items + 1, num_rows)
  ranks = target_ranks(queries, vectors, target, chunk_size=512)
  np.testing.assert_array_equal(ranks, num_items)


@pytest.mark.parametrize("chunk_size", [1, 128, 200, 4096])
@pytest.mark.parametrize("num_items", [130, 384, 601])
def test_ranks_equal_a_plain_count_for_every_chunk_size(num_items, chunk_size):
  rng = np.random.default_rng(num_items)
  queries, vectors = _small_integers(rng, 9, 4), _small_integers(rng, num_items + 1, 4)
  target, seen = rng.integers(1, num_items + 1, 9), rng.integers(0, num_items + 1, (9, 40))
  item_domain, target_domain = rng.integers(1, 4, num_items + 1), rng.integers(1, 4, 9)
  for options in ({}, {"seen": seen}, {"seen": seen, "item_domain": item_domain, "target_domain": target_domain}):
    expected = _counted_ranks(queries, vectors, target, **options)
    options = {{"seen": "seen_items"}.get(name, name): value for name, value in options.items()}
    ranks = target_ranks(queries, vectors, target, chunk_size=chunk_size, **options)
    np.testing.assert_array_equal(ranks, expected)


def test_more_rows_than_one_block_give_the_same_ranks_as_rows_alone(monkeypatch):
  rng = np.random.default_rng(1)
  queries, vectors, target = _small_integers(rng, 37, 4), _small_integers(rng, 90, 4), rng.integers(1, 90, 37)
  monkeypatch.setattr(chunked_scores, "BLOCK_SIZE", 8)
  np.testing.assert_array_equal(target_ranks(queries, vectors, target), _counted_ranks(queries, vectors, target))


def test_ranking_works_inside_jit():
  rng = np.random.default_rng(2)
  queries, vectors, target = _small_integers(rng, 5, 3), _small_integers(rng, 40, 3), rng.integers(1, 40, 5)
  seen = rng.integers(0, 40, (5, 6))
  ranks = jax.jit(lambda *arrays: target_ranks(*arrays[:3], seen_items=arrays[3]))(queries, vectors, target, seen)
  np.testing.assert_array_equal(ranks, _counted_ranks(queries, vectors, target, seen))


def test_no_array_of_all_rows_by_all_items_exists():
  num_rows, num_items, width = 2048, 100_000, 16
  shapes = [((num_rows, width), jnp.float32), ((num_items + 1, width), jnp.float32), ((num_rows,), jnp.int32)]
  queries, vectors, target = (jax.ShapeDtypeStruct(*shape) for shape in shapes)
  seen = jax.ShapeDtypeStruct((num_rows, 64), jnp.int32)
  arguments = RowShards(), num_items, 4096, True, queries, vectors, target, seen, (None, target)
  lowered = catalogue._target_ranks.lower(*arguments)
  temporary = lowered.compile().memory_analysis().temp_size_in_bytes
  assert temporary < 64 * 2**20, "one block of 512 x 4096 scores is 8 MiB; [B, V] would be 781 MiB"


def test_best_items_come_best_first_without_seen_ones():
  scores, items = top_k_items(np.ones((1, 1), np.float32), VECTORS, 2, seen_items=np.array([[1, 1, 0]]))
  assert (scores.tolist(), items.tolist()) == ([[2.0, 2.0]], [[2, 3]])


def test_best_items_can_be_asked_from_one_domain():
  domains = np.array([0, 1, 1, 2, 2])
  scores, items = top_k_items(np.ones((2, 1), np.float32), VECTORS, 3, item_domain=domains, domain=np.array([2, 1]))
  assert items.tolist() == [[3, 4, 0], [1, 2, 0]]
  assert scores.tolist() == [[2.0, 1.0, -np.inf], [3.0, 2.0, -np.inf]]


@pytest.mark.parametrize("chunk_size", [128, 4096])
@pytest.mark.parametrize("num_items", [130, 601])
def test_best_items_equal_a_plain_sort_with_smaller_ids_first(num_items, chunk_size):
  rng = np.random.default_rng(num_items)
  queries, vectors = _small_integers(rng, 11, 4), _small_integers(rng, num_items + 1, 4)
  seen = rng.integers(0, num_items + 1, (11, 300))
  scores = queries @ vectors.T
  scores[:, 0] = -np.inf
  np.put_along_axis(scores, seen, -np.inf, axis=1)
  expected = np.argsort(-scores, axis=1, kind="stable")[:, :10]
  found, items = top_k_items(queries, vectors, 10, seen_items=seen, chunk_size=chunk_size)
  np.testing.assert_array_equal(items, expected)
  np.testing.assert_array_equal(found, np.take_along_axis(scores, expected, axis=1))


def test_the_rank_of_a_best_item_is_its_place_in_the_list():
  rng = np.random.default_rng(3)
  queries, vectors = (rng.normal(size=shape).astype(np.float32) for shape in ((6, 8), (301, 8)))
  _, items = top_k_items(queries, vectors, 20)
  ranks = [target_ranks(queries, vectors, np.asarray(items[:, place])).tolist() for place in range(20)]
  assert ranks == [[place + 1] * 6 for place in range(20)]


def test_sampled_ranks_look_at_the_given_negatives_only():
  ranks = sampled_target_ranks(np.ones((2, 1), np.float32), VECTORS, np.array([2, 4]), np.array([[3, 4, 0], [4, 4, 0]]))
  assert ranks.tolist() == [2, 1]


@pytest.mark.parametrize(
  "change,message",
  [
    ({"target_item": np.array([5])}, r"target_item holds id 5, but item_vectors has rows for 0\.\.4"),
    ({"target_item": np.array([-1])}, "target_item holds id -1"),
    ({"target_item": np.array([1, 2])}, r"target_item\.shape=\(2,\) must be \(1,\)"),
    ({"seen_items": np.array([[1, 77]])}, "seen_items holds id 77"),
    ({"seen_target": "drop"}, "seen_target='drop' must be one of"),
    ({"target_domain": np.array([1])}, "item_domain and target_domain belong together"),
    (
      {"item_domain": np.ones(3, int), "target_domain": np.array([1])},
      r"item_domain\.shape=\(3,\) and .* must be \(5,\)",
    ),
    ({"queries": np.ones((1, 2), np.float32)}, "with the same M"),
    ({"queries": np.ones((1, 1), np.float16)}, "cast both to float32"),
    ({"chunk_size": 0}, "chunk_size=0 must be positive"),
  ],
)
@pytest.mark.unchecked_shapes
def test_input_that_does_not_fit_is_refused(change, message):
  arguments = {"queries": np.ones((1, 1), np.float32), "item_vectors": VECTORS, "target_item": np.array([1])} | change
  with pytest.raises(ValueError, match=message):
    target_ranks(**arguments)


def test_an_approximate_search_finds_the_share_that_is_asked_for():
  rng = np.random.default_rng(5)
  queries, vectors = (rng.normal(size=shape).astype(np.float32) for shape in ((16, 8), (5001, 8)))
  exact = np.asarray(top_k_items(queries, vectors, 20)[1])
  found = np.asarray(top_k_items(queries, vectors, 20, recall=0.8, chunk_size=1024)[1])
  assert np.mean([len({*a} & {*b}) / 20 for a, b in zip(exact.tolist(), found.tolist(), strict=True)]) >= 0.8
  candidates = chunked_scores.Candidates(jnp.asarray(vectors), None, 1, 5001)
  nobody = jnp.full((16, 1), -1)
  for recall in (1.0, 0.8):
    search = partial(chunked_scores.best_rows, k=20, chunk_size=1024, recall=recall)
    program = jax.make_jaxpr(search)(queries, candidates, nobody, jnp.zeros(16, jnp.int32))
    assert ("approx_top_k" in str(program)) == (recall < 1)


@pytest.mark.parametrize("recall", [0, 1.5, float("nan")])
def test_a_recall_that_is_no_share_is_refused(recall):
  with pytest.raises(ValueError, match="recall=.* must be above 0 and at most 1"):
    top_k_items(np.ones((1, 1), np.float32), VECTORS, 2, recall=recall)


def test_more_best_items_than_the_catalogue_holds_are_refused():
  with pytest.raises(ValueError, match="k=5 must be between 1 and the number of items 4"):
    top_k_items(np.ones((1, 1), np.float32), VECTORS, 5)
