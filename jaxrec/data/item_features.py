"""What is known of items besides their events: columns of `PreparedData.items` as numbers that a model reads."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from jaxrec.data.prepared import TRAIN, PreparedData

SEPARATOR = "|"  # Between the categories of a text.
_MOST = 4096  # Numbers of an item: the matrix is dense.
_KNOWN = ("item_id", "raw_id", "title", "domain_id")  # Columns that all items have.


def feature_matrix(data: PreparedData, names: Sequence[str]) -> Float[np.ndarray, "V1 F"]:
  """Returns the features of items 0..V, row 0 zeros, float32; the columns of the first name come first.

  The type of a column of the items decides what becomes of it:

  - text: categories, several separated by "|"; a column for each category, which shares 1 among those of the item.
    Whole numbers and truth values are categories too, as is "domain", the domain of the item.
  - numbers with a point: one column, with mean 0 and variance 1 over the items.
  - lists or arrays of numbers, all of one length, such as vectors of a text: scaled to unit length.

  Where an item has no value its columns are 0.

  Args:
    data: prepared columns.
    names: of columns of the items.

  Raises:
    ValueError: no such column, or one without a value, of another type, or of too many categories.

  >>> data = with_item_columns(
  ...   PreparedData.from_columns(user=[0, 0, 0], item_id=[1, 2, 3]), {"genres": ["war|film", "film", None]}
  ... )
  >>> feature_matrix(data, ["genres"]).tolist()
  [[0.0, 0.0], [0.5, 0.5], [1.0, 0.0], [0.0, 0.0]]
  """
  parts = [_columns(name, _column(data, name)) for name in names]
  width = sum(part.shape[1] for part in parts)
  if width > _MOST:
    sizes = ", ".join(f"{name}: {part.shape[1]:,}" for name, part in zip(names, parts, strict=True))
    raise ValueError(f"config.data.features: {width:,} numbers for each item ({sizes}); at most {_MOST:,}")
  return np.pad(np.concatenate(parts, axis=1, dtype=np.float32), ((1, 0), (0, 0)))


def has_training_events(data: PreparedData, at_least: int) -> Bool[np.ndarray, " V1"]:
  """Returns which of the items 0..V have so many training events; padding has.

  Args:
    data: prepared columns.
    at_least: number of events.

  >>> has_training_events(PreparedData.from_columns(user=[0] * 4, item_id=[1, 2, 1, 3]), 1).tolist()
  [True, True, True, False]
  """
  item = np.asarray(data.item_id)[np.asarray(data.split) == TRAIN]
  enough = np.bincount(item, minlength=data.num_items + 1) >= at_least
  enough[0] = True
  return enough


def with_item_columns(data: PreparedData, columns: Mapping[str, Any]) -> PreparedData:
  """Returns prepared data, in memory, whose items have further columns, or others in place of those of these names.

  Args:
    data: prepared columns.
    columns: name -> V values in the order of `data.items`, or an array [V, D] of vectors.

  Raises:
    ValueError: a column that all items have, such as their title, or another number of values.
  """
  table = data.items
  for name, values in columns.items():
    if name in _KNOWN or name == "domain":
      raise ValueError(f"items have a column {name!r} already; give another name")
    if len(values) != data.num_items:
      raise ValueError(f"column {name!r} has {len(values):,} values, needs one for each of {data.num_items:,} items")
    table = table.with_columns(pl.Series(name, values))
  meta = {name: value for name, value in data.meta.items() if name != "fingerprint"}
  return dataclasses.replace(data, item_table=table, user_table=data.users, meta=meta, path=None)


def with_item_file(data: PreparedData, path: str | os.PathLike) -> PreparedData:
  """Returns prepared data, in memory, whose items have the columns of a Parquet file.

  Args:
    data: prepared columns.
    path: of a file with a column "item", ids of the raw data as text or whole numbers, and, where domains share ids,
      "domain". Rows of other items are left out; items without a row have no value, or keep the one that they have.

  Raises:
    ValueError: no such file, a damaged one, or one without these columns; an item that is there twice, or none at all.
  """
  try:
    table = pl.read_parquet(path)
  except (OSError, pl.exceptions.PolarsError) as error:
    raise ValueError(f"{path}: cannot be read as the features of items: {error}") from error
  if "item" not in table.columns or table["item"].null_count():
    raise ValueError(f"{path}: needs a column 'item' with an id in each row; it has {', '.join(table.columns)}")
  item = _items(data, table, path)
  chosen, row = np.unique(item, return_index=True)
  row = row[chosen > 0]
  if not len(row):
    raise ValueError(
      f"{path}: none of its {len(table):,} items is in the data, which has items such as"
      f" {', '.join(map(repr, data.items['raw_id'].head(3)))}"
    )
  known = table[row]
  columns = [name for name in table.columns if name not in ("item", "domain")]
  return with_item_columns(data, {name: _placed(data, item[row] - 1, known[name]) for name in columns})


def _items(data, table, path):
  """Returns the item of each row, 0 where there is none."""
  names = table["item"].cast(pl.String)
  domains = table["domain"] if "domain" in table.columns else [None] * len(table)
  item = np.array([data.raw_items.find(*key) for key in zip(names, domains, strict=True)], np.int64)
  ids, first, times = np.unique(item, return_index=True, return_counts=True)
  for again in first[(times > 1) & (ids > 0)]:
    raise ValueError(f"{path}: item {names[int(again)]!r} has several rows")
  return item


def _placed(data, index, values: pl.Series) -> pl.Series | np.ndarray:
  """Returns values of some items as a column of all, null or 0 for the others unless they have a value already."""
  before = data.items[values.name] if values.name in data.items.columns else None
  if values.dtype.is_nested():
    vectors = _vectors(values.name, values)
    whole = np.zeros((data.num_items, vectors.shape[1]), np.float32)
    if before is not None:
      whole[:] = _vectors(values.name, before)
    whole[index] = vectors
    return whole
  place = pl.DataFrame({"place": index, "value": values})
  found = pl.DataFrame({"place": np.arange(data.num_items)}).join(place, on="place", how="left", maintain_order="left")
  return found["value"] if before is None else found["value"].fill_null(before)


def _column(data, name) -> pl.Series:
  if name == "domain":
    return data.items["domain_id"]
  if name not in data.items.columns or name in _KNOWN:
    known = ["domain", *(other for other in data.items.columns if other not in _KNOWN)]
    raise ValueError(f"config.data.features: {name!r} is no column of the items; there are {', '.join(known)}")
  return data.items[name]


def _columns(name, values: pl.Series) -> np.ndarray:
  if values.null_count() == len(values):
    raise ValueError(f"config.data.features: no item has a value of {name!r}")
  if values.dtype.is_nested():
    vectors = _vectors(name, values)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)
  if values.dtype.is_float():
    return _standardized(name, values.to_numpy())[:, None]
  if values.dtype == pl.String or values.dtype.is_integer() or values.dtype == pl.Boolean:
    return _categories(name, values.cast(pl.String))
  raise ValueError(f"config.data.features: column {name!r} of type {values.dtype} is neither text, number nor vector")


def _standardized(name, values: np.ndarray) -> np.ndarray:
  is_known = ~np.isnan(values)
  if np.isinf(values).any() or not is_known.any():
    raise ValueError(f"config.data.features: column {name!r} has no finite numbers, or infinite ones")
  mean, scale = values[is_known].mean(), values[is_known].std()
  return np.where(is_known, (values - mean) / (scale if scale > 0 else 1), 0)


def _categories(name, values: pl.Series) -> np.ndarray:
  """Returns the share of each category, in alphabetical order, in each item."""
  pairs = pl.DataFrame({"item": np.arange(len(values)), "category": values.str.split(SEPARATOR)}).explode("category")
  pairs = pairs.filter(pl.col("category").is_not_null() & (pl.col("category") != "")).unique()
  count = pairs["category"].n_unique()
  if not 0 < count <= _MOST:
    raise ValueError(f"config.data.features: column {name!r} has {count:,} categories, needs 1 to {_MOST:,}")
  item, category = pairs["item"].to_numpy(), pairs["category"].rank("dense").to_numpy() - 1
  grid = np.zeros((len(values), count))
  grid[item, category] = 1 / np.bincount(item, minlength=len(values))[item]
  return grid


def _vectors(name, values: pl.Series) -> np.ndarray:
  """Returns lists of numbers as an array, zeros where there is none."""
  lists = values.to_list()
  sizes = {len(numbers) for numbers in lists if numbers is not None}
  if len(sizes) != 1:
    raise ValueError(f"column {name!r} has vectors of lengths {sorted(sizes)[:3]}; they must have one length")
  nothing = [0.0] * sizes.pop()
  try:
    vectors = np.array([nothing if numbers is None else numbers for numbers in lists], np.float32)
  except (TypeError, ValueError) as error:
    raise ValueError(f"column {name!r} has lists of something else than numbers") from error
  if vectors.ndim != 2 or not np.isfinite(vectors).all():
    raise ValueError(f"column {name!r} has vectors with values that are no finite numbers")
  return vectors
