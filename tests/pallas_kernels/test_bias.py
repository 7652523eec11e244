"""The buckets of HSTU's time bias: by table, as the logarithm of their definition has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import NUM_TIME_BUCKETS, time_bucket
from pallas_kernels.bias import CELLS, FIRST_CELL, REACHED_BUCKETS, edges_in_cells, first_seconds_of_buckets


def by_definition(seconds):
  """floor(ln(max(|seconds|, 1)) / .301), at most 128, from a logarithm rounded once to float32."""
  magnitude = np.maximum(np.abs(seconds), 1).astype(np.float32)
  logarithm = np.log(magnitude.astype(np.float64)).astype(np.float32)
  return np.minimum(np.floor(logarithm / np.float32(0.301)), NUM_TIME_BUCKETS - 1).astype(np.int32)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_time_buckets_are_those_of_the_logarithm_on_both_sides_of_every_edge(dtype):
  largest = np.iinfo(dtype).max
  bits = largest.bit_length()
  steps = np.array([-3, -2, -1, 0, 1, 2, 3])
  edges = first_seconds_of_buckets()[:, None] + np.concatenate([steps, steps * 2**10, steps * 2**32])
  cells = 2 ** np.arange(bits - 1)[:, None] * np.array([1.0, 1.25, 1.5, 1.75])  # Where a cell begins.
  around = (cells[..., None] + steps * np.maximum(1, cells[..., None] // 2**24)).astype(np.int64)
  some = np.exp(np.random.default_rng(0).uniform(0, np.log(largest), 100_000)).astype(np.int64)
  seconds = np.concatenate([edges.ravel(), around.ravel(), some, np.arange(5000)])
  seconds = np.unique(np.clip(seconds, 0, largest)).astype(dtype)
  with jax.enable_x64(True):
    for signed in (seconds, -seconds):
      bucket = time_bucket(jnp.asarray(signed))
      assert bucket.dtype == jnp.int32
      np.testing.assert_array_equal(bucket, by_definition(signed))
  assert bucket.max() == (REACHED_BUCKETS - 1 if bits == 31 else NUM_TIME_BUCKETS - 1)


def test_at_most_one_bucket_begins_inside_a_cell():
  edge, below, above = edges_in_cells()
  assert len(edge) == CELLS
  first = ((np.arange(CELLS) + FIRST_CELL) << 21).astype(np.int32).view(np.float32)
  inside = np.isfinite(edge)
  assert (above[inside] == below[inside] + 1).all() and (edge[inside] > first[inside]).all()
  assert (above[~inside] == below[~inside]).all()
