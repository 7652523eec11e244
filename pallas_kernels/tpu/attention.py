"""Segment attention as Pallas kernels for TPUs, forward and backward.

Source: Zhai et al. 2024, arXiv 2402.17152, equations 2 and 3; Dao 2023, arXiv 2307.08691 (the recomputing backward
pass).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels.bias import RelativeBias, check_integers
from pallas_kernels.dtypes import at_least_float32
from pallas_kernels.mask import IntervalMask
from pallas_kernels.primitives import kernel_call, without_tangents
from pallas_kernels.sizes import check_known
from pallas_kernels.tpu.backward import SoftmaxSums, backward
from pallas_kernels.tpu.forward import forward
from pallas_kernels.tpu.problem import BlockSizes, Integers, TileSpec, integers_of
from pallas_kernels.tpu.tiles import LANES

_MAX_RESIDENT = 2**24  # bytes of one row's query gradients, which stay on the chip
_MAX_INTEGERS = 3 * 2**16  # about tiles, in a scalar memory of 2^18


def attention(
  q: Float[Array, "B N H D"],
  k: Float[Array, "B S H D"],
  v: Float[Array, "B S H E"],
  mask: IntervalMask,
  bias: RelativeBias | None,
  *,
  activation: str,
  scale: float,
  block_sizes: BlockSizes | None = None,
  interpret: bool | pltpu.InterpretParams = False,
) -> Float[Array, "B N H E"]:
  """Same as `reference.attention`, in time proportional to the live tiles and in O(N) memory.

  `interpret` runs the kernels on any platform: True as XLA code, `InterpretParams` with simulated memories.

  Raises:
    ValueError: block sizes that are no multiples of 128, or `heads` that do not divide those of q.
    NotImplementedError: rows longer than the chip can hold the query gradients of, or too many tiles to list.
  """
  check(q, k, bias, block_sizes, interpret)
  bias = bias or RelativeBias()
  spec = spec_of(q, k, bias, activation, scale, block_sizes, interpret)
  integers = integers_of(mask, bias, k.shape[1], spec.block_q, spec.block_k)
  tables = (bias.time_table, bias.position_table)
  dtype = q.dtype if q.dtype == k.dtype else at_least_float32(q.dtype, k.dtype)
  q, k = q.astype(dtype), k.astype(dtype)
  q, k, v = _rows_of_heads(q, spec.block_q), _rows_of_heads(k, spec.block_k), _rows_of_heads(v, spec.block_k)
  out = _attention(spec, q, k, v, tables, integers)  # [B, H, N, E]
  return jnp.swapaxes(out, 1, 2)[:, : mask.shape[1]]


def _rows_of_heads(x: Float[Array, "B N H D"], block: int) -> Float[Array, "B H _ D"]:
  return jnp.swapaxes(jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, 0))), 1, 2)


def default_block_sizes(num_queries: int, num_keys: int) -> BlockSizes:
  """Tiles of 512 queries and 1,024 keys, and less for short rows; one head in a step."""
  return BlockSizes(min(512, _round_up(num_queries)), min(1024, _round_up(num_keys)), 1)


def _round_up(length):
  return -(-length // LANES) * LANES


def check(q, k, bias: RelativeBias | None, block_sizes: BlockSizes | None = None, interpret: Any = False) -> None:
  """Raises: NotImplementedError, with the reason, for a problem that does not fit on the chip. Shapes suffice."""
  check_known(q, k)
  bias = bias or RelativeBias()
  spec = spec_of(q, k, bias, "silu", 1.0, block_sizes, interpret)
  check_integers(bias, "TPU")
  if spec.dtype != jnp.float32 and not interpret:
    raise NotImplementedError(f"TPUs have no {spec.dtype}; use float32, bfloat16, or implementation='xla'")
  resident = spec.query_tiles * spec.block_q * _round_up(q.shape[3]) * spec.heads * spec.dtype.itemsize
  if resident > _MAX_RESIDENT:
    raise NotImplementedError(
      f"rows of {q.shape[1]} queries of width {q.shape[3]} need {resident} bytes for their gradients, more than the "
      f"{_MAX_RESIDENT} that stay on a TPU; use shorter rows, fewer heads in a step, or implementation='xla'"
    )
  if q.shape[0] * spec.integers_of_row > _MAX_INTEGERS:
    raise NotImplementedError(
      f"{q.shape[0] * spec.query_tiles * spec.key_tiles} tiles are more than a TPU can list, which are those of "
      f"{_MAX_INTEGERS // spec.integers_of_row} such rows; use larger block_sizes, fewer rows at a time, or "
      "implementation='xla'"
    )


def spec_of(q, k, bias, activation, scale, block_sizes, interpret) -> TileSpec:
  """What is known of a problem at compilation; shapes suffice."""
  num_queries, num_heads = q.shape[1:3]
  blocks = block_sizes or default_block_sizes(num_queries, k.shape[1])
  if blocks.query % LANES or blocks.key % LANES or num_heads % blocks.heads:
    raise ValueError(f"TPU kernels need multiples of {LANES} and heads that divide {num_heads=}; got {blocks}")
  time_heads, position_heads = (
    0 if table is None else 1 if table.ndim == 1 else num_heads for table in (bias.time_table, bias.position_table)
  )
  return TileSpec(
    activation=activation, scale=scale, num_heads=num_heads, heads=blocks.heads, interpret=interpret,
    dtype=at_least_float32(q.dtype), block_q=blocks.query, block_k=blocks.key,
    query_tiles=-(-num_queries // blocks.query), key_tiles=-(-k.shape[1] // blocks.key),
    time_heads=time_heads, position_heads=position_heads,
    table_size=0 if bias.position_table is None else bias.position_table.shape[-1],
  )  # fmt: skip


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(spec, q, k, v, tables, integers):
  return _forward(spec, q, k, v, tables, integers)[0]


def _forward(spec, q, k, v, tables, integers: Integers):
  sums = _type(q, (*q.shape[:2], 1, q.shape[2]), spec.dtype) if spec.activation == "softmax" else None
  results = _type(q, (*q.shape[:3], v.shape[3]), v.dtype), sums
  out, log_sum = _call(forward, spec, results, integers, tables, q, k, v)
  residuals = q, k, v, tables, integers, None if log_sum is None else (out, log_sum)
  return out, residuals


def _backward(spec, residuals, d_out):
  q, k, v, tables, integers, softmax = residuals
  sums = None
  if softmax is not None:
    out, log_sum = softmax
    mean = (out.astype(spec.dtype) * d_out.astype(spec.dtype)).sum(axis=-1)  # [B, H, N]
    sums = SoftmaxSums(log_sum, mean[:, :, None])
  gradients = jax.tree.map(jax.typeof, (q, k, v, tables))
  return *_call(_gradients, spec, gradients, integers, tables, q, k, v, d_out.astype(v.dtype), sums), None


def _gradients(spec, integers, tables, q, k, v, d_out, sums):
  dq, dk, dv, d_tables = backward(spec, integers, tables, q, k, v, d_out, sums)
  return dq.astype(q.dtype), dk, dv, tuple(map(_like_table, tables, d_tables))


def _type(like, shape, dtype):
  return jax.typeof(like).update(shape=shape, dtype=dtype)


def _call(kernel, spec, results, *arguments):
  """Under `vmap`, the problems of the mapped axis run one after another: each has its own list of tiles."""

  def run(*arguments):
    if spec.interpret:
      return kernel(spec, *arguments)
    return kernel_call("tpu", functools.partial(kernel, spec), results, *arguments)

  return without_tangents(jax.custom_batching.sequential_vmap(run), "tpu")(*arguments)


def _like_table(table, gradient):
  if table is None:
    return None
  gradient = gradient[:, : table.shape[-1]]
  gradient = jnp.pad(gradient, ((0, 0), (0, table.shape[-1] - gradient.shape[1])))
  return gradient.reshape(table.shape).astype(table.dtype)


_attention.defvjp(_forward, _backward)
