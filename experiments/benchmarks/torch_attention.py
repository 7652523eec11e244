"""PyTorch's flash attention on the workloads of `experiments.benchmarks.attention`; needs a GPU and PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np


def prepare(workload, problem: dict[str, Any]):
  """Returns functions that start a computation, wait for it and convert its results to named arrays, and versions.

  Raises:
    NotImplementedError: PyTorch or a GPU is missing, or `scaled_dot_product_attention` does not support the workload.
  """
  torch = _torch()
  _check_supported(workload)
  q, k, v, direction = (_tensor(torch, problem[name]) for name in ("q", "k", "v", "direction"))  # [B, H, N, D]
  inputs = [x.requires_grad_(workload.backward) for x in (q, k, v)]

  def run():
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
      attend = torch.nn.functional.scaled_dot_product_attention
      out = attend(q, k, v, is_causal=True, scale=workload.width**-0.5)
      return [out, *torch.autograd.grad(out, inputs, direction)] if workload.backward else [out]

  def arrays(results):
    values = [x.detach().float().transpose(1, 2).cpu().numpy() for x in results]  # [B, N, H, D]
    return dict(zip(("out", "q", "k", "v"), values, strict=False))

  return run, lambda _: torch.cuda.synchronize(), arrays, {"torch": torch.__version__}


def _torch():
  try:
    import torch
  except ImportError as error:
    raise NotImplementedError("PyTorch is not installed") from error
  if not torch.cuda.is_available():
    raise NotImplementedError("PyTorch finds no GPU")
  return torch


def _check_supported(workload) -> None:
  if workload.activation != "softmax" or workload.bias != "none" or workload.domains or workload.sequences > 1:
    raise NotImplementedError("PyTorch's flash attention supports only plain causal softmax")
  if workload.dtype == "float32":
    raise NotImplementedError("PyTorch's flash attention does not support float32")


def _tensor(torch, x):
  """Converts a JAX array `[B, N, H, D]` to a contiguous `[B, H, N, D]` on the GPU, in the same dtype."""
  values = torch.from_numpy(np.array(x, np.float32)).to("cuda", getattr(torch, str(x.dtype)))
  return values.transpose(1, 2).contiguous()
