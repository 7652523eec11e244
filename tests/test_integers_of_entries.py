"""Integers that JAX would cut, and ids outside of their range, at the entries of jaxrec."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sequences import NUM_ITEMS, batch_of

from jaxrec import models, parallel
from jaxrec.batches import CandidateBatch, next_item_batch
from jaxrec.embedding import Table, Tables, fold_id, two_rows
from jaxrec.evaluation import catalogue
from jaxrec.layers.stu import stu_position_index, stu_time_bucket
from jaxrec.models import ctr
from jaxrec.objectives.item import ItemObjective
from jaxrec.serving.incremental import IncrementalModel

BATCH = batch_of([[[3, 1, 4]]], length=4)
SIZES = {"width": 8, "num_layers": 1, "head_width": 3, "value_width": 5}
MODEL = models.build({"name": "hstu", **SIZES, "max_positions": 9, "attention_length": 7}, num_items=NUM_ITEMS)
WIDE = np.array([[3, 2**32 + 1, 4, 0]])


@pytest.mark.parametrize("field", ["item_id", "timestamp", "sequence_id", "position", "target_item", "target_time"])
def test_a_batch_with_an_integer_that_jax_would_cut_is_refused_by_the_name_of_its_field(field):
  batch, params = BATCH.replace(**{field: WIDE}), {}
  with pytest.raises(ValueError, match=f"batch.{field} holds 4294967297"):
    MODEL.apply({"params": params}, batch)
  with pytest.raises(ValueError, match=f"batch.{field} holds 4294967297"):
    ItemObjective("full_softmax")(MODEL, params, batch, jax.random.key(0))
  for shard in (parallel.shard_batch, parallel.shard_replicated_batch):
    with pytest.raises(ValueError, match="batch holds 4294967297"):
      shard(batch, parallel.make_mesh())


def test_batches_are_made_of_integers_that_fit():
  with pytest.raises(ValueError, match="item_id holds 4294967297"):
    next_item_batch(WIDE)
  with pytest.raises(ValueError, match="timestamp holds 4294967297"):
    next_item_batch(np.ones_like(WIDE), timestamp=WIDE)
  batch = next_item_batch(np.array([[3, 200, 0]], np.uint8), timestamp=np.array([[1, 2, 0]], np.int64))
  assert batch.item_id.dtype == batch.timestamp.dtype == jnp.int32 and batch.item_id.tolist() == [[3, 200, 0]]


def test_candidates_are_integers_that_fit():
  two = np.array([1, 2])
  batch = CandidateBatch(
    np.array([[1], [2**32 + 1]]), two[:, None], two[:, None], two, two, two.astype(np.float32), two
  )
  with pytest.raises(ValueError, match="batch.history_item holds 4294967297"):
    ctr.build({"name": "dare"}, num_items=9, num_categories=3).apply({}, batch)


def test_a_request_whose_time_jax_would_cut_is_refused_by_row():
  params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), jax.eval_shape(MODEL.init, jax.random.key(0), BATCH))
  serving = IncrementalModel(MODEL, params["params"])
  one = np.array([1])
  state = serving.observe(serving.start(batch_size=1, capacity=4), one, one, one)
  with pytest.raises(ValueError, match="row 0 has time=1099511627776"):
    serving.query(state, one, np.array([2**40]))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int64])
def test_a_lookup_takes_ids_of_any_type(dtype):
  tables = Tables({"item": Table(300, 2, initializer=jax.nn.initializers.normal(1.0))})
  state = tables.init(jax.random.key(0))
  read = lambda ids: tables.vectors(*tables.lookup(state, {"item": ids}))["item"]  # noqa: E731
  np.testing.assert_array_equal(read(np.array([5, 100], dtype)), read(np.array([5, 100], np.int32)))


def test_ids_beyond_32_bits_are_no_rows_in_the_64_bit_mode_and_an_error_without_it():
  tables = Tables({"item": Table(9, 2, placement="sharded")})
  ids = {"item": np.array([2**32 + 5, 5, 2**32 - 1, -1])}
  with pytest.raises(ValueError, match="ids of table 'item' holds 4294967301.*fold_id"):
    tables.lookup(tables.init(jax.random.key(0)), ids)
  with jax.enable_x64(True):
    rows, plan = tables.lookup(tables.init(jax.random.key(0)), ids)
    assert np.asarray(tables.vectors(rows, plan)["item"]).any(axis=1).tolist() == [False, True, False, False]
    assert int(plan.counts["out_of_range"]) == 2
  _, plan = tables.lookup(tables.init(jax.random.key(0)), {"item": np.array([3_000_000_000, 5])})
  assert int(plan.counts["out_of_range"]) == 1


@pytest.mark.unchecked_shapes
def test_hashes_are_of_folded_integers():
  with pytest.raises(ValueError, match="wide must hold integers, not float64"):
    fold_id(np.array([1.5]))
  with pytest.raises(ValueError, match="must be uint32 pairs: use fold_id"):
    two_rows(np.array([7, 2**40]), 1000)
  assert len({tuple(x) for x in two_rows(fold_id(np.array([5, 2**32 + 5, -1], np.int64)), 10**9).tolist()}) == 3


def test_domains_of_a_ranking_are_integers_that_fit():
  vectors, domains = np.ones((3, 4), np.float32), np.array([0, 1, 2**32 + 1])
  with pytest.raises(ValueError, match="item_domain holds 4294967297"):
    catalogue.target_ranks(vectors[:1], vectors, np.array([1]), item_domain=domains, target_domain=np.array([1]))


def test_times_and_lengths_of_stu_may_be_of_any_type():
  timestamps, lengths = np.array([[0, 60, 250]]), np.array([3])
  expected = stu_time_bucket(timestamps, lengths, 5)
  np.testing.assert_array_equal(stu_time_bucket(timestamps.astype(np.uint8), lengths.astype(np.uint8), 5), expected)
  wrapping = stu_time_bucket(np.array([[-100, 127]], np.int8), np.array([2]), 5)  # 227 seconds: 3 minutes.
  assert wrapping.tolist() == [[1, 0]]
  assert stu_position_index(np.array([3], np.uint8), np.array([1], np.uint8), 3, 9).tolist() == [[2, 1, 0]]
  with pytest.raises(ValueError, match="timestamps holds 1700000000000"):
    stu_time_bucket(np.full((1, 3), 1_700_000_000_000), lengths, 5)
