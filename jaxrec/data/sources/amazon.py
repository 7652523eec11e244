"""Amazon reviews: ratings as CSV and reviews as JSON lines (2014, 2018, 2023), and the 5-core id lists of papers.

Terms: research use. Source: https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/ and
https://amazon-reviews-2023.github.io
"""

from __future__ import annotations

import io
import json
import math
import pathlib
from typing import Any

import numpy as np
import polars as pl

from jaxrec.data import event_values
from jaxrec.data.sources import cleaning
from jaxrec.data.sources.reading import Chunk, Column, find_file, line_chunks, read_columns, require_file
from jaxrec.data.sources.registry import InteractionLog

_REVIEW_FIELDS = {
  "2014": {"user": "reviewerID", "item": "asin", "rating": "overall", "timestamp": "unixReviewTime"},
  "2023": {"user": "user_id", "item": "parent_asin", "rating": "rating", "timestamp": "timestamp"},
}
_UNITS = {"2014": "s", "2023": "ms"}


def read_ratings(
  raw: str | pathlib.Path,
  *,
  name: str | None = None,
  edition: str | None = None,
  metadata: str | None = None,
  outside_period: str = "drop",
) -> InteractionLog:
  """Returns the events of a CSV file of ratings, plain or .gz.

  The columns are user, item, rating, time in 2014, and item, user, rating, time in 2018, both without a header. The
  files of 2023 have a header (user_id, parent_asin, rating, timestamp) and times in milliseconds.

  Args:
    raw: the file, or a folder with `ratings_<name>.csv` (2014) or `<name>.csv` (2018, 2023), or these as .gz.
    name: the category, which becomes the name of the domain; None for that of the only file.
    edition: "2014", "2018" or "2023"; None to detect it: a header means 2023, otherwise the item is the id column with
      fewer distinct values.
    metadata: JSON lines with the titles (`asin` or `parent_asin`, `title`), or None.
    outside_period: "drop" drops and counts the few events with a time before 1970 that official files have; "refuse"
      makes them an error.

  Raises:
    ValueError: a bad row, or id columns that cannot be distinguished.
  """
  path = find_file(raw, *_file_names(name, ".csv", "ratings_"))
  _check_edition(edition)
  has_header = edition == "2023" or edition is None and _first_line(path).startswith(b"user_id,")
  unit, early = "ms" if has_header else "s", cleaning.keeps_before_1970(outside_period)
  last = {"rating": Column(pl.Float32), "timestamp": Column(pl.Int64, unit=unit, before_1970=early)}
  if has_header:
    columns = {"user_id": Column(pl.String), "parent_asin": Column(pl.String), **last}
    events = read_columns(path, columns, header=True).rename({"user_id": "user", "parent_asin": "item"})
  else:
    events = read_columns(path, {"user": Column(pl.String), "item": Column(pl.String), **last})
    events = _name_columns(events, edition)
  return _log(events, path, name, metadata, unit)


def read_reviews(
  raw: str | pathlib.Path,
  *,
  name: str | None = None,
  edition: str | None = None,
  metadata: str | None = None,
  outside_period: str = "drop",
) -> InteractionLog:
  """Returns the events of a file of reviews as JSON lines, plain or .gz; texts and votes are not read.

  The fields are `reviewerID`, `asin`, `overall`, `unixReviewTime` in 2014 and 2018, and `user_id`, `parent_asin`,
  `rating`, `timestamp` (milliseconds) in 2023.

  Args:
    raw: the file, or a folder with `reviews_<name>_5.json` (2014), `<name>_5.json` (2018) or `<name>.jsonl` (2023), or
      these as .gz.
    name: the category, which becomes the name of the domain; None for that of the only file.
    edition: "2014", "2018" or "2023"; None to detect it from the first line.
    metadata: JSON lines with the titles (`asin` or `parent_asin`, `title`), or None.
    outside_period: "drop" drops and counts the few events with a time before 1970 that official files have; "refuse"
      makes them an error.

  Raises:
    ValueError: a line is not a JSON object or lacks a field; a .gz file is truncated.
  """
  path = find_file(raw, *_file_names(name, ".json", "reviews_"), *_file_names(name, ".jsonl", ""))
  _check_edition(edition)
  kind = _kind(path, None if edition is None else "2023" if edition == "2023" else "2014")
  early = cleaning.keeps_before_1970(outside_period)
  events = _read_json_lines(path, _REVIEW_FIELDS[kind], _UNITS[kind], early)
  return _log(events, path, name, metadata, _UNITS[kind])


def read_5core(raw: str | pathlib.Path, *, name: str | None = None) -> InteractionLog:
  """Returns a 5-core data set of published results: a line `<user> <item> <item> …` per user, in order of time.

  Events keep the order of the line, which is that of published results; times cannot restore it, as nearly half of
  adjacent events share a day. A file `<name>.npz` in the same folder (`items`, `offsets`, `timestamps`, `user_ids`)
  adds times: an event gets the time of the same item of the same user, the k-th event with an item that of the k-th.

  Args:
    raw: the .txt file, or its folder.
    name: stem of the file in the folder, which becomes the name of the domain; None for "Beauty" in a folder, else the
      stem of the file.

  Choice: if the order of the .npz differs among events of equal time, that of the .txt is kept. Times that would
    decrease are then raised to the previous one (`times_raised_to_keep_the_order` in meta.json counts them).

  Raises:
    ValueError: a line without items, an id that is not an integer, or an .npz with other users or items.
  """
  path = find_file(raw, f"{name or 'Beauty'}.txt", f"{name}_*.txt")
  name = name or path.stem
  events = _read_id_lists(path)
  times = _times_of(path, name)
  if times is not None:
    events = _join_times(events, times, path)
  return InteractionLog(events, domains=(name,), raw_rows=len(events), in_order=True)


def _file_names(name: str | None, ending: str, prefix: str) -> list[str]:
  """Returns the names under which a file may be found, with and without the prefix, `_5` and `.gz`."""
  prefixes, stem = dict.fromkeys((prefix, "")), name or "*"
  return [f"{p}{stem}{five}{ending}{gz}" for five in ("", "_5") for p in prefixes for gz in ("", ".gz")]


def _first_line(path: pathlib.Path) -> bytes:
  chunk = next(line_chunks(path, chunk_bytes=1 << 16), None)
  if chunk is None:
    raise ValueError(f"{path}: is empty")
  return chunk.data.partition(b"\n")[0].removeprefix(b"\xef\xbb\xbf")


def _domain_name(path: pathlib.Path) -> str:
  stem = path.name.split(".")[0]
  for start in ("ratings_", "reviews_", "Reviews_"):
    stem = stem.removeprefix(start)
  return stem.removesuffix("_5")


def _check_edition(edition: str | None) -> None:
  if edition not in (None, "2014", "2018", "2023"):
    raise ValueError(f"{edition=} is not known; give '2014', '2018' or '2023'")


def _name_columns(events: pl.DataFrame, edition: str | None) -> pl.DataFrame:
  if edition is None:
    users, items = events.select(pl.col("user").n_unique(), pl.col("item").n_unique()).row(0)
    if users == items:
      raise ValueError(
        f"both id columns have {users} distinct values; give edition='2014' (user, item) or '2018' (item, user)"
      )
    edition = "2014" if users > items else "2018"
  return events if edition == "2014" else events.rename({"user": "item", "item": "user"})


def _log(rows: pl.DataFrame, path: pathlib.Path, name: str | None, metadata: str | None, unit: str) -> InteractionLog:
  events, dropped = cleaning.drop_before_1970(rows, path)
  place = event_values.at_rows(path, "rating")
  events = events.with_columns(event_values.rating_actions(events["rating"], place).alias("action"))
  items = None
  if metadata is not None:
    titles = read_titles(metadata)
    items = events.select(pl.col("item").unique().sort()).join(titles, on="item", how="left", maintain_order="left")
  domains = (name or _domain_name(path),)
  return InteractionLog(events, items=items, domains=domains, raw_rows=len(rows), dropped=dropped, time_unit=unit)


def read_titles(path: str | pathlib.Path) -> pl.DataFrame:
  """Returns `item` and `title` from metadata as JSON lines, the first title of each item that is not blank.

  The files of 2014 hold Python literals and must be converted to JSON first.
  """
  path = require_file(path)
  key = "parent_asin" if b'"parent_asin"' in _first_line(path) else "asin"
  tables = [
    _parse_json(chunk, {key: pl.String, "title": pl.String}, optional=("title",)) for chunk in line_chunks(path)
  ]
  return cleaning.first_texts(pl.concat(tables).rename({key: "item"}), "item", "title")


def _kind(path: pathlib.Path, expected: str | None) -> str:
  try:
    fields = json.loads(_first_line(path))
  except ValueError as error:
    raise ValueError(f"{path}: line 1: not a JSON object: {_first_line(path)[:120]!r}") from error
  kinds = {kind: names for kind, names in _REVIEW_FIELDS.items() if expected in (None, kind)}
  for kind, names in kinds.items():
    if isinstance(fields, dict) and set(names.values()) <= set(fields):
      return kind
  needs = " or ".join(str(sorted(names.values())) for names in kinds.values())
  raise ValueError(
    f"{path}: line 1: needs the fields {needs}, has {sorted(fields) if isinstance(fields, dict) else fields}"
  )


def _read_json_lines(path: pathlib.Path, names: dict[str, str], unit: str, before_1970: bool) -> pl.DataFrame:
  schema = {
    names["user"]: pl.String,
    names["item"]: pl.String,
    names["rating"]: pl.Float32,
    names["timestamp"]: pl.Int64,
  }
  tables = []
  for chunk in line_chunks(path):
    table = _parse_json(chunk, schema).rename({field: column for column, field in names.items()})
    place = event_values.at_rows(path, "timestamp", chunk.first_line, "line")
    tables.append(table.with_columns(event_values.times(table["timestamp"], unit, place, before_1970=before_1970)[0]))
  return pl.concat(tables)


def _parse_json(chunk: Chunk, schema: dict, optional: tuple[str, ...] = ()) -> pl.DataFrame:
  required = {name: dtype for name, dtype in schema.items() if name not in optional}
  try:
    table = pl.read_ndjson(io.BytesIO(chunk.data), schema=schema)
    empty = [name for name in required if event_values.unusable(table[name]).any()]
    problem = f"a field {empty} is empty or no number" if empty else None
  except pl.exceptions.PolarsError as error:
    problem = str(error)
  if problem is not None:
    _explain_json(chunk, required, problem)
  return table


def _explain_json(chunk: Chunk, required: dict, problem: str) -> None:
  """Raises ValueError for the first bad line of a chunk that the fast parser rejected."""
  for row, line in enumerate(chunk.data.splitlines()):
    if line.strip():
      _check_json_line(line, required, f"{chunk.path}: line {chunk.first_line + row}")
  raise ValueError(f"{chunk.path}: in or after line {chunk.first_line}: {problem}")


def _check_json_line(line: bytes, required: dict, where: str) -> None:
  try:
    fields = json.loads(line)
  except ValueError as error:
    raise ValueError(f"{where}: not a JSON object: {line[:120]!r}") from error
  for name, dtype in required.items():
    if not isinstance(fields, dict) or fields.get(name) is None:
      raise ValueError(f"{where}: lacks the field {name!r}: {line[:120]!r}")
    if not _is_usable(fields[name], dtype):
      needs = "text" if dtype == pl.String else "an integer" if dtype == pl.Int64 else "a number"
      raise ValueError(f"{where}: field {name!r} holds {fields[name]!r}, needs {needs}")


def _is_usable(value: object, dtype: Any) -> bool:
  if dtype == pl.String:
    return isinstance(value, str) and bool(value.strip())
  if isinstance(value, bool) or not isinstance(value, int | float):
    return False
  return math.isfinite(value) if dtype != pl.Int64 else isinstance(value, int) and abs(value) < 2**63


def _read_id_lists(path: pathlib.Path) -> pl.DataFrame:
  text = b"".join(chunk.data for chunk in line_chunks(path)).decode("utf-8", errors="replace").rstrip("\n")
  lines = pl.DataFrame({"line": text.split("\n")}).with_row_index("row", offset=1)
  lines = lines.with_columns(ids=pl.col("line").str.strip_chars().str.split(" "))
  integers = pl.col("ids").cast(pl.List(pl.Int64), strict=False)
  bad = lines.filter((pl.col("ids").list.len() < 2) | integers.list.eval(pl.element().is_null()).list.any()).head(1)
  if len(bad):
    raise ValueError(
      f"{path}: line {bad['row'][0]}: needs integers '<user> <item> <item> …' separated by single spaces: "
      f"{bad['line'][0][:120]!r}"
    )
  lists = lines.select(user=integers.list.first(), item=integers.list.slice(1))
  repeated = lists.filter(pl.col("user").is_duplicated()).head(1)
  if len(repeated):
    raise ValueError(f"{path}: user {repeated['user'][0]} has more than one line")
  return lists.explode("item")


def _times_of(path: pathlib.Path, name: str) -> pl.DataFrame | None:
  candidates = [path.parent / f"{stem}.npz" for stem in (name, path.stem, path.stem.split("_")[0])]
  npz = next((candidate for candidate in candidates if candidate.is_file()), None)
  if npz is None:
    return None
  with np.load(npz, allow_pickle=False) as arrays:
    missing = [key for key in ("items", "offsets", "timestamps", "user_ids") if key not in arrays.files]
    if missing:
      raise ValueError(f"{npz}: lacks the arrays {missing}")
    user = np.repeat(arrays["user_ids"], np.diff(arrays["offsets"]))
    columns = {"user": user, "item": arrays["items"], "timestamp": arrays["timestamps"]}
  checked = [
    event_values.integers(pl.Series(name, values), pl.Int64, event_values.at_rows(npz, name, 0, "entry"))
    for name, values in columns.items()
  ]
  return pl.DataFrame(checked)


def _join_times(events: pl.DataFrame, times: pl.DataFrame, path: pathlib.Path) -> pl.DataFrame:
  repetition = pl.int_range(pl.len()).over("user", "item").alias("__repetition")
  joined = events.with_columns(repetition).join(
    times.with_columns(repetition), on=["user", "item", "__repetition"], how="left", maintain_order="left"
  )
  untimed = joined.filter(pl.col("timestamp").is_null()).head(1)
  if len(untimed) or len(times) != len(events):
    problem = f"{len(times)} events, not {len(events)}"
    if len(untimed):
      problem = f"no time for item {untimed['item'][0]} of user {untimed['user'][0]}"
    raise ValueError(f"{path.with_suffix('.npz')} does not belong to {path.name}: {problem}")
  return joined.drop("__repetition")
