"""Sizes that are symbols: a program exported for any number of rows or tokens."""

from __future__ import annotations

from typing import Any

from jax.export import is_symbolic_dim


def is_known(*arrays: Any) -> bool:
  """Whether all sizes of the arrays are numbers."""
  return not any(is_symbolic_dim(size) for x in arrays for size in x.shape)


def check_known(*arrays: Any) -> None:
  """Raises NotImplementedError where a size is a symbol: the kernels choose their tiles by the sizes."""
  if not is_known(*arrays):
    shapes = ", ".join(str(tuple(x.shape)) for x in arrays)
    raise NotImplementedError(f"the kernels need known sizes, not {shapes}; use implementation='xla'")
