"""Storing float32 updates in bfloat16 rows: to the nearest, stochastically, or with a float32 remainder."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float32, Int, Int16, UInt32

ROUNDINGS = ("nearest", "stochastic", "float32")


def split(x: Float32[Array, "..."]) -> tuple[BFloat16[Array, "..."], Int16[Array, "..."]]:
  """Returns the nearest bfloat16 and the remainder; `join` recovers `x` bit by bit.

  >>> high, remainder = split(jnp.float32(0.1))
  >>> float(high), int(remainder), float(join(high, remainder)) == float(jnp.float32(0.1))
  (0.10009765625, -13107, True)
  """
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  high = (bits + jnp.uint32(0x8000)) & jnp.uint32(0xFFFF0000)
  remainder = jax.lax.bitcast_convert_type((bits - high).astype(jnp.uint16), jnp.int16)
  return jax.lax.bitcast_convert_type((high >> 16).astype(jnp.uint16), jnp.bfloat16), remainder


def join(high: BFloat16[Array, "..."], remainder: Int16[Array, "..."]) -> Float32[Array, "..."]:
  """Inverts `split`."""
  bits = jax.lax.bitcast_convert_type(high, jnp.uint16).astype(jnp.uint32) << 16
  return jax.lax.bitcast_convert_type(bits + remainder.astype(jnp.int32).astype(jnp.uint32), jnp.float32)


def stochastic(x: Float32[Array, "..."], bits: UInt32[Array, "..."]) -> BFloat16[Array, "..."]:
  """Rounds up or down at random, with probabilities that make the result unbiased.

  Args:
    x: finite numbers.
    bits: random bits; the lower 16 are used.

  >>> x = jnp.full(1000, 1 + 1 / 512, jnp.float32)  # A quarter of the way from 1 to the next bfloat16.
  >>> bits = jax.random.bits(jax.random.key(0), (1000,), jnp.uint32)
  >>> up = (stochastic(x, bits) > 1).mean()
  >>> 0.2 < float(up) < 0.3
  True
  """
  moved = jax.lax.bitcast_convert_type(x, jnp.uint32) + (bits & jnp.uint32(0xFFFF))
  return jax.lax.bitcast_convert_type((moved >> 16).astype(jnp.uint16), jnp.bfloat16)


def row_bits(
  seed: UInt32[Array, " U"], width: int, step: Int[Array, ""], first_column: Int[Array, ""] | int = 0
) -> UInt32[Array, "U D"]:
  """Returns random bits that are a function of a row's seed, the column and the step: the same on any mesh.

  Args:
    seed: one number per row; see `Layout.rounding_seeds`.
    width: columns on this device.
    step: updates made so far.
    first_column: index of the first column on this device.
  """
  column = jnp.arange(width, dtype=jnp.uint32) + jnp.asarray(first_column, jnp.uint32)
  mixed = mix(seed ^ mix(step.astype(jnp.uint32)))
  return mix(mixed[:, None] + column[None] * jnp.uint32(0x9E3779B9))  # [U, D]


def mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
  """Applies a bijection of 32-bit numbers in which each bit of the result depends on all bits of `x`.

  Source: the finalizer of MurmurHash3 (public domain).

  >>> int(mix(jnp.uint32(1)))
  1364076727
  """
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
