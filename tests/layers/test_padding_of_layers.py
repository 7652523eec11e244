"""Whatever stands on padding tokens: layers and objectives give the same outputs and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_checks.compile import quick_jit
from sequences import NUM_ITEMS, batch_of

from jaxrec import models
from jaxrec.batches import CandidateBatch
from jaxrec.layers.context import bidirectional_context, causal_context
from jaxrec.layers.domain_states import DomainStateAttention
from jaxrec.layers.hstu import HSTULayer
from jaxrec.layers.intra_domain import intra_domain_context
from jaxrec.layers.ligr import LiGRLayer
from jaxrec.layers.stu import STULayer
from jaxrec.layers.transformer import BERT4RecLayer, SASRecLayer
from jaxrec.models import ctr
from jaxrec.models.multi_domain_hstu import MultiDomainHSTULayer
from jaxrec.objectives.item import ItemObjective
from pallas_kernels import IntervalMask

BATCH = batch_of([[[3, 1, 4, 1]], [[2, 6], [5, 3]], []], length=6, num_domains=2)
IS_TOKEN = np.asarray(BATCH.sequence_id != 0)
SIZES = {"num_heads": 2, "head_width": 3, "value_width": 5}
X = np.random.default_rng(0).normal(size=(*IS_TOKEN.shape, 8)).astype(np.float32)


def decoupled_context():
  return causal_context(BATCH).replace(attention_input=jnp.asarray(X))


def intra_context():
  return intra_domain_context(BATCH, 2)


HSTU = HSTULayer(**SIZES, attention_length=7)
STU = STULayer(**SIZES, normalizer=7.0)
LAYERS = {
  "hstu": (HSTU, lambda: causal_context(BATCH)),
  "decoupled": (HSTU, decoupled_context),
  "multi-domain": (MultiDomainHSTULayer(**SIZES, attention_length=7, num_domains=2, read="all"), intra_context),
  "states": (DomainStateAttention(num_domains=2), intra_context),
  "sasrec": (SASRecLayer(num_heads=2, hidden=6), lambda: causal_context(BATCH)),
  "ligr": (LiGRLayer(num_heads=2, hidden=6), lambda: causal_context(BATCH)),
  "bert4rec": (BERT4RecLayer(num_heads=2, hidden=6), lambda: bidirectional_context(BATCH)),
  "stu": (STU, lambda: causal_context(BATCH)),
  "stu with a mask": (STU, lambda: IntervalMask.causal(BATCH.sequence_id)),
}


def random_values(init, *arguments):
  """Values for the shapes of `init`, which is not compiled."""
  numbers = np.random.default_rng(1)
  shapes = jax.eval_shape(init, jax.random.key(0), *arguments)
  return jax.tree.map(lambda x: numbers.normal(scale=0.3, size=x.shape).astype(x.dtype), shapes)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_does_not_read_padding(name):
  layer, make_context = LAYERS[name]
  params = random_values(lambda key: layer.init(key, jnp.asarray(X), make_context()))

  def loss(params, x):
    context = make_context()
    order = getattr(context, "order", None) or (lambda x: x)
    x = order(x)
    if name == "decoupled":
      context = context.replace(attention_input=x)
    out = layer.apply(params, x, context)
    return (jnp.where(order(jnp.asarray(IS_TOKEN))[..., None], out, 0) ** 2).sum()

  run = quick_jit(jax.value_and_grad(loss, (0, 1)))
  (value, grads), (dirty_value, dirty_grads) = (
    run(params, np.where(IS_TOKEN[..., None], X, np.float32(padding))) for padding in (0.0, np.nan)
  )
  np.testing.assert_allclose(dirty_value, value, rtol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), dirty_grads, grads)


GARBAGE = {
  "timestamp": np.iinfo(np.int32).min, "position": -(2**30), "domain_id": 77, "target_item": 2**30,
  "target_domain": -5, "target_time": np.iinfo(np.int32).max,
}  # fmt: skip


@pytest.mark.parametrize("loss", ["full_softmax", "sampled_softmax"])
@pytest.mark.parametrize("name", ["hstu", "multi_domain_hstu"])
def test_padding_of_a_batch_and_its_row_of_the_item_table_may_hold_anything(name, loss):
  config = {"name": name, "width": 8, "num_layers": 1, "max_positions": 9, "num_domains": 2, **SIZES}
  model = models.build(config, num_items=NUM_ITEMS)
  params = random_values(model.init, BATCH)["params"]
  objective = ItemObjective(loss, 4)
  run = quick_jit(lambda params, batch: objective.gradients(model, params, batch, jax.random.key(1))[:3])
  expected = run(params, BATCH)
  dirty = {field: np.where(IS_TOKEN, getattr(BATCH, field), value) for field, value in GARBAGE.items()}
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), run(params, BATCH.replace(**dirty)), expected)
  table = params["items"]["table"].copy()
  table[0] = np.nan
  losses, _, (grad,) = run({**params, "items": {"table": table}}, BATCH)
  grad["items"]["table"] = grad["items"]["table"].at[0].set(expected[2][0]["items"]["table"][0])
  np.testing.assert_allclose(losses, expected[0], rtol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grad, expected[2][0])


@pytest.mark.parametrize("variant", ["dare", "din", "sdim"])
def test_the_padding_row_of_a_click_model_reaches_no_result(variant):
  two = np.array([1, 2], np.int32)
  history = np.array([[0, 5, 3], [0, 0, 9]], np.int32)
  batch = CandidateBatch(history, np.minimum(history, 3), history, two, two, two.astype(np.float32), two)
  model = ctr.build({"name": variant, "width": 4, "top_k": 2}, num_items=9, num_categories=3)
  variables = jax.tree.map(np.abs, random_values(model.init, batch))  # Variances are not negative.

  def spoil(path, x):
    is_table = path[-1].key == "item_table"
    return np.concatenate([np.full_like(x[:1], np.nan), x[1:]]) if is_table else x

  def gradients(variables):
    return jax.grad(lambda variables: model.apply(variables, batch).logit.sum())(variables)["params"]

  run = quick_jit(gradients)
  dirty = run(jax.tree_util.tree_map_with_path(spoil, variables))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), dirty, run(variables))
