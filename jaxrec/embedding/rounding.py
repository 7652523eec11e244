"""From float32 updates to bfloat16 rows: to the nearest, stochastically, or with the rest kept beside."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float32, Int, Int16, UInt32

ROUNDINGS = ("nearest", "stochastic", "float32")


def split(x: Float32[Array, "..."]) -> tuple[BFloat16[Array, "..."], Int16[Array, "..."]]:
  """Returns the nearest bfloat16 and the rest, of which `join` makes `x` again, bit by bit.

  >>> high, rest = split(jnp.float32(0.1))
  >>> float(high), int(rest), float(join(high, rest)) == float(jnp.float32(0.1))
  (0.10009765625, -13107, True)
  """
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  high = (bits + jnp.uint32(0x8000)) & jnp.uint32(0xFFFF0000)
  rest = jax.lax.bitcast_convert_type((bits - high).astype(jnp.uint16), jnp.int16)
  return jax.lax.bitcast_convert_type((high >> 16).astype(jnp.uint16), jnp.bfloat16), rest


def join(high: BFloat16[Array, "..."], rest: Int16[Array, "..."]) -> Float32[Array, "..."]:
  """Undoes `split`."""
  bits = jax.lax.bitcast_convert_type(high, jnp.uint16).astype(jnp.uint32) << 16
  return jax.lax.bitcast_convert_type(bits + rest.astype(jnp.int32).astype(jnp.uint32), jnp.float32)


def stochastic(x: Float32[Array, "..."], bits: UInt32[Array, "..."]) -> BFloat16[Array, "..."]:
  """Rounds up or down, each with the probability that makes the mean right.

  Args:
    x: finite numbers.
    bits: random; the lower 16 are used.

  >>> x = jnp.full(1000, 1 + 1 / 512, jnp.float32)  # A quarter of the way from 1 to the next bfloat16.
  >>> bits = jax.random.bits(jax.random.key(0), (1000,), jnp.uint32)
  >>> up = (stochastic(x, bits) > 1).mean()
  >>> 0.2 < float(up) < 0.3
  True
  """
  moved = jax.lax.bitcast_convert_type(x, jnp.uint32) + (bits & jnp.uint32(0xFFFF))
  return jax.lax.bitcast_convert_type((moved >> 16).astype(jnp.uint16), jnp.bfloat16)


def row_bits(
  row: UInt32[Array, " U"], width: int, step: Int[Array, ""], first_column: Int[Array, ""] | int = 0
) -> UInt32[Array, "U D"]:
  """Random bits that depend on row, column and step alone: they are the same however rows and columns are spread."""
  column = jnp.arange(width, dtype=jnp.uint32) + jnp.asarray(first_column, jnp.uint32)
  seed = mix(row ^ mix(step.astype(jnp.uint32)))
  return mix(seed[:, None] + column * jnp.uint32(0x9E3779B9))  # [U, D]


def mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
  """A bijection of 32-bit numbers in which each bit of the result depends on all of `x`.

  Source: the finalizer of MurmurHash3 (public domain).

  >>> int(mix(jnp.uint32(1)))
  1364076727
  """
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
