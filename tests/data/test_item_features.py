"""Features of items: columns of the item table as numbers, and columns that come from a file."""

import numpy as np
import polars as pl
import pytest

from jaxrec.data.fingerprint import changed_parts
from jaxrec.data.item_features import feature_matrix, has_training_events, with_item_columns, with_item_file
from jaxrec.data.preparation.prepare import prepare
from jaxrec.data.prepared import PreparedData


def data_of(**columns):
  data = PreparedData.from_columns(
    user=[0] * 5, item_id=[1, 2, 3, 1, 4], domain_id=[1, 1, 2, 1, 2], raw_items=["a", "b", "c", "d"]
  )
  return with_item_columns(data, columns) if columns else data


def test_texts_and_whole_numbers_are_categories_that_share_one():
  data = data_of(genres=["war|film", "", None, "film|film"], year=[1999, None, 2001, 1999])
  expected = [[0, 0, 0, 0], [0.5, 0.5, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1], [1, 0, 1, 0]]  # film, war, 1999, 2001
  np.testing.assert_array_equal(feature_matrix(data, ["genres", "year"]), expected)


def test_numbers_with_a_point_have_mean_0_and_variance_1_and_missing_ones_are_the_mean():
  found = feature_matrix(data_of(price=[1.0, 3.0, None, float("nan")]), ["price"])
  assert found[:, 0].tolist() == [0, -1, 1, 0, 0]
  assert not feature_matrix(data_of(price=[5.0] * 4), ["price"]).any()


@pytest.mark.parametrize("form", [np.array, list])
def test_vectors_have_unit_length(form):
  vectors = [[3.0, 4.0], [0.0, 0.0], [0.0, 2.0], [1.0, 0.0]]
  found = feature_matrix(data_of(text=form(vectors)), ["text"])
  np.testing.assert_allclose(found, [[0, 0], [0.6, 0.8], [0, 0], [0, 1], [1, 0]], atol=1e-6)


def test_domains_are_features_and_names_keep_their_order():
  found = feature_matrix(data_of(price=[1.0, 3.0, 3.0, 1.0]), ["domain", "price"])
  assert found.tolist() == [[0, 0, 0], [1, 0, -1], [1, 0, 1], [0, 1, 1], [0, 1, -1]]


def test_items_with_enough_training_events_are_told_from_others():
  assert has_training_events(data_of(), 1).tolist() == [True, True, True, True, False]  # Split: the last event is test.
  assert has_training_events(data_of(), 2).tolist() == [True, False, False, False, False]


@pytest.mark.parametrize(
  "columns, name, message",
  [
    ({}, "genres", "'genres' is no column of the items; there are domain"),
    ({}, "title", "'title' is no column of the items"),
    ({"genres": [None] * 4}, "genres", "no item has a value of 'genres'"),
    ({"genres": ["", "|", None, ""]}, "genres", "has 0 categories"),
    ({"price": [1.0, float("inf"), 2.0, 3.0]}, "price", "infinite"),
    ({"text": [[1.0], [1.0, 2.0], None, None]}, "text", r"lengths \[1, 2\]"),
    ({"text": [["a"], ["b"], ["c"], None]}, "text", "something else than numbers"),
    ({"text": [[1.0], [float("nan")], [1.0], None]}, "text", "no finite numbers"),
    ({"text": np.ones((4, 4097))}, "text", "4,097 numbers for each item .text: 4,097.; at most 4,096"),
  ],
)
def test_columns_that_are_no_features_are_refused(columns, name, message):
  with pytest.raises(ValueError, match=message):
    feature_matrix(data_of(**columns), [name])


def test_columns_that_do_not_fit_the_items_are_refused():
  with pytest.raises(ValueError, match="'price' has 2 values, needs one for each of 4 items"):
    data_of(price=[1.0, 2.0])
  with pytest.raises(ValueError, match="'title' already"):
    data_of(title=["a"] * 4)


def test_a_file_gives_columns_by_raw_id_and_they_survive_a_folder(tmp_path):
  file = tmp_path / "features.parquet"
  table = {"item": ["c", "a", "z"], "brand": ["x", "y", "z"], "text": [[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]}
  pl.DataFrame(table).write_parquet(file)
  data = with_item_file(data_of(), file)
  saved = data.save(tmp_path / "data")
  for found in (data, saved, PreparedData.load(tmp_path / "data")):
    assert found.items["brand"].to_list() == ["y", None, "x", None]
    expected = [[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(feature_matrix(found, ["brand", "text"]), expected)
  saved.check_content()
  assert saved.fingerprint == data.fingerprint
  assert changed_parts(data_of().fingerprint, saved.fingerprint) == ["items.brand", "items.text"]


def test_prepare_reads_a_file_of_features_and_items_of_a_later_day_have_none(tmp_path):
  log, file = tmp_path / "log.csv", tmp_path / "features.parquet"
  log.write_text("user,item,time\nu,7,10\nu,8,20\nu,9,30\n")
  pl.DataFrame({"item": [8, 7], "price": [1.5, 2.5], "text": [[1.0], [2.0]]}).write_parquet(file)
  options = {"timestamp": "time", "item_features": file}
  monday = prepare("table", log, tmp_path / "monday", **options)
  assert monday.items.select("raw_id", "price").rows() == [("7", 2.5), ("8", 1.5), ("9", None)]
  log.write_text("user,item,time\nu,5,40\n")
  tuesday = prepare("table", log, tmp_path / "tuesday", timestamp="time", extends=monday.path)
  np.testing.assert_array_equal(feature_matrix(tuesday, ["price", "text"])[[0, 4]], 0)
  np.testing.assert_array_equal(feature_matrix(tuesday, ["price"]), [[0], [1], [-1], [0], [0]])
  tuesday.check_content()


def test_a_second_file_fills_in_and_replaces(tmp_path):
  file = tmp_path / "more.parquet"
  pl.DataFrame({"item": ["b", "a"], "brand": ["w", "v"], "text": [[2.0], [3.0]]}).write_parquet(file)
  before = data_of(brand=["y", None, "x", None], text=[[1.0], [1.0], [1.0], [1.0]])
  data = with_item_file(before, file)
  assert data.items["brand"].to_list() == ["v", "w", "x", None]
  assert data.items["text"].to_list() == [[3.0], [2.0], [1.0], [1.0]]


@pytest.mark.parametrize(
  "table, message",
  [
    ({"sku": ["a"]}, "needs a column 'item' with an id in each row; it has sku"),
    ({"item": ["a", None]}, "needs a column 'item'"),
    ({"item": ["a", "b", "a"]}, "item 'a' has several rows"),
    ({"item": ["x", "y"]}, "none of its 2 items is in the data, which has items such as 'a', 'b', 'c'"),
  ],
)
def test_a_file_that_cannot_be_joined_is_refused_by_name(table, message, tmp_path):
  file = tmp_path / "features.parquet"
  pl.DataFrame(table).write_parquet(file)
  with pytest.raises(ValueError, match=f"features.parquet: {message}"):
    with_item_file(data_of(), file)


def test_a_file_that_is_none_is_refused_by_name(tmp_path):
  (tmp_path / "features.parquet").write_bytes(b"item,brand\n")
  for name in ("features.parquet", "nowhere.parquet"):
    with pytest.raises(ValueError, match=f"{name}: cannot be read as the features of items"):
      with_item_file(data_of(), tmp_path / name)
