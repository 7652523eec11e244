"""Normalisation without parameters.

Source: layer norm: Ba, Kiros, Hinton 2016, arXiv 1607.06450; without gain and bias as in the code of arXiv 2402.17152.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.dtypes import at_least_float32


def widen(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """Returns `x` in float32 or wider, the dtype of means and variances.

  >>> widen(jnp.ones(2, jnp.bfloat16)).dtype
  dtype('float32')
  """
  return x.astype(at_least_float32(x.dtype))


def layer_norm(x: Float[Array, "... M"], epsilon: float = 1e-6) -> Float[Array, "... M"]:
  """Returns `(x - mean) / sqrt(variance + epsilon)` over the last axis, without gain and bias; at least float32 inside.

  >>> layer_norm(jnp.array([1.0, 3.0])).round(3).tolist()
  [-1.0, 1.0]
  """
  wide = widen(x)
  centred = wide - wide.mean(axis=-1, keepdims=True)
  variance = jnp.square(centred).mean(axis=-1, keepdims=True)
  return (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)


def l2_normalize(x: Float[Array, "... M"], epsilon: float = 1e-6) -> Float[Array, "... M"]:
  """Returns `x / max(||x||, epsilon)` over the last axis; a zero vector stays zero, with a finite gradient.

  >>> l2_normalize(jnp.array([[0.0, 4.0], [0.0, 0.0]])).tolist()
  [[0.0, 1.0], [0.0, 0.0]]
  """
  wide = widen(x)
  square = jnp.square(wide).sum(axis=-1, keepdims=True)
  is_long = square > epsilon**2
  norm = jnp.sqrt(jnp.where(is_long, square, 1))
  return jnp.where(is_long, wide / norm, wide / epsilon)
