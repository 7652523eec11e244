"""The calls of the kernels: their inputs by name, the shared memory and the barriers, the launch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from pallas_kernels.bias import CELLS, cell_words, first_seconds_of_buckets
from pallas_kernels.gpu.operations import simulator
from pallas_kernels.gpu.problem import ROWS, TABLE, Spec
from pallas_kernels.primitives import kernel_call

_AXES = ("head", "tile", "row", "warpgroup")


def bias_inputs(
  spec: Spec, tables: tuple[Array | None, Array | None], integers: tuple[Array, Array | None]
) -> dict[str, Array]:
  """What the mask and the bias need: the integers of the tokens, the tables, and the cells of the times."""
  inputs = {"query_info": integers[0]}
  if integers[1] is not None:
    inputs["key_info"] = integers[1]
  if spec.has_time:
    inputs |= {"words": jnp.asarray(cell_words()), "edges": jnp.asarray(_edges()), "time_table": tables[0]}
  if spec.has_position:
    inputs["position_table"] = tables[1]
  return inputs


def bias_scratch(spec: Spec) -> dict[str, Any]:
  """Room for the table of the time bias and the cells of the times."""
  if not spec.has_time:
    return {}
  return {
    "own_words": plgpu.SMEM((CELLS,), jnp.uint32),
    "own_time_table": plgpu.SMEM((TABLE,), jnp.float32),
    "own_edges": plgpu.SMEM((TABLE,), jnp.int32),
    "tables_ready": plgpu.Barrier(num_arrivals=3),
  }


def _edges():
  """The smallest count of seconds in each bucket."""
  return np.minimum(first_seconds_of_buckets()[:TABLE], np.iinfo(np.int32).max).astype(np.int32)


def ring(spec: Spec, inputs: dict[str, Array], names: Sequence[str], block: int) -> dict[str, Any]:
  """Room for `stages` tiles of `block` tokens of each named input that there is, and barriers that say of a stage
  that it is full, and that all consumers are done with it."""
  stages, names = spec.stages, [name for name in names if name in inputs]
  scratch = {}
  for name in names:
    x = inputs[name]
    shape = (x.shape[-2], block) if "info" in name else (block, x.shape[-1])
    scratch[f"ring_{name}"] = shared_memory((stages, *shape), x.dtype)
  scratch["full"] = plgpu.Barrier(num_arrivals=len(names), num_barriers=stages)
  scratch["free"] = plgpu.Barrier(num_arrivals=spec.blocks.consumers, num_barriers=stages)
  return scratch


def own(spec: Spec, inputs: dict[str, Array], names: Sequence[str]) -> dict[str, Any]:
  """Room for the 64 rows of each consumer."""
  consumers, arrays = spec.blocks.consumers, {name: inputs[name] for name in names}
  scratch = {f"own_{name}": shared_memory((consumers, ROWS, x.shape[3]), x.dtype) for name, x in arrays.items()}
  return scratch | {"own_ready": plgpu.Barrier(num_arrivals=len(names), num_barriers=consumers)}


def shared_memory(shape: tuple[int, ...], dtype: Any) -> Any:
  """Matrices that wgmma reads lie in tiles of 8 x 64 elements, swizzled over 128 bytes."""
  if dtype.itemsize != 2:
    return plgpu.SMEM(shape, dtype)
  return plgpu.SMEM(shape, dtype, transforms=(plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)))


def launch(
  spec: Spec,
  body: Callable[[Spec, dict[str, Any], dict[str, Array]], None],
  inputs: dict[str, Array],
  outputs: dict[str, jax.ShapeDtypeStruct],
  scratch: dict[str, Any],
  grid: tuple[int, int, int],
  sums: dict[str, jax.ShapeDtypeStruct] | None = None,
) -> dict[str, Array]:
  """Runs `body(spec, refs, place)` on each point of `grid` (heads, tiles, rows), in `consumers` + 1 warpgroups.

  `refs` holds inputs, outputs and scratch by name, `place` the head, the tile, the row and the warpgroup.

  sums: outputs that start as zeros, for atomic additions. (In the simulator they start as anything.)
  """
  sums = sums or {}
  names = [*inputs, *outputs, *sums, *scratch]

  def entry(*refs):
    place = {name: lax.axis_index(name) for name in _AXES}
    body(spec, dict(zip(names, refs, strict=True)), place)

  entry.__name__ = body.__name__.strip("_")
  mesh = {"grid": grid, "grid_names": _AXES[:3], "num_threads": spec.blocks.consumers + 1, "thread_name": _AXES[3]}
  options = {
    "compiler_params": plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane),
    "interpret": simulator() if spec.simulate else None,
  }
  if spec.simulate or not sums:
    outputs = outputs | sums
    kernel = plgpu.kernel(
      entry, out_type=list(outputs.values()), scratch_types=list(scratch.values()), **mesh, **options
    )
  else:
    kernel = _with_sums(entry, inputs, outputs, scratch, sums, mesh, options)
    outputs = outputs | sums
  arrays, types = tuple(inputs.values()), [jax.typeof(x) for x in outputs.values()]
  results = kernel(*arrays) if spec.simulate else kernel_call("cuda", kernel, types, *arrays)
  return dict(zip(outputs, results, strict=True))


def _with_sums(entry, inputs, outputs, scratch, sums, mesh, options):
  def scoped(*refs):
    # The sums come before the outputs here.
    refs = (*refs[: len(inputs)], *refs[len(inputs) + len(sums) :], *refs[len(inputs) : len(inputs) + len(sums)])
    pl.run_scoped(functools.partial(entry, *refs), *scratch.values(), collective_axes=mesh["thread_name"])

  def kernel(*arrays):
    totals = [jax.new_ref(jnp.zeros(x.shape, x.dtype)) for x in sums.values()]
    run = pl.kernel(scoped, out_type=list(outputs.values()), mesh=plgpu.Mesh(**mesh), **options)
    return *run(*arrays, *totals), *(total[...] for total in totals)

  return kernel
