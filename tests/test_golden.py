"""Every golden file agrees with our functions: outputs and gradients, in float64 and in float32."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping

import jax
import numpy as np
import pytest
from golden_checks.golden_file import Check, GoldenFile, verify
from golden_checks.registry import CHECKS, EXCEPTIONS, checks_for, exception_for

_REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
_PRECISIONS = {"float64": np.float64, "float32": np.float32}


def golden_folder(config: pytest.Config) -> pathlib.Path:
  """Returns the folder of `--golden-dir`; a relative one starts at the repository."""
  return _REPOSITORY / (config.getoption("--golden-dir", default=None) or "../shared/golden")


def pytest_generate_tests(metafunc: pytest.Metafunc):
  if "golden_path" in metafunc.fixturenames:
    metafunc.parametrize(("golden_path", "variant", "precision"), _cases(golden_folder(metafunc.config)))


def _cases(folder: pathlib.Path) -> list:
  paths = sorted(folder.glob("*.npz"))
  if not paths:
    absent = pytest.mark.skip(reason=f"no golden files in {folder}; name their folder with --golden-dir")
    return [pytest.param(None, None, None, id="absent", marks=absent)]
  return [case for path in paths for case in _cases_of(path)]


def _cases_of(path: pathlib.Path) -> list:
  try:
    checks = checks_for(path.stem)
  except LookupError:
    checks = {}
  if not checks:
    return [pytest.param(path, None, None, id=path.stem)]
  return [
    pytest.param(path, variant, precision, id="-".join(filter(None, (path.stem, variant, precision))))
    for variant in checks
    for precision in _PRECISIONS
  ]


def test_our_functions_agree_with_the_golden_file(golden_path, variant, precision):
  checks = checks_for(golden_path.stem)
  golden = GoldenFile.load(golden_path)
  if reason := exception_for(golden):
    pytest.skip(reason)
  check = checks[variant]
  results = _results(golden_path, check, precision)
  verify(golden, dataclasses.replace(check, compute=lambda *_: results), _PRECISIONS[precision])


@functools.cache
def _results(path: pathlib.Path, check: Check, precision: str) -> Mapping[str, np.ndarray]:
  """Computed once for the tests below as well: nearly all the time goes into compiling."""
  with jax.enable_x64(precision == "float64"):
    return {
      name: np.asanyarray(value) for name, value in check.compute(GoldenFile.load(path), _PRECISIONS[precision]).items()
    }


@pytest.mark.parametrize("prefix", CHECKS)
def test_a_wrong_value_in_a_golden_file_is_noticed(prefix, pytestconfig):
  path, golden = _first_file_of(golden_folder(pytestconfig), prefix)
  check = next(iter(checks_for(golden.name).values()))
  results = _results(path, check, "float32")
  check = dataclasses.replace(check, compute=lambda *_: results)
  for name in verify(golden, check, np.float32):
    with pytest.raises(AssertionError, match=re.escape(f"{golden.name}: {name}: ")):
      verify(_with_one_entry_changed(golden, name, results[name]), check, np.float32)


def _first_file_of(folder: pathlib.Path, prefix: str) -> tuple[pathlib.Path, GoldenFile]:
  for path in sorted(folder.glob(f"{prefix}*.npz")):
    golden = GoldenFile.load(path)
    if checks_for(golden.name) is CHECKS[prefix] and not exception_for(golden):
      return path, golden
  pytest.skip(f"no file {prefix}* in {folder}")


def _with_one_entry_changed(golden: GoldenFile, name: str, result: np.ndarray) -> GoldenFile:
  """Changes the first compared entry by 1e-4 of the largest, or by one, in the float32 and in the float64 array."""
  arrays = dict(golden.arrays)
  for changed in (name, name.replace("/", "64/", 1)):
    if changed in arrays:
      value = arrays[changed].copy()
      first = tuple(np.argwhere(~np.ma.getmaskarray(result))[0]) if value.shape == result.shape else (0,) * value.ndim
      step = 1e-4 * max(1, np.abs(value).max()) if value.dtype.kind == "f" else 1
      value[first] = not value[first] if value.dtype == bool else value[first] + step
      arrays[changed] = value
  return dataclasses.replace(golden, arrays=arrays)


def test_a_file_name_without_a_check_is_an_error():
  with pytest.raises(LookupError, match="no check for golden file 'surprise_1'"):
    checks_for("surprise_1")


def test_the_longest_prefix_wins():
  assert checks_for("metrics_hstu_filter") is CHECKS["metrics_hstu_"]
  assert checks_for("dare_twin_hard") is not checks_for("dare_twin_soft")
  assert checks_for("stu_cached_targets") is CHECKS["stu_cached_"]


def test_every_exception_says_why():
  assert all(len(reason.split()) > 3 for reason in EXCEPTIONS.values())


def _golden(**arrays) -> GoldenFile:
  return GoldenFile("small", {"config": {}, "f32_vs_f64": {"out/y": {"max_abs_diff": 1e-6}}}, arrays)


def _returns(**results) -> Check:
  return Check(lambda golden, dtype: {name.replace("_", "/"): value for name, value in results.items()})


def test_an_array_that_no_check_computes_is_an_error():
  golden = _golden(**{"out/y": np.zeros(2), "grad/x": np.zeros(2)})
  with pytest.raises(AssertionError, match=r"nothing to compare with \['grad/x'\]"):
    verify(golden, _returns(out_y=np.zeros(2)), np.float32)


def test_float64_results_are_compared_more_strictly_than_float32_results():
  golden = _golden(**{"out/y": np.zeros(2, np.float32), "out64/y": np.zeros(2)})
  slightly_wrong = _returns(out_y=np.array([0, 4e-6]))
  assert verify(golden, slightly_wrong, np.float32) == ["out/y"]
  with pytest.raises(AssertionError, match="expected 0.0 within 1.0e-09"):
    verify(golden, slightly_wrong, np.float64)


@pytest.mark.parametrize("wrong", [np.array([0, np.nan]), np.zeros(1), np.zeros((2, 1))])
def test_not_a_number_and_other_shapes_are_noticed(wrong):
  golden = _golden(**{"out/y": np.zeros(2, np.float32)})
  with pytest.raises(AssertionError, match="small: out/y"):
    verify(golden, _returns(out_y=wrong), np.float32)
