"""Segment attention for Hopper GPUs (sm_90a): see `pallas_kernels.gpu.attention`."""

from pallas_kernels.gpu.attention import attention, check, default_block_sizes
from pallas_kernels.gpu.problem import BlockSizes

__all__ = ["BlockSizes", "attention", "check", "default_block_sizes"]
