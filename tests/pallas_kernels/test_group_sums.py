"""Sums of absolute weights by group of keys, the query's own key apart: values and gradients of the matrix."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_problems import MASK, QUICK_COMPILATION, Case, assert_close, problem

from pallas_kernels import (
  BlockSizes,
  IntervalMask,
  RelativeBias,
  attention_weights,
  chosen_implementation,
  measured,
  segment_attention,
)

NUM_GROUPS = 3
GRID = [
  Case(),
  Case(activation="softmax"),
  Case(mask="full", blocks=(8, 16, 3), normalizer="number"),
  Case(mask="full", blocks=(16, 8, 100), activation="softmax", per_head=True),
  Case(mask="targets"),
  Case(mask="targets", activation="softmax", tables=""),
  Case(mask="last_queries", activation="softmax", blocks=(4, 8, 2), tables="time"),
  Case(mask="both_ways", tables="", normalizer="each_query"),
]


def arguments_of(case, inputs, integers):
  (times, positions), bias = integers, {}
  if "time" in case.tables:
    bias |= {"time_table": inputs["time_table"], **times}
  if "position" in case.tables:
    bias |= {"position_table": inputs["position_table"], **positions}
  return {"activation": case.activation, "scale": case.scale, "bias": RelativeBias(**bias) if bias else None}


def from_matrix(case, inputs, mask, integers, group, normalizer):
  """The output and the sums, from the attention matrix."""
  weights = attention_weights(inputs["q"], inputs["k"], mask, **arguments_of(case, inputs, integers))  # [B, H, N, S]
  out = jnp.einsum("bhns,bshe->bnhe", weights, inputs["v"])
  index = mask.own_index()[..., None] == jnp.arange(weights.shape[-1])  # [B, N, S]
  is_own = jnp.broadcast_to(index[:, None], (weights.shape[0], 1, *weights.shape[2:]))
  columns = [jnp.where((group == g)[:, None, None] & ~is_own, jnp.abs(weights), 0).sum(-1) for g in range(NUM_GROUPS)]
  columns.append(jnp.where(is_own, jnp.abs(weights), 0).sum(-1))
  sums = jnp.moveaxis(jnp.stack(columns, axis=-1), 1, 2)  # [B, N, H, G + 1]
  divisor = 1 if normalizer is None else jnp.broadcast_to(normalizer, mask.shape)[..., None, None]
  return out / divisor, sums / divisor


def from_kernels(case, inputs, mask, integers, group, normalizer, implementation):
  blocks = BlockSizes(*case.blocks) if implementation == "xla" else None
  return segment_attention(
    inputs["q"], inputs["k"], inputs["v"], mask, **arguments_of(case, inputs, integers), normalizer=normalizer,
    key_group=group, num_groups=NUM_GROUPS, group_sums="absolute", implementation=implementation, block_sizes=blocks,
  )  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 1, 2), compiler_options=QUICK_COMPILATION)
def results_and_gradients(case, compute, asked, inputs, mask, integers, group):
  def loss(inputs):
    normalizer = {"none": None, "number": 40.0, "each_query": inputs.get("normalizer")}[case.normalizer]
    results = dict(zip(("out", "sums"), compute(case, inputs, mask, integers, group, normalizer), strict=True))
    directions = {name: jnp.sin(jnp.arange(x.size)).reshape(x.shape) for name, x in results.items()}
    return sum((results[name] * directions[name]).sum() for name in asked), results

  (_, results), gradients = jax.value_and_grad(loss, has_aux=True)(inputs)
  return results | gradients


@pytest.mark.parametrize("case", GRID, ids=str)
@pytest.mark.parametrize("implementation", ["reference", "dense", "xla"])
def test_sums_of_absolute_weights_and_their_gradients_are_those_of_the_attention_matrix(case, implementation):
  inputs, mask, integers = problem(case)
  group = jax.random.randint(jax.random.key(3), inputs["k"].shape[:2], 0, NUM_GROUPS)
  for asked in (("sums",), ("out", "sums")) if implementation == "xla" else (("out", "sums"),):
    compute = functools.partial(from_kernels, implementation=implementation)
    found = results_and_gradients(case, compute, asked, inputs, mask, integers, group)
    expected = results_and_gradients(case, from_matrix, asked, inputs, mask, integers, group)
    assert all(np.abs(np.asarray(expected[name])).max() > 0 for name in ("sums", "q", "k")), "a test of nothing"
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("implementation", ["reference", "dense", "xla"])
def test_weights_of_opposite_sign_do_not_cancel_and_the_own_key_is_apart(implementation):
  # Scores of the last token: .4409 and -1 for two tokens of group 1, 2 for one of group 0 and for itself.
  k = jnp.array([0.4409, -1.0, 2.0, 2.0]).reshape(1, 4, 1, 1)
  group = jnp.array([[1, 1, 0, 0]])
  options = {"key_group": group, "num_groups": 2, "implementation": implementation}
  mask = IntervalMask.causal(jnp.ones((1, 4), jnp.int32))
  signed, absolute = (
    segment_attention(jnp.ones_like(k), k, k, mask, group_sums=sums, **options)[1][0, -1, 0]
    for sums in ("signed", "absolute")
  )
  silu = 2 / (1 + np.exp(-2))
  np.testing.assert_allclose(signed, [2 * silu, 0.2683 - 0.2689], atol=1e-4)
  np.testing.assert_allclose(absolute, [silu, 0.2683 + 0.2689, silu], atol=1e-4)


def test_sums_of_sixteen_bit_attention_are_in_single_precision():
  case = Case(dtype="bfloat16")
  inputs, mask, integers = problem(case)
  group = jnp.zeros(inputs["k"].shape[:2], jnp.int32)
  expected = from_kernels(case, inputs, mask, integers, group, None, "reference")[1]
  for name in ("dense", "xla"):
    out, sums = from_kernels(case, inputs, mask, integers, group, None, name)
    assert (out.dtype, sums.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(sums, expected, atol=2e-2 * float(expected.max()))


@pytest.mark.parametrize("name", MASK)
def test_counts_are_those_of_the_dense_mask_without_the_own_key(name):
  _, mask, _ = problem(Case(mask=name))
  group = jax.random.randint(jax.random.key(3), (3, 40), 0, NUM_GROUPS)
  is_read = np.array(mask.to_dense(40))
  own = np.broadcast_to(mask.own_index(), mask.shape)
  np.put_along_axis(is_read, own[..., None], False, axis=2)
  expected = np.stack([(is_read & (np.asarray(group)[:, None] == g)).sum(-1) for g in range(NUM_GROUPS)], axis=-1)
  assert expected.max() > 0
  np.testing.assert_array_equal(mask.count_keys(group, NUM_GROUPS), expected)


def test_kernels_refuse_absolute_sums_by_name_and_auto_avoids_them(monkeypatch):
  monkeypatch.setattr(measured, "_capability", lambda: "9.0")
  q = jnp.ones((1, 128, 2, 64), jnp.bfloat16)
  mask = IntervalMask.causal(jnp.ones((1, 128), jnp.int32))

  def attend(q, implementation="auto", sums="absolute"):
    options = {"key_group": jnp.zeros((1, 128), jnp.int32), "num_groups": 2, "group_sums": sums}
    return segment_attention(q, q, q, mask, implementation=implementation, **options)

  for name in ("tpu", "gpu"):
    with pytest.raises(
      NotImplementedError, match="'reference', 'dense' and 'xla' only, not by implementation='" + name
    ):
      attend(q, name)
  for platform, target, chosen in (("tpu", "tpu", "xla"), ("gpu", "cuda", "dense")):
    assert chosen_implementation(platform, q).startswith(platform)
    reason = chosen_implementation(platform, q, group_sums="absolute")
    assert reason.startswith(chosen) and "absolute weights" in reason
    kernels = {}
    for sums in ("signed", "absolute"):
      traced = jax.jit(functools.partial(attend, sums=sums)).trace(q)
      text = traced.lower(lowering_platforms=(target,)).as_text()
      kernels[sums] = "tpu_custom_call" in text or "mosaic_gpu" in text
    assert kernels == {"signed": True, "absolute": False}


def test_what_is_added_up_must_be_known_and_needs_groups():
  q, mask = jnp.zeros((1, 3, 1, 2)), IntervalMask.causal(jnp.ones((1, 3), jnp.int32))
  with pytest.raises(ValueError, match="group_sums='squared' is not one of"):
    segment_attention(q, q, q, mask, group_sums="squared")
  with pytest.raises(ValueError, match="group_sums='absolute' needs key_group"):
    segment_attention(q, q, q, mask, group_sums="absolute")


def test_of_no_tokens_there_are_no_sums():
  q = jnp.zeros((2, 0, 1, 4))
  mask = IntervalMask.causal(jnp.zeros((2, 0), jnp.int32))
  options = {"key_group": jnp.zeros((2, 0), jnp.int32), "num_groups": 2, "group_sums": "absolute"}
  assert segment_attention(q, q, q, mask, **options)[1].shape == (2, 0, 1, 3)


def test_a_mask_of_some_queries_knows_their_own_keys():
  _, mask, _ = problem(Case())
  later = mask.queries(20, 9)
  group = jnp.ones((3, 40), jnp.int32)
  np.testing.assert_array_equal(later.count_keys(group, 2), mask.count_keys(group, 2)[:, 20:29])
  without = dataclasses.replace(later, own_key=None)
  assert (without.count_keys(group, 2) != later.count_keys(group, 2)).any()
