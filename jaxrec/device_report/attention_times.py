"""How fast is attention on this device? Forward and backward, by length, width and implementation.

TFLOPS are those of the useful work: of P pairs of a query and a key that it may attend to, 2 P (D + E) operations
forward and 2 P (3 D + 2 E) backward (the scores again, and the products for the gradients of weights, values, queries
and keys). Masked pairs and padding count nothing, for the dense forms too.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.device_report.device import seconds_of, tflops
from pallas_kernels import IntervalMask, RelativeBias, segment_attention

MAX_DENSE_BYTES = 12 * 2**30  # of all arrays of the size of the attention matrix
_DENSE_ARRAYS = 4


@dataclass(frozen=True)
class Workload:
  """Attention over `rows` rows of `length` tokens: one sequence each, or `domains` balanced segments of it.

  tables: which of "time" and "position" the bias has.
  """

  length: int
  width: int = 128
  heads: int = 4
  rows: int = 1
  activation: str = "silu"
  dtype: str = "bfloat16"
  tables: str = ""
  domains: int = 1

  def __str__(self):
    extra = f" {self.tables.replace(' ', '+')}" if self.tables else ""
    extra += f" {self.domains} domains" if self.domains > 1 else ""
    return f"{self.activation} n{self.length} d{self.width} h{self.heads} b{self.rows} {self.dtype}{extra}"

  @property
  def pairs(self) -> int:
    """Pairs of a query and a key that it may attend to."""
    part = self.length // self.domains
    return self.rows * self.heads * self.domains * part * (part + 1) // 2


def measure(workload: Workload, implementation: str, block_sizes: Any = None, backward: bool = True) -> dict[str, Any]:
  """Returns milliseconds and TFLOPS, forward and (as the difference of both passes and the forward one) backward.

  Raises:
    NotImplementedError: what the implementation cannot compute, or what does not fit in memory.
  """
  if implementation == "torch":
    run, wait = _torch(workload)
  else:
    run, wait = _ours(workload, implementation, block_sizes), jax.block_until_ready
  record = asdict(workload) | {"implementation": implementation}
  forward = seconds_of(functools.partial(run, backward=False), wait=wait)
  record |= {f"forward_{name}": x for name, x in forward.items()}
  record["forward_tflops"] = tflops(4 * workload.pairs * workload.width, forward)
  if not backward:
    return record
  both = seconds_of(functools.partial(run, backward=True), wait=wait)
  record |= {f"both_{name}": x for name, x in both.items()}
  alone = {"median_ms": max(both["median_ms"] - forward["median_ms"], 1e-6)}
  return record | {
    "backward_median_ms": float(f"{alone['median_ms']:.4g}"),
    "backward_tflops": tflops(10 * workload.pairs * workload.width, alone),
  }


def compile_ahead(workload: Workload, implementation: str, block_sizes: Any = None) -> None:
  """Compiles what `measure` will run; safe to call from several threads, for different workloads."""
  for backward in (False, True):
    _program(workload, implementation, block_sizes, backward)


def _ours(workload, implementation, block_sizes):
  """A function that starts the forward pass, or with `backward=True` both passes."""
  if implementation in ("dense", "reference"):
    size = 4 * workload.rows * workload.heads * workload.length**2 * _DENSE_ARRAYS
    if size > MAX_DENSE_BYTES:
      raise NotImplementedError(f"dense arrays of {size / 2**30:.0f} GiB")
  if implementation in ("tpu", "gpu") and jax.default_backend() != implementation:
    raise NotImplementedError(f"there is no {implementation.upper()} here")
  arguments = _problem(workload)

  def run(backward):
    return _program(workload, implementation, block_sizes, backward)(*arguments)

  return run


@functools.cache
def _program(workload, implementation, block_sizes, backward):
  """The compiled program of one pass or both."""
  w, options = workload, {"implementation": implementation, "block_sizes": block_sizes}

  def attend(inputs, mask, integers):
    bias = {name: inputs[name] for name in ("time_table", "position_table") if name in inputs}
    bias = RelativeBias(**bias, **integers) if bias else None
    qkv = (inputs[name] for name in "qkv")
    return segment_attention(*qkv, mask, activation=w.activation, scale=w.width**-0.5, bias=bias, **options)

  def both(inputs, mask, integers):
    direction = inputs["direction"]
    inputs = {name: x for name, x in inputs.items() if name != "direction"}
    out, pull_back = jax.vjp(lambda inputs: attend(inputs, mask, integers), inputs)
    return out, pull_back(direction)

  return jax.jit(both if backward else attend).lower(*jax.eval_shape(lambda: _problem(w))).compile()


def _problem(w):
  keys = iter(jax.random.split(jax.random.key(0), 6))
  shape = (w.rows, w.length, w.heads, w.width)
  inputs = {name: jax.random.normal(next(keys), shape, w.dtype) for name in ("q", "k", "v", "direction")}
  tokens = (w.rows, w.length)
  index = jnp.broadcast_to(jnp.arange(w.length, dtype=jnp.int32), tokens)
  integers = {}
  if "time" in w.tables:
    times = jnp.cumsum(jax.random.randint(next(keys), tokens, 0, 20_000), axis=1).astype(jnp.int32)
    inputs["time_table"] = jax.random.normal(next(keys), (129,))
    integers |= {"query_time": times, "key_time": times}
  if "position" in w.tables:
    inputs["position_table"] = jax.random.normal(jax.random.key(9), (2 * w.length - 1,))
    integers |= {"query_position": index, "key_position": index}
  mask = IntervalMask.causal(1 + index // (w.length // w.domains))
  return inputs, mask, integers


def _torch(workload):
  """PyTorch's flash attention on a problem of the same shape."""
  w = workload
  if w.activation != "softmax" or w.tables or w.domains > 1 or w.dtype == "float32":
    raise NotImplementedError("PyTorch's flash attention is for plain causal softmax in 16 bits")
  torch = _import_torch()
  shape, kind = (w.rows, w.heads, w.length, w.width), {"device": "cuda", "dtype": getattr(torch, w.dtype)}
  q, k, v, direction = (torch.randn(shape, **kind) for _ in range(4))
  inputs = [x.requires_grad_() for x in (q, k, v)]

  def attend():
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
      return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

  def run(backward):
    if backward:
      return torch.autograd.grad(attend(), inputs, direction)
    with torch.no_grad():
      return attend()

  return run, lambda _: torch.cuda.synchronize()


def _import_torch():
  try:
    import torch
  except ImportError as error:
    raise NotImplementedError("PyTorch is not installed") from error
  if not torch.cuda.is_available():
    raise NotImplementedError("PyTorch finds no GPU")
  return torch
