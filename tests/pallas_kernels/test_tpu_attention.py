"""Segment attention on TPUs: the kernels, interpreted on the CPU, against the definition; and when they are chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_problems import Case, assert_close, output_and_gradients, problem
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import (
  IntervalMask,
  RelativeBias,
  chosen_implementation,
  reference,
  segment_attention,
  tpu,
)

REST = [  # Their options occur in the grid below, in other combinations.
  Case(length=300, blocks=(128, 128, 1), mask="full", tables="", width=25, value_width=50),
  Case(length=300, blocks=(128, 128, 1), mask="last_queries", heads=1),
  Case(length=1000, blocks=None, heads=1, activation="softmax", tables=""),
  Case(length=129, blocks=None, tables="time", heads=1),
  Case(length=211, blocks=None, tables="position", activation="softmax", heads=1, width=50),
  Case(length=260, blocks=(128, 256, 1), dtype="bfloat16", activation="softmax", per_head=True),
]
GRID = [
  Case(length=300, blocks=(128, 256, 1)),  # Several tiles in both directions, with a chunk that no query reads.
  Case(length=300, blocks=(256, 128, 2), activation="softmax", per_head=True),
  Case(length=300, blocks=(128, 128, 2), gaps=True),
  Case(length=300, blocks=(128, 128, 2), mask="targets", tables="", activation="softmax"),
  Case(length=300, blocks=(256, 128, 1), mask="both_ways", tables="position", normalizer="each_query"),
  Case(length=600, blocks=(128, 256, 1), mask="window", tables="time", per_head=True),
  Case(length=1000, blocks=(256, 512, 1), heads=1, tables="time"),  # Interior tiles, and such that few edges cross.
  Case(length=1, blocks=None),
  Case(length=127, blocks=None, tables="", width=64, value_width=25, heads=1),
  Case(length=260, blocks=(128, 128, 1), tables="", dtype="bfloat16", width=128, value_width=256, normalizer="number"),
  *(pytest.param(case, marks=pytest.mark.exhaustive) for case in REST),
]


@pytest.mark.parametrize("case", GRID, ids=str)
def test_interpreted_tpu_kernels_give_the_outputs_and_gradients_of_the_definition(case):
  arguments = problem(case)
  actual, expected = (output_and_gradients(case, name, *arguments) for name in ("tpu", "reference"))
  assert_close(actual, expected, 2e-2 if case.dtype == "bfloat16" else 2e-5)


def test_tpu_kernels_read_no_memory_that_they_have_not_written():
  case = Case(length=200, blocks=(128, 128, 1), heads=1, gaps=True)
  inputs, mask, (times, positions) = problem(case)
  memories = pltpu.InterpretParams(uninitialized_memory="nan", out_of_bounds_reads="raise")

  def outputs(attention, **options):
    def loss(inputs):
      q, k, v, time_table, position_table = (inputs[name] for name in ("q", "k", "v", "time_table", "position_table"))
      bias = RelativeBias(time_table=time_table, position_table=position_table, **times, **positions)
      return (attention(q, k, v, mask, bias, activation="silu", scale=1.0, **options) ** 2).sum()

    return jax.jit(jax.grad(loss))(inputs)

  simulated = outputs(tpu.attention, block_sizes=tpu.BlockSizes(*case.blocks), interpret=memories)
  assert_close(simulated, outputs(reference.attention), 2e-5)


def lowered_text(platform, q, **options):
  mask = IntervalMask.causal(jnp.ones(q.shape[:2], jnp.int32))
  traced = jax.jit(lambda q: segment_attention(q, q, q, mask, **options)).trace(q)
  return traced.lower(lowering_platforms=(platform,)).as_text()


def test_auto_takes_the_kernel_of_the_platform_that_a_program_is_lowered_for():
  q = jnp.zeros((1, 128, 1, 64))
  assert "tpu_custom_call" in lowered_text("tpu", q)
  assert "custom_call @tpu_custom_call" not in lowered_text("cpu", q)
  assert chosen_implementation("tpu", q).startswith("tpu: ")


def test_auto_says_why_it_leaves_a_problem_to_xla():
  long = jax.ShapeDtypeStruct((1, 2**17, 1, 64), jnp.float32)
  reason = chosen_implementation("tpu", long)
  assert reason.startswith("xla: live tiles only; rows of 131072 queries of width 64 need")
  with pytest.raises(NotImplementedError, match="rows of 131072 queries"):
    lowered_text("tpu", long, implementation="tpu")


def test_auto_asks_whether_the_rows_of_one_device_fit():
  """The rows of a pod together have more tiles than a chip can list."""
  rows = jax.ShapeDtypeStruct((4096, 8192, 8, 128), jnp.bfloat16)
  assert "524288 tiles are more than" in chosen_implementation("tpu", rows)
  with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1024, 4), ("data", "fsdp"))):
    assert chosen_implementation("tpu", rows).startswith("tpu: ")
  with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((3,), ("data",))):
    assert "524288 tiles are more than" in chosen_implementation("tpu", rows)


def test_a_mapped_axis_goes_through_the_tpu_kernel_one_problem_at_a_time():
  inputs = jax.random.normal(jax.random.key(0), (2, 1, 130, 1, 8))
  mask = IntervalMask.causal(jnp.ones((1, 130), jnp.int32))

  def total(q, implementation):
    out = segment_attention(q, q, q, mask, implementation=implementation, interpret=implementation == "tpu")
    return (out**2).sum()

  mapped = jax.jit(jax.vmap(jax.grad(lambda q: total(q, "tpu"))))(inputs)
  expected = jax.vmap(jax.grad(lambda q: total(q, "reference")))(inputs)
  np.testing.assert_allclose(mapped, expected, atol=1e-4 * np.abs(expected).max())
