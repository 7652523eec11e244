"""Segment attention for Hopper GPUs (sm_90a) in Pallas Mosaic GPU: wgmma, TMA, warp specialisation, forward and
backward.

    scores_ij = scale * q_i·k_j + time_table[bucket(|t_i - t_j|)] + position_table[p_i - p_j + P - 1]
    silu:     out_i = sum_j may_attend(i, j) * silu(scores_ij) * v_j
    softmax:  out_i = sum_j softmax over the allowed j (scores_ij) * v_j

Three kernels: the outputs; dq and the gradients of the tables; dk and dv. A block of a kernel owns some rows (queries,
or keys for dk and dv) and a list of the tiles of the other side that are alive for it, so that dead tiles are neither
fetched nor computed. One warpgroup copies the tiles of the list into a ring in shared memory, the others multiply.
Tiles in which every pair is allowed come first in the list and skip the mask.

Checked and timed on an NVIDIA H200: experiments/results/device_h200.md. Pallas's simulator of Mosaic GPU kernels runs
them on a CPU; functions with a branch on `spec.simulate` (products, loads with a layout, table access) take another
path there.

Limits: bfloat16 and float16; `shard_map` with `check_vma=True` is an error of Pallas; under `vmap` the mapped problems
run one after another (with jax 0.10, the gradient of a position table cannot be mapped); the gradient of the position
table is summed atomically, in an order that varies between runs.

Source: Zhai et al. 2024, arXiv 2402.17152, equations 2 and 3; Dao 2023, arXiv 2307.08691 (the recomputing backward
pass); Shah et al. 2024, arXiv 2407.08608 (a producer warpgroup, and consumers that take turns at the tensor cores).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.bias import RelativeBias, check_integers
from pallas_kernels.gpu.backward import backward
from pallas_kernels.gpu.forward import forward
from pallas_kernels.gpu.problem import BlockSizes, Spec, key_rows, padded, padded_tables, query_rows
from pallas_kernels.mask import IntervalMask
from pallas_kernels.primitives import without_tangents
from pallas_kernels.sizes import check_known


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
  interpret: bool = False,
) -> Float[Array, "B N H E"]:
  """Same as `reference.attention`, for bfloat16 and float16, in time proportional to the live tiles and O(N) memory.

  Args:
    block_sizes: see `BlockSizes`; None chooses by the widths.
    interpret: execute the kernels in Pallas's simulator, on any platform (slow: seconds for a tile).

  Raises:
    NotImplementedError: for other dtypes, widths over 256, or times and positions that are not int32.
  """
  bias = bias or RelativeBias()
  check(q, k, v, bias)
  tables = padded_tables(bias)
  width, value_width = (-(-x.shape[3] // 64) * 64 for x in (q, v))
  has_time, has_position = bias.time_table is not None, bias.position_table is not None
  spec = Spec(
    activation=activation,
    scale=float(scale),
    blocks=block_sizes or default_block_sizes(width, value_width, has_time, has_position, activation),
    simulate=interpret,
    has_time=has_time,
    has_position=has_position,
  )
  integers = query_rows(mask, bias, k.shape[1]), key_rows(bias)
  out = _attention(spec, padded(q), padded(k), padded(v), tables, integers)
  return out[:, : q.shape[1], :, : v.shape[3]]


def default_block_sizes(
  width: int, value_width: int, has_time: bool = False, has_position: bool = False, activation: str = "silu"
) -> BlockSizes:
  """What was fastest on an H200 at N = 4,096, for widths up to 128; what fits in registers and shared memory, for wider
  heads. Measurements: experiments/results/device_h200_tiles.jsonl.
  """
  widest = max(width, value_width)
  if widest > 128:
    # The histogram of the time buckets takes the room of the second stage.
    dq_stages = 1 if has_time and width + value_width > 384 else 2
    return BlockSizes(consumers=1, forward_keys=64, dq_stages=dq_stages)
  if has_time or has_position:
    return BlockSizes(dkv_stages=3 if widest <= 64 else 2)
  if widest <= 64:
    return BlockSizes(forward_stages=4, dq_stages=3, dkv_stages=3)
  if activation == "softmax":  # Rescaling the sums costs the same for a tile of any size.
    return BlockSizes(dkv_stages=3)
  return BlockSizes(forward_keys=64, forward_stages=4, dkv_stages=3)


def check(q, k, v, bias: RelativeBias | None) -> None:
  """Raises: NotImplementedError, with the reason, for what these kernels cannot do. Shapes and dtypes suffice."""
  bias = bias or RelativeBias()
  check_known(q, k, v)
  if q.dtype not in (jnp.bfloat16, jnp.float16) or not q.dtype == k.dtype == v.dtype:
    raise NotImplementedError(
      f"the GPU kernels multiply bfloat16 or float16, the same for q, k, v; got {q.dtype}, {k.dtype}, {v.dtype}"
    )
  if max(q.shape[3], v.shape[3]) > 256:
    raise NotImplementedError(f"head widths {q.shape[3]} and {v.shape[3]}: the GPU kernels take up to 256")
  check_integers(bias, "GPU")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(spec, q, k, v, tables, integers):
  return _forward(spec, q, k, v, tables, integers)[0]


def _forward(spec, q, k, v, tables, integers):
  out, log_sum = _one_at_a_time(forward, spec)(q, k, v, tables, integers)
  return out, (q, k, v, tables, integers, None if log_sum is None else (out, log_sum))


def _backward(spec, residuals, d_out):
  return *_one_at_a_time(backward, spec)(*residuals, d_out), None


def _one_at_a_time(kernel, spec):
  """Under `vmap`, the problems of the mapped axis run one after another: each has its own lists of tiles."""
  if spec.has_position and kernel is backward and jax.__version_info__ < (0, 11):
    call = functools.partial(kernel, spec)  # jax 0.10 cannot have sums that start as zeros inside of such a function.
  else:
    call = jax.custom_batching.sequential_vmap(lambda *arguments: kernel(spec, *arguments))
  return without_tangents(call, "gpu")


_attention.defvjp(_forward, _backward)
