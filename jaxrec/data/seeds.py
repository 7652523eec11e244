"""The range of seeds, and its check."""

from __future__ import annotations

import numbers
from typing import Any

NUM_SEEDS = 2**32 - 1  # The seed and its successor are keys of JAX, which have 32 bits.


def check_seed(name: str, seed: Any) -> None:
  """Raises unless a seed is an integer in 0..2^32 - 2.

  Args:
    name: of the argument or setting.
    seed: what was given.

  Raises:
    ValueError: it is not; names it.

  >>> check_seed("config.seed", -1)
  Traceback (most recent call last):
  ValueError: config.seed=-1 must be an integer in 0..4294967294
  """
  if not isinstance(seed, numbers.Integral) or isinstance(seed, bool) or not 0 <= seed < NUM_SEEDS:
    raise ValueError(f"{name}={seed!r} must be an integer in 0..{NUM_SEEDS - 1}")
