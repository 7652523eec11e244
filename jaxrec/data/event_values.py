"""What the values of event columns must be: one check for every reader, interaction log and column of a program.

Each function takes a column as it came and returns it in one type, every value unchanged. The error for the first value
that is not accepted begins with what `place` returns for its row: file, line and column, or name and index.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

LATEST_SECOND = 10_000_000_000  # In the year 2286.
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""Unit of time -> how many of them are a second."""
WRITTEN_TIMES = {**dict.fromkeys(UNITS, pl.Int64), "float_s": pl.Float64, "iso": pl.String}
"""How a file may write a time -> the type to read it with: an integer, seconds with decimals, ISO 8601 text."""
_STORED = {"float_s": "us", "iso": "ns"}
_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_FINER = {"s": "us", "ms": "us", "us": "ns", "ns": "ns"}  # Keeps the decimals of a float.
_MAX_SHOWN = 120  # Characters of a bad value in an error.

Place = Callable[[int], str]


def unusable(values: pl.Series) -> pl.Series:
  """Returns which values are none: empty, text of nothing but spaces, NaN or infinite.

  >>> unusable(pl.Series(["a", "", " ", None])).to_list(), unusable(pl.Series([1.0, float("nan")])).to_list()
  ([False, True, True, True], [False, True])
  """
  bad = values.is_null()
  if values.dtype == pl.String:
    starts_blank = (values < "!").fill_null(False)  # Compared first, because nearly every id is not.
    if starts_blank.any():
      bad |= values.str.strip_chars() == ""
  elif values.dtype.is_float():
    bad |= ~values.is_finite()
  return bad.fill_null(True)


def integers(
  values: pl.Series, dtype: Any, place: Place, *, low: int | None = None, high: int | None = None
) -> pl.Series:
  """Returns a column as integers of `dtype`; floats and texts must be whole numbers.

  Args:
    values: numbers, or text of integers.
    dtype: a polars integer type.
    place: row -> what begins an error.
    low, high: the smallest and largest value accepted, together; None: those of `dtype`.

  Raises:
    ValueError: a value that is empty, NaN, a fraction, too large for `dtype` or for the float that holds it, outside
      low..high, or no number.

  >>> integers(pl.Series([1.0, 2.0]), pl.Int32, str).to_list()
  [1, 2]
  >>> integers(pl.Series([1.0, 2.5]), pl.Int32, lambda row: f"item_id[{row}]")
  Traceback (most recent call last):
  ValueError: item_id[1] holds 2.5, needs Int32
  """
  needs = str(dtype) if low is None else f"an integer in {low}..{high}"
  plain = _plain(values, place, needs)
  found = plain.cast(dtype, strict=False)
  bad = found.is_null()
  if plain.dtype.is_float() or plain.dtype.is_decimal():
    bad |= (found.cast(plain.dtype, strict=False) != plain) | _is_rounded(plain)
  if low is not None:
    bad |= (found < low) | (found > high)
  _refuse(values, bad, place, needs)
  return found


def integer_array(name: str, values: Any, dtype: type, **limits: int) -> np.ndarray:
  """Returns the integers of an array or a sequence with one axis; see `integers`.

  Raises:
    ValueError: another number of axes, or a value that is no integer of `dtype`.

  >>> integer_array("item_id", [1, 2.5], np.int32)
  Traceback (most recent call last):
  ValueError: item_id[1] holds 2.5, needs Int32
  """
  array = np.asarray(values)
  if array.ndim != 1 or array.size and array.dtype.kind not in "iuf":
    raise ValueError(f"{name} is an array of {array.dtype} with shape {array.shape}, needs integers along one axis")
  if not array.size:
    return np.zeros(0, dtype)
  column, wanted = pl.Series(name, array), pl.Series(np.zeros(0, dtype)).dtype
  return integers(column, wanted, lambda row: f"{name}[{row}]", **limits).to_numpy(writable=True)


def numbers_or_names(values: pl.Series, dtype: Any, place: Place) -> pl.Series:
  """Returns a column as numbers of `dtype`, or as text if not one of its texts is a number.

  Args:
    values: numbers or text.
    dtype: pl.Float32, or a polars integer type.
    place: row -> what begins an error.

  Raises:
    ValueError: a value that is empty, or no number while others are.

  >>> numbers_or_names(pl.Series(["view", "buy"]), pl.Int32, str).to_list()
  ['view', 'buy']
  >>> numbers_or_names(pl.Series(["1", "buy"]), pl.Int32, lambda row: f"row {row}")
  Traceback (most recent call last):
  ValueError: row 1 holds 'buy', needs Int32
  """
  if isinstance(values.dtype, pl.Categorical | pl.Enum):
    values = values.cast(pl.String)
  if values.dtype == pl.String and values.cast(pl.Float64, strict=False).null_count() == len(values):
    return texts(values, place)
  return ratings(values, place) if dtype == pl.Float32 else integers(values, dtype, place)


def texts(values: pl.Series, place: Place, *, optional: bool = False) -> pl.Series:
  """Returns a column of names or ids as text; numbers are written as text.

  Args:
    values: text, numbers or booleans.
    place: row -> what begins an error.
    optional: whether values may be empty or nothing but spaces.

  Raises:
    ValueError: a value that is empty, nothing but spaces, NaN, too large for the float that holds it, or neither text
      nor a number.

  >>> texts(pl.Series([7, 8]), str).to_list()
  ['7', '8']
  """
  plain = _plain(values, place, "text")
  if not optional:
    bad = unusable(plain)
    if plain.dtype.is_float():
      bad |= _is_rounded(plain)
    _refuse(values, bad, place, "text")
  return plain.cast(pl.String)


def check_names(names: pl.Series, what: str) -> None:
  """Checks distinct names: none is blank, and no two are the same but for spaces around them or Unicode composition.

  Args:
    names: text, or integers, which are distinct as they are.
    what: what they name, for errors.

  Raises:
    ValueError: names one or both.

  >>> check_names(pl.Series(["books", "books "]), "domain")
  Traceback (most recent call last):
  ValueError: the domains 'books' and 'books ' look the same; write them alike, or more different
  """
  if names.dtype != pl.String:
    return
  seen = names.str.strip_chars()
  if (names.str.len_bytes() != names.str.len_chars()).any():
    seen = seen.str.normalize("NFC")
  if (seen == "").any():
    raise ValueError(f"the {what} {names[(seen == '').arg_max()]!r} has no name; leave out these events or name it")
  if (seen != names).any() and seen.is_duplicated().any():
    alike = names.filter(seen == seen.filter(seen.is_duplicated())[0])
    raise ValueError(
      f"the {what}s {ascii(alike[0])} and {ascii(alike[1])} look the same; write them alike, or more different"
    )


def ratings(values: pl.Series, place: Place) -> pl.Series:
  """Returns a column of ratings as float32.

  Raises:
    ValueError: a value that is empty, NaN, infinite or no number.
  """
  plain = values.cast(pl.Int8) if values.dtype == pl.Boolean else _plain(values, place, "a number")
  found = plain.cast(pl.Float32, strict=False)
  _refuse(values, unusable(found), place, "a number")
  return found


def rating_actions(values: pl.Series, place: Place, unit: int = 1) -> pl.Series:
  """Returns ratings as actions: rounded to 1 / `unit`, and counted in it.

  Raises:
    ValueError: a rating that is NaN or does not fit an int32.

  >>> rating_actions(pl.Series([4.5, 3.0]), str, unit=2).to_list()
  [9, 6]
  """
  found = (values * unit).round().cast(pl.Int32, strict=False)
  _refuse(values, found.is_null(), place, "a rating")
  return found


def times(values: pl.Series, unit: str, place: Place, *, before_1970: bool = False) -> tuple[pl.Series, str]:
  """Returns times since 1970 as int64 in full precision, and their unit: "s", "ms", "us" or "ns".

  Args:
    values: integers, floats, dates, or times of day with a date. A time without a time zone is UTC.
    unit: of integers and floats, a key of `WRITTEN_TIMES`; dates have their own.
    place: row -> what begins an error.
    before_1970: whether negative times are accepted.

  Raises:
    ValueError: an unknown unit; a value that is empty, NaN or no time; one before 1970 or after the year 2286, or all
      of them in the first weeks of 1970, as happens with another unit.

  >>> times(pl.Series([1433221332.9]), "s", str)[0].to_list(), times(pl.Series(["2015-06-02"]), "iso", str)[1]
  ([1433221332900000], 'ns')
  """
  written_type(unit)
  if values.dtype.is_temporal():
    found, unit = _of_dates(values, place)
  elif unit == "iso":
    found, unit = _of_texts(values, place), "ns"
  elif values.dtype.is_float():
    unit = unit.removeprefix("float_")
    _refuse(values, unusable(values), place, "a time")
    _check_coarser(values, unit, place)
    found, unit = _of_floats(values, unit)
  else:
    found = integers(values, pl.Int64, place)
    _check_coarser(found, unit, place)
  _check_period(values, found, unit, place, before_1970)
  return found.alias(values.name), unit


def written_type(unit: str) -> Any:
  """Returns the type with which to read times that a file writes in `unit`.

  Raises:
    ValueError: it is not a key of `WRITTEN_TIMES`.
  """
  if unit not in WRITTEN_TIMES:
    raise ValueError(f"time unit={unit!r} is not known; give one of {', '.join(map(repr, WRITTEN_TIMES))}")
  return WRITTEN_TIMES[unit]


def stored_unit(unit: str) -> str:
  """Returns the unit in which `times` keeps times that are written as text in `unit`, a key of `WRITTEN_TIMES`."""
  return _STORED.get(unit, unit)


def kept_unit(dtype: Any, unit: str) -> str:
  """Returns the unit in which `times` returns times of a polars type that are given in `unit`.

  >>> kept_unit(pl.Datetime("ms"), "s"), kept_unit(pl.Float64(), "s"), kept_unit(pl.Int64(), "s")
  ('ms', 'us', 's')
  """
  if dtype.is_temporal():
    return "s" if dtype == pl.Date else dtype.time_unit
  return _FINER[unit.removeprefix("float_")] if dtype.is_float() else stored_unit(unit)


def at_rows(path: Any, name: str, first: int = 1, kind: str = "row") -> Place:
  """Returns the `place` of a column of a file.

  >>> at_rows("a.csv", "user", 2, "line")(0)
  "a.csv: line 2: column 'user'"
  """
  return lambda row: f"{path}: {kind} {first + row}: column {name!r}"


def _plain(values: pl.Series, place: Place, needs: str) -> pl.Series:
  """Returns text or numbers; of a column of categories their text."""
  is_category = isinstance(values.dtype, pl.Categorical | pl.Enum | pl.Null)
  if is_category or values.dtype == pl.Boolean and needs == "text":
    return values.cast(pl.String)
  if values.dtype != pl.String and not values.dtype.is_numeric():
    raise ValueError(f"{place(0)} is a column of {values.dtype}, needs {needs}")
  return values.cast(pl.Float32) if values.dtype == pl.Float16 else values


def _is_rounded(values: pl.Series) -> pl.Series:
  """Returns which floats are so large that they may stand for several integers."""
  return values.abs() >= 2 ** (24 if values.dtype == pl.Float32 else 53)


def _refuse(values: pl.Series, bad: pl.Series, place: Place, needs: str) -> None:
  if not bad.fill_null(True).any():
    return
  row = bad.fill_null(True).arg_max()
  shown = repr(values[row])
  raise ValueError(f"{place(row)} holds {shown[:_MAX_SHOWN]}{'…' * (len(shown) > _MAX_SHOWN)}, needs {needs}")


def _of_dates(values: pl.Series, place: Place) -> tuple[pl.Series, str]:
  if not isinstance(values.dtype, pl.Date | pl.Datetime):
    raise ValueError(f"{place(0)} is a column of {values.dtype}, needs dates or times since 1970")
  _refuse(values, values.is_null(), place, "a time")
  count = values.to_physical().cast(pl.Int64)
  return (count * 86_400, "s") if values.dtype == pl.Date else (count, values.dtype.time_unit)


def _of_floats(values: pl.Series, unit: str) -> tuple[pl.Series, str]:
  finer = _FINER[unit]
  found = (values.cast(pl.Float64) * (UNITS[finer] // UNITS[unit])).round().cast(pl.Int64, strict=False)
  return found.fill_null(2**63 - 1), finer  # What int64 cannot hold is too late in any unit.


def _of_texts(values: pl.Series, place: Place) -> pl.Series:
  text = texts(values, place)
  # Polars guesses other orders of day and month, and int64 nanoseconds end in 2262.
  is_iso = text.str.contains(r"^\s*(1[7-9]\d\d|2[01]\d\d|22[0-5]\d)-\d\d-\d\d([T ]|\s*$)")
  _refuse(values, ~is_iso, place, "a time like 2015-06-02T05:02:12.5Z, from 1700 to 2259")
  found = text.str.strip_chars().str.to_datetime(time_unit="ns", time_zone="UTC", strict=False)
  _refuse(values, found.is_null(), place, f"a time written as the first one, {text[0]!r}")
  return found.to_physical()


def _check_coarser(found: pl.Series, unit: str, place: Place) -> None:
  latest = found.max() or 0
  if unit != "s" and 0 < latest < LATEST_SECOND * UNITS[unit] // 1000:
    raise ValueError(f"{place(found.arg_max())}: {latest} looks like {_likely(latest)}, not {_NAMES[unit]}")


def _check_period(values: pl.Series, found: pl.Series, unit: str, place: Place, before_1970: bool) -> None:
  bad = found >= min(LATEST_SECOND * UNITS[unit], 2**63 - 1)
  if not before_1970:
    bad |= found < 0
  if bad.any():
    row = bad.arg_max()
    late = values.dtype.is_integer() and found[row] > 0
    hint = f"; it looks like {_likely(found[row])}" if late else ""
    raise ValueError(f"{place(row)}: {values[row]} is not a time in {unit}{hint}")


def _likely(time: int) -> str:
  """Returns the name of the coarsest unit in which a time is before the year 2286."""
  return next((_NAMES[unit] for unit, scale in UNITS.items() if time < LATEST_SECOND * scale), _NAMES["ns"])
