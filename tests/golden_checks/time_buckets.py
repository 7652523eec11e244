"""`hstu_time_*`: the bucket of a time difference, exact to the second at the edges."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks.golden_file import Check, GoldenFile
from pallas_kernels import time_bucket


def check() -> Check:
  not_computed = {"out/bucket_float": "the value before truncation is nobody's output"}
  return Check(_compute, not_computed, {"model.*": "of the model that holds the function"})


def _compute(golden: GoldenFile, dtype: type) -> dict:
  """In 64-bit integers all of the file, in the 32-bit ones of production what fits them."""
  wide = dtype == np.float64
  results = {"out/bucket": _buckets(golden.arrays["in/delta_seconds"], wide)}
  if "out/threshold" in golden.arrays:
    results["out/threshold"] = _edges_confirmed(golden.arrays["out/threshold"], wide)
  return results


def _buckets(seconds: np.ndarray, wide: bool) -> np.ma.MaskedArray:
  fits = np.abs(seconds) <= np.iinfo(np.int64 if wide else np.int32).max
  given = np.where(fits, seconds, 0).astype(np.int64 if wide else np.int32)
  return np.ma.array(jax.jit(time_bucket)(jnp.asarray(given)), mask=~fits)


def _edges_confirmed(edges: np.ndarray, wide: bool) -> np.ma.MaskedArray:
  """Returns each edge k of the file where its second has bucket k or more and the second before has less, else -1."""
  at, before = _buckets(edges, wide), _buckets(edges - 1, wide)
  bucket = np.arange(1, len(edges) + 1)
  return np.ma.array(np.where((at.data >= bucket) & (before.data < bucket), edges, -1), mask=at.mask)
