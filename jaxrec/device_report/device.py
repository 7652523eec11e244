"""The device: its name, and the two rates that bound everything else: products and copies."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import parallel


def about() -> dict[str, Any]:
  """Returns the names of device and platform and the versions."""
  return {"platform": jax.default_backend(), **parallel.machine()}


def seconds_of(
  run: Callable[[], Any], *, repetitions: int = 7, wait: Callable[[Any], Any] = jax.block_until_ready
) -> dict[str, Any]:
  """Returns the median and the extremes of the milliseconds that `run` takes, after it ran once to warm up.

  On an accelerator, each repetition is the mean of as many calls in a row as take about 30 ms. What takes over two
  seconds is measured once.
  """
  wait(run())
  start = time.perf_counter()
  wait(run())
  once = time.perf_counter() - start
  in_a_row = 1 if jax.default_backend() == "cpu" else max(1, min(200, int(0.03 / once)))
  times = [once] if once > 2 else []
  for _ in range(0 if times else repetitions):
    start = time.perf_counter()
    for _ in range(in_a_row):
      result = run()
    wait(result)
    times.append((time.perf_counter() - start) / in_a_row)
  low, middle, high = min(times), statistics.median(times), max(times)
  return {name: float(f"{1e3 * x:.4g}") for name, x in (("median_ms", middle), ("least_ms", low), ("most_ms", high))}


def peak_of_products(dtype: str) -> dict[str, Any]:
  """Returns the TFLOPS of a large product of random square matrices."""
  side = 1024 if jax.default_backend() == "cpu" else 8192
  a, b = (jax.random.normal(key, (side, side), dtype) for key in jax.random.split(jax.random.key(0)))
  multiply = jax.jit(jnp.matmul)
  times = seconds_of(lambda: multiply(a, b))
  return times | {"side": side, "tflops": tflops(2 * side**3, times)}


def bandwidth() -> dict[str, Any]:
  """Returns the gigabytes a second that a large addition reads and writes."""
  size = 2**24 if jax.default_backend() == "cpu" else 2**29
  x = jax.random.normal(jax.random.key(0), (size,), jnp.float32)
  add = jax.jit(lambda x: x + 1)
  times = seconds_of(lambda: add(x))
  return times | {"bytes": 8 * size, "gb_per_s": float(f"{8e-6 * size / times['median_ms']:.4g}")}


def tflops(operations: float, times: dict[str, Any]) -> float:
  """Operations over the median time, in 10^12 a second."""
  return float(f"{operations / times['median_ms'] / 1e9:.4g}")
