"""What "auto" takes on GPUs: what was measured there, and the safe choice where nothing was."""

import re

import jax
import jax.numpy as jnp
import pytest
from conftest import REPOSITORY

from pallas_kernels import IntervalMask, RelativeBias, chosen_implementation, measured, segment_attention


def shapes(length, dtype, width=64, rows=1):
  return (jax.ShapeDtypeStruct((rows, length, 2, width), dtype),) * 3


@pytest.mark.parametrize(
  "length, dtype, capability, implementation, reason",
  [
    (256, jnp.bfloat16, "9.0", "gpu", "NVIDIA H200"),
    (16384, jnp.bfloat16, "9.0", "gpu", "NVIDIA H200"),
    (1024, jnp.float32, "9.0", "dense", "NVIDIA H200"),
    (8192, jnp.float32, "9.0", "xla", "not measured: 32-bit attention over 8192 tokens on compute capability 9.0"),
    (1024, jnp.bfloat16, "8.0", "dense", "not measured: 16-bit attention over 1024 tokens on compute capability 8.0"),
    (4096, jnp.bfloat16, "8.0", "xla", "not measured"),
  ],
)
def test_the_row_of_the_device_decides_and_where_there_is_none_the_length(
  length, dtype, capability, implementation, reason
):
  choice = measured.choose(*shapes(length, dtype), None, capability)
  assert choice.implementation == implementation and reason in choice.reason


def test_a_row_that_does_not_suit_the_problem_says_why():
  wide = measured.choose(*shapes(1024, jnp.bfloat16, width=300), None, "9.0")
  assert wide.implementation == "dense" and "not gpu: head widths 300" in wide.reason
  many = measured.choose(*shapes(4096, jnp.float32, rows=512), None, "9.0")
  assert many.implementation == "xla" and "not dense: arrays of 256 GiB" in many.reason


def test_the_file_that_a_row_names_is_there():
  for row in measured.ROWS:
    (path,) = re.findall(r"experiments/\S+\.md", row.evidence)
    assert (REPOSITORY / path).exists()


def test_without_a_gpu_nothing_is_known_of_it():
  assert "a GPU that is not here" in chosen_implementation("gpu", *shapes(64, jnp.bfloat16)[:2])
  assert "compute capability 9.0, 16 bits: gpu" in chosen_implementation("gpu")


@pytest.mark.parametrize("capability, kernel", [("9.0", True), ("8.0", False)])
def test_the_program_for_a_gpu_holds_what_was_chosen(monkeypatch, capability, kernel):
  monkeypatch.setattr(measured, "_capability", lambda: capability)
  mask = IntervalMask.causal(jnp.ones((1, 128), jnp.int32))
  index = jnp.arange(128, dtype=jnp.int32)[None]
  bias = RelativeBias(position_table=jnp.ones(255), query_position=index, key_position=index)
  traced = jax.jit(lambda q: segment_attention(q, q, q, mask, bias=bias)).trace(jnp.ones((1, 128, 1, 64), jnp.bfloat16))
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert ("mosaic_gpu" in text) == kernel


def test_a_mapped_axis_keeps_the_kernel(monkeypatch):
  monkeypatch.setattr(measured, "_capability", lambda: "9.0")
  mask = IntervalMask.causal(jnp.ones((1, 128), jnp.int32))
  loss = jax.grad(lambda q: segment_attention(q, q, q, mask).astype(jnp.float32).sum())
  traced = jax.jit(jax.vmap(loss)).trace(jnp.ones((2, 1, 128, 1, 64), jnp.bfloat16))
  assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_inside_of_shard_map_auto_leaves_the_kernel(monkeypatch):
  monkeypatch.setattr(measured, "_capability", lambda: "9.0")
  axis_types = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((1,), ("rows",), axis_types=axis_types, devices=jax.devices()[:1])
  rows = jax.sharding.PartitionSpec("rows")

  def attend(q, ids):
    return segment_attention(q, q, q, IntervalMask.causal(ids))

  mapped = jax.jit(jax.shard_map(attend, mesh=mesh, in_specs=(rows, rows), out_specs=rows))
  traced = mapped.trace(jnp.ones((1, 128, 1, 64), jnp.bfloat16), jnp.ones((1, 128), jnp.int32))
  assert "mosaic_gpu" not in traced.lower(lowering_platforms=("cuda",)).as_text()
