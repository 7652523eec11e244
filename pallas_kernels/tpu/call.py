"""A kernel over live tiles on a TPU: its operands by name, its grid, and what a step knows of its place."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels import schedule
from pallas_kernels.mask import IntervalMask
from pallas_kernels.tpu.problem import EDGES, FEW, ONE, SHIFTED, TileSpec, divide

UNMASKED = {"near": EDGES[FEW], "far": EDGES[ONE]}  # Paths without a mask, and how many edges their chunks may meet.


class Place(NamedTuple):
  """Where in the problem a step of the grid stands: the row, the group of heads and the two tiles."""

  row: Array
  group: Array
  query: Array
  key: Array


class Operand(NamedTuple):
  """An input (an array) or an output (its shape and type) of a kernel, and its blocks."""

  value: Any
  block: tuple[int, ...] | None = None  # None: all of it, as scalars
  index: Callable[[Place], tuple] | None = None


def of_queries(spec: TileSpec, x: Any) -> Operand:
  """What belongs to queries, `[B, H, N, _]`, by tiles."""
  return Operand(x, (1, spec.heads, spec.block_q, x.shape[3]), lambda p: (p.row, p.group, p.query, 0))


def of_keys(spec: TileSpec, x: Any) -> Operand:
  """What belongs to keys, `[B, H, S, _]`, by tiles."""
  return Operand(x, (1, spec.heads, spec.block_k, x.shape[3]), lambda p: (p.row, p.group, p.key, 0))


def sums_of_queries(spec: TileSpec, x: Any) -> Operand:
  """A number for each query, `[B, H, 1, N]`, by tiles."""
  return Operand(x, (1, spec.heads, 1, spec.block_q), lambda p: (p.row, p.group, 0, p.query))


def key_ranges(mask: IntervalMask, queries: int, num_keys: int) -> dict[str, Operand]:
  """The keys that each group of so many queries reads: "first_key" and "end_key" of row and group, flattened."""
  first_key, end_key = schedule.key_range(mask, queries, num_keys)  # [B, N / queries]
  return {"first_key": Operand(first_key.reshape(-1)), "end_key": Operand(end_key.reshape(-1))}


def call(
  kernel: Callable,
  name: str,
  spec: TileSpec,
  order: schedule.TileOrder,
  by: str,
  inputs: dict[str, Operand],
  outputs: dict[str, Operand],
  scratch: dict[str, tuple[tuple[int, ...], Any]],
) -> tuple[Array, ...]:
  """Runs `kernel(spec, refs)` at every entry of the order.

  `refs` holds the blocks and scratch arrays by name, and the `place` and the `entry` of the step.
  """
  names = ("outer", "inner", *inputs, *outputs, *scratch)

  def body(*refs):
    refs = SimpleNamespace(**dict(zip(names, refs, strict=True)))
    step = pl.program_id(1)
    refs.entry = refs.inner[step]
    refs.place = _place(spec, by, pl.program_id(0), refs.outer[step], refs.entry)
    kernel(spec, refs)

  def block_spec(operand):
    if operand.block is None:
      return pl.BlockSpec(memory_space=pltpu.SMEM)

    def index(group, step, outer, inner):
      return operand.index(_place(spec, by, group, outer[step], inner[step]))

    return pl.BlockSpec(operand.block, index)

  across_devices = jax.typeof(inputs["q"].value).manual_axis_type  # of `shard_map`
  run = pl.pallas_call(
    body,
    name=name,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=(spec.groups, order.count),
      in_specs=[block_spec(x) for x in inputs.values()],
      out_specs=[block_spec(x) for x in outputs.values()],
      scratch_shapes=[pltpu.VMEM(*x) for x in scratch.values()],
    ),
    out_shape=[
      jax.ShapeDtypeStruct(x.value.shape, x.value.dtype, manual_axis_type=across_devices) for x in outputs.values()
    ],
    interpret=spec.interpret,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=_vmem_bytes(inputs, outputs, scratch)
    ),
  )
  return tuple(run(order.outer, order.inner, *(x.value for x in inputs.values())))


def _place(spec, by, group, outer, entry):
  tiles = spec.query_tiles if by == "query" else spec.key_tiles
  row, other = divide(outer, tiles), schedule.inner_tile(entry)
  tile = outer - row * tiles
  return Place(row, group, *((tile, other) if by == "query" else (other, tile)))


def _vmem_bytes(inputs, outputs, scratch):
  """Two buffers of each block, the scratch arrays, and 16 MiB for the values of a tile."""

  def size(shape, dtype):
    padded = (*shape[:-2], -(-shape[-2] // 8) * 8, -(-shape[-1] // 128) * 128)
    return math.prod(padded) * jnp.dtype(dtype).itemsize

  blocks = sum(2 * size(x.block, x.value.dtype) for x in (*inputs.values(), *outputs.values()) if x.block)
  return blocks + sum(size(*x) for x in scratch.values()) + 16 * 2**20


def flags_of(refs: SimpleNamespace) -> Callable[[int], Array]:
  """Asks the present entry for one of its flags."""
  return lambda flag: (refs.entry & flag) != 0


def paths(spec: TileSpec, refs: SimpleNamespace) -> dict[str, Array]:
  """Which of the four ways through a tile the present one takes.

  "near" and "far": no mask, in a chunk few edges of time buckets or at most one, positions in step; "careful": all of
  that may be missing but the last; "search": positions out of step. One of a kind that the problem cannot have is
  absent; without time buckets "near" is for all tiles without a mask.
  """
  note, has = schedule.note_of(refs.entry), flags_of(refs)
  live, interior = has(schedule.LIVE), has(schedule.INTERIOR)
  shifted = (note & SHIFTED) != 0
  in_step = live & shifted if spec.position_heads else live
  found = {"near": in_step & interior, "careful": in_step & ~interior}
  if spec.time_heads:
    few, one = interior & ((note & FEW) != 0), interior & ((note & ONE) != 0)
    found = {"near": in_step & few & ~one, "far": in_step & one, "careful": in_step & ~few}
  if spec.position_heads:
    found["search"] = live & ~shifted
  return found


def for_each_chunk(
  path: str, length: int, size: int, body: Callable[[pl.Slice], None], first: Array | int = 0, end: Array | None = None
) -> None:
  """Calls `body` for each chunk of a tile: unrolled without a mask, else in a loop from chunk `first` to `end`."""
  if path in UNMASKED:
    for start in range(0, length, size):
      body(pl.ds(start, size))
    return

  def step(i, _):
    body(pl.ds(pl.multiple_of(i * size, size), size))
    return _

  jax.lax.fori_loop(first, length // size if end is None else end, step, None)


def matmul(a: Float[Array, "..."], b: Float[Array, "..."], contract: tuple[int, int], dtype: jnp.dtype) -> Array:
  """A product over axis `contract[0]` of a and `contract[1]` of b; float32 inputs are not rounded to bfloat16."""
  precision = None if a.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
  dimensions = (((contract[0],), (contract[1],)), ((), ()))
  return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=dtype)
