"""Amazon reviews: ratings as CSV and reviews as JSON lines (2014, 2018, 2023), and the 5-core id lists of papers.

Terms: research use. Source: https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/ and
https://amazon-reviews-2023.github.io
"""

from __future__ import annotations

import functools
import pathlib

import numpy as np
import polars as pl

from jaxrec.data import event_values
from jaxrec.data.sources import cleaning
from jaxrec.data.sources.file_blocks import check_ratio
from jaxrec.data.sources.json_lines import json_object, read_json_lines
from jaxrec.data.sources.reading import find_file, line_chunks, read_columns, read_lines, require_file
from jaxrec.data.sources.registry import InteractionLog
from jaxrec.data.sources.text_format import Column, TextFormat

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
  quote: str | None = None,
  encoding: str = "utf-8",
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
    quote, encoding: of the CSV file, as in `TextFormat`.

  Raises:
    ValueError: a bad row, or id columns that cannot be distinguished.
  """
  path = find_file(raw, *_file_names(name, ".csv", "ratings_"))
  _check_edition(edition)
  form = TextFormat(",", quote, encoding)
  has_header = (
    edition == "2023" or edition is None and _first_line(path, encoding).startswith((b"user_id,", b'"user_id",'))
  )
  unit, early = "ms" if has_header else "s", cleaning.keeps_before_1970(outside_period)
  last = {"rating": Column(pl.Float32), "timestamp": Column(pl.Int64, unit=unit, before_1970=early)}
  if has_header:
    columns = {"user_id": Column(pl.String), "parent_asin": Column(pl.String), **last}
    events = read_columns(path, columns, form, header=True).rename({"user_id": "user", "parent_asin": "item"})
  else:
    events = read_columns(path, {"user": Column(pl.String), "item": Column(pl.String), **last}, form)
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
  events = _read_reviews(path, _REVIEW_FIELDS[kind], _UNITS[kind], early)
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
    events = _join_times(events, times[1], path, times[0])
  return InteractionLog(events, domains=(name,), raw_rows=len(events), in_order=True)


def _file_names(name: str | None, ending: str, prefix: str) -> list[str]:
  """Returns the names under which a file may be found, with and without the prefix, `_5` and `.gz`."""
  prefixes, stem = dict.fromkeys((prefix, "")), name or "*"
  return [f"{p}{stem}{five}{ending}{gz}" for five in ("", "_5") for p in prefixes for gz in ("", ".gz")]


def _first_line(path: pathlib.Path, encoding: str = "utf-8") -> bytes:
  chunk = next(line_chunks(path, chunk_bytes=1 << 16, encoding=encoding), None)
  if chunk is None:
    raise ValueError(f"{path}: is empty")
  return chunk.data.partition(b"\n")[0]


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
  tables = read_json_lines(path, {key: pl.String, "title": pl.String}, optional=("title",))
  return cleaning.first_texts(pl.concat([table for table, _ in tables]).rename({key: "item"}), "item", "title")


def _kind(path: pathlib.Path, expected: str | None) -> str:
  fields = json_object(_first_line(path), f"{path}: line 1")
  kinds = {kind: names for kind, names in _REVIEW_FIELDS.items() if expected in (None, kind)}
  for kind, names in kinds.items():
    if set(names.values()) <= set(fields):
      return kind
  needs = " or ".join(str(sorted(names.values())) for names in kinds.values())
  raise ValueError(f"{path}: line 1: needs the fields {needs}, has {sorted(fields)}")


def _read_reviews(path: pathlib.Path, names: dict[str, str], unit: str, before_1970: bool) -> pl.DataFrame:
  schema = {
    names["user"]: pl.String,
    names["item"]: pl.String,
    names["rating"]: pl.Float32,
    names["timestamp"]: pl.Int64,
  }
  tables = []
  for table, place in read_json_lines(path, schema):
    table = table.rename({field: column for column, field in names.items()})
    at_row = functools.partial(place, names["timestamp"])
    tables.append(table.with_columns(event_values.times(table["timestamp"], unit, at_row, before_1970=before_1970)[0]))
  return pl.concat(tables)


def _read_id_lists(path: pathlib.Path) -> pl.DataFrame:
  lines = read_lines(path).with_columns(ids=pl.col("line").str.strip_chars().str.split(" "))
  integers = pl.col("ids").cast(pl.List(pl.Int64), strict=False)
  bad = lines.filter((pl.col("ids").list.len() < 2) | integers.list.eval(pl.element().is_null()).list.any()).head(1)
  if len(bad):
    raise ValueError(
      f"{path}: line {bad['row'][0]}: needs integers '<user> <item> <item> …' separated by single spaces: "
      f"{bad['line'][0][:120]!r}"
    )
  lists = lines.select("row", user=integers.list.first(), item=integers.list.slice(1))
  repeated = lists.filter(pl.col("user").is_duplicated() & ~pl.col("user").is_first_distinct()).head(1)
  if len(repeated):
    raise ValueError(f"{path}: line {repeated['row'][0]}: user {repeated['user'][0]} has more than one line")
  return lists.drop("row").explode("item")


def _times_of(path: pathlib.Path, name: str) -> tuple[pathlib.Path, pl.DataFrame] | None:
  candidates = [path.parent / f"{stem}.npz" for stem in (name, path.stem, path.stem.split("_")[0])]
  npz = next((candidate for candidate in candidates if candidate.is_file()), None)
  if npz is None:
    return None
  user_ids, offsets, items, times = _read_arrays(npz, ("user_ids", "offsets", "items", "timestamps"))
  lengths = np.diff(offsets)
  if len(lengths) != len(user_ids) or (lengths < 0).any() or offsets[:1].tolist() != [0] or offsets[-1] != len(items):
    raise ValueError(f"{npz}: array 'offsets' must rise from 0 to {len(items)}, in {len(user_ids)} steps, one per user")
  if len(times) != len(items):
    raise ValueError(f"{npz}: array 'timestamps' has {len(times)} values for {len(items)} items")
  table = pl.DataFrame({"user": np.repeat(user_ids, lengths), "item": items, "timestamp": times})
  event_values.times(table["timestamp"], "s", lambda row: f"{npz}: timestamps[{row}]")
  return npz, table


def _read_arrays(npz: pathlib.Path, names: tuple[str, ...]) -> list[np.ndarray]:
  """Returns arrays of one axis as int64."""
  try:
    with open(npz, "rb") as stream, np.load(stream, allow_pickle=False) as file:
      if missing := [name for name in names if name not in file.files]:
        raise ValueError(f"lacks the arrays {missing}")
      check_ratio(npz, npz.stat().st_size, sum(entry.file_size for entry in file.zip.infolist()))
      arrays = [file[name] for name in names]
  except Exception as error:  # NumPy raises a dozen kinds for a damaged file.
    raise ValueError(f"{npz}: cannot be read: {error}; get the file again") from error
  for name, array in zip(names, arrays, strict=True):
    if array.ndim != 1 or array.dtype.kind not in "iuf":
      raise ValueError(f"{npz}: array {name!r} is {array.dtype}{list(array.shape)}, needs numbers and one axis")
  return [
    event_values.integers(pl.Series(name, array), pl.Int64, event_values.at_rows(npz, name, 0, "entry")).to_numpy()
    for name, array in zip(names, arrays, strict=True)
  ]


def _join_times(events: pl.DataFrame, times: pl.DataFrame, path: pathlib.Path, npz: pathlib.Path) -> pl.DataFrame:
  repetition = pl.int_range(pl.len()).over("user", "item").alias("__repetition")
  joined = events.with_columns(repetition).join(
    times.with_columns(repetition), on=["user", "item", "__repetition"], how="left", maintain_order="left"
  )
  untimed = joined.filter(pl.col("timestamp").is_null()).head(1)
  if len(untimed) or len(times) != len(events):
    problem = f"{len(times)} events, not {len(events)}"
    if len(untimed):
      problem = f"no time for item {untimed['item'][0]} of user {untimed['user'][0]}"
    raise ValueError(f"{npz} does not belong to {path.name}: {problem}")
  return joined.drop("__repetition")
