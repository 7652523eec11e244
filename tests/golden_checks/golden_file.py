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

from golden_checks.options import Options

# Where a file has no float64 run of an array, nobody measured how far float32 is off. 1e-5 of the largest entry is
# about the largest of the measured ratios (gradients of two layers, summed over a few dozen positions). Where that is
# not enough, our own runs in both precisions are the measure; more than 5e-5 is never taken for rounding. The gradient
# of the first time bucket in hstu_model_rated_preproc_b is 1.0727450675 in our float64 and in 80-bit arithmetic
# without JAX, and 1.0727327 in the file, whose float32 run divides attention outputs by their small deviation.
UNMEASURED_FLOAT32, MOST_FLOAT32 = 1e-5, 5e-5


@dataclasses.dataclass(frozen=True, eq=False)
class Check:
  """How to recompute what a golden file holds.

  compute: returns arrays under the file's own names (`out/...`, `grad/...`); masked entries of masked arrays are not
    compared.
  not_computed: name pattern -> the reason why `compute` leaves such arrays out.
  not_read: name pattern of options -> the reason why `compute` does not read them.
  float32_error: of the largest entry, how far an array may be off of which the file has no float64 run.
  cancelling: name -> how far a float32 array may be off where much larger terms cancel: their rounding, which differs
    from CPU to CPU.
  """

  compute: Callable[[GoldenFile, type], Mapping[str, Any]]
  not_computed: Mapping[str, str] = dataclasses.field(default_factory=dict)
  not_read: Mapping[str, str] = dataclasses.field(default_factory=dict)
  float32_error: float = UNMEASURED_FLOAT32
  cancelling: Mapping[str, float] = dataclasses.field(default_factory=dict)


def compute(golden: GoldenFile, check: Check, dtype: type) -> Mapping[str, Any]:
  """Returns what the check computes from a file, having read every option of it.

  Raises:
    AssertionError: an option is neither read nor excused in `check.not_read`.
    ValueError: an option has a value that the check does not know.
  """
  golden = dataclasses.replace(golden, config=Options(golden.meta["config"]))
  computed = check.compute(golden, dtype)
  unread = golden.config.unread(check.not_read)
  assert not unread, f"{golden.name}: the check reads no option {unread}: use it, or give the reason in `not_read`"
  return computed


def verify(
  golden: GoldenFile,
  check: Check,
  computed: Mapping[str, Any],
  dtype: type,
  rounding: Callable[[str], float] = lambda name: 0.0,
) -> list[str]:
  """Returns the names of the arrays that were compared, all of them within their tolerance.

  Args:
    golden: the file.
    check: what made `computed`.
    computed: results by name.
    dtype: their precision.
    rounding: how far our float32 result of that name is off; asked only where the file has float32 alone and the usual
      tolerance is not enough.

  Raises:
    AssertionError: an array differs, has another shape, or is neither computed nor excused in `check.not_computed`.
  """
  names = [name for name in golden.expected_names() if not _excused(name, check.not_computed)]
  missing = [name for name in names if name not in computed]
  assert not missing, f"{golden.name}: the check computes nothing to compare with {missing}"
  assert names, f"{golden.name}: no array was compared"
  for name in names:
    skipped = np.ma.getmaskarray(computed[name])
    value, tolerance = golden.expected(name, dtype, check.float32_error, skipped)
    if dtype == np.float32:
      tolerance = max(tolerance, check.cancelling.get(name, 0.0))
    try:
      _assert_close(f"{golden.name}: {name}", computed[name], value, tolerance)
    except AssertionError:
      if not golden.is_float32_only(name):
        raise
      most = tolerance * MOST_FLOAT32 / check.float32_error
      tolerance = max(tolerance, min(5 * rounding(name), most))
      _assert_close(f"{golden.name}: {name}", computed[name], value, tolerance)
  return names


def distance(one: Any, other: Any) -> float:
  """Returns the largest difference of two results, outside of masked entries."""
  difference = np.ma.array(np.ma.getdata(one), np.float64) - np.ma.getdata(other)
  return _largest(np.asarray(difference), np.ma.getmaskarray(one))


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
  config: Options

  @classmethod
  def load(cls, path: str | pathlib.Path) -> GoldenFile:
    with np.load(path, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files if name != "meta"}
      return cls.of(pathlib.Path(path).stem, json.loads(str(file["meta"])), arrays)

  @classmethod
  def of(cls, name: str, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> GoldenFile:
    return cls(name=name, meta=meta, arrays=arrays, config=Options(meta["config"]))

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

  def is_float32_only(self, name: str) -> bool:
    """Returns whether the file has a float array of that name, and no float64 run of it."""
    return self.arrays[name].dtype.kind == "f" and name.replace("/", "64/", 1) not in self.arrays

  def expected(
    self, name: str, dtype: type, float32_error: float = UNMEASURED_FLOAT32, skipped: np.ndarray | None = None
  ) -> tuple[np.ndarray, float]:
    """Returns the array to compare with and the largest allowed absolute difference; `skipped` entries set no scale."""
    value = self.arrays[name]
    if value.dtype.kind in "biu":
      return value, 0.0
    if self.is_float32_only(name):
      return value, float32_error * max(1.0, _largest(value, skipped))
    float64 = self.arrays[name.replace("/", "64/", 1)]
    scale = max(1.0, _largest(float64, skipped))
    if dtype == np.float64:
      return float64, 1e-9 * scale
    smallest = UNMEASURED_FLOAT32 if value.ndim == 0 else 1e-6  # the measured error of one number may be small by luck
    return float64, max(smallest * scale, 5 * _largest(value.astype(np.float64) - float64, skipped))


def _largest(value: np.ndarray, skipped: np.ndarray | None = None) -> float:
  compared = True if skipped is None or skipped.shape != value.shape else ~skipped
  return float(np.max(np.abs(value), initial=0.0, where=compared))


def _cast(value: np.ndarray, dtype: type) -> np.ndarray:
  if value.dtype.kind == "f":
    return value.astype(dtype)
  if value.dtype.kind not in "iu":
    return value
  narrow = value.astype(np.int32)
  if not np.array_equal(narrow, value):
    raise ValueError(f"integers up to {value.max()} do not fit int32")
  return narrow
