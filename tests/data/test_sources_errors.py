"""Errors of the sources for damaged and unexpected files."""

import gzip
import json

import numpy as np
import polars as pl
import pytest
from raw_files import (
  ML1M_MOVIES,
  ML1M_RATINGS,
  REVIEW_2014,
  TAOBAO,
  TMALL_HEAD,
  abxi,
  read,
  record,
  rows,
  shards,
  write,
)

from jaxrec.data.preparation.prepare import prepare
from jaxrec.data.sources import reading, source_reader
from jaxrec.data.sources.tfrecord import split_records


def test_amazon_ratings_whose_id_columns_cannot_be_distinguished_are_refused(tmp_path):
  raw = write(tmp_path, {"A.csv": "U1,B1,5.0,1000000000\n"}) / "A.csv"
  with pytest.raises(ValueError, match="both id columns have 1 distinct values"):
    read("amazon-ratings", raw)
  assert rows(read("amazon-ratings", raw, edition="2018"), "user", "item") == [("B1", "U1")]


@pytest.mark.parametrize(
  "line, message",
  [
    ("{broken", "not a JSON object"),
    ('{"asin": "B1"}', "lacks the field"),
    (json.dumps({**REVIEW_2014, "unixReviewTime": "x"}), "field 'unixReviewTime' holds 'x', needs an integer"),
  ],
)
def test_a_bad_json_line_is_named(tmp_path, line, message):
  raw = write(tmp_path, {"r.json": f"{json.dumps(REVIEW_2014)}\n{line}\n"}) / "r.json"
  with pytest.raises(ValueError, match=r"r\.json: line 2: .*" + message):
    read("amazon-reviews", raw)


def test_5core_times_of_another_file_are_refused(tmp_path):
  raw = write(tmp_path, {"Beauty.txt": "1 7 5 6\n"})
  np.savez(
    raw / "Beauty.npz",
    items=np.array([5, 6, 8]),
    offsets=np.array([0, 3]),
    user_ids=np.array([1]),
    timestamps=np.array([1, 2, 3]),
  )
  with pytest.raises(ValueError, match=r"Beauty.npz does not belong to Beauty.txt: no time for item 7 of user 1"):
    prepare("amazon-5core", raw)


@pytest.mark.parametrize("line", ["3", "3 4 x", "3  4", "1 9"])
def test_a_bad_5core_line_is_named(tmp_path, line):
  with pytest.raises(ValueError, match=r"a\.txt: (line 2|user 1 has more)"):
    read("amazon-5core", write(tmp_path, {"a.txt": f"1 2\n{line}\n"}) / "a.txt")


def test_short_kuairand_rows_are_dropped_by_default(tmp_path):
  with pytest.raises(ValueError, match="no event is left after filtering"):
    prepare("kuairand-1k", shards(tmp_path))


@pytest.mark.parametrize("index, message", [(0, "truncated|checksum of its length"), (30, "its checksum is wrong")])
def test_a_flipped_bit_in_a_tfrecord_is_found(tmp_path, index, message):
  data = bytearray(record(sequence_data=[5, 6], sequence_event_type=[1, 1]))
  data[index] ^= 1
  with pytest.raises(ValueError, match=rf"partition_0.*record 1.*({message})"):
    prepare("kuairand-1k", shards(tmp_path, training=bytes(data)), min_user_events=1)


def test_a_truncated_tfrecord_is_named():
  data = record(a=[1, 2, 3])
  with pytest.raises(ValueError, match="x: record 2 at byte"):
    split_records(data + data[:-3], "x")


def test_a_record_without_the_list_is_named(tmp_path):
  with pytest.raises(ValueError, match=r"record 1: has no int64 list \['sequence_event_type'\]"):
    prepare("kuairand-1k", shards(tmp_path, evaluation=record(sequence_data=[5])), min_user_events=1)


def test_an_unknown_taobao_behavior_is_named(tmp_path):
  raw = write(tmp_path, {"UserBehavior.csv": TAOBAO.replace("buy", "bye")})
  with pytest.raises(ValueError, match=r"line 2: column 'behavior' holds 'bye'"):
    read("taobao", raw)


def test_taobao_times_in_milliseconds_are_refused(tmp_path):
  with pytest.raises(ValueError, match="are these seconds"):
    read("taobao", write(tmp_path, {"UserBehavior.csv": "1,2,3,pv,1511544070000\n"}))


@pytest.mark.parametrize(
  "row, message", [("1,2,3,4,,1345,2", "1345 is not a day"), ("1,2,3,4,,1111,7", "7 is not one of")]
)
def test_a_bad_tmall_value_is_named(tmp_path, row, message):
  with pytest.raises(ValueError, match=f"line 3: .*{message}"):
    read("tmall", write(tmp_path, {"user_log_format1.csv": f"{TMALL_HEAD}1,2,3,4,,0829,0\n{row}\n"}))


@pytest.mark.parametrize("bad", ["1 2:1357948800", "1 2|x", "1 2|1357948800000", "x 2|1"])
def test_a_bad_abxi_word_is_named(tmp_path, bad):
  with pytest.raises(ValueError, match=r"afk_50_preprocessed.txt: line 2: .*first bad word"):
    read("abxi", abxi(tmp_path, f"0 1|1381536000\n{bad}\n"))


def test_an_abxi_item_outside_the_map_is_named(tmp_path):
  with pytest.raises(ValueError, match="item 9 of user 0 is not in the item map"):
    read("abxi", abxi(tmp_path, "0 9|1381536000\n"))


def test_a_parquet_table_without_the_column_is_named(tmp_path):
  pl.DataFrame({"user": [1]}).write_parquet(tmp_path / "a.parquet")
  with pytest.raises(ValueError, match=r"a.parquet: no column \['item', 'timestamp'\]; it has \['user'\]"):
    read("table", tmp_path / "a.parquet")


def test_a_source_without_times_cannot_be_merged(tmp_path):
  write(tmp_path, {"a.csv": "user,item\nann,x\n", "b.csv": "user,item\nann,x\n"})
  sources = [{"source": "table", "raw": tmp_path / f"{name}.csv", "name": name, "timestamp": None} for name in "ab"]
  with pytest.raises(ValueError, match="source 'a' has no times"):
    prepare("merge", sources=sources)


@pytest.mark.parametrize(
  "text, message",
  [
    ("1,1193,5,978300760\n", r"line 1: 1 column\(s\) separated by '::', needs 4: '1,1193,5,978300760'"),
    (ML1M_RATINGS + "3::11", r"line 4: 2 column\(s\) separated by '::', needs 4: '3::11'"),
    (ML1M_RATINGS + "x3::1193::5::978300760\n", r"line 4: column 'user' holds 'x3', needs Int64"),
    (ML1M_RATINGS + "3::1193::::978300760\n", r"line 4: column 'rating' holds '', needs Float32"),
    (ML1M_RATINGS + "3::1193::5::978300760123\n", r"line 4: column 'timestamp': 978300760123 is not .* milliseconds"),
    (ML1M_RATINGS + "3::1193::5::1::2\n", r"line 4: 5 column\(s\)"),
    (ML1M_RATINGS + "3:1193:5:978300760\n", r"line 4: 1 column\(s\)"),
    ("", "has no rows"),
  ],
)
def test_a_bad_line_of_ml1m_is_named(tmp_path, text, message):
  with pytest.raises(ValueError, match=r"ratings\.dat: " + message):
    read("movielens-1m", write(tmp_path, {"ratings.dat": text, "movies.dat": ML1M_MOVIES}))


@pytest.mark.parametrize(
  "text, message",
  [
    (
      "user;item;timestamp\n1;2;3\n",
      r"line 1: no column \['user', 'item', 'timestamp'\] in the header 'user;item;timestamp'",
    ),
    ("user,item,when\n1,2,3\n", r"line 1: no column \['timestamp'\]"),
    ("user,item,timestamp\n1,2,3\nx,5,6\n", r"line 3: column 'user' holds 'x', needs Int64"),
    ("user,item,timestamp\n1,2,3\n4,,6\n", r"line 3: column 'item' holds '', needs Int64"),
    ("user,item,timestamp\n1,2,3\n4,5\n", r"line 3: 2 column\(s\)"),
    ("user,item,timestamp\n1,2,3\n4,5,6,7\n", r"line 3: 4 column\(s\)"),
    ('user,item,timestamp\n1,2,3\n4,"5",6,7\n', r"line 3: 4 column\(s\)"),
    ('user,item,timestamp\n1,"2",3\n4,5\n', r"line 3: 2 column\(s\)"),
    ("user,item,timestamp\n", "has no rows"),
    ("", "has no rows"),
    ("user,item,timestamp\n1,2,-3\n", "line 2: column 'timestamp': -3 is not a time"),
  ],
)
def test_a_bad_line_of_a_table_is_named(tmp_path, text, message):
  with pytest.raises(ValueError, match=r"a\.csv: " + message):
    read("table", write(tmp_path, {"a.csv": text}) / "a.csv", ids="int")


def test_the_line_number_counts_from_the_start_of_the_file_not_of_the_chunk(tmp_path, monkeypatch):
  monkeypatch.setattr(reading, "CHUNK_BYTES", 50)
  body = "".join(f"{i},{i},{i}\n" for i in range(100))
  raw = write(tmp_path, {"a.csv": f"user,item,timestamp\n{body}x,1,2\n"}) / "a.csv"
  with pytest.raises(ValueError, match="line 102: column 'user'"):
    read("table", raw, ids="int")


def test_times_in_milliseconds_need_their_unit(tmp_path):
  raw = write(tmp_path, {"a.csv": "user,item,timestamp\n1,2,1588615855070\n"}) / "a.csv"
  with pytest.raises(ValueError, match="line 2: .*looks like milliseconds"):
    read("table", raw)
  assert prepare("table", raw, time_unit="ms").timestamp.tolist() == [1588615855]


def test_seconds_given_as_milliseconds_are_refused(tmp_path):
  raw = write(tmp_path, {"a.csv": "user,item,timestamp\n1,2,1588615855\n"}) / "a.csv"
  with pytest.raises(ValueError, match="looks like seconds, not milliseconds"):
    read("table", raw, time_unit="ms")


@pytest.mark.parametrize("keep", [30, -8])
def test_a_truncated_gzip_is_named(tmp_path, keep):
  whole = gzip.compress("".join(f"{i},{i},{i}\n" for i in range(2000)).encode())
  (tmp_path / "a.csv.gz").write_bytes(whole[:keep])
  with pytest.raises(ValueError, match=r"a\.csv\.gz: damaged or truncated"):
    read("table", tmp_path / "a.csv.gz", header=False, names="user,item,timestamp")


def test_a_missing_file_says_what_the_folder_holds(tmp_path):
  with pytest.raises(ValueError, match=r"ratings\.dat: no such file; the folder holds movies\.dat"):
    read("movielens-1m", write(tmp_path, {"movies.dat": ML1M_MOVIES}))


def test_an_unknown_source_lists_the_known_ones():
  with pytest.raises(ValueError, match=r"source='ml' is not known; known: .*movielens-1m.*synthetic"):
    source_reader("ml")


def test_a_quotation_that_is_never_closed_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(reading, "CHUNK_BYTES", 50)
  body = "".join(f"{i},{i},{i}\n" for i in range(100))
  raw = write(tmp_path, {"a.csv": f'user,item,timestamp\n1,2,3\n"x,1,2\n{body}'}) / "a.csv"
  with pytest.raises(
    ValueError, match="line 3: a field begins with a quotation mark, but is never closed; give quote=''"
  ):
    read("table", raw)
