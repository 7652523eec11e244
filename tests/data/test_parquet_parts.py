"""Parquet part files as engines write them: a folder or a pattern is read as one file of all rows would be."""

import datetime
import json

import numpy as np
import polars as pl
import pytest
from programs import event_parts

from jaxrec.data.preparation.prepare import prepare
from jaxrec.data.preparation.raw_state import files_state
from jaxrec.data.prepared import COLUMNS
from jaxrec.data.sources import parquet_parts

EVENTS = pl.DataFrame(
  {
    "user": ["ann", "bob", "ann", "eve", "bob", "ann"],
    "item": ["tea", "jam", "jam", "tea", "rye", "rye"],
    "timestamp": [5, 1, 3, 2, 8, 8],
    "shop": ["b", "a", "a", "b", "a", "a"],
    "name": ["Tea", "", "Jam", "Tea", None, "Rye"],
    "stars": [4.0, 2.0, 5.0, 1.0, 3.0, 4.5],
  }
)
OPTIONS = {"domain": "shop", "title": "name", "rating": "stars", "min_rating": 2.0}


def write_parts(folder, *tables, name="part-{:05}.snappy.parquet"):
  folder.mkdir(parents=True, exist_ok=True)
  for number, table in enumerate(tables):
    table.write_parquet(folder / name.format(number))
  return folder


def assert_same(one, other):
  for name in (*COLUMNS, "offsets"):
    np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
  assert one.fingerprint == other.fingerprint
  assert {**one.meta, "raw_files": 0} == {**other.meta, "raw_files": 0}


@pytest.fixture
def parts(tmp_path):
  """Three files in the order of the rows; one has no row, and none follows the order of times."""
  return write_parts(tmp_path / "log", EVENTS[:2], EVENTS[:0], EVENTS[2:])


def test_part_files_are_prepared_as_one_csv_of_all_rows(parts, tmp_path):
  EVENTS.write_csv(tmp_path / "log.csv")
  assert_same(prepare("table", parts, **OPTIONS), prepare("table", tmp_path / "log.csv", **OPTIONS))


def test_part_files_are_merged_as_csv_files_are(parts, tmp_path):
  EVENTS.write_csv(tmp_path / "log.csv")
  merged = []
  for raw in (parts, tmp_path / "log.csv"):
    entry = {"source": "table", "raw": str(raw)}
    sources = [{**entry, "name": "shops", "domain": "shop"}, {**entry, "name": "all"}]
    merged.append(prepare("merge", sources=sources, duplicates="last"))
  assert merged[0].fingerprint == merged[1].fingerprint
  assert merged[0].domain_names == ("shops/a", "shops/b", "all")


def test_a_pattern_names_the_files(parts, tmp_path):
  write_parts(tmp_path / "log", EVENTS, name="other.parquet")
  of_pattern = prepare("table", str(parts / "part-*"), **OPTIONS)
  (parts / "other.parquet").unlink()
  assert_same(of_pattern, prepare("table", parts, **OPTIONS))


def test_folders_of_folders_are_read_without_what_engines_write_beside_the_parts(tmp_path):
  for day, table in (("day=1", EVENTS[:3]), ("day=2", EVENTS[3:])):
    write_parts(tmp_path / "log" / day, table, name="00000000.parquet")
    (tmp_path / "log" / day / ".00000000.parquet.crc").write_bytes(b"x")
  (tmp_path / "log" / "_SUCCESS").touch()
  write_parts(tmp_path / "log" / "_temporary", EVENTS)
  EVENTS.write_csv(tmp_path / "log.csv")
  assert_same(prepare("table", tmp_path / "log", **OPTIONS), prepare("table", tmp_path / "log.csv", **OPTIONS))


def test_pieces_of_any_size_give_the_same_data(parts, monkeypatch):
  whole = prepare("table", parts, **OPTIONS)
  monkeypatch.setattr(parquet_parts, "PIECE_ROWS", 1)
  assert_same(prepare("table", parts, **OPTIONS), whole)


def test_a_wrong_value_is_named_with_its_file_and_row(tmp_path, monkeypatch):
  monkeypatch.setattr(parquet_parts, "PIECE_ROWS", 2)
  bad = EVENTS.with_columns(pl.Series("user", ["a", "b", "c", " ", "d", "e"]))
  folder = write_parts(tmp_path / "log", EVENTS, bad)
  with pytest.raises(ValueError, match=r"part-00001.snappy.parquet: row 4: column 'user' holds ' ', needs text"):
    prepare("table", folder)


OTHER_SCHEMAS = {
  "another type": (
    EVENTS.with_columns(pl.col("timestamp").cast(pl.Int32)),
    r"part-00001\S*: column 'timestamp' holds Int32, in part-00000\S* it holds Int64",
  ),
  "dates": (
    EVENTS.with_columns(timestamp=pl.lit(datetime.date(2020, 1, 1))),
    r"part-00001\S*: column 'timestamp' holds Date, in part-00000\S* it holds Int64",
  ),
  "no column": (EVENTS.drop("item"), r"part-00001\S*: no column \['item'\]; it has \['user', 'timestamp'"),
}


@pytest.mark.parametrize(("table", "message"), OTHER_SCHEMAS.values(), ids=OTHER_SCHEMAS)
def test_a_part_with_another_schema_is_named_before_any_row_is_read(tmp_path, monkeypatch, table, message):
  monkeypatch.setattr(parquet_parts, "read_piece", lambda *_: pytest.fail("rows were read"))
  with pytest.raises(ValueError, match=message):
    prepare("table", write_parts(tmp_path / "log", EVENTS, table))


def test_columns_that_are_not_read_may_differ(tmp_path):
  folder = write_parts(tmp_path / "log", EVENTS[:3], EVENTS[3:].drop("name").with_columns(stars=pl.lit("x")))
  assert prepare("table", folder).num_events == 6


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: data[:4], lambda data: b""])
def test_a_damaged_part_is_named(parts, damage):
  path = parts / "part-00002.snappy.parquet"
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(ValueError, match=r"part-00002.snappy.parquet: damaged, or not Parquet"):
    prepare("table", parts)


def test_a_folder_of_several_kinds_of_files_is_refused(parts):
  (parts / "notes.txt").write_text("read me")
  with pytest.raises(ValueError, match="notes.txt: is no Parquet file, but .*log has others that are"):
    prepare("table", parts)


def test_parts_without_rows_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"part-00000\S* and 1 more files: has no rows"):
    prepare("table", write_parts(tmp_path / "log", EVENTS[:0], EVENTS[:0]))


def test_a_pattern_without_files_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"log-\*: no such file or folder"):
    prepare("table", str(tmp_path / "log-*"))


def test_the_state_of_a_pattern_is_that_of_its_files(parts):
  pattern = str(parts / "part-*")
  before = files_state(pattern)
  assert before["files"] == 3
  write_parts(parts, EVENTS[:1])
  assert files_state(pattern) != before


def test_each_file_that_is_read_is_reported(parts):
  lines = []
  prepare("table", parts, report=lines.append)
  assert lines[1:4] == [f"{n} of 3 files read, {events} events" for n, events in ((1, 2), (2, 2), (3, 6))]


def test_the_generator_writes_what_it_says_and_is_measured(tmp_path):
  event_parts.write_parts(tmp_path / "raw-1000", 1000, 3)
  found = event_parts.prepared(tmp_path / "raw-1000", tmp_path / "prepared", 1, 0)
  assert (found["events"], len(list((tmp_path / "raw-1000").iterdir()))) == (1000, 3)
  assert 0 < found["items"] <= 10 and 0 < found["users"] <= 50 and json.dumps(found)
