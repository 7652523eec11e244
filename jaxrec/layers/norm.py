"""Normalisations without parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def layer_norm(x: Float[Array, "... M"], epsilon: float = 1e-6) -> Float[Array, "... M"]:
  """`(x - mean) / sqrt(variance + epsilon)` over the last axis, computed in at least float32, without gain and bias."""
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  centred = wide - wide.mean(axis=-1, keepdims=True)
  variance = jnp.square(centred).mean(axis=-1, keepdims=True)
  return (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)


def l2_normalize(x: Float[Array, "... M"], epsilon: float = 1e-6) -> Float[Array, "... M"]:
  """`x / max(||x||, epsilon)` over the last axis; a zero vector stays zero and its gradient is zero / epsilon, never
  NaN.

  >>> l2_normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]])).round(3).tolist()
  [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  square = jnp.square(wide).sum(axis=-1, keepdims=True)
  is_long = square > epsilon**2
  norm = jnp.sqrt(jnp.where(is_long, square, 1))
  return jnp.where(is_long, wide / norm, wide / epsilon)
