"""Layers by hand, inside Flax NNX, and by their public names."""

import importlib
import inspect
import math
import pkgutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sequences import batch_of

import jaxrec.layers
import jaxrec.models
from jaxrec.layers.context import bidirectional_context, causal_context
from jaxrec.layers.hstu import HSTULayer, gate, split_uvqk
from jaxrec.layers.item_embedding import ItemEmbedding, SequenceEmbedding, dropout, embed_sequence
from jaxrec.layers.norm import l2_normalize, layer_norm
from jaxrec.layers.transformer import BERT4RecLayer, FeedForward, SASRecLayer

BATCH = batch_of([[[3, 1, 4], [1, 5]], [[9, 2, 6]]], length=6)


def test_layer_norm_has_mean_zero_and_variance_one():
  np.testing.assert_allclose(layer_norm(jnp.array([[1.0, 3.0], [7.0, 7.0]])), [[-1, 1], [0, 0]], atol=1e-5)


def test_layer_norm_of_bfloat16_is_computed_in_float32():
  x = jnp.array([[1000.0, 1008.0, 1000.0, 1008.0]], jnp.bfloat16)
  out = layer_norm(x)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(jnp.float32), [[-1, 1, -1, 1]])


def test_the_gradient_of_a_normalized_zero_vector_is_finite():
  gradient = jax.grad(lambda x: (l2_normalize(x) * jnp.arange(3.0)).sum())(jnp.zeros((1, 3)))
  assert np.isfinite(gradient).all()


def test_items_are_scaled_before_positions_are_added_and_padding_is_zero():
  item, position = jnp.full((1, 2, 4), 3.0), jnp.full((1, 2, 4), 0.5)
  out = embed_sequence(item, position, jnp.array([[7, 0]]))
  np.testing.assert_allclose(out, [[[6.5] * 4, [0] * 4]])  # 3 * sqrt(4) + 0.5


def test_positions_beyond_the_table_share_its_last_row():
  layer = SequenceEmbedding(max_positions=2, dropout=0.0)
  table = {"params": {"position_table": jnp.array([[1.0], [2.0]])}}
  zeros = jnp.zeros((1, 3, 1))
  out = layer.apply(table, zeros, jnp.ones((1, 3), jnp.int32), jnp.array([[0, 1, 5]]), True)
  assert out[0, :, 0].tolist() == [1, 2, 2]


def test_scoring_vectors_are_unit_vectors_and_inputs_are_not():
  table = {"params": {"table": jnp.array([[0.0, 0.0], [3.0, 4.0]])}}
  ids = jnp.array([[1, 0]])
  np.testing.assert_allclose(ItemEmbedding(2, 2).apply(table, ids), [[[3, 4], [0, 0]]])
  unit = ItemEmbedding(2, 2).apply(table, ids, method="vectors")
  np.testing.assert_allclose(unit, [[[0.6, 0.8], [0, 0]]], atol=1e-6)
  plain = ItemEmbedding(2, 2, normalize=False).apply(table, ids, method="vectors")
  np.testing.assert_allclose(plain, [[[3, 4], [0, 0]]])


class Dropped(nn.Module):
  rate: float

  @nn.compact
  def __call__(self, x, deterministic=False):
    return dropout(self, x, self.rate, deterministic)


@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_dropout_keeps_the_mean_and_drops_at_its_rate(rate):
  out = np.asarray(Dropped(rate).apply({}, jnp.ones(40_000), rngs={"dropout": jax.random.key(0)}))
  assert set(np.unique(out).round(4)) == {0, np.float32(1 / (1 - rate)).round(4)}
  assert abs((out == 0).mean() - rate) < 4 * math.sqrt(rate * (1 - rate) / out.size)


def test_dropout_of_rate_zero_or_in_evaluation_needs_no_key():
  assert Dropped(0.0).apply({}, jnp.ones(3)).tolist() == [1, 1, 1]
  assert Dropped(0.5).apply({}, jnp.ones(3), deterministic=True).tolist() == [1, 1, 1]


def test_the_projection_is_split_into_u_v_q_k():
  u, v, q, k = split_uvqk(jnp.arange(20.0).reshape(1, 1, 20), num_heads=2, head_width=2, value_width=3)
  assert u[0, 0].tolist() == [0, 1, 2, 3, 4, 5]
  assert v[0, 0].tolist() == [[6, 7, 8], [9, 10, 11]]
  assert q[0, 0].tolist() == [[12, 13], [14, 15]]
  assert k[0, 0].tolist() == [[16, 17], [18, 19]]


def test_the_gate_multiplies_the_normalized_attention():
  u, attended = jnp.array([[[2.0, 3.0]]]), jnp.array([[[10.0, 20.0]]])
  np.testing.assert_allclose(gate(u, layer_norm(attended), False), [[[-2, 3]]], atol=1e-5)
  np.testing.assert_allclose(gate(u, layer_norm(attended), True), [[[2, 3, -1, 1, -2, 3]]], atol=1e-5)


def test_an_hstu_layer_is_its_three_equations():
  layer = HSTULayer(num_heads=1, head_width=2, value_width=2, attention_length=4)
  x = jax.random.normal(jax.random.key(0), (2, 6, 3))
  params = jax.jit(layer.init)(jax.random.key(1), x, causal_context(BATCH))["params"]
  params = jax.tree.map(lambda p: p + 0.2 * np.cos(np.arange(p.size, dtype=np.float32)).reshape(p.shape), params)
  out = jax.jit(layer.apply)({"params": params}, x, causal_context(BATCH))
  w = jax.tree.map(np.asarray, params)

  def silu(a):
    return a / (1 + np.exp(-a))

  row = np.asarray(x)[0]
  u, v, q, k = np.split(silu(np.asarray(layer_norm(x))[0] @ w["uvqk"]["kernel"]), 4, axis=-1)
  time, target_time = np.asarray(BATCH.timestamp)[0], np.asarray(BATCH.target_time)[0]
  attended = np.zeros((6, 2), np.float32)
  for i, j in [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 3), (4, 3), (4, 4)]:
    bucket = int(math.log(max(abs(target_time[i] - time[j]), 1)) / 0.301)
    score = q[i] @ k[j] + w["time_table"][bucket] + w["position_table"][i - j + 3]
    attended[i] += silu(score) / 4 * v[j]
  gated = u * np.asarray(layer_norm(jnp.asarray(attended)))
  expected = row + gated @ w["output"]["kernel"] + w["output"]["bias"]
  np.testing.assert_allclose(out[0, :5], expected[:5], atol=1e-5)


def test_the_time_of_a_query_is_that_of_the_event_to_predict():
  context = causal_context(BATCH)
  np.testing.assert_array_equal(context.query_time, BATCH.target_time)
  np.testing.assert_array_equal(context.key_time, BATCH.timestamp)


def test_a_bidirectional_token_reads_its_whole_sequence():
  dense = bidirectional_context(BATCH).mask.to_dense(6)
  assert dense[0].sum(-1).tolist() == [3, 3, 3, 2, 2, 0]


@pytest.mark.parametrize("activation, expected", [("relu", [0, 2]), ("gelu", [-0.1587, 1.9545])])
def test_a_feed_forward_layer_activates_its_hidden_units(activation, expected):
  layer = FeedForward(hidden=2, activation=activation)
  unit = {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}
  out = layer.apply({"params": {"hidden": unit, "output": unit}}, jnp.array([[[-1.0, 2.0]]]))
  np.testing.assert_allclose(out[0, 0], expected, atol=1e-4)


LAYERS = {
  "hstu": HSTULayer(num_heads=2, head_width=3, value_width=2, attention_length=6),
  "sasrec": SASRecLayer(num_heads=2, hidden=5),
  "bert4rec": BERT4RecLayer(num_heads=2, hidden=5),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_linen_layer_works_inside_flax_nnx(name):
  x, context = jax.random.normal(jax.random.key(0), (2, 6, 4)), causal_context(BATCH)
  bridged = nnx.bridge.ToNNX(LAYERS[name], rngs=nnx.Rngs(0)).lazy_init(x, context)
  out = nnx.jit(lambda module: module(x, context))(bridged)
  params = nnx.to_pure_dict(nnx.state(bridged, nnx.Param))
  np.testing.assert_allclose(out, jax.jit(LAYERS[name].apply)({"params": params}, x, context), atol=1e-6)
  gradients = nnx.jit(nnx.grad(lambda module: (module(x, context) ** 2).sum()))(bridged)
  assert all(np.isfinite(value).all() for value in jax.tree.leaves(gradients))


def public_modules(package):
  """The Linen modules defined in a package whose names have no underscore."""
  sources = [
    importlib.import_module(info.name) for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
  ]
  classes = [value for source in sources for value in vars(source).values() if inspect.isclass(value)]
  ours = {c for c in classes if issubclass(c, nn.Module) and c.__module__.startswith(package.__name__)}
  return {c for c in ours if not c.__name__.startswith("_")}


@pytest.mark.parametrize("package", [jaxrec.layers, jaxrec.models], ids=lambda package: package.__name__)
def test_every_public_layer_and_model_has_a_public_name_and_an_example(package):
  modules = public_modules(package)
  assert len(modules) > 5
  assert {c.__name__ for c in modules} <= set(package.__all__)
  assert all(getattr(package, name) for name in package.__all__)
  assert {c.__name__ for c in modules if ">>>" not in c.__doc__} <= {"SequentialModel"}  # The abstract base class.


def test_an_unknown_layer_is_refused_with_the_known_ones():
  with pytest.raises(AttributeError, match=r"has no attribute 'GRULayer'; it has \['ActionEmbedding'"):
    jaxrec.layers.GRULayer  # noqa: B018
