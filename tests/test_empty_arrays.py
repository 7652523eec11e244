"""Nothing in, nothing out: no rows, no tokens, no ids, one item, no negatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_checks.compile import quick_jit
from sequences import batch_of

from jaxrec import models
from jaxrec.batches import next_item_batch
from jaxrec.embedding import Table, Tables
from jaxrec.evaluation import catalogue
from jaxrec.evaluation.protocols import ranks_of_users
from jaxrec.objectives.item import ItemObjective
from jaxrec.serving import history_search
from jaxrec.serving.incremental import IncrementalModel
from pallas_kernels import IntervalMask, RelativeBias, permute, segment_attention, sort_by_segment

SIZES = {"width": 8, "num_layers": 1, "num_heads": 2, "max_positions": 9}
HSTU = {"name": "hstu", **SIZES, "head_width": 3, "value_width": 5, "attention_length": 7}
KEY = jax.random.key(0)


@pytest.mark.parametrize("rows, queries, keys", [(0, 4, 4), (2, 0, 4), (2, 4, 0), (2, 0, 0)])
@pytest.mark.parametrize("implementation", ["reference", "dense", "xla", "auto", "tpu"])
def test_attention_without_rows_queries_or_keys_gives_zeros_and_zero_gradients(implementation, rows, queries, keys):
  start = jnp.zeros((rows, queries), jnp.int32)
  mask = IntervalMask(start, start + keys, start, start, jnp.zeros((rows, queries), bool))
  key_time = jnp.zeros((rows, keys), jnp.int32)

  def attend(q, k, v, table):
    return segment_attention(
      q, k, v, mask, bias=RelativeBias(table, start, key_time), activation="softmax", key_group=key_time, num_groups=3,
      implementation=implementation, interpret=implementation == "tpu",
    )  # fmt: skip

  inputs = jnp.ones((rows, queries, 2, 4)), jnp.ones((rows, keys, 2, 4)), jnp.ones((rows, keys, 2, 5)), jnp.ones(129)
  (out, mass), pull_back = jax.vjp(attend, *inputs)
  assert out.shape == (rows, queries, 2, 5) and mass.shape == (rows, queries, 2, 3)
  gradients = pull_back((jnp.ones_like(out), jnp.ones_like(mass)))
  assert not any(np.asarray(x).any() for x in (out, mass, *gradients))
  assert [x.shape for x in gradients] == [x.shape for x in inputs]


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_masks_and_orders_of_nothing_are_empty(shape):
  ids = jnp.ones(shape, jnp.int32)
  for mask in (IntervalMask.causal(ids), IntervalMask.full(ids), IntervalMask.intra_domain(ids, ids, ids)):
    assert mask.shape == shape and mask.to_dense(shape[1]).shape == (*shape, shape[1])
    assert mask.is_read(shape[1]).shape == shape
  order, inverse = sort_by_segment(ids, ids)
  assert permute(ids, order, inverse).shape == shape


def ones(model, batch):
  shapes = jax.eval_shape(model.init, KEY, batch)["params"]
  return jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)


def gradients(objective, model, params, batch):
  return quick_jit(lambda params, batch: objective.gradients(model, params, batch, KEY)[:3])(params, batch)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
@pytest.mark.parametrize("name", ["hstu", "multi_domain_hstu", "sasrec", "bert4rec", "stu"])
def test_models_and_losses_of_an_empty_batch_are_empty_and_zero(name, shape):
  is_hstu = "hstu" in name or name == "stu"
  config = {**HSTU, "name": name} if is_hstu else {"name": name, **SIZES, "hidden": 6}
  model = models.build(config, num_items=9)
  params = ones(model, batch_of([[[1, 2]]], length=3))
  batch = next_item_batch(np.zeros(shape, np.int32))
  assert jax.eval_shape(model.apply, {"params": params}, batch).shape == (*shape, 8)
  if name == "hstu":
    for objective in (ItemObjective("full_softmax"), ItemObjective(num_negatives=2, sampler="in_batch")):
      losses, weights, (grad,) = gradients(objective, model, params, batch)
      assert losses.tolist() == weights.tolist() == [0]
      assert not any(np.asarray(x).any() for x in jax.tree.leaves(grad))


@pytest.mark.parametrize("loss", ["full_softmax", "sampled_softmax", "gbce"])
def test_a_catalogue_of_one_item_has_finite_losses(loss):
  model, batch = models.build(HSTU, num_items=1), next_item_batch(np.array([[1, 1, 1, 0]]))
  params = ones(model, batch)
  losses, _, (grad,) = gradients(ItemObjective(loss, 2), model, params, batch)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((losses, grad)))
  if loss in ("full_softmax", "sampled_softmax"):
    np.testing.assert_allclose(losses, [0], atol=1e-6)


@pytest.mark.parametrize("placement", ["sharded", "replicated"])
@pytest.mark.parametrize(
  "ids", [{}, {"item": {}}, {"item": np.zeros(0, np.int32)}, {"item": np.zeros((2, 0), int)}], ids=str
)
def test_a_lookup_without_ids_finds_nothing_and_updates_nothing(placement, ids):
  tables = Tables({"item": Table(5, 2, placement=placement, admit_after=1)})
  state = tables.init(KEY)
  rows, plan = tables.lookup(state, ids)
  vectors = tables.vectors(rows, plan)
  assert jax.tree.map(jnp.shape, vectors) == jax.tree.map(lambda x: (*x.shape, 2), ids)
  updated = tables.update(state, plan, jax.tree.map(jnp.ones_like, rows))
  jax.tree.map(np.testing.assert_array_equal, updated.stacks, state.stacks)


@pytest.mark.unchecked_shapes
def test_ranking_without_queries_is_empty():
  queries, vectors, none = np.ones((0, 4), np.float32), np.ones((3, 4), np.float32), np.zeros(0, np.int32)
  assert catalogue.target_ranks(queries, vectors, none).shape == (0,)
  assert [x.shape for x in catalogue.top_k_items(queries, vectors, 2)] == [(0, 2), (0, 2)]
  assert catalogue.sampled_target_ranks(queries, vectors, none, np.zeros((0, 5), np.int32)).shape == (0,)
  with pytest.raises(ValueError, match="negative_items.shape"):
    catalogue.sampled_target_ranks(queries, vectors, none, np.zeros((2, 5), np.int32))
  with pytest.raises(ValueError, match="batches is empty"):
    ranks_of_users(None, vectors, None, [])


@pytest.mark.parametrize("recall", [1.0, 0.9])
def test_a_search_of_an_empty_history_finds_no_event(recall):
  history = history_search.cache_keys(jnp.ones((0, 3)), jnp.ones(0, bool))
  scores, positions = history_search.search(jnp.ones((1, 3)), history, 2, recall)
  assert scores.tolist() == [[-np.inf] * 2] and positions.tolist() == [[-1, -1]]


def test_no_histories_have_no_queries():
  model = models.build(HSTU, num_items=9)
  serving = IncrementalModel(model, ones(model, batch_of([[[1, 2]]], length=3)))
  none = np.zeros(0, np.int32)
  assert serving.query(serving.observe(serving.start(0, 2), none, none, none), none, none).shape == (0, 8)
