"""`jax.jit` with little optimisation: golden files are small, and compiling would take nearly all the time."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax

_WISHES = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def quick_jit(function: Callable, **options) -> Callable:
  """Returns `jax.jit(function, **options)` that compiles in about a third of the time and runs slower."""
  return jax.jit(function, compiler_options=_known_compiler_options(), **options)


@functools.cache
def _known_compiler_options() -> dict:
  """The wishes that the installed version of XLA knows; none of them changes a result."""
  return {name: value for name, value in _WISHES.items() if _is_known(name, value)}


def _is_known(name: str, value: int | bool) -> bool:
  try:
    jax.jit(lambda: 0, compiler_options={name: value})()
  except jax.errors.JaxRuntimeError:
    return False
  return True
