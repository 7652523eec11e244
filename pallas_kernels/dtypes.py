"""The dtype of sums and scores."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import DTypeLike


def at_least_float32(*dtypes: DTypeLike) -> jnp.dtype:
  """float32, or float64 where one of the dtypes is; also under `jax_numpy_dtype_promotion="strict"`."""
  return jnp.dtype(jnp.float64 if jnp.dtype(jnp.float64) in map(jnp.dtype, dtypes) else jnp.float32)
