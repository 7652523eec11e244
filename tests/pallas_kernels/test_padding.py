"""What stands where no query may read: it reaches neither outputs nor gradients, in any implementation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_problems import QUICK_COMPILATION

from pallas_kernels import IntervalMask, RelativeBias, segment_attention
from pallas_kernels.schedule import pad_queries

IDS = np.array([[1, 1, 2, 2, 2, 0, 0], [0] * 7, [0, 3, 3, 0, 4, 4, 4]])
IS_PADDING = IDS == 0
NUMBERS = np.random.default_rng(0)
INPUTS = {
  **dict(zip("qkv", NUMBERS.normal(size=(3, 3, 7, 2, 4)).astype(np.float32), strict=True)),
  "table": NUMBERS.normal(size=129).astype(np.float32),
  "normalizer": np.full((3, 7), 2.0, np.float32),
}
TIME = np.cumsum(NUMBERS.integers(1, 10**6, (3, 7)), axis=1).astype(np.int32)


@functools.cache
def gradients(implementation, activation, finite_padding=False):
  """The compiled outputs and gradients of inputs, times and a cotangent."""

  def outputs(inputs, time, place):
    q, k, v, table, normalizer = (inputs[name] for name in ("q", "k", "v", "table", "normalizer"))
    bias = RelativeBias(table, time, time, jnp.linspace(-1, 1, 9, dtype=jnp.float32), place, place)
    return segment_attention(
      q, k, v, IntervalMask.causal(IDS), activation=activation, bias=bias, implementation=implementation,
      normalizer=normalizer if activation == "silu" else None, interpret=implementation == "tpu",
      finite_padding=finite_padding,
    )  # fmt: skip

  def run(inputs, time, place, d_out):
    out, pull_back = jax.vjp(lambda inputs: outputs(inputs, time, place), inputs)
    return {"out": out, **pull_back(d_out)[0]}

  return jax.jit(run, compiler_options=QUICK_COMPILATION)


def spoiled(x, value):
  return np.where(IS_PADDING.reshape(*IDS.shape, *(1,) * (x.ndim - 2)), np.asarray(value, x.dtype), x)


PLACES = {
  **{f"{name} {value}": (name, value) for name in "qkv" for value in (np.nan, np.inf)},
  "d_out nan": ("d_out", np.nan),
  "normalizer 0": ("normalizer", 0.0),
  "time": ("time", np.iinfo(np.int32).min),
  "position": ("place", np.iinfo(np.int32).max),
}


@pytest.mark.parametrize(
  ("implementation", "activation"),
  [
    *((name, activation) for name in ("reference", "dense", "xla") for activation in ("silu", "softmax")),
    ("tpu", "silu"),
    pytest.param("tpu", "softmax", marks=pytest.mark.exhaustive),
  ],
)
def test_finite_padding_need_not_be_zeroed(implementation, activation):
  place = np.broadcast_to(np.arange(7, dtype=np.int32), IDS.shape)
  inputs = INPUTS | {name: spoiled(INPUTS[name], 1e6) for name in "qkv"}
  finite, any_padding = (
    gradients(implementation, activation, finite)(inputs, TIME, place, np.sin(INPUTS["v"])) for finite in (True, False)
  )
  for name, expected in any_padding.items():
    np.testing.assert_allclose(finite[name], expected, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("activation", ["silu", "softmax"])
@pytest.mark.parametrize("implementation", ["reference", "dense", "xla", "auto", "tpu"])
@pytest.mark.unchecked_shapes
def test_padding_may_hold_anything(implementation, activation):
  place = np.broadcast_to(np.arange(7, dtype=np.int32), IDS.shape)
  clean = {"inputs": INPUTS, "time": TIME, "place": place, "d_out": np.sin(INPUTS["v"])}
  run = gradients(implementation, activation)
  expected = run(*clean.values())
  assert not np.asarray(expected["out"])[IS_PADDING].any()
  assert not any(np.asarray(expected[name])[IS_PADDING].any() for name in "qkv")
  for title, (name, value) in PLACES.items():
    dirty = dict(clean)
    if name in INPUTS:
      dirty["inputs"] = INPUTS | {name: spoiled(INPUTS[name], value)}
    else:
      dirty[name] = spoiled(clean[name], value)
    actual = run(*dirty.values())
    for result in expected:
      np.testing.assert_allclose(actual[result], expected[result], atol=1e-6, err_msg=f"{result} with {title}")


def strictly_earlier():
  mask = IntervalMask.causal(IDS)
  return dataclasses.replace(mask, end_a=mask.end_a - 1)


MASKS = {
  "causal": lambda: IntervalMask.causal(IDS),
  "window": lambda: IntervalMask.full(IDS).limited(1),
  "window of some queries": lambda: IntervalMask.full(IDS).limited(1).queries(3, 3),
  "targets": lambda: IntervalMask.hstu(np.array([6, 0, 7]), 7, num_targets=np.array([2, 0, 7]), max_attention_length=1),
  "both ways": lambda: IntervalMask.hstu(np.array([6, 2, 7]), 7, contextual_length=2, causal=False),
  "queries that read nothing": lambda: pad_queries(IntervalMask.causal(IDS), 3),
  "queries in another order": lambda: jax.tree.map(lambda x: x[:, ::-1], IntervalMask.causal(IDS)),
  "strictly earlier": strictly_earlier,
}


@pytest.mark.parametrize("name", MASKS)
def test_what_reads_and_what_is_read_are_those_of_the_dense_mask(name):
  mask = MASKS[name]()
  dense = np.asarray(mask.to_dense(7))
  np.testing.assert_array_equal(mask.reads_any(7), dense.any(axis=2))
  np.testing.assert_array_equal(mask.is_read(7), dense.any(axis=1))
