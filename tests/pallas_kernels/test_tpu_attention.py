"""Segment attention on TPUs: the kernels, interpreted on the CPU, against the definition; and when they are chosen."""

import itertools

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
from pallas_kernels.bias import time_bucket
from pallas_kernels.tpu.attention import spec_of
from pallas_kernels.tpu.problem import FEW, ONE, buckets_of_chunks, integers_of, lowest_bucket

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


# Seconds at which each 128 tokens begin. A tile of 256 queries and 512 keys has chunks of 256 keys, or 128 queries.
TIMES = {
  "keys_apart": (0, 0, 500_000, 500_000, 1_000_000, 1_000_000, 1_000_000, 1_000_000),
  "queries_apart": (0, 0, 0, 0, 1_000_000, 2_000_000, 4_000_000, 8_000_000),
}


def times_of(layout):
  begin = np.repeat(np.array(TIMES[layout], np.int32), 128)
  return begin[None].repeat(3, axis=0) + np.arange(begin.size, dtype=np.int32)


@pytest.mark.parametrize("layout", TIMES)
def test_chunks_have_their_own_lowest_bucket(layout):
  case = Case(length=1024, blocks=(256, 512, 1), heads=1)
  inputs, mask, (_, positions) = problem(case)
  times = {"query_time": jnp.asarray(times_of(layout)), "key_time": jnp.asarray(times_of(layout))}
  arguments = inputs, mask, (times, positions)
  actual, expected = (output_and_gradients(case, name, *arguments) for name in ("tpu", "reference"))
  assert_close(actual, expected, 2e-5)


@pytest.mark.parametrize(
  ("layout", "queries", "keys", "notes_seen"),
  [
    ("keys_apart", 256, 256, {0, FEW + ONE}),
    ("keys_apart", 128, 512, {0, FEW}),
    ("queries_apart", 256, 256, {0, FEW}),
    ("queries_apart", 128, 512, {0, FEW + ONE}),
  ],
)
def test_notes_on_tiles_count_the_edges_of_their_chunks(layout, queries, keys, notes_seen):
  time = times_of(layout)
  _, mask, _ = problem(Case(length=1024))
  bias = RelativeBias(time_table=jnp.zeros(129), query_time=jnp.asarray(time), key_time=jnp.asarray(time))
  x = jax.ShapeDtypeStruct((3, 1024, 1, 64), jnp.float32)
  spec = spec_of(x, x, bias, "silu", 1.0, tpu.BlockSizes(256, 512, 1), True)
  notes, words = buckets_of_chunks(spec, integers_of(mask, bias, 1024, 256, 512), queries, keys)
  seen = set()
  for tile, (row, first_query, first_key) in enumerate(itertools.product(range(3), range(0, 1024, 256), (0, 512))):
    edges = []
    chunks = itertools.product(range(first_query, first_query + 256, queries), range(first_key, first_key + 512, keys))
    for chunk, (i, j) in enumerate(chunks):
      difference = time[row, i : i + queries, None] - time[row, None, j : j + keys]
      bucket = np.asarray(time_bucket(jnp.asarray(difference)))
      edges.append(bucket.max() - bucket.min() if difference.min() >= 0 else np.inf)
      if difference.min() >= 0:
        assert lowest_bucket(words, tile, 2, chunk) == bucket.min()
    expected = FEW * (max(edges) <= 3) + ONE * (max(edges) <= 1)
    assert notes[row, first_query // 256, first_key // 512] == expected
    seen.add(int(expected))
  assert seen == notes_seen


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


def test_scalar_memory_says_how_many_rows_fit():
  """One row of 8,192 has 16 x 8 tiles of two or three integers, and ranges of keys of 64 groups of queries."""
  bias = RelativeBias(time_table=jnp.zeros(129))
  for tables, rows in ((None, 3 * 2**16 // (2 * 128 + 2 * 64)), (bias, 3 * 2**16 // (3 * 128 + 2 * 64))):
    fit, more = (jax.ShapeDtypeStruct((n, 8192, 1, 128), jnp.bfloat16) for n in (rows, rows + 1))
    tpu.check(fit, fit, tables)
    with pytest.raises(NotImplementedError, match=f"{128 * (rows + 1)} tiles are more .* {rows} such rows"):
      tpu.check(more, more, tables)


def test_a_mapped_axis_goes_through_the_tpu_kernel_one_problem_at_a_time():
  inputs = jax.random.normal(jax.random.key(0), (2, 1, 130, 1, 8))
  mask = IntervalMask.causal(jnp.ones((1, 130), jnp.int32))

  def total(q, implementation):
    out = segment_attention(q, q, q, mask, implementation=implementation, interpret=implementation == "tpu")
    return (out**2).sum()

  mapped = jax.jit(jax.vmap(jax.grad(lambda q: total(q, "tpu"))))(inputs)
  expected = jax.vmap(jax.grad(lambda q: total(q, "reference")))(inputs)
  np.testing.assert_allclose(mapped, expected, atol=1e-4 * np.abs(expected).max())
