"""Amazon reviews: rating CSV files, review JSON lines (2014, 2018, 2023) and the 5-core id lists of published tables.

Terms: research use. Source: https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/ and
https://amazon-reviews-2023.github.io
"""

from __future__ import annotations

import io
import json
import pathlib

import numpy as np
import polars as pl

from jaxrec.data.sources.reading import Chunk, Column, find_file, line_chunks, read_columns, require_file, seconds
from jaxrec.data.sources.registry import InteractionLog

_REVIEW_FIELDS = {
  "2014": {"user": "reviewerID", "item": "asin", "rating": "overall", "timestamp": "unixReviewTime"},
  "2023": {"user": "user_id", "item": "parent_asin", "rating": "rating", "timestamp": "timestamp"},
}
_UNITS = {"2014": "s", "2023": "ms"}


def read_ratings(
  raw: str | pathlib.Path, *, name: str | None = None, edition: str | None = None, metadata: str | None = None
) -> InteractionLog:
  """Returns a ratings CSV, plain or .gz.

  The columns stand as user, item, rating, time in 2014, as item, user, rating, time in 2018, both without a header; in
  2023 there is a header (user_id, parent_asin, rating, timestamp) and the time is in milliseconds.

  Args:
    raw: the file, or a folder with `ratings_<name>.csv` (2014) or `<name>.csv` (2018, 2023), also .gz.
    name: the category, and the domain's name; None = the only file's.
    edition: "2014", "2018" or "2023"; None = 2023 where there is a header, else the item is the id with fewer values.
    metadata: JSON lines with the titles (`asin` or `parent_asin`, `title`), or None.
  """
  path = find_file(raw, *_names(name, ".csv", "ratings_"))
  _check_edition(edition)
  headed = edition == "2023" or edition is None and _first_line(path).startswith(b"user_id,")
  last = {"rating": Column(pl.Float32), "timestamp": Column(pl.Int64, unit="ms" if headed else "s")}
  if headed:
    columns = {"user_id": Column(pl.String), "parent_asin": Column(pl.String), **last}
    events = read_columns(path, columns, header=True).rename({"user_id": "user", "parent_asin": "item"})
  else:
    events = read_columns(path, {"user": Column(pl.String), "item": Column(pl.String), **last})
    events = _in_order_of_columns(events, edition)
  return _log(events, name or _domain_name(path), metadata)


def read_reviews(
  raw: str | pathlib.Path, *, name: str | None = None, edition: str | None = None, metadata: str | None = None
) -> InteractionLog:
  """Returns review JSON lines, plain or .gz, of 2014 and 2018 (`reviewerID`, `asin`, …) or 2023 (`user_id`,
  `parent_asin`, ms).

  Texts and votes are skipped.

  Args:
    raw: the file, or a folder with `reviews_<name>_5.json` (2014), `<name>_5.json` (2018) or `<name>.jsonl` (2023),
      also .gz.
    name, metadata: as for `read_ratings`.
    edition: None = the first line tells which it is.

  Raises:
    ValueError: a line is not a JSON object or lacks a field; a .gz file is cut short.
  """
  path = find_file(raw, *_names(name, ".json", "reviews_"), *_names(name, ".jsonl", ""))
  _check_edition(edition)
  kind = _kind(path, None if edition is None else "2023" if edition == "2023" else "2014")
  events = _read_json_lines(path, _REVIEW_FIELDS[kind], _UNITS[kind])
  return _log(events, name or _domain_name(path), metadata)


def read_5core(raw: str | pathlib.Path, *, name: str | None = None) -> InteractionLog:
  """Returns a 5-core set of published tables: `<user> <item> <item> …` a line, in order of time.

  The order of the lines decides: it is the one behind published tables, and nearly half of neighbouring events share a
    day, so
  that it cannot be found again from the times. `<name>.npz` beside the file (`items`, `offsets`, `timestamps`,
  `user_ids`) adds
  times: an event has the time of the same item of the same user there, repeated items in turn.

  Args:
    raw: the .txt file, or its folder.
    name: which file of the folder, and the domain's name; None = "Beauty" in a folder, else the file's own.

  Choice: where the npz breaks ties otherwise, the order of the .txt stands and each event keeps its own time; a time
  that would then fall is raised to the one before (`times_raised_to_keep_the_order` in meta.json counts them).

  Raises:
    ValueError: a line without items, an id that is no number, or an npz with other users or items.
  """
  path = find_file(raw, f"{name or 'Beauty'}.txt", f"{name}_*.txt")
  name = name or path.stem
  events = _read_id_lists(path)
  times = _times_beside(path, name)
  if times is not None:
    events = _join_times(events, times, path)
  return InteractionLog(events, domains=(name,), raw_rows=len(events), in_order=True)


def _names(name: str | None, ending: str, prefix: str) -> list[str]:
  stem = name or "*"
  return [f"{start}{stem}{ending}{packed}" for start in dict.fromkeys((prefix, "")) for packed in ("", ".gz")] + [
    f"{start}{stem}_5{ending}{packed}" for start in dict.fromkeys((prefix, "")) for packed in ("", ".gz")
  ]


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


def _in_order_of_columns(events: pl.DataFrame, edition: str | None) -> pl.DataFrame:
  if edition is None:
    users, items = events.select(pl.col("user").n_unique(), pl.col("item").n_unique()).row(0)
    if users == items:
      raise ValueError(
        f"both id columns hold {users} values: say which is which: edition='2014' (user, item) or '2018' (item, user)"
      )
    edition = "2014" if users > items else "2018"
  return events if edition == "2014" else events.rename({"user": "item", "item": "user"})


def _log(events: pl.DataFrame, domain: str, metadata: str | None) -> InteractionLog:
  events = events.with_columns(action=pl.col("rating").round().cast(pl.Int32))
  items = None
  if metadata is not None:
    titles = read_titles(metadata)
    items = events.select(pl.col("item").unique().sort()).join(titles, on="item", how="left", maintain_order="left")
  return InteractionLog(events, items=items, domains=(domain,), raw_rows=len(events))


def read_titles(path: str | pathlib.Path) -> pl.DataFrame:
  """Returns `item` and `title` from metadata JSON lines.

  The 2014 files are in Python's notation and have to be converted to JSON first.
  """
  path = require_file(path)
  key = "parent_asin" if b'"parent_asin"' in _first_line(path) else "asin"
  parts = [_parse_json(chunk, {key: pl.String, "title": pl.String}, optional=("title",)) for chunk in line_chunks(path)]
  return pl.concat(parts).rename({key: "item"}).unique("item", keep="first", maintain_order=True)


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


def _read_json_lines(path: pathlib.Path, names: dict[str, str], unit: str) -> pl.DataFrame:
  schema = {
    names["user"]: pl.String,
    names["item"]: pl.String,
    names["rating"]: pl.Float32,
    names["timestamp"]: pl.Int64,
  }
  parts = []
  for chunk in line_chunks(path):
    part = _parse_json(chunk, schema).rename({theirs: ours for ours, theirs in names.items()})
    parts.append(part.with_columns(seconds(part["timestamp"], unit, path, chunk.first_line)))
  return pl.concat(parts)


def _parse_json(chunk: Chunk, schema: dict, optional: tuple[str, ...] = ()) -> pl.DataFrame:
  required = {name: dtype for name, dtype in schema.items() if name not in optional}
  try:
    table = pl.read_ndjson(io.BytesIO(chunk.data), schema=schema)
    problem = "a needed field is empty" if sum(table.select(pl.col(list(required)).null_count()).row(0)) else None
  except pl.exceptions.PolarsError as error:
    problem = str(error)
  if problem is not None:
    _explain_json(chunk, required, problem)
  return table


def _explain_json(chunk: Chunk, required: dict, problem: str) -> None:
  """Raises ValueError for the first bad line.

  Only a chunk that failed already comes here, so the loop over its lines costs nothing elsewhere.
  """
  for row, line in enumerate(chunk.data.splitlines()):
    if line.strip():
      _check_json_line(line, required, f"{chunk.path}: line {chunk.first_line + row}")
  raise ValueError(f"{chunk.path}: in the lines from {chunk.first_line} on: {problem}")


def _check_json_line(line: bytes, required: dict, where: str) -> None:
  try:
    fields = json.loads(line)
  except ValueError as error:
    raise ValueError(f"{where}: not a JSON object: {line[:120]!r}") from error
  for name, dtype in required.items():
    if not isinstance(fields, dict) or fields.get(name) is None:
      raise ValueError(f"{where}: lacks the field {name!r}: {line[:120]!r}")
    if not isinstance(fields[name], str if dtype == pl.String else int | float):
      raise ValueError(
        f"{where}: field {name!r} holds {fields[name]!r}, needs {'text' if dtype == pl.String else 'a number'}"
      )


def _read_id_lists(path: pathlib.Path) -> pl.DataFrame:
  text = b"".join(chunk.data for chunk in line_chunks(path)).decode("utf-8", errors="replace").rstrip("\n")
  lines = pl.DataFrame({"line": text.split("\n")}).with_row_index("row", offset=1)
  lines = lines.with_columns(ids=pl.col("line").str.strip_chars().str.split(" "))
  numbers = pl.col("ids").cast(pl.List(pl.Int64), strict=False)
  bad = lines.filter((pl.col("ids").list.len() < 2) | numbers.list.eval(pl.element().is_null()).list.any()).head(1)
  if len(bad):
    raise ValueError(
      f"{path}: line {bad['row'][0]}: needs numbers '<user> <item> <item> …' with single spaces between: "
      f"{bad['line'][0][:120]!r}"
    )
  lists = lines.select(user=numbers.list.first(), item=numbers.list.slice(1))
  twice = lists.filter(pl.col("user").is_duplicated()).head(1)
  if len(twice):
    raise ValueError(f"{path}: user {twice['user'][0]} has more than one line")
  return lists.explode("item")


def _times_beside(path: pathlib.Path, name: str) -> pl.DataFrame | None:
  beside = next(
    (b for stem in (name, path.stem, path.stem.split("_")[0]) if (b := path.parent / f"{stem}.npz").is_file()), None
  )
  if beside is None:
    return None
  with np.load(beside, allow_pickle=False) as arrays:
    missing = [key for key in ("items", "offsets", "timestamps", "user_ids") if key not in arrays.files]
    if missing:
      raise ValueError(f"{beside}: lacks the arrays {missing}")
    user = np.repeat(arrays["user_ids"], np.diff(arrays["offsets"]))
    return pl.DataFrame(
      {
        "user": user.astype(np.int64),
        "item": arrays["items"].astype(np.int64),
        "timestamp": arrays["timestamps"].astype(np.int64),
      }
    )


def _join_times(events: pl.DataFrame, times: pl.DataFrame, path: pathlib.Path) -> pl.DataFrame:
  turn = pl.int_range(pl.len()).over("user", "item").alias("__turn")
  joined = events.with_columns(turn).join(
    times.with_columns(turn), on=["user", "item", "__turn"], how="left", maintain_order="left"
  )
  strange = joined.filter(pl.col("timestamp").is_null()).head(1)
  if len(strange) or len(times) != len(events):
    what = (
      f"item {strange['item'][0]} of user {strange['user'][0]}"
      if len(strange)
      else f"{len(times)} events, not {len(events)}"
    )
    raise ValueError(f"{path.with_suffix('.npz').name} beside {path} belongs to another file: {what}")
  return joined.drop("__turn")
