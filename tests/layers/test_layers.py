"""Layers by hand, inside Flax NNX, and by their public names."""

import functools
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
from jaxrec.layers.feed_forward import FeedForward
from jaxrec.layers.hstu import HSTULayer, gate, split_uvqk
from jaxrec.layers.item_embedding import ItemEmbedding, SequenceEmbedding, dropout, embed_sequence
from jaxrec.layers.ligr import LiGRLayer
from jaxrec.layers.norm import l2_normalize, layer_norm
from jaxrec.layers.transformer import BERT4RecLayer, SASRecLayer
from pallas_kernels import RelativeBias, segment_attention

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


@pytest.mark.parametrize("normalizer", ["length", "keys"])
def test_an_hstu_layer_is_its_three_equations(normalizer):
  layer = HSTULayer(num_heads=1, head_width=2, value_width=2, attention_length=4, normalizer=normalizer)
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
    divisor = 4 if normalizer == "length" else int(BATCH.position[0, i]) + 1
    attended[i] += silu(score) / divisor * v[j]
  gated = u * np.asarray(layer_norm(jnp.asarray(attended)))
  expected = row + gated @ w["output"]["kernel"] + w["output"]["bias"]
  np.testing.assert_allclose(out[0, :5], expected[:5], atol=1e-5)


def test_an_hstu_layer_may_end_with_a_gated_feed_forward_network():
  sizes = {"num_heads": 1, "head_width": 2, "value_width": 2, "attention_length": 4}
  x, context = jax.random.normal(jax.random.key(0), (2, 6, 3)), causal_context(BATCH)
  layer = HSTULayer(**sizes, feed_forward=5)
  params = jax.jit(layer.init)(jax.random.key(1), x, context)["params"]
  attention = {name: value for name, value in params.items() if name != "feed_forward"}
  y = jax.jit(HSTULayer(**sizes).apply)({"params": attention}, x, context)
  hidden, gates, output = (params["feed_forward"][name]["kernel"] for name in ("hidden", "gate", "output"))
  expected = y + (jax.nn.silu(layer_norm(y) @ hidden) * (layer_norm(y) @ gates)) @ output
  assert hidden.shape == (3, 5) and np.abs(expected - y).max() > 0.1
  np.testing.assert_allclose(jax.jit(layer.apply)({"params": params}, x, context), expected, atol=1e-5)
  with pytest.raises(ValueError, match="feed_forward=-1 must be a width"):
    HSTULayer(**sizes, feed_forward=-1).init(jax.random.key(1), x, context)


def test_each_head_reads_its_own_bias_tables():
  layer = HSTULayer(num_heads=2, head_width=2, value_width=2, attention_length=4, bias_tables="head")
  x, context = jax.random.normal(jax.random.key(0), (2, 6, 3)), causal_context(BATCH)
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(layer.init, jax.random.key(1), x, context)["params"]
  params = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), shapes)
  u, v, q, k = split_uvqk(jax.nn.silu(layer_norm(x) @ params["uvqk"]["kernel"]), 2, 2, 2)
  heads = []
  for h in range(2):
    bias = RelativeBias(
      params["time_table"][h], context.query_time, context.key_time, params["position_table"][h],
      context.query_position, context.key_position,
    )  # fmt: skip
    one = (y[:, :, h : h + 1] for y in (q, k, v))
    heads.append(segment_attention(*one, context.mask, bias=bias, normalizer=4, implementation="reference"))
  attended = jnp.concatenate(heads, axis=-1)[:, :, 0]  # [B, N, H * E]
  expected = x + u * layer_norm(attended) @ params["output"]["kernel"] + params["output"]["bias"]
  out = jax.jit(layer.apply)({"params": params}, x, context)
  is_token = np.asarray(BATCH.sequence_id != 0)
  np.testing.assert_allclose(np.asarray(out)[is_token], np.asarray(expected)[is_token], rtol=1e-4, atol=1e-4)
  swapped = {**params, "time_table": params["time_table"][::-1]}
  assert np.abs(jax.jit(layer.apply)({"params": swapped}, x, context) - out)[is_token].max() > 1e-2


def dense_ligr(w, x, visible, num_heads):
  """The two equations of the layer on one row `[N, M]`, position by position and head by head."""

  def norm(v, name):
    centred = v - v.mean(-1, keepdims=True)
    return centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-6) * w[name]["scale"] + w[name]["bias"]

  def dense(v, *path):
    part = functools.reduce(lambda tree, name: tree[name], path, w)
    return v @ part["kernel"] + part.get("bias", 0)

  def sigmoid(v):
    return 1 / (1 + np.exp(-v))

  normal, attended = norm(x, "attention_norm"), np.zeros_like(x)
  q, k, v = (dense(normal, "attention", name) for name in ("query", "key", "value"))
  width = x.shape[-1] // num_heads
  for i in range(len(x)):
    for h in range(num_heads):
      head = slice(h * width, (h + 1) * width)
      score = np.array([np.exp(q[i, head] @ k[j, head] / np.sqrt(width)) * visible[i, j] for j in range(len(x))])
      attended[i, head] = score @ v[:, head] / max(score.sum(), 1e-30)
  z = x + sigmoid(dense(x, "attention_gate")) * dense(attended, "attention", "output")
  normal = norm(z, "feed_forward_norm")
  hidden = dense(normal, "feed_forward", "hidden")
  branch = dense(hidden * sigmoid(hidden) * dense(normal, "feed_forward", "gate"), "feed_forward", "output")
  return z + sigmoid(dense(z, "feed_forward_gate")) * branch


def test_a_ligr_layer_is_its_two_equations():
  layer, context = LiGRLayer(num_heads=2, hidden=3), causal_context(BATCH)
  x = jax.random.normal(jax.random.key(0), (2, 6, 4))
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(layer.init, jax.random.key(1), x, context)["params"]
  params = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), shapes)
  out = jax.jit(layer.apply)({"params": params}, x, context)
  visible = np.asarray(context.mask.to_dense(6))
  expected = np.stack([dense_ligr(params, np.asarray(row), may, 2) for row, may in zip(x, visible, strict=True)])
  is_token = np.asarray(BATCH.sequence_id != 0)
  np.testing.assert_allclose(np.asarray(out)[is_token], expected[is_token], rtol=1e-4, atol=1e-4)


def test_a_closed_gate_leaves_the_residual_stream_as_it_is():
  layer, context = LiGRLayer(num_heads=1, hidden=3), causal_context(BATCH)
  x = jax.random.normal(jax.random.key(0), (2, 6, 4)) * (BATCH.sequence_id != 0)[..., None]
  params = jax.jit(layer.init)(jax.random.key(1), x, context)["params"]
  closed = {"kernel": jnp.zeros((4, 4)), "bias": jnp.full(4, -100.0)}
  apply = jax.jit(layer.apply)
  np.testing.assert_allclose(
    apply({"params": {**params, "attention_gate": closed, "feed_forward_gate": closed}}, x, context), x, atol=1e-6
  )
  assert np.abs(apply({"params": params}, x, context) - x).max() > 0.1


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
  "ligr": LiGRLayer(num_heads=2, hidden=5),
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
