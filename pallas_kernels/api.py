"""The one entry point for attention: `segment_attention`."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from pallas_kernels import dense, measured, reference, tpu, xla
from pallas_kernels.bias import RelativeBias
from pallas_kernels.devices import on_each_device, on_one_device
from pallas_kernels.dtypes import at_least_float32
from pallas_kernels.groups import GROUP_SUMS, WITHOUT_KERNEL, KeyGroups
from pallas_kernels.integers import AnyArray, as_arrays, as_integers
from pallas_kernels.mask import IntervalMask
from pallas_kernels.varying import axes_of, vary

ACTIVATIONS = ("silu", "softmax")
IMPLEMENTATIONS = ("auto", "reference", "dense", "xla", "tpu", "gpu")


def segment_attention(
  q: Float[AnyArray, "B N H D"],
  k: Float[AnyArray, "B S H D"],
  v: Float[AnyArray, "B S H E"],
  mask: IntervalMask,
  *,
  activation: str = "silu",
  scale: float = 1.0,
  normalizer: float | Float[AnyArray, "B N"] | None = None,
  bias: RelativeBias | None = None,
  implementation: str = "auto",
  interpret: bool = False,
  block_sizes: Any = None,
  key_group: Integer[AnyArray, "B S"] | None = None,
  num_groups: int = 0,
  group_sums: str = "signed",
  finite_padding: bool = False,
) -> Float[Array, "B N H E"] | tuple[Float[Array, "B N H E"], Float[Array, "B N H _"]]:
  """Attention over the keys that `mask` allows; differentiable in q, k, v, the tables of the bias and the normalizer.

  silu: `out_i = sum_j may_attend(i, j) * silu(scale * q_i·k_j + bias_ij) / normalizer_i * v_j`.
  softmax: the usual, over the keys that may be attended; a query without any returns zeros and has zero gradients.

  Args:
    q, k, v: queries, keys and values of `H` heads. Widths D and E may differ.
    mask: which keys each query may attend to. What a query without keys and a key without queries hold, NaN or infinity
      too, reaches neither outputs nor gradients.
    activation: "silu" (HSTU) or "softmax".
    scale: multiplies q·k before the bias is added.
    normalizer: silu only: divides the weights; a number, or one for each query. None = 1.
    bias: added to `scale * q·k`.
    implementation: "reference" (the definition, O(N^2) memory), "dense" (the same with products in the dtype of the
      inputs), "xla" (live tiles only, O(N) memory), "tpu" or "gpu" (Pallas kernels for TPUs and Hopper), or "auto": by
      the platform that the program is lowered for, see `chosen_implementation`.
    interpret: run a Pallas implementation on the CPU.
    block_sizes: tile sizes of the named implementation (`BlockSizes` for "xla" and "auto", `tpu.BlockSizes`,
      `gpu.BlockSizes`); they change speed, never results. "auto" with block sizes takes xla on CPUs and GPUs.
    key_group: 0..G - 1, a group for each key; with it, the sums of each query's weights by group are returned too.
    num_groups: G.
    group_sums: what is added up by group. "signed": the weights as they are, `[B, N, H, G]`. "absolute": their absolute
      values, with the query's own key (`IntervalMask.own_key`) not in its group but in one more, the last:
      `[B, N, H, G + 1]`; SiLU weights of opposite sign do not cancel there. Not by "tpu" and "gpu"; "auto" avoids them.
    finite_padding: q, k, v and the normalizer are finite everywhere, which saves setting padding to zero; see `mask`.

  Returns:
    Float[Array, "B N H E"] in the dtype of v; weights and sums are float32 (float64 for float64 inputs). With
    `key_group` a pair of that and the sums by group, differentiable like it.

  Raises:
    ValueError: shapes do not fit, a name is unknown, an option would be ignored, or JAX would cut integers to 32 bits.
    NotImplementedError: the named implementation cannot compute this, or not its second derivative: the gradient of a
      gradient needs "reference" or "dense".

  Source: Zhai et al. 2024, arXiv 2402.17152, equations 2 and 3.

  >>> q = v = jnp.ones((1, 2, 1, 1))
  >>> mask = IntervalMask.causal(jnp.array([[1, 1]]))
  >>> out = segment_attention(q, q, v, mask, normalizer=2.0)  # silu(1) = .731, of one key and of two, divided by 2
  >>> [f"{value:.3f}" for value in out.ravel()]
  ['0.366', '0.731']
  """
  _check_options(activation, normalizer, implementation, interpret, block_sizes)
  _check_group_sums(group_sums, key_group, implementation)
  _check_shapes(q, k, v, mask, bias, key_group, num_groups)
  q, k, v = (jnp.asarray(x) for x in (q, k, v))
  mask, bias = as_arrays("mask", mask), None if bias is None else as_arrays("bias", bias)
  reads, is_read = mask.reads_any(k.shape[1]), mask.is_read(k.shape[1])
  bias = _without_times_of_padding(bias, reads, is_read)
  reads, is_read = reads[..., None, None], is_read[..., None, None]  # [B, _, 1, 1]
  if not finite_padding:
    q, k, v = jnp.where(reads, q, 0), jnp.where(is_read, k, 0), jnp.where(is_read, v, 0)
  groups = None
  if key_group is not None:
    groups = KeyGroups.of(as_integers("key_group", key_group), num_groups, mask, group_sums)
  out = _run(q, k, v, mask, bias, groups, activation, scale, implementation, interpret, block_sizes)
  if normalizer is not None:
    divisor = jnp.broadcast_to(jnp.asarray(normalizer, v.dtype), q.shape[:2])[..., None, None]
    divisor = divisor if finite_padding else jnp.where(reads, divisor, 1)
    if group_sums == "absolute":
      out = out[0] / divisor, out[1] / jnp.abs(divisor).astype(out[1].dtype)
    else:
      out = jax.tree.map(lambda x: x / divisor, out)  # [B, N, H, E]
  return out if finite_padding else jax.tree.map(lambda x: jnp.where(reads, x, 0), out)


def _without_times_of_padding(bias, reads, is_read):
  """Zeros, from which no difference to a time takes more than 32 bits: kernels compare the times of whole blocks."""
  if bias is None or bias.time_table is None:
    return bias
  query_time, key_time = jnp.where(reads, bias.query_time, 0), jnp.where(is_read, bias.key_time, 0)
  return dataclasses.replace(bias, query_time=query_time, key_time=key_time)


def _run(q, k, v, mask, bias, groups, activation, scale, implementation, interpret, block_sizes):
  arguments, options = (q, k, v, mask, bias, groups), {"activation": activation, "scale": scale}
  if 0 in (*q.shape[:3], k.shape[1]):
    return vary(_zeros(*arguments), axes_of((q, k, v)))
  arguments = vary(arguments, axes_of(arguments))
  match implementation:
    case "reference" | "dense":
      return _dense(*arguments, **options, attention=(reference if implementation == "reference" else dense).attention)
    case "tpu":
      return _by_columns(tpu.attention, *arguments, **options, block_sizes=block_sizes, interpret=interpret)
    case "gpu":
      from pallas_kernels import gpu  # Its packages take a second to import.

      return _by_columns(gpu.attention, *arguments, **options, block_sizes=block_sizes, interpret=interpret)
  branches = {platform: _xla(platform, options, block_sizes) for platform in ("default", "cuda")}
  if implementation == "auto":
    branches |= _chosen(arguments, options, block_sizes)
  return jax.lax.platform_dependent(*arguments, **branches)


def _zeros(q, k, v, mask, bias, groups):
  """What nothing attends to, or nothing is attended by."""
  out = jnp.zeros((*q.shape[:3], v.shape[3]), v.dtype)
  if groups is None:
    return out
  dtype = at_least_float32(v.dtype) if groups.is_absolute else v.dtype
  return out, jnp.zeros((*q.shape[:3], groups.num_groups + groups.is_absolute), dtype)


def _xla(platform, options, block_sizes):
  """Returns the tiled XLA implementation, with groups of tiles that fit in a CPU's cache or fill a GPU."""
  options = options | {"block_sizes": block_sizes, "fill_device": platform == "cuda"}
  return functools.partial(_compiled_once(_xla_on_each_device), **options)


def _chosen(arguments, options, block_sizes):
  """Returns, by platform, what "auto" runs in place of XLA loops."""
  q, k, v, _, bias, groups = arguments
  group_sums = "absolute" if groups is not None and groups.is_absolute else "signed"
  branches = {}
  on_gpu = measured.choose(q, k, v, bias, group_sums=group_sums).implementation if block_sizes is None else "xla"
  if on_gpu != "xla":
    branches["cuda"] = functools.partial(
      _compiled_once(_dense if on_gpu == "dense" else _gpu_on_each_device), **options
    )
  if _why_not_tpu(q, k, bias, group_sums) is None:
    branches["tpu"] = functools.partial(_compiled_once(_tpu_on_each_device), **options)
  return branches


def _by_columns(attention, q, k, v, mask, bias, groups=None, **options):
  """Adds one value column per group, which is 1 where the key belongs to it: its output is the sum of the weights."""
  if groups is None:
    return attention(q, k, v, mask, bias, **options)
  is_group = groups.one_hot(v.dtype)[:, :, None]  # [B, S, 1, G]
  columns = jnp.broadcast_to(is_group, (*v.shape[:3], groups.num_groups))
  out = attention(q, k, jnp.concatenate([v, columns], axis=-1), mask, bias, **options)
  return out[..., : v.shape[-1]], out[..., v.shape[-1] :]


@functools.cache
def _compiled_once(attention):
  """Returns a jitted function: layers of equal shapes are traced once, and only the lowered platform is compiled."""
  return jax.jit(attention, static_argnames=("activation", "scale", "block_sizes", "fill_device"))


def _dense(*arguments, attention=dense.attention, **options):
  groups = arguments[-1]
  if groups is not None and groups.is_absolute:
    return attention(*arguments[:-1], groups=groups, **options)
  return _by_columns(attention, *arguments, **options)


def _tpu_on_each_device(*arguments, **options):
  return _by_columns(functools.partial(on_each_device, tpu.attention), *arguments, **options)


def _gpu_on_each_device(*arguments, **options):
  from pallas_kernels import gpu

  return _by_columns(functools.partial(on_each_device, gpu.attention, check_vma=False), *arguments, **options)


def _xla_on_each_device(*arguments, **options):
  return on_each_device(xla.attention, *arguments, **options)


def _why_not_tpu(q, k, bias, group_sums) -> str | None:
  """Says why a device's share of the problem does not suit the TPU kernels."""
  if group_sums == "absolute":
    return WITHOUT_KERNEL
  try:
    tpu.check(on_one_device(q), on_one_device(k), bias)
  except NotImplementedError as error:
    return str(error)
  return None


def chosen_implementation(
  platform: str | None = None,
  q: Any = None,
  k: Any = None,
  bias: RelativeBias | None = None,
  v: Any = None,
  group_sums: str = "signed",
) -> str:
  """What "auto" runs on `platform` ("cpu", "gpu", "tpu"; default: this process's), and why.

  With q, k, v (arrays or their shapes) and the bias, it also says where a problem does not suit the platform's kernel,
  and for GPUs on what measurement the choice rests. k and v are like q if left out; `group_sums` as of
  `segment_attention`.

  Raises:
    ValueError: an unknown platform.

  >>> chosen_implementation("tpu")
  'tpu: Pallas kernels, live tiles only'
  >>> chosen_implementation("cpu")
  'xla: live tiles only'
  """
  platform = platform or jax.default_backend()
  if platform not in ("cpu", "gpu", "cuda", "rocm", "tpu"):
    raise ValueError(f"{platform=} is not one of 'cpu', 'gpu', 'tpu'")
  if platform in ("cpu", "rocm"):
    return "xla: live tiles only"
  if platform == "tpu":
    reason = None if q is None else _why_not_tpu(q, q if k is None else k, bias, group_sums)
    return f"xla: live tiles only; {reason}" if reason else "tpu: Pallas kernels, live tiles only"
  if q is None:
    rows = (
      f"compute capability {r.capability}, {r.bits} bits: {r.implementation}; {r.evidence}" for r in measured.ROWS
    )
    return "gpu: by what was measured, else dense up to 2,048 tokens and xla beyond\n" + "\n".join(rows)
  k = q if k is None else k
  choice = measured.choose(q, k, k if v is None else v, bias, group_sums=group_sums)
  return f"{choice.implementation}: {choice.reason}"


def _check_options(activation, normalizer, implementation, interpret, block_sizes):
  if activation not in ACTIVATIONS:
    raise ValueError(f"{activation=} is not one of {ACTIVATIONS}")
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f"{implementation=} is not one of {IMPLEMENTATIONS}")
  if interpret and implementation not in ("tpu", "gpu"):
    raise ValueError(
      "interpret=True is for Pallas implementations; 'auto', 'xla' and 'reference' run anywhere without it"
    )
  if block_sizes is not None and implementation in ("reference", "dense"):
    raise ValueError(f"block_sizes has no meaning for {implementation=}")
  if normalizer is not None and activation == "softmax":
    raise ValueError("normalizer is for activation='silu'; softmax weights already sum to one")


def _check_group_sums(group_sums, key_group, implementation):
  if group_sums not in GROUP_SUMS:
    raise ValueError(f"{group_sums=} is not one of {GROUP_SUMS}")
  if group_sums == "absolute" and key_group is None:
    raise ValueError("group_sums='absolute' needs key_group, the group of each key")
  if group_sums == "absolute" and implementation in ("tpu", "gpu"):
    raise NotImplementedError(f"{WITHOUT_KERNEL}, not by {implementation=}; use one of these, or 'auto'")


def _check_shapes(q, k, v, mask, bias, key_group, num_groups):
  if q.ndim != 4 or k.ndim != 4 or v.ndim != 4:
    raise ValueError(f"q, k, v must be [B, N, H, D]; got {q.shape}, {k.shape}, {v.shape}")
  if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in (q, k, v)):
    raise ValueError(f"q, k, v must hold floating-point numbers; got {q.dtype}, {k.dtype}, {v.dtype}")
  if q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:]:
    raise ValueError(f"q {q.shape} and k {k.shape} must agree in rows, heads and width")
  if k.shape[:3] != v.shape[:3]:
    raise ValueError(f"k {k.shape} and v {v.shape} must agree in rows, keys and heads")
  if mask.shape != q.shape[:2]:
    raise ValueError(f"mask is for queries {mask.shape}, but q has {q.shape[:2]}")
  if bias is not None:
    bias.validate(q.shape[0], q.shape[1], k.shape[1], q.shape[2])
  if key_group is not None and (key_group.shape != k.shape[:2] or num_groups < 1):
    raise ValueError(f"key_group {key_group.shape} must be {k.shape[:2]} as the keys, with {num_groups=} positive")
