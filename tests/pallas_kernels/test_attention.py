"""Segment attention: the tiled implementation against the definition, and what both of them promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_problems import Case, assert_close, attend, output_and_gradients, problem

from pallas_kernels import (
  BlockSizes,
  IntervalMask,
  RelativeBias,
  attention_weights,
  dense,
  segment_attention,
  sort_by_segment,
  tpu,
)

GRID = [
  Case(),
  Case(activation="softmax"),
  Case(blocks=(8, 16, 1), mask="full"),
  Case(blocks=(8, 16, 100), activation="softmax", mask="full"),
  Case(blocks=(40, 8, 3), tables="", normalizer="number"),
  Case(blocks=(8, 40, 2), tables="time", per_head=True),
  Case(blocks=(16, 16, 5), tables="position", activation="softmax", per_head=True),
  Case(per_head=True, value_width=3, normalizer="each_query"),
  Case(per_head=True, value_width=9, activation="softmax", scale=0.2),
  Case(length=1, blocks=None),
  Case(length=127, blocks=(32, 64, 2), heads=1, activation="softmax"),
  Case(length=129, blocks=(64, 32, 3), heads=1),
  Case(length=211, blocks=None, heads=1, width=25),
  Case(mask="window"),
  Case(mask="window", activation="softmax", tables=""),
  Case(mask="targets", activation="softmax"),
  Case(mask="both_ways", blocks=(8, 16, 3)),
  Case(mask="last_queries", blocks=(4, 8, 2), normalizer="each_query"),
  Case(dtype="bfloat16", normalizer="number"),
  Case(dtype="bfloat16", activation="softmax", per_head=True),
]


@pytest.mark.parametrize("case", GRID, ids=str)
def test_tiles_give_the_outputs_and_gradients_of_the_definition(case):
  arguments = problem(case)
  actual, expected = (output_and_gradients(case, name, *arguments) for name in ("xla", "reference"))
  assert all(np.abs(np.asarray(value, np.float32)).max() > 0 for value in expected.values()), "a test of nothing"
  assert_close(actual, expected, 2e-2 if case.dtype == "bfloat16" else 1e-5)


SHORT = [case for case in GRID if case.length == 40]


@pytest.mark.parametrize(
  "case", [*SHORT[::2], *(pytest.param(case, marks=pytest.mark.exhaustive) for case in SHORT[1::2])], ids=str
)
def test_dense_products_give_the_outputs_and_gradients_of_the_definition(case):
  arguments = problem(case)
  actual, expected = (output_and_gradients(case, name, *arguments) for name in ("dense", "reference"))
  assert_close(actual, expected, 2e-2 if case.dtype == "bfloat16" else 1e-5)


def test_sums_by_comparison_are_the_sums_of_the_scatter():
  entry = jax.random.randint(jax.random.key(0), (2, 5, 7), 0, 6)
  d_scores = jax.random.normal(jax.random.key(1), (2, 3, 5, 7))
  sums = [add_up(6, entry, d_scores) for add_up in (dense._by_scatter, dense._by_comparison)]
  np.testing.assert_allclose(*sums, atol=1e-5)


def test_the_definition_computes_an_example_worked_by_hand():
  # Scores 2 * q·k + b: token 1 gives token 0 the score 2 * 1 * 3 + 1 = 7 and itself 2 * 1 * 4 + 2 = 10.
  q, k, v = (jnp.array(x, jnp.float32).reshape(1, 2, 1, 1) for x in ([5, 1], [3, 4], [100, 10]))
  place = jnp.array([[0, 1]])
  bias = RelativeBias(position_table=jnp.array([9.0, 2, 1]), query_position=place, key_position=place)
  mask = IntervalMask.causal(jnp.ones((1, 2), jnp.int32))
  weights = attention_weights(q, k, mask, bias, scale=2.0)[0, 0]
  silu = [x / (1 + np.exp(-x)) for x in (32, 7, 10)]
  np.testing.assert_allclose(weights, [[silu[0], 0], silu[1:]], rtol=1e-6)
  for name in ("reference", "dense", "xla"):
    out = segment_attention(q, k, v, mask, scale=2.0, bias=bias, normalizer=2, implementation=name)
    np.testing.assert_allclose(out[0, :, 0, 0], [50 * silu[0], 50 * silu[1] + 5 * silu[2]], rtol=1e-6)


def test_softmax_is_over_the_keys_that_may_be_attended():
  q = jnp.zeros((1, 3, 1, 4))
  v = jnp.array([1.0, 3.0, 8.0]).reshape(1, 3, 1, 1)
  mask = IntervalMask.causal(jnp.array([[1, 1, 1]]))
  out = segment_attention(q, q, v, mask, activation="softmax")
  np.testing.assert_allclose(out[0, :, 0, 0], [1, 2, 4], rtol=1e-6)


@pytest.mark.parametrize("implementation", ["reference", "dense", "xla"])
@pytest.mark.parametrize("activation", ["silu", "softmax"])
def test_queries_without_keys_give_zeros_and_zero_gradients(activation, implementation):
  case = Case(activation=activation)
  inputs, mask, integers = problem(case)
  results = output_and_gradients(case, implementation, inputs, mask, integers)
  is_padding = ~np.asarray(mask.to_dense(40)).any(-1)
  assert is_padding[2].all() and is_padding[0].any()
  for name in ("out", "q", "k", "v"):
    assert not np.asarray(results[name])[is_padding].any()
  assert all(np.isfinite(value).all() for value in results.values())


@pytest.mark.parametrize("activation", ["silu", "softmax"])
def test_huge_scores_stay_finite(activation):
  case = Case(activation=activation, scale=1e4, tables="")
  results = output_and_gradients(case, "xla", *problem(case))
  assert all(np.isfinite(value).all() for value in results.values())


@pytest.mark.parametrize("asked", [("out",), ("mass",), ("out", "mass")], ids="_".join)
@pytest.mark.parametrize("activation", ["silu", "softmax"])
def test_sums_of_weights_by_group_are_those_of_the_definition_with_gradients_of_what_is_asked_for(activation, asked):
  inputs, mask, (_, positions) = problem(Case(activation=activation))
  group = jax.random.randint(jax.random.key(3), inputs["k"].shape[:2], 0, 3)

  def loss_of(implementation):
    def loss(inputs):
      bias = RelativeBias(position_table=inputs["position_table"], **positions)
      divisor = 2.0 if activation == "silu" else None
      out, mass = segment_attention(
        inputs["q"], inputs["k"], inputs["v"], mask, activation=activation, normalizer=divisor, bias=bias,
        key_group=group, num_groups=3, implementation=implementation,
        block_sizes=BlockSizes(16, 8, 4) if implementation == "xla" else None,
      )  # fmt: skip
      results = {"out": out, "mass": mass}
      total = sum((results[name] * jnp.sin(jnp.arange(results[name].size)).reshape(results[name].shape)).sum()
                  for name in asked)  # fmt: skip
      return total, results

    return jax.jit(jax.grad(loss, has_aux=True))

  (actual, results), (expected, correct) = loss_of("xla")(inputs), loss_of("reference")(inputs)
  weights = attention_weights(
    inputs["q"], inputs["k"], mask, RelativeBias(position_table=inputs["position_table"], **positions),
    activation=activation,
  )  # fmt: skip
  by_group = jnp.einsum("bhns,bsg->bnhg", weights, jax.nn.one_hot(group, 3)) / (2 if activation == "silu" else 1)
  np.testing.assert_allclose(correct["mass"], by_group, atol=1e-5)
  assert_close(results, correct, 1e-5)
  assert_close(actual, expected, 1e-5)
  assert bool(np.asarray(expected["v"]).any()) == ("out" in asked)
  assert np.asarray(expected["q"]).any() and np.asarray(expected["position_table"]).any()


def test_a_packed_row_gives_the_same_as_separate_rows():
  lengths = (5, 7, 3)
  ids = jnp.repeat(jnp.arange(1, 4), jnp.array(lengths), total_repeat_length=16).at[15].set(0)[None]
  x = jax.random.normal(jax.random.key(0), (1, 16, 2, 4))
  for activation in ("silu", "softmax"):
    attend = functools.partial(segment_attention, activation=activation, block_sizes=BlockSizes(4, 4, 2))
    packed = attend(x, x, x, IntervalMask.causal(ids))
    first = 0
    for length in lengths:
      row = jnp.pad(x[:, first : first + length], ((0, 0), (0, 16 - length), (0, 0), (0, 0)))
      mask = IntervalMask.causal((jnp.arange(16) < length).astype(jnp.int32)[None])
      alone = attend(row, row, row, mask)
      np.testing.assert_allclose(packed[:, first : first + length], alone[:, :length], atol=1e-6)
      first += length


def test_sorting_by_domain_attending_and_unsorting_equals_a_dense_domain_mask():
  ids = jnp.array([[1] * 20 + [2] * 9 + [0] * 3])
  domain = jax.random.randint(jax.random.key(1), ids.shape, 1, 4) * (ids != 0)
  time = jnp.cumsum(jnp.full(ids.shape, 5000), axis=1)
  place = jnp.arange(32)[None]
  q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 32, 2, 4))
  time_table, position_table = jax.random.normal(jax.random.key(2), (129,)), jnp.linspace(-1, 1, 21)

  def bias(time, place):
    return RelativeBias(time_table, time, time, position_table, place, place)

  everything = IntervalMask.full(jnp.ones_like(ids))
  weights = attention_weights(q, k, everything, bias(time, place))[0]  # [H, N, S]
  same = (ids[0][:, None] == ids[0]) & (domain[0][:, None] == domain[0]) & (ids[0] != 0)
  expected = jnp.einsum("hns,she->nhe", weights * (same & np.tri(32, dtype=bool)), v[0])

  order, inverse = sort_by_segment(ids, domain)

  def move(x, order):
    return jnp.take_along_axis(x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1)

  mask = IntervalMask.intra_domain(move(ids, order), move(domain, order))
  moved_bias = bias(move(time, order), move(place, order))
  out = segment_attention(*(move(x, order) for x in (q, k, v)), mask, bias=moved_bias, block_sizes=BlockSizes(8, 8, 3))
  np.testing.assert_allclose(move(out, inverse)[0], expected, atol=1e-5)


@pytest.fixture(scope="module")
def default_results():
  arguments = problem(Case())
  return arguments, output_and_gradients(Case(), "xla", *arguments)


def test_checkpointing_changes_no_gradient(default_results):
  (inputs, mask, integers), expected = default_results
  direction = jnp.sin(jnp.arange(expected["out"].size, dtype=jnp.float32)).reshape(expected["out"].shape)
  forward = jax.checkpoint(lambda inputs: attend(Case(), "xla", inputs, mask, integers))
  gradients = jax.jit(jax.grad(lambda inputs: (forward(inputs) * direction).sum()))(inputs)
  assert_close(gradients, {name: expected[name] for name in gradients}, 1e-6)


def test_a_mapped_axis_gives_each_problem_its_own_results(default_results):
  (inputs, mask, integers), expected = default_results
  other = Case(mask="window")
  second = problem(other, seed=1)
  both = jax.tree.map(lambda a, b: jnp.stack([a, b]), (inputs, mask, integers), second)
  results = jax.vmap(functools.partial(output_and_gradients, Case(), "xla"))(*both)
  assert_close({name: value[0] for name, value in results.items()}, expected, 1e-5)
  assert_close({name: value[1] for name, value in results.items()}, output_and_gradients(other, "xla", *second), 1e-5)


@pytest.mark.parametrize("activation", ["silu", "softmax"])
def test_memory_stays_far_below_one_dense_attention_matrix(activation):
  length, heads = 4096, 4
  x = jax.ShapeDtypeStruct((1, length, heads, 16), jnp.float32)
  integer = jax.ShapeDtypeStruct((1, length), jnp.int32)
  table = jax.ShapeDtypeStruct((129,), jnp.float32)

  def loss(x, table, time):
    mask = IntervalMask.causal(time)
    bias = RelativeBias(time_table=table, query_time=time, key_time=time)
    return segment_attention(x, x, x, mask, activation=activation, bias=bias, implementation="xla").sum()

  compiled = jax.jit(jax.grad(loss, (0, 1))).lower(x, table, integer).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < heads * length**2 * 4 / 5


Q = jnp.zeros((2, 3, 4, 8))
M = IntervalMask.causal(jnp.ones((2, 3), jnp.int32))
PLACE = jnp.zeros((2, 3), jnp.int32)


@pytest.mark.parametrize(
  "options, error, text",
  [
    ({"activation": "relu"}, ValueError, "activation='relu' is not one of"),
    ({"implementation": "cuda"}, ValueError, "implementation='cuda' is not one of"),
    ({"implementation": "tpu", "block_sizes": tpu.BlockSizes(64, 128, 1)}, ValueError, "need multiples of 128"),
    ({"implementation": "gpu"}, NotImplementedError, "float32"),
    ({"interpret": True}, ValueError, "interpret=True is for Pallas"),
    ({"implementation": "reference", "block_sizes": BlockSizes()}, ValueError, "block_sizes has no meaning"),
    ({"activation": "softmax", "normalizer": 2.0}, ValueError, "normalizer is for activation='silu'"),
    ({"q": Q[0]}, ValueError, r"q, k, v must be \[B, N, H, D\]; got \(3, 4, 8\)"),
    ({"k": Q[..., :7]}, ValueError, "must agree in rows, heads and width"),
    ({"v": Q[:, :2]}, ValueError, "must agree in rows, keys and heads"),
    ({"key_group": jnp.zeros((2, 9)), "num_groups": 2}, ValueError, r"key_group \(2, 9\) must be"),
    ({"key_group": jnp.zeros(Q.shape[:2], jnp.int32)}, ValueError, "num_groups=0 positive"),
    ({"q": Q[:, :2]}, ValueError, r"mask is for queries \(2, 3\), but q has \(2, 2\)"),
    ({"bias": RelativeBias(time_table=jnp.zeros(129))}, ValueError, "bias.query_time must be given together"),
    ({"bias": RelativeBias(jnp.zeros(128), PLACE, PLACE)}, ValueError, "has 128 buckets, needs 129"),
    ({"bias": RelativeBias(jnp.zeros(129), PLACE, PLACE[:, :2])}, ValueError, r"key_time has shape \(2, 2\), needs"),
    ({"bias": RelativeBias(jnp.zeros((3, 129)), PLACE, PLACE)}, ValueError, "needs one axis, or num_heads=4 rows"),
    (
      {"bias": RelativeBias(position_table=jnp.zeros(4), query_position=PLACE, key_position=PLACE)},
      ValueError,
      "has 4 entries, needs an odd number",
    ),
  ],
)
@pytest.mark.unchecked_shapes
def test_what_does_not_fit_is_refused_by_name(options, error, text):
  arguments = {"q": Q, "k": Q, "v": Q, **options}
  with pytest.raises(error, match=text):
    segment_attention(arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), M, **arguments)


def test_blocks_must_have_a_size():
  with pytest.raises(ValueError, match="needs positive sizes"):
    BlockSizes(query=0)


@pytest.mark.parametrize("implementation", ["auto", "xla", "reference"])
def test_rows_spread_by_shard_map_give_the_same_outputs_and_gradients(implementation):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("rows",))
  ids = jnp.ones((2, 20), jnp.int32)
  time = jnp.cumsum(1000 * ids, axis=1)
  inputs = {"q": jax.random.normal(jax.random.key(0), (2, 20, 1, 8)), "table": jnp.linspace(-1, 1, 129)}

  def attend(q, table, ids, time):
    bias = RelativeBias(time_table=table, query_time=time, key_time=time)
    return segment_attention(q, q, q, IntervalMask.causal(ids), bias=bias, implementation=implementation)

  def gradients(attend):
    return jax.jit(jax.grad(lambda x: (attend(x["q"], x["table"], ids, time) ** 2).sum()))(inputs)

  rows, everywhere = jax.sharding.PartitionSpec("rows"), jax.sharding.PartitionSpec()
  spread = jax.shard_map(attend, mesh=mesh, in_specs=(rows, everywhere, rows, rows), out_specs=rows)
  assert_close(gradients(spread), gradients(attend), 1e-5)
