"""Random bits as a function of integers, so that a draw does not depend on the order in which draws are made."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt64

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # The odd integer closest to 2**64 / golden ratio.


def mix_bits(bits: UInt64[np.ndarray, " K"]) -> UInt64[np.ndarray, " K"]:
  """Returns 64 well mixed bits for each integer, a bijection.

  Source: the finalizer of SplitMix64, Steele et al. 2014, "Fast splittable pseudorandom number generators".

  >>> hex(mix_bits(np.array([GOLDEN_GAMMA]))[0])  # First output of SplitMix64 with seed 0.
  '0xe220a8397b1dcdaf'
  """
  with np.errstate(over="ignore"):
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return bits ^ (bits >> np.uint64(31))
