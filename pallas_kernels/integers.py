"""Integers keep all of their bits: JAX without its 64-bit mode cuts them to 32 without a word."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

AnyArray = Array | np.ndarray  # What functions for users accept.
_INT32 = np.iinfo(np.int32)
Fields = TypeVar("Fields")


def as_integers(name: str, values: Any) -> Int[Array, "..."] | None:
  """Returns `values` as int32, or as int64 where they need it and JAX has it; None stays None.

  Narrower and unsigned types do not stay, because differences of their numbers wrap. Of a traced array the type
  decides: uint32 becomes int32 bit by bit, which keeps ids apart and differences below 2^31 right.

  Args:
    name: the argument, for the error.
    values: a NumPy or JAX array, or a sequence.

  Raises:
    ValueError: numbers of another kind, or integers that JAX would cut.

  >>> as_integers("lengths", np.array([3, 200], np.uint8)).dtype
  dtype('int32')
  """
  if values is None:
    return None
  if isinstance(values, jax.Array) and values.dtype == jnp.int32:
    return values
  values = values if isinstance(values, jax.Array) else np.asarray(values)
  if not jnp.issubdtype(values.dtype, jnp.integer):
    raise ValueError(f"{name} must hold integers, not {values.dtype}")
  if values.dtype == np.int32 or (values.dtype.itemsize < 4 and isinstance(values, jax.Array)):
    return jnp.asarray(values, jnp.int32)
  if isinstance(values, jax.core.Tracer) or not getattr(values, "is_fully_addressable", True):
    return values.astype(jnp.int64 if jax.config.jax_enable_x64 else jnp.int32)
  values = np.asarray(values)
  outside = (values < _INT32.min) | (values > _INT32.max)
  if not outside.any():
    return jnp.asarray(values.astype(np.int32))
  largest = np.iinfo(np.int64).max
  if jax.config.jax_enable_x64 and values.max() <= largest:
    return jnp.asarray(values.astype(np.int64))
  raise ValueError(
    f"{name} holds {values[outside].flat[0]}, which JAX would cut to 32 bits; number the ids anew, count times from a"
    f" later moment or in seconds, or set jax_enable_x64 (up to {largest})"
  )


def as_arrays(name: str, fields: Fields) -> Fields:
  """Returns a dataclass of NumPy or JAX arrays with JAX arrays, those that it declares `Int` by `as_integers`.

  The dataclass itself, if it has no other arrays.

  Args:
    name: the argument, for the error.
    fields: the dataclass.

  Raises:
    ValueError: as `as_integers`, with the name of the field.
  """
  changed = {}
  for field in dataclasses.fields(fields):
    value = getattr(fields, field.name)
    if field.type.startswith("Int["):
      array = as_integers(f"{name}.{field.name}", value)
    else:
      array = jnp.asarray(value) if isinstance(value, np.ndarray) else value
    if array is not value:
      changed[field.name] = array
  return dataclasses.replace(fields, **changed) if changed else fields
