"""What a golden file holds, and how near to it a result has to come.

A golden file is an `.npz` whose 0-d string `meta` holds JSON. `in/...` are inputs, `param/...` weights under their
reference names, `out/...` and `grad/...` outputs and gradients of the reference in float32, `out64/...` and
`grad64/...` the same from a float64 run.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# Where a file has no float64 run of an array, nobody measured how far float32 is off. 1e-5 of the largest entry is
# about the largest of the measured ratios (gradients of two layers, summed over a few dozen positions).
UNMEASURED_FLOAT32 = 1e-5


@dataclasses.dataclass(frozen=True, eq=False)
class Check:
  """How to recompute what a golden file holds.

  compute: returns arrays under the file's own names (`out/...`, `grad/...`); masked entries of masked arrays are not
    compared.
  not_computed: name pattern -> the reason why `compute` leaves such arrays out.
  float32_error: of the largest entry, how far an array may be off of which the file has no float64 run.
  cancelling: name -> how far a float32 array may be off where much larger terms cancel: their rounding, which differs
    from CPU to CPU.
  """

  compute: Callable[[GoldenFile, type], Mapping[str, Any]]
  not_computed: Mapping[str, str] = dataclasses.field(default_factory=dict)
  float32_error: float = UNMEASURED_FLOAT32
  cancelling: Mapping[str, float] = dataclasses.field(default_factory=dict)


def verify(golden: GoldenFile, check: Check, dtype: type) -> list[str]:
  """Returns the names of the arrays that were compared, all of them within their tolerance.

  Raises:
    AssertionError: an array differs, has another shape, or is neither computed nor excused in `check.not_computed`.
  """
  computed = check.compute(golden, dtype)
  names = [name for name in golden.expected_names() if not _excused(name, check.not_computed)]
  missing = [name for name in names if name not in computed]
  assert not missing, f"{golden.name}: the check computes nothing to compare with {missing}"
  assert names, f"{golden.name}: no array was compared"
  for name in names:
    value, tolerance = golden.expected(name, dtype, check.float32_error)
    if dtype == np.float32:
      tolerance = max(tolerance, check.cancelling.get(name, 0.0))
    _assert_close(f"{golden.name}: {name}", computed[name], value, tolerance)
  return names


def _excused(name: str, not_computed: Mapping[str, str]) -> bool:
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in not_computed)


def _assert_close(label: str, actual: Any, expected: np.ndarray, tolerance: float):
  skipped = np.ma.getmaskarray(actual)
  actual = np.ma.getdata(actual) if isinstance(actual, np.ma.MaskedArray) else np.asarray(actual)
  if expected.ndim == actual.ndim and expected.shape[:1] == (1,):  # one mask or bias for all rows
    expected = np.broadcast_to(expected, actual.shape[:1] + expected.shape[1:])
  assert actual.shape == expected.shape, f"{label}: shape {actual.shape}, expected {expected.shape}"
  assert not skipped.size or not skipped.all(), f"{label}: every entry is masked, nothing was compared"
  difference = np.where(skipped, 0, np.abs(actual.astype(np.float64) - expected.astype(np.float64)))
  if np.all(difference <= tolerance):  # a NaN is not <= anything
    return
  worst = np.unravel_index(np.argmax(np.nan_to_num(difference, nan=np.inf)), difference.shape)
  raise AssertionError(
    f"{label}: {actual[worst]} at {tuple(map(int, worst))}, expected {expected[worst]} within {tolerance:.1e}"
  )


@dataclasses.dataclass(frozen=True)
class GoldenFile:
  """One golden file in memory."""

  name: str
  meta: Mapping[str, Any]
  arrays: Mapping[str, np.ndarray]

  @classmethod
  def load(cls, path: str | pathlib.Path) -> GoldenFile:
    with np.load(path, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files if name != "meta"}
      return cls(name=pathlib.Path(path).stem, meta=json.loads(str(file["meta"])), arrays=arrays)

  @property
  def config(self) -> Mapping[str, Any]:
    return self.meta["config"]

  def inputs(self, dtype: type) -> dict[str, np.ndarray]:
    """Returns the `in/...` arrays without that prefix; floating ones as `dtype`, integers as int32."""
    return self._group("in/", dtype)

  def params(self, dtype: type) -> dict[str, np.ndarray]:
    """Returns the `param/...` arrays by their reference names."""
    return self._group("param/", dtype)

  def _group(self, prefix: str, dtype: type) -> dict[str, np.ndarray]:
    return {name[len(prefix) :]: _cast(value, dtype) for name, value in self.arrays.items() if name.startswith(prefix)}

  def expected_names(self) -> list[str]:
    return [name for name in self.arrays if name.startswith(("out/", "grad/"))]

  def expected(self, name: str, dtype: type, float32_error: float = UNMEASURED_FLOAT32) -> tuple[np.ndarray, float]:
    """Returns the array to compare with and the largest allowed absolute difference."""
    value = self.arrays[name]
    if value.dtype.kind in "biu":
      return value, 0.0
    kind, rest = name.split("/", 1)
    float64 = self.arrays.get(f"{kind}64/{rest}")
    if float64 is None:
      return value, float32_error * max(1.0, _largest(value))
    scale = max(1.0, _largest(float64))
    if dtype == np.float64:
      return float64, 1e-9 * scale
    smallest = UNMEASURED_FLOAT32 if value.ndim == 0 else 1e-6  # the measured error of one number may be small by luck
    return float64, max(smallest * scale, 5 * self.meta["f32_vs_f64"][name]["max_abs_diff"])


def _largest(value: np.ndarray) -> float:
  return float(np.max(np.abs(value), initial=0.0))


def _cast(value: np.ndarray, dtype: type) -> np.ndarray:
  if value.dtype.kind == "f":
    return value.astype(dtype)
  if value.dtype.kind not in "iu":
    return value
  narrow = value.astype(np.int32)
  if not np.array_equal(narrow, value):
    raise ValueError(f"integers up to {value.max()} do not fit int32")
  return narrow
