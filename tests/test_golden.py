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
from conftest import golden_folders
from golden_checks.golden_file import Check, GoldenFile, compute, distance, verify
from golden_checks.options import Options
from golden_checks.registry import CHECKS, EXCEPTIONS, checks_for, exception_for
from golden_checks.t5 import buckets

_PRECISIONS = {"float64": np.float64, "float32": np.float32}


def pytest_generate_tests(metafunc: pytest.Metafunc):
  if "golden_path" in metafunc.fixturenames:
    cases = [case for folder in golden_folders(metafunc.config) for case in _cases(folder)]
    metafunc.parametrize(("golden_path", "variant", "precision"), cases)


def _cases(folder: pathlib.Path) -> list:
  paths = sorted(folder.glob("*.npz"))
  if not paths:
    absent = pytest.mark.skip(reason=f"no golden files in {folder}; name their folder with --golden-dir")
    return [pytest.param(None, None, None, id=f"absent-{folder.name}", marks=absent)]
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

  def rounding(name):
    return distance(*(_results(golden_path, check, either)[name] for either in _PRECISIONS))

  verify(golden, check, _results(golden_path, check, precision), _PRECISIONS[precision], rounding)


@functools.cache
def _results(path: pathlib.Path, check: Check, precision: str) -> Mapping[str, np.ndarray]:
  """Computed once for the tests below as well: nearly all the time goes into compiling."""
  with jax.enable_x64(precision == "float64"):
    results = compute(GoldenFile.load(path), check, _PRECISIONS[precision])
    return {name: np.asanyarray(value) for name, value in results.items()}


@pytest.mark.parametrize("prefix", CHECKS)
def test_a_wrong_value_in_a_golden_file_is_noticed(prefix, pytestconfig):
  path, golden = _first_file_of(golden_folders(pytestconfig), prefix)
  check = next(iter(checks_for(golden.name).values()))
  results = _results(path, check, "float32")
  for name in verify(golden, check, results, np.float32):
    changed = _with_one_entry_changed(golden, name, results[name])
    with pytest.raises(AssertionError, match=re.escape(f"{golden.name}: {name}: ")):
      verify(changed, check, results, np.float32, rounding=lambda _: np.inf)


def _first_file_of(folders: list[pathlib.Path], prefix: str) -> tuple[pathlib.Path, GoldenFile]:
  for path in sorted(path for folder in folders for path in folder.glob(f"{prefix}*.npz")):
    golden = GoldenFile.load(path)
    if checks_for(golden.name) is CHECKS[prefix] and not exception_for(golden):
      return path, golden
  pytest.skip(f"no file {prefix}* in {', '.join(map(str, folders))}")


def _with_one_entry_changed(golden: GoldenFile, name: str, result: np.ndarray) -> GoldenFile:
  """Changes the first compared entry by 1e-4 of the largest, or by one, in the float32 and in the float64 array."""
  arrays = dict(golden.arrays)
  for changed in (name, name.replace("/", "64/", 1)):
    if changed in arrays:
      value = arrays[changed].copy()
      compared = ~np.ma.getmaskarray(result) if value.shape == result.shape else np.ones(value.shape, bool)
      first = tuple(np.argwhere(compared)[0])
      step = 1e-4 * max(1, np.abs(value[compared]).max()) if value.dtype.kind == "f" else 1
      value[first] = not value[first] if value.dtype == bool else value[first] + step
      arrays[changed] = value
  return dataclasses.replace(golden, arrays=arrays)


def test_a_file_name_without_a_check_is_an_error():
  with pytest.raises(LookupError, match="no check for golden file 'surprise_1'"):
    checks_for("surprise_1")


def test_the_longest_prefix_wins():
  assert checks_for("metrics_hstu_filter") is CHECKS["metrics_hstu_"]
  assert checks_for("minnorm_n2_b") is not checks_for("minnorm_n3")
  assert checks_for("stu_cached_targets") is CHECKS["stu_cached_"]


def test_buckets_of_distances_are_exact_and_then_grow_like_a_logarithm():
  # 8 buckets: 4 for each direction, 0 and 1 exact, then 2 + 2 ln(d / 2) / ln(12 / 2): 5 is the first with 3.
  found = buckets(np.array([-13, -5, -4, -2, -1, 0, 1, 2, 4, 5, 13]), num_buckets=8, max_distance=12)
  assert found.tolist() == [3, 3, 2, 2, 1, 0, 5, 6, 6, 7, 7]
  assert buckets(np.array([4, 5]), num_buckets=8, max_distance=128).tolist() == [6, 6]


def test_every_exception_says_why():
  assert all(len(reason.split()) > 3 for reason in EXCEPTIONS.values())


def _golden(config=(), **arrays) -> GoldenFile:
  meta = {"config": dict(config)}
  return GoldenFile.of("small", meta, arrays)


def _reads(*names, not_read=()) -> Check:
  """A check whose computation reads some options."""
  return Check(
    lambda golden, dtype: {name: golden.config[name] for name in names}, not_read=dict.fromkeys(not_read, "")
  )


NO_CHECK = Check(compute=lambda golden, dtype: {})


def test_an_option_that_the_check_does_not_read_is_an_error():
  golden = _golden({"width": 4, "model": {"heads": 2, "split": "3:15"}, "margin": 0.1})
  with pytest.raises(AssertionError, match=r"small: the check reads no option \['model.split', 'margin'\]"):
    compute(golden, Check(lambda golden, dtype: {"d": golden.config["width"] * golden.config["model"]["heads"]}), float)
  reads = Check(lambda golden, dtype: dict(golden.config["model"], d=golden.config["width"]), not_read={"mar*": "fact"})
  assert compute(golden, reads, float) == {"heads": 2, "split": "3:15", "d": 4}


def test_every_file_is_computed_with_options_that_nobody_has_read_before():
  golden = _golden({"width": 4})
  assert compute(golden, _reads("width"), float) == {"width": 4}
  with pytest.raises(AssertionError, match=r"reads no option \['width'\]"):
    compute(golden, _reads(), float)


def test_a_value_of_an_option_that_the_check_does_not_know_is_an_error():
  options = Options({"mode": "add"})
  assert options.one_of("mode", {"add": 1}) == 1 and options.one_of("other", {None: 2}) == 2
  with pytest.raises(ValueError, match=r"option mode='add' is not one of \['concat'\]"):
    options.one_of("mode", {"concat": 0})


def test_an_option_that_the_arrays_contradict_is_an_error():
  options = Options({"lengths": [3, 1], "scale": 2})
  options.confirm(lengths=[3, 1], width=7)
  assert options.unread() == ["scale"]
  with pytest.raises(ValueError, match="option scale=2, but the arrays of the file say 3"):
    options.confirm(scale=3)


def test_an_array_that_no_check_computes_is_an_error():
  golden = _golden(**{"out/y": np.zeros(2), "grad/x": np.zeros(2)})
  with pytest.raises(AssertionError, match=r"nothing to compare with \['grad/x'\]"):
    verify(golden, NO_CHECK, {"out/y": np.zeros(2)}, np.float32)


def test_float64_results_are_compared_more_strictly_than_float32_results():
  golden = _golden(**{"out/y": np.zeros(2, np.float32), "out64/y": np.array([0, 1e-6])})
  slightly_wrong = {"out/y": np.array([0, 5e-6])}
  assert verify(golden, NO_CHECK, slightly_wrong, np.float32) == ["out/y"]
  with pytest.raises(AssertionError, match="expected 1e-06 within 1.0e-09"):
    verify(golden, NO_CHECK, slightly_wrong, np.float64)


@pytest.mark.parametrize(
  "error, rounding, within", [(9e-6, 0, None), (3e-5, 7e-6, None), (3e-5, 5e-6, 2.5e-5), (6e-5, 1, 5e-5)]
)
def test_a_float32_array_without_a_float64_run_may_be_off_by_its_rounding_and_no_more(error, rounding, within):
  golden, results = _golden(**{"out/y": np.zeros(2, np.float32)}), {"out/y": np.array([0, error])}
  if within is None:
    assert verify(golden, NO_CHECK, results, np.float64, lambda _: rounding) == ["out/y"]
  else:
    with pytest.raises(AssertionError, match=f"expected 0.0 within {within:.1e}"):
      verify(golden, NO_CHECK, results, np.float64, lambda _: rounding)


def test_a_huge_value_that_is_not_compared_sets_no_tolerance():
  golden = _golden(**{"out/y": np.array([-(2.0**32), 0], np.float32)})
  with pytest.raises(AssertionError, match=r"small: out/y: 0.5 at \(1,\), expected 0.0"):
    verify(golden, NO_CHECK, {"out/y": np.ma.array([0, 0.5], mask=[True, False])}, np.float32)


def test_the_distance_of_two_results_leaves_out_what_is_masked():
  assert distance(np.ma.array([1.0, 9.0], mask=[False, True]), np.array([3.0, 0.0])) == 2


@pytest.mark.parametrize("wrong", [np.array([0, np.nan]), np.zeros(1), np.zeros((2, 1))])
def test_not_a_number_and_other_shapes_are_noticed(wrong):
  golden = _golden(**{"out/y": np.zeros(2, np.float32)})
  with pytest.raises(AssertionError, match="small: out/y"):
    verify(golden, NO_CHECK, {"out/y": wrong}, np.float32)
