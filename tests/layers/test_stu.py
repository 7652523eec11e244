"""STU layers: positions and ages by hand, targets, windows, padding, dropout, gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.batches import next_item_batch
from jaxrec.layers.context import causal_context
from jaxrec.layers.stu import (
  STU,
  STULayer,
  STUPositionalEncoder,
  STUWeights,
  stu_layer,
  stu_position_index,
  stu_positional_encoding,
  stu_time_bucket,
)
from pallas_kernels import IntervalMask

MAKE = functools.partial(
  STU, num_layers=1, num_heads=2, head_width=4, value_width=3, normalizer=8.0, implementation="reference"
)


@pytest.fixture(scope="module")
def tokens():
  return jax.random.normal(jax.random.key(0), (2, 8, 6))


@pytest.fixture(scope="module")
def params(tokens):
  weights = jax.jit(MAKE(num_layers=2).init)(jax.random.key(1), tokens, jnp.array([8, 8]))
  return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape), weights)


def encode(params, tokens, lengths=(8, 5), num_targets=None, **options):
  targets = None if num_targets is None else jnp.array(num_targets)
  return _apply(MAKE(**options), params, tokens, jnp.array(lengths), targets)


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, params, tokens, lengths, num_targets):
  return model.apply(params, tokens, lengths, num_targets)


def test_targets_share_a_position_and_history_counts_backwards_from_them():
  index = stu_position_index(jnp.array([6, 3]), jnp.array([2, 0]), 6, 20, contextual_length=1)
  assert index[0].tolist() == [0, 4, 3, 2, 1, 1]
  assert index[1, :3].tolist() == [0, 3, 2]


def test_positions_beyond_the_table_share_its_last_row():
  assert stu_position_index(jnp.array([6]), None, 6, 4)[0].tolist() == [3, 3, 3, 3, 2, 1]


def test_time_buckets_are_square_roots_of_minutes_exact_to_the_second():
  ages = jnp.array([[31740, 31739, 240, 239, 60, 59, 0]])  # 529 minutes = 23 squared
  assert stu_time_bucket(31740 - ages, jnp.array([7]), last_bucket=30)[0].tolist() == [23, 22, 2, 1, 1, 0, 0]


def test_the_oldest_tokens_share_the_last_row_of_the_time_table():
  times = jnp.array([[0, 10**9]])
  assert stu_time_bucket(times, jnp.array([2]), last_bucket=50)[0].tolist() == [50, 0]


def test_a_row_without_tokens_has_no_age():
  assert stu_time_bucket(jnp.array([[7, 7]]), jnp.array([0]), last_bucket=5).tolist() == [[0, 0]]


def test_positional_encoding_scales_the_token_and_adds_both_tables():
  x = jnp.full((1, 2, 4), 3.0)
  position_table, time_table = 10.0 * jnp.arange(3)[:, None] * jnp.ones(4), 100.0 * jnp.arange(2)[:, None] * jnp.ones(4)
  encoded = stu_positional_encoding(x, position_table, time_table, jnp.array([[0, 60]]), jnp.array([2]))
  assert encoded[0, :, 0].tolist() == [2 * 3 + 20 + 100, 2 * 3 + 10 + 0]


def test_the_time_table_has_one_more_row_than_the_last_bucket():
  arguments = jnp.zeros((1, 3, 4)), jnp.zeros((1, 3), jnp.int32), jnp.array([3])
  tables = STUPositionalEncoder(num_positions=7, num_time_buckets=5).init(jax.random.key(0), *arguments)["params"]
  assert {name: table.shape for name, table in tables.items()} == {"position_table": (7, 4), "time_table": (6, 4)}


def hand_weights(**changes) -> STUWeights:
  """One head, D = E = M = 1: u = 0, v = 1, q = k = 0 through the biases; the output adds u + 10 o + 100 gated."""
  weights = dict(
    input_norm_scale=jnp.ones(1), input_norm_bias=jnp.zeros(1), uvqk_kernel=jnp.zeros((1, 4)),
    uvqk_bias=jnp.array([0.0, 1.0, 0.0, 0.0]), output_norm_scale=jnp.ones(1), output_norm_bias=jnp.zeros(1),
    output_kernel=jnp.array([[1.0], [10.0], [100.0]]),
  )  # fmt: skip
  return STUWeights(**(weights | changes))


def apply_by_hand(weights, **options):
  mask = IntervalMask.causal(jnp.array([[1, 1]]))
  x = jnp.array([[[5.0], [7.0]]])
  return stu_layer(x, weights, mask, num_heads=1, head_width=1, normalizer=2.0, **options)[0, :, 0]


def test_with_zero_scores_and_a_closed_gate_a_token_is_unchanged():
  np.testing.assert_allclose(apply_by_hand(hand_weights()), [5, 7])


def test_attention_is_added_without_normalisation():
  one_score = hand_weights(uvqk_bias=jnp.array([0.0, 1.0, 1.0, 1.0]))
  silu = 1 / (1 + np.exp(-1.0))  # q·k = 1 for every pair, v = 1, divided by 2
  np.testing.assert_allclose(apply_by_hand(one_score), [5 + 10 * silu / 2, 7 + 10 * 2 * silu / 2], rtol=1e-6)


def test_the_gate_is_silu_and_multiplies_the_normalised_attention():
  gate = 2 / (1 + np.exp(-2.0))
  biased = hand_weights(uvqk_bias=jnp.array([2.0, 1.0, 0.0, 0.0]), output_norm_bias=jnp.array([0.5]))
  np.testing.assert_allclose(apply_by_hand(biased), [5 + gate + 50 * gate, 7 + gate + 50 * gate], rtol=1e-6)


def test_the_scale_defaults_to_one_over_the_root_of_the_head_width(params, tokens):
  np.testing.assert_allclose(encode(params, tokens), encode(params, tokens, scale=0.5), rtol=1e-6)
  assert not np.allclose(encode(params, tokens), encode(params, tokens, scale=1.0))


def test_later_tokens_do_not_change_earlier_outputs(params, tokens):
  changed = tokens.at[:, 4:].multiply(-1)
  np.testing.assert_array_equal(encode(params, tokens)[:, :4], encode(params, changed)[:, :4])


def test_targets_do_not_see_each_other_but_see_the_history(params, tokens):
  run = functools.partial(encode, params, num_targets=[2, 2])
  before, other_target, other_history = (
    run(tokens),
    run(tokens.at[0, 6].multiply(-1)),
    run(tokens.at[0, 3].multiply(-1)),
  )
  np.testing.assert_array_equal(before[0, 7], other_target[0, 7])
  assert not np.allclose(before[0, 7], other_history[0, 7])


def test_the_window_hides_old_tokens(params, tokens):
  run = functools.partial(encode, params, max_attention_length=1)
  changed = tokens.at[0, 0].multiply(-1)
  np.testing.assert_array_equal(run(tokens)[0, 2:], run(changed)[0, 2:])
  assert not np.allclose(run(tokens)[0, 1], run(changed)[0, 1])


def test_contextual_tokens_see_the_whole_history(params, tokens):
  changed = tokens.at[0, 7].multiply(-1)
  run = functools.partial(encode, params)
  np.testing.assert_array_equal(run(tokens)[0, 0], run(changed)[0, 0])
  assert not np.allclose(run(tokens, contextual_length=2)[0, 0], run(changed, contextual_length=2)[0, 0])


def test_padding_is_zero_for_any_input_and_changes_nothing(params, tokens):
  run = functools.partial(encode, params, num_layers=2)
  polluted = tokens.at[1, 5:].set(jnp.nan)
  np.testing.assert_array_equal(run(polluted), run(tokens))
  assert not run(polluted)[1, 5:].any()
  np.testing.assert_allclose(run(tokens[1:, :5], lengths=(5,))[0], run(tokens)[1, :5], rtol=2e-5, atol=1e-6)


def test_padding_has_zero_gradient(params, tokens):
  gradient = jax.jit(jax.grad(lambda x: jnp.square(encode(params, x)).sum()))(tokens.at[1, 5:].set(jnp.nan))
  assert not gradient[1, 5:].any()
  assert np.isfinite(gradient).all()


def test_group_norm_normalises_each_head_on_its_own(tokens):
  weights = jax.jit(MAKE(group_norm=True).init)(jax.random.key(1), tokens, jnp.array([8, 5]))
  assert weights["params"]["layer_0"]["output_norm_scale"].shape == (2,)
  assert not np.allclose(encode(weights, tokens, group_norm=True), tokens)


def test_dropout_changes_the_loss_and_is_off_when_deterministic(params, tokens):
  @functools.partial(jax.jit, static_argnums=0)
  def run(deterministic, seed):
    rngs = {"dropout": jax.random.key(seed)}
    return MAKE(dropout=0.5).apply(params, tokens, jnp.array([8, 5]), None, deterministic, rngs=rngs)

  np.testing.assert_allclose(run(True, 0), encode(params, tokens), rtol=1e-5, atol=1e-6)
  assert not np.allclose(run(False, 0), run(False, 1))


def test_bfloat16_stays_near_float32(params, tokens):
  exact, rough = encode(params, tokens), encode(params, tokens, dtype=jnp.bfloat16)
  assert rough.dtype == jnp.bfloat16
  np.testing.assert_allclose(rough.astype(jnp.float32), exact, atol=0.1)


def test_a_layer_in_a_context_equals_the_layer_under_the_mask_of_the_context(tokens):
  layer = STULayer(num_heads=2, head_width=4, value_width=3, normalizer=8.0)
  context = causal_context(next_item_batch(jnp.array([[5, 3, 8, 1, 2, 6, 0, 0], [4, 4, 0, 0, 0, 0, 0, 0]])))
  params = jax.jit(layer.init)(jax.random.key(1), tokens, context)
  apply = jax.jit(layer.apply)
  np.testing.assert_array_equal(apply(params, tokens, context), apply(params, tokens, context.mask))


def test_implementations_agree(params, tokens):
  run = functools.partial(encode, params, tokens, num_targets=[1, 2])
  np.testing.assert_allclose(run(implementation="xla"), run(implementation="reference"), rtol=1e-5, atol=1e-6)


def test_a_projection_that_does_not_fit_the_heads_is_an_error():
  with pytest.raises(ValueError, match=r"uvqk_kernel has 4 columns; num_heads=1 and head_width=2 need"):
    stu_layer(
      jnp.ones((1, 2, 1)),
      hand_weights(),
      IntervalMask.causal(jnp.array([[1, 1]])),
      num_heads=1,
      head_width=2,
      normalizer=1.0,
    )
