"""Segment-masked attention for JAX: pointwise SiLU (HSTU) and softmax, packed rows, domains, targets, relative bias.

>>> import jax, jax.numpy as jnp
>>> q = jax.random.normal(jax.random.key(0), (1, 5, 2, 8))
>>> segment_attention(q, q, q, IntervalMask.causal(jnp.array([[1, 1, 1, 2, 2]]))).shape
(1, 5, 2, 8)
"""

from pallas_kernels.api import chosen_implementation, segment_attention
from pallas_kernels.bias import NUM_TIME_BUCKETS, RelativeBias, time_bucket
from pallas_kernels.mask import IntervalMask, permute, sort_by_segment
from pallas_kernels.reference import attention_weights
from pallas_kernels.schedule import count_live_tiles
from pallas_kernels.xla import BlockSizes

__all__ = [
  "NUM_TIME_BUCKETS",
  "BlockSizes",
  "IntervalMask",
  "RelativeBias",
  "attention_weights",
  "chosen_implementation",
  "count_live_tiles",
  "segment_attention",
  "permute",
  "sort_by_segment",
  "time_bucket",
]
