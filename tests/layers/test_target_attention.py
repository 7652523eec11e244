"""Target attention: scores, search, aggregation, the network of DIN, hashes, and batch norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.layers.ctr import lsh, packed_history
from jaxrec.layers.ctr import target_attention as attention
from jaxrec.layers.ctr.batch_norm import BatchNorm

SCORES = jnp.array([[0.5, 3.0, -1.0, 2.0], [7.0, 1.0, 0.0, 0.25], [1.0, 1.0, 1.0, 1.0]])
REAL = jnp.array([[True, True, True, True], [False, False, True, True], [False, False, False, False]])


def test_item_with_category_and_age_are_each_scaled_by_their_width():
  # Item and category have width 4: 8 / 2; age has width 1: 3 * 5.
  target, event = jnp.array([[2.0, 2.0, 2.0, 2.0, 3.0]]), jnp.array([[[1.0, 1.0, 1.0, 1.0, 5.0]]])
  assert attention.target_scores(target, event, age_width=1).tolist() == [[19.0]]


def test_a_search_keeps_the_largest_scores_of_real_events():
  assert attention.top_k_mask(SCORES[:1], REAL[:1], 2).tolist() == [[False, True, False, True]]


def test_a_search_never_keeps_padding_even_with_fewer_than_k_real_events():
  """The published search fills up with padding, whose scores (7 and 1 here) then dominate the softmax."""
  kept = attention.top_k_mask(SCORES, REAL, 3)
  assert kept[1:].tolist() == REAL[1:].tolist()
  weights = attention.masked_softmax(SCORES, kept)
  np.testing.assert_allclose(weights[1], [0, 0, 1 / (1 + np.exp(0.25)), 1 / (1 + np.exp(-0.25))], atol=1e-6)


def test_a_history_shorter_than_k_is_kept_whole():
  assert attention.top_k_mask(SCORES[:1], REAL[:1], 20).all()


def test_a_hard_search_prefers_the_category_and_then_the_later_event():
  score, is_same = attention.category_preference(jnp.array([[1, 2, 1, 2], [3, 3, 3, 3]]), jnp.array([2, 1]))
  assert np.argsort(-score, axis=1).tolist() == [[3, 1, 2, 0], [3, 2, 1, 0]]
  assert is_same.tolist() == [[False, True, False, True], [False] * 4]


def test_without_a_real_event_weights_and_gradients_are_zero():
  def read(scores):
    return attention.masked_softmax(scores, REAL).sum(axis=1)

  assert read(SCORES).tolist()[2] == 0
  gradient = jax.jacobian(read)(SCORES)
  assert np.isfinite(gradient).all() and not gradient[2].any()


def test_softmax_of_large_scores_is_finite():
  weights = attention.masked_softmax(jnp.array([[1e30, 1e30, -1e30]]), jnp.array([[True, True, True]]))
  assert weights.tolist() == [[0.5, 0.5, 0.0]]


@pytest.mark.parametrize("rows", [2, 3, 7, 2048])
def test_batch_norm_makes_a_feature_that_all_rows_share_exactly_its_bias(rows):
  values = np.random.default_rng(0).normal(size=64).astype(np.float32)  # Sums of some of them are rounded.
  x = jnp.broadcast_to(values, (rows, 64))
  variables = {
    "params": {"scale": jnp.full(64, 2.0), "bias": jnp.full(64, 0.5)},
    "batch_stats": {"mean": jnp.zeros(64), "variance": jnp.ones(64)},
  }
  y, _ = jax.jit(lambda v, x: BatchNorm().apply(v, x, False, mutable=["batch_stats"]))(variables, x)
  np.testing.assert_array_equal(y, 0.5)


def test_an_unknown_set_of_features_is_refused():
  with pytest.raises(ValueError, match=r"features='sum' is not one of \('all', 'pair', 'product'\)"):
    attention.target_aware_features(jnp.ones((1, 2)), jnp.ones((1, 2)), "sum")


def test_the_attention_unit_is_its_equation():
  unit = attention.AttentionUnit(hidden=1)
  params = {
    "hidden_layer": {"kernel": jnp.array([[1.0], [2.0], [3.0], [4.0]]), "bias": jnp.array([0.5])},
    "activation": {"negative_slope": jnp.array(0.1)},
    "output": {"kernel": jnp.array([[2.0]]), "bias": jnp.array([1.0])},
  }
  # q 1, k 2: 1 + 4 - 3 + 8 + .5 = 10.5 -> 22; q 1, k -1: 1 - 2 + 6 - 4 + .5 = 1.5 -> 4; width 1.
  out = unit.apply({"params": params}, jnp.array([[1.0]]), jnp.array([[[2.0], [-1.0]]]))
  np.testing.assert_allclose(out, [[22.0, 4.0]], rtol=1e-6)


def test_the_attention_unit_is_that_of_the_four_parts_side_by_side():
  keys = jax.random.split(jax.random.key(1), 3)
  q, k = jax.random.normal(keys[0], (2, 6)), jax.random.normal(keys[1], (2, 5, 6))
  unit = attention.AttentionUnit(hidden=4)
  params = unit.init(keys[2], q, k)

  def dense(params, q, k):
    p, query = params["params"], jnp.broadcast_to(q[:, None], k.shape)
    x = jnp.concatenate([query, k, query - k, query * k], axis=-1) @ p["hidden_layer"]["kernel"]
    x += p["hidden_layer"]["bias"]
    x = jnp.where(x >= 0, x, p["activation"]["negative_slope"] * x)
    return (x @ p["output"]["kernel"] + p["output"]["bias"])[..., 0] / q.shape[-1]

  np.testing.assert_allclose(unit.apply(params, q, k), dense(params, q, k), atol=1e-5)
  losses = [lambda *xs, score=score: jnp.sum(jnp.sin(score(*xs))) for score in (unit.apply, dense)]
  found, wanted = (jax.grad(loss, argnums=(0, 1, 2))(params, q, k) for loss in losses)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found, wanted)


def test_hashes_of_the_same_direction_agree_and_of_opposite_directions_do_not():
  normals = lsh.hyperplanes(8, 32, seed=3)
  x = jax.random.normal(jax.random.key(0), (1, 8))
  history = jnp.stack([2 * x, -x], axis=1)  # [1, 2, 8]
  distance = lsh.hamming_distance(lsh.hash_bits(x, normals), lsh.hash_bits(history, normals))
  assert distance.tolist() == [[0, 32]]


def test_the_hamming_distance_grows_with_the_angle():
  normals = lsh.hyperplanes(2, 3000)
  angle = jnp.array([0.0, 0.3, 1.0, 2.0, 3.0])
  bits = lsh.hash_bits(jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)[None], normals)
  distance = lsh.hamming_distance(bits[:, 0], bits)[0] / 3000
  np.testing.assert_allclose(distance, angle / np.pi, atol=0.03)


def test_buckets_of_one_bit_agree_as_often_as_bits_do():
  target, history = jnp.array([[True, False]]), jnp.array([[[True, True], [False, False]]])
  assert lsh.same_bucket(target, history, 1).tolist() == [[[True, False], [False, True]]]
  assert lsh.same_bucket(target, history, 2).tolist() == [[[False, False]]]


def test_buckets_that_do_not_divide_the_bits_are_refused():
  with pytest.raises(ValueError, match="bits_per_bucket=2 must divide the number of bits 3"):
    lsh.same_bucket(jnp.ones((1, 3), bool), jnp.ones((1, 1, 3), bool), 2)


X = jnp.array([[1.0, 10.0], [3.0, 10.0], [5.0, 10.0]])


def normalized(evaluation, deterministic, statistics=None):
  norm = BatchNorm(evaluation)
  variables = {"params": {"scale": jnp.full(2, 2.0), "bias": jnp.full(2, 0.5)}}
  variables["batch_stats"] = statistics or {"mean": jnp.array([1.0, 0.0]), "variance": jnp.array([4.0, 1.0])}
  return norm.apply(variables, X, deterministic, mutable=["batch_stats"])


def test_training_normalizes_by_the_batch_and_updates_running_statistics_by_a_tenth():
  out, state = normalized("running", deterministic=False)
  root = np.sqrt(8 / 3)
  np.testing.assert_allclose(out, [[0.5 - 4 / root, 0.5], [0.5, 0.5], [0.5 + 4 / root, 0.5]], atol=1e-4)
  np.testing.assert_allclose(state["batch_stats"]["mean"], [1.2, 1.0], rtol=1e-6)  # .9 * 1 + .1 * 3
  np.testing.assert_allclose(state["batch_stats"]["variance"], [4.0, 0.9], rtol=1e-6)  # .9 * 4 + .1 * 8 / 2


def test_evaluation_by_running_statistics_reads_no_other_row():
  out, state = normalized("running", deterministic=True)
  np.testing.assert_allclose(out, [[0.5, 20.5], [2.5, 20.5], [4.5, 20.5]], rtol=1e-4)
  np.testing.assert_array_equal(state["batch_stats"]["mean"], [1.0, 0.0])


def test_evaluation_by_the_batch_equals_training_and_updates_nothing():
  out, state = normalized("batch", deterministic=True)
  np.testing.assert_array_equal(out, normalized("running", deterministic=False)[0])
  np.testing.assert_array_equal(state["batch_stats"]["mean"], [1.0, 0.0])


def test_a_batch_of_one_row_cannot_be_normalized_by_itself():
  with pytest.raises(ValueError, match="a batch of 1 row has no statistics"):
    BatchNorm("batch").init_with_output(jax.random.key(0), X[:1], True)


def test_an_unknown_evaluation_is_refused():
  with pytest.raises(ValueError, match=r"self.evaluation='mean' is not one of \('running', 'batch'\)"):
    BatchNorm("mean").init(jax.random.key(0), X, True)


def test_windows_and_their_columns_are_transposes_of_each_other():
  """<windows(x), w> = <x, at_columns(w)>, and each is the gradient of the other."""
  rng = np.random.default_rng(0)
  x, w = (jnp.asarray(rng.normal(size=(2, 3, n)), jnp.float32) for n in (9, 4))
  end = jnp.array([[4, 6, 9], [5, 5, 8]])
  taken, placed = packed_history.windows(x, end, 4), packed_history.at_columns(w, end, 9)
  assert taken[0, 1].tolist() == x[0, 1, 2:6].tolist() and placed[1, 2, 4:8].tolist() == w[1, 2].tolist()
  assert float((taken * w).sum()) == pytest.approx(float((x * placed).sum()), rel=1e-5)
  gradient = jax.grad(lambda x: (packed_history.windows(x, end, 4) * w).sum())(x)
  np.testing.assert_allclose(gradient, placed, rtol=1e-6)
  gradient = jax.grad(lambda w: (packed_history.at_columns(w, end, 9) * x).sum())(w)
  np.testing.assert_allclose(gradient, taken, rtol=1e-6)


def test_the_pooled_history_enters_the_head_alone_and_multiplied_by_the_candidate():
  values, target = jnp.array([[[4.0, 0.0], [0.0, 8.0]]]), jnp.array([[3.0, 5.0]])
  pooled = attention.aggregate(jnp.array([[0.25, 0.75]]), values)  # .25 (4, 0) + .75 (0, 8)
  assert attention.target_aware_features(target, pooled).tolist() == [[3, 5, 1, 6, 3, 30]]
  assert attention.target_aware_features(target, pooled, "product").tolist() == [[3, 30]]


def test_weights_are_a_softmax_over_the_events_that_are_kept():
  weights = attention.masked_softmax(jnp.log(jnp.array([[1.0, 5.0, 3.0]])), jnp.array([[True, False, True]]))
  np.testing.assert_allclose(weights, [[0.25, 0, 0.75]], atol=1e-6)
