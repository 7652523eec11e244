"""Segment attention for TPUs: see `pallas_kernels.tpu.attention`."""

from pallas_kernels.tpu.attention import attention, check, default_block_sizes
from pallas_kernels.tpu.problem import BlockSizes

__all__ = ["BlockSizes", "attention", "check", "default_block_sizes"]
