"""The gradient through features of items is that of a dense table that holds their vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sequences import NUM_ITEMS, batch_of

from jaxrec.layers.norm import l2_normalize
from jaxrec.models import build
from jaxrec.objectives.item import DROPPED, ItemObjective, ParameterItems

BATCH = batch_of([[[3, 1, 4, 1]], [[5, 9], [2, 6]], []], length=5)
CONFIG = {"name": "sasrec", "width": 8, "num_layers": 1, "max_positions": 9, "hidden": 6}
F = 3


def model_of(**options):
  return build(CONFIG, num_items=NUM_ITEMS, **options)


def params_of(model):
  shapes = jax.eval_shape(model.init, jax.random.key(0), BATCH)["params"]
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype), shapes)
  params["items"]["has_id"] = jnp.asarray(rng.integers(0, 2, (NUM_ITEMS + 1, 1)), jnp.float32)
  return params


def dense_loss(objective, ids, has_id, params):
  """Returns the loss of a model without features whose table holds all vectors, in the plainest form."""
  query = model_of().apply({"params": params}, BATCH)
  vectors = l2_normalize(params["items"]["table"])
  target, temperature = BATCH.target_item, objective.temperature
  positive = (query * vectors[target]).sum(-1) / temperature
  is_known = jnp.asarray(has_id)[:, 0] > 0
  if objective.loss == "full_softmax":
    others = jnp.broadcast_to(jnp.arange(1, NUM_ITEMS + 1), (*target.shape, NUM_ITEMS))
  else:
    others = ids["negative"]
  scores = jnp.einsum("bnm,bnrm->bnr", query, vectors[others]) / temperature
  scores = jnp.where(is_known[others] & (others != target[..., None]), scores, -jnp.inf)
  loss = jax.nn.logsumexp(jnp.concatenate([positive[..., None], scores], axis=-1), axis=-1) - positive
  return (loss * BATCH.target_weight).sum() / BATCH.target_weight.sum()


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("loss", ["sampled_softmax", "full_softmax"])
def test_values_and_gradients_are_those_of_the_dense_table(loss, deterministic):
  objective, key = ItemObjective(loss, num_negatives=6), jax.random.key(3)
  model = model_of(num_features=F, id_dropout=0.5)
  params = params_of(model)
  items = params["items"]
  ids = objective.scored_ids(model, BATCH, key)
  dropped = np.asarray(ids[DROPPED])
  assert 0 < dropped.sum() < NUM_ITEMS
  keeps = items["has_id"] * (1 if deterministic else ~dropped[:, None])
  dense = {**params, "items": {"table": items["table"] * keeps + items["features"] @ items["projection"]}}
  expected, reference = jax.jit(jax.value_and_grad(lambda p: dense_loss(objective, ids, items["has_id"], p)))(dense)
  value, found = jax.jit(jax.value_and_grad(lambda p: objective(model, p, BATCH, key, deterministic)[0]))(params)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  table, got = reference.pop("items")["table"], found.pop("items")
  np.testing.assert_allclose(got["table"], keeps * table, atol=1e-5)
  np.testing.assert_allclose(got["projection"], items["features"].T @ table, atol=1e-5)
  assert not np.any(got["features"]) and not np.any(got["has_id"])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, reference)


def test_the_vectors_of_a_few_items_are_those_of_all():
  model = model_of(num_features=F)
  params = {"params": params_of(model)}
  ids, whole = jnp.array([[4, 2, 0]]), model.apply(params, method="item_vectors")
  for shape in ((1, 3), (3,), (3, 1, 1)):
    some = ids.reshape(shape)
    np.testing.assert_allclose(model.apply(params, some, method="item_vectors"), whole[some], atol=1e-6)


def test_without_features_no_item_is_dropped_and_the_parameters_are_as_before():
  plain = model_of(id_dropout=0.5)
  assert set(ItemObjective().scored_ids(plain, BATCH, jax.random.key(0))) == {"target", "negative"}
  params, others = (model.init(jax.random.key(0), BATCH)["params"] for model in (plain, model_of(num_features=F)))
  assert set(params["items"]) == {"table"}
  jax.tree.map(np.testing.assert_array_equal, {**params, "items": {"table": others["items"]["table"]}}, params)


def test_the_mask_token_is_never_dropped():
  model = build({**CONFIG, "name": "bert4rec"}, num_items=NUM_ITEMS, num_features=F, id_dropout=0.999)
  params = params_of(model_of(num_features=F, num_special=1))["items"]
  params["has_id"] = jnp.ones((NUM_ITEMS + 2, 1))
  objective = ItemObjective()
  items = ParameterItems(model, BATCH, objective.scored_ids(model, BATCH, jax.random.key(0)))
  kept = items._kept({"items": params})["items"]["table"]
  np.testing.assert_array_equal(kept[-1], params["table"][-1])
  assert not np.any(kept[1:-1])


def test_features_are_refused_where_attention_has_its_own_table():
  with pytest.raises(ValueError, match="features are for models with one table"):
    jax.eval_shape(model_of(num_features=F, attention_width=4).init, jax.random.key(0), BATCH)
