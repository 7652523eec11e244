"""Programs for several platforms at once, of symbolic sizes, and derivatives of derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental import pallas

from pallas_kernels import IntervalMask, RelativeBias, chosen_implementation, measured, segment_attention

PLATFORMS = ("cpu", "tpu", "cuda")


def attend(q, ids, table):
  bias = RelativeBias(time_table=table, query_time=ids, key_time=ids)
  return segment_attention(q, q, q, IntervalMask.causal(ids), bias=bias, activation="softmax")


def gradient(q, ids, table):
  return jax.grad(lambda q, table: (attend(q, ids, table) ** 2).astype(jnp.float32).sum(), (0, 1))(q, table)


def shapes(rows, length, dtype=jnp.float32):
  q, ids = jax.ShapeDtypeStruct((rows, length, 1, 64), dtype), jax.ShapeDtypeStruct((rows, length), jnp.int32)
  return q, ids, jax.ShapeDtypeStruct((129,), jnp.float32)


@pytest.mark.parametrize("capability", [None, "9.0"])
def test_one_program_holds_the_kernels_of_all_platforms(monkeypatch, capability):
  monkeypatch.setattr(measured, "_capability", lambda: capability)
  exported = export.export(jax.jit(lambda *x: gradient(*x)), platforms=PLATFORMS)(*shapes(2, 128, jnp.bfloat16))
  text = exported.mlir_module()
  assert "tpu_custom_call" in text and ("mosaic_gpu" in text) == (capability is not None)


def test_a_program_for_several_platforms_runs_on_this_one():
  x = np.random.default_rng(0).normal(size=(2, 9, 1, 64)).astype(np.float32)
  ids, table = np.repeat([[1, 1, 1, 1, 2, 2, 2, 2, 0]], 2, axis=0).astype(np.int32), np.ones(129, np.float32)
  exported = export.export(jax.jit(attend), platforms=PLATFORMS)(*shapes(2, 9))
  np.testing.assert_allclose(exported.call(x, ids, table), attend(x, ids, table), atol=1e-6)


def test_a_program_for_a_cpu_does_not_trace_the_kernels(monkeypatch):
  kernel, program = pallas.pallas_call, jax.jit(lambda *x: gradient(*x))
  traced = []
  monkeypatch.setattr(pallas, "pallas_call", lambda *args, **options: traced.append(args) or kernel(*args, **options))
  program.trace(*shapes(2, 16)).lower(lowering_platforms=("cpu",))
  assert not traced
  program.trace(*shapes(2, 16)).lower(lowering_platforms=("tpu",))
  assert traced


@pytest.mark.unchecked_shapes
@pytest.mark.parametrize("sizes", ["b, 9", "2, n", "b, n"])
def test_a_program_of_symbolic_sizes_runs_at_any_size(sizes):
  exported = export.export(jax.jit(gradient), platforms=PLATFORMS)(*shapes(*export.symbolic_shape(sizes)))
  assert "tpu_custom_call" not in exported.mlir_module()
  # Scores of 1, not of 64 as of normal vectors: softmax of those is one-hot, and its gradient cancels to rounding.
  x = 0.125 * np.random.default_rng(0).normal(size=(2, 9, 1, 64)).astype(np.float32)
  ids, table = np.repeat([[1, 1, 1, 1, 2, 2, 2, 2, 0]], 2, axis=0).astype(np.int32), np.ones(129, np.float32)
  for actual, expected in zip(exported.call(x, ids, table), gradient(x, ids, table), strict=True):
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.unchecked_shapes
def test_the_choice_for_symbolic_sizes_says_so():
  q, *_ = shapes(*export.symbolic_shape("b, n"))
  assert chosen_implementation("gpu", q).startswith("xla: sizes are symbols")
  assert "the kernels need known sizes, not (b, n, 1, 64)" in chosen_implementation("tpu", q)


@pytest.mark.parametrize("implementation", ["reference", "dense", "xla", "auto"])
def test_the_gradient_of_a_table_that_is_a_numpy_array(implementation):
  ids, q = np.array([[1, 1, 1, 2, 2, 0]], np.int32), np.ones((1, 6, 1, 3), np.float32)

  def loss(table):
    bias = RelativeBias(time_table=table, query_time=ids, key_time=ids)
    return segment_attention(q, q, q, IntervalMask.causal(ids), bias=bias, implementation=implementation).sum()

  table = np.ones(129, np.float32)
  np.testing.assert_array_equal(jax.grad(loss)(table), jax.grad(loss)(jnp.asarray(table)))


Q = np.random.default_rng(0).normal(size=(1, 6, 1, 3)).astype(np.float32)


def loss(q, implementation):
  ids, interpret = np.array([[1, 1, 1, 2, 2, 0]], np.int32), implementation == "tpu"
  mask = IntervalMask.causal(ids)
  out = segment_attention(q, q, q, mask, activation="softmax", implementation=implementation, interpret=interpret)
  return (out**2).sum()


def hessian_vector(q, implementation):
  return jax.jvp(jax.grad(functools.partial(loss, implementation=implementation)), (q,), (jnp.ones_like(q),))[1]


def penalty(q, implementation):
  return jax.grad(lambda q: (jax.grad(loss)(q, implementation) ** 2).sum())(q)


@pytest.mark.parametrize("implementation", ["dense", "xla", "auto"])
def test_a_hessian_vector_product_is_that_of_the_definition(implementation):
  actual, expected = (jax.jit(hessian_vector, static_argnums=1)(Q, name) for name in (implementation, "reference"))
  np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_the_gradient_of_a_gradient_is_right():
  actual, expected = (jax.jit(penalty, static_argnums=1)(Q, name) for name in ("dense", "reference"))
  np.testing.assert_allclose(actual, expected, atol=1e-3)


@pytest.mark.parametrize("derivative, implementation", [
  (penalty, "xla"), (penalty, "auto"), (penalty, "tpu"), (hessian_vector, "tpu")
])  # fmt: skip
def test_other_second_derivatives_are_refused_by_name(derivative, implementation):
  with pytest.raises(
    NotImplementedError, match="has no second derivative of this kind; use implementation='reference'"
  ):
    jax.jit(derivative, static_argnums=1)(Q, implementation)
