"""ABXI's two-domain Amazon sequences.

`*_preprocessed.txt` has a line `<user> <item>|<unix> …` per user, `map_item*.txt` is a JSON object `{ASIN: [item,
domain]}`.

Source: ABXI, arXiv 2501.15118; Amazon reviews (research use).
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import polars as pl

from jaxrec.data import event_values
from jaxrec.data.sources.file_blocks import text_blocks
from jaxrec.data.sources.json_lines import json_object
from jaxrec.data.sources.reading import CHUNK_BYTES, find_file, read_lines
from jaxrec.data.sources.registry import InteractionLog
from jaxrec.data.sources.text_format import PARSER_ERRORS

_KNOWN_NAMES = {"afk": ("food", "kitchen"), "abe": ("beauty", "electronics"), "amb": ("movie", "book")}


def read_abxi(raw: str | pathlib.Path, *, names: str | Sequence[str] | None = None) -> InteractionLog:
  """Returns the sequences of `*_preprocessed.txt`; events keep the order of their line.

  Args:
    raw: the folder of the two files.
    names: names of domain 0 and domain 1, as a sequence or separated by commas; None for those that belong to the
      file's prefix (afk, abe, amb), else "0" and "1".

  Raises:
    ValueError: a pair that is not `<item>|<unix>`, an item that is not in the map, a map that is not JSON.
  """
  path = find_file(raw, "*_preprocessed.txt")
  pairs = _read_pairs(path)
  items = _read_map(find_file(path.parent, "map_item*.txt"))
  items = items.with_columns(domain=pl.col("domain").replace_strict([0, 1], list(_names(names, path))))
  events = pairs.join(items.select("item", "domain"), on="item", how="left", maintain_order="left")
  unknown = events.filter(pl.col("domain").is_null()).head(1)
  if len(unknown):
    raise ValueError(
      f"{path}: line {unknown['row'][0]}: item {unknown['item'][0]} of user {unknown['user'][0]} is not in the item map"
    )
  events = events.drop("row")
  return InteractionLog(events, items=items, domains=_names(names, path), raw_rows=len(events), in_order=True)


def _names(names: str | Sequence[str] | None, path: pathlib.Path) -> tuple[str, ...]:
  if names is None:
    return _KNOWN_NAMES.get(path.name[:3], ("0", "1"))
  names = tuple(name.strip() for name in names.split(",")) if isinstance(names, str) else tuple(names)
  if len(set(names)) != 2:
    raise ValueError(f"{names=}: needs two different names")
  return names


def _read_pairs(path: pathlib.Path) -> pl.DataFrame:
  lines = read_lines(path)
  words = lines.with_columns(word=pl.col("line").str.strip_chars().str.split(" ")).with_columns(
    user=pl.col("word").list.first().cast(pl.Int64, strict=False),
    word=pl.when(pl.col("word").list.len() > 1).then(pl.col("word").list.slice(1)).otherwise([""]),
  )
  pairs = words.explode("word").with_columns(
    item=pl.col("word").str.extract(r"^(\d+)\|\d+$").cast(pl.Int64, strict=False),
    timestamp=pl.col("word").str.extract(r"^\d+\|(\d+)$").cast(pl.Int64, strict=False),
  )
  is_missing = pl.any_horizontal(pl.col("user", "item", "timestamp").is_null())
  bad = pairs.filter(is_missing | (pl.col("timestamp") >= event_values.LATEST_SECOND)).head(1)
  if len(bad):
    raise ValueError(
      f"{path}: line {bad['row'][0]}: needs '<user> <item>|<unix seconds> …', the first bad word is "
      f"{bad['word'][0]!r}: {bad['line'][0][:120]!r}"
    )
  repeated = words.filter(pl.col("user").is_duplicated() & ~pl.col("user").is_first_distinct()).head(1)
  if len(repeated):
    raise ValueError(f"{path}: line {repeated['row'][0]}: user {repeated['user'][0]} has more than one line")
  return pairs.select("user", "item", "timestamp", "row")


def _read_map(path: pathlib.Path) -> pl.DataFrame:
  entries = json_object(b"".join(text_blocks(path, CHUNK_BYTES)), str(path))
  try:
    rows = [(_integer(item), asin, _integer(domain)) for asin, (item, domain) in entries.items()]
    table = pl.DataFrame(rows, schema={"item": pl.Int64, "raw_id": pl.String, "domain": pl.Int64}, orient="row")
  except (ValueError, TypeError, *PARSER_ERRORS) as error:
    raise ValueError(f'{path}: needs one JSON object of "ASIN": [item, domain]: {error}') from error
  table = table.sort("item")
  bad = table.filter(~pl.col("domain").is_in([0, 1])).head(1)
  if len(bad):
    raise ValueError(f"{path}: item {bad['item'][0]} has domain {bad['domain'][0]}, needs 0 or 1")
  repeated = table.filter(pl.col("item").is_duplicated())
  if len(repeated):
    raise ValueError(
      f"{path}: item {repeated['item'][0]} is both {repeated['raw_id'][0]!r} and {repeated['raw_id'][1]!r}"
    )
  return table


def _integer(value) -> int:
  if type(value) is not int or abs(value) >= 2**63:
    raise ValueError(f"{value!r} is not an integer")
  return value
