"""Ids, numbers and names of events: what every reader, interaction log and column of a program refuses."""

import decimal
import json

import numpy as np
import polars as pl
import pytest
from raw_files import KUAIRAND_HEAD, ML1M_MOVIES, REVIEW_2014, abxi, record, shards, write

from jaxrec.data.preparation.filters import PrepareOptions
from jaxrec.data.preparation.prepare import prepare, prepare_log
from jaxrec.data.prepared import PreparedData
from jaxrec.data.sources import InteractionLog

NAN = float("nan")


def parquet(folder, **columns):
  """A Parquet table of two events, with some columns replaced."""
  table = pl.DataFrame({"user": ["u", "u"], "item": ["x", "y"], "timestamp": [1, 2]} | columns)
  table.write_parquet(folder / "a.parquet")
  return folder / "a.parquet"


@pytest.mark.parametrize(
  "line, column", [('"",i3,12', "user"), ('u1,"",12', "item"), ('u1,"  ",12', "item"), ("\t,i3,12", "user")]
)
def test_an_id_of_nothing_but_spaces_is_refused_quoted_or_not(tmp_path, line, column):
  write(tmp_path, {"a.csv": f"user,item,timestamp\nu1,i1,10\n{line}\n"})
  with pytest.raises(ValueError, match=rf"a\.csv: (near )?line 3: column '{column}'"):
    prepare("table", tmp_path / "a.csv")


@pytest.mark.parametrize(
  "columns, options, message",
  [
    ({"item": ["x", ""]}, {}, "row 2: column 'item' holds '', needs text"),
    ({"user": ["u", None]}, {}, "row 2: column 'user' holds None, needs text"),
    ({"item": [1.0, NAN]}, {}, "row 2: column 'item' holds nan, needs text"),
    ({"item": [1.0, 2.0**60]}, {}, "row 2: column 'item' holds 1.15.*e.18, needs text"),
    ({"item": [10.0, 10.5], "user": [1, 1]}, {"ids": "int"}, "row 2: column 'item' holds 10.5, needs Int64"),
    ({"item": [decimal.Decimal("1.5")] * 2, "user": [1, 1]}, {"ids": "int"}, "row 1: column 'item' holds Decimal"),
    ({"item": [True, False], "user": [1, 1]}, {"ids": "int"}, "column 'item' is a column of Boolean, needs Int64"),
    ({"item": pl.Series([2**64 - 1] * 2, dtype=pl.UInt64), "user": [1, 1]}, {"ids": "int"}, "holds 184467440737095516"),
    ({"item": [b"x", b"y"]}, {}, "column 'item' is a column of Binary, needs text"),
    ({"action": [1.9, 1.0]}, {"action": "action"}, "row 1: column 'action' holds 1.9, needs Int32"),
    ({"action": [1, 2**31]}, {"action": "action"}, "row 2: column 'action' holds 2147483648, needs Int32"),
    ({"rating": [1.0, NAN]}, {"rating": "rating"}, "row 2: column 'rating' holds nan, needs a number"),
    ({"rating": [1.0, float("inf")]}, {"rating": "rating"}, "row 2: column 'rating' holds inf, needs a number"),
    ({"domain": ["books", " "]}, {"domain": "domain"}, "row 2: column 'domain' holds ' ', needs text"),
  ],
)  # fmt: skip
def test_a_parquet_value_that_is_no_id_or_number_is_named(tmp_path, columns, options, message):
  with pytest.raises(ValueError, match=r"a\.parquet: .*" + message):
    prepare("table", parquet(tmp_path, **columns), **options)


@pytest.mark.parametrize(
  "items, expected",
  [
    (pl.Series(["10", "7"], dtype=pl.Categorical), ["7", "10"]),
    (pl.Series(["10", "7"], dtype=pl.Enum(["10", "7"])), ["7", "10"]),
    (pl.Series([10.0, 7.0]), ["7", "10"]),
    (pl.Series([2**63 - 1, 2**62]), [str(2**62), str(2**63 - 1)]),
    (pl.Series([200, 7], dtype=pl.UInt8), ["7", "200"]),
    (pl.Series([decimal.Decimal("10.0"), decimal.Decimal(7)]), ["7", "10"]),
  ],
)
def test_integers_of_any_type_are_ids(tmp_path, items, expected):
  data = prepare("table", parquet(tmp_path, item=items, user=[1, 1]), ids="int")
  assert data.items["raw_id"].to_list() == expected


def test_a_parquet_boolean_is_an_action(tmp_path):
  assert prepare("table", parquet(tmp_path, click=[True, False]), action="click").action.tolist() == [1, 0]


@pytest.mark.parametrize("value", ["NaN", "nan", "inf", "-inf", "1e99"])
@pytest.mark.parametrize(
  "source, files, options",
  [
    ("table", {"a.csv": "user,item,timestamp,rating\nu,i,5,4\nu,j,6,{}\n"}, {"rating": "rating", "min_rating": 3}),
    ("amazon-ratings", {"a.csv": "user_id,parent_asin,rating,timestamp\nu,j,{},1588615855901"}, {}),
    ("movielens-1m", {"ratings.dat": "1::661::4::5\n1::9::{}::6\n", "movies.dat": ML1M_MOVIES}, {}),
    ("movielens-20m", {
      "ratings.csv": "userId,movieId,rating,timestamp\n1,2,3.5,5\n1,3,{},6\n",
      "movies.csv": "movieId,title,genres\n2,a,b\n3,c,d\n",
    }, {}),
  ],
)  # fmt: skip
def test_a_rating_that_is_no_number_is_named(tmp_path, source, files, options, value):
  write(tmp_path, {name: text.replace("{}", value) for name, text in files.items()})
  raw = tmp_path if "movielens" in source else tmp_path / "a.csv"
  with pytest.raises(ValueError, match=r"(a\.csv|ratings\.\w+): (near )?line \d: .*'rating' holds .*, needs Float32"):
    prepare(source, raw, **options)


def test_a_nan_rating_of_a_log_never_passes_min_rating():
  events = pl.DataFrame({"user": [1] * 3, "item": [1, 2, 3], "rating": [5.0, NAN, None]})
  data = prepare_log(InteractionLog(events), PrepareOptions(min_rating=1.0), source="test")
  assert data.items["raw_id"].to_list() == ["1"]
  assert data.meta["counts"]["dropped"] == {"rated below min_rating": 2}
  with pytest.raises(ValueError, match="min_rating=nan must be a finite number"):
    PrepareOptions(min_rating=NAN)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"asin": ""}, "field 'asin' holds '', needs text"),
    ({"reviewerID": " "}, "field 'reviewerID' holds ' ', needs text"),
    ({"overall": NAN}, "field 'overall' holds nan, needs a number"),
    ({"overall": True}, "field 'overall' holds True, needs a number"),
    ({"unixReviewTime": 1.5}, "field 'unixReviewTime' holds 1.5, needs an integer"),
    ({"unixReviewTime": 2**70}, "field 'unixReviewTime' holds 1180591620717411303424, needs an integer"),
  ],
)
def test_a_json_value_that_is_no_id_or_number_is_named(tmp_path, change, message):
  lines = [json.dumps(REVIEW_2014), json.dumps(REVIEW_2014 | change)]
  write(tmp_path, {"r.json": "\n".join(lines) + "\n"})
  with pytest.raises(ValueError, match=r"r\.json: line 2: " + message):
    prepare("amazon-reviews", tmp_path / "r.json")


def test_fractions_in_other_files_are_named(tmp_path):
  write(
    tmp_path,
    {
      "Beauty.txt": "1 7\n",
      "log_standard_1.csv": KUAIRAND_HEAD + "0,1,2,3,1649412050158,2,0,0,0,0,0,0,0,9,0,0,0,0,4\n",
    },
  )
  np.savez(tmp_path / "Beauty.npz", items=[7.5], offsets=[0, 1], user_ids=[1], timestamps=[5])
  with pytest.raises(ValueError, match=r"Beauty\.npz: entry 0: column 'items' holds 7.5, needs Int64"):
    prepare("amazon-5core", tmp_path)
  with pytest.raises(
    ValueError, match=r"log_standard_1\.csv: line 2: column 'is_click' holds 2, needs an integer in 0..1"
  ):
    prepare("kuairand-csv", tmp_path)
  with pytest.raises(ValueError, match='needs one JSON object of "ASIN": .*0.5 is not an integer'):
    prepare("abxi", abxi(tmp_path / "abxi", ids='{"B1": [1, 0], "B2": [2, 0.5]}'))
  with pytest.raises(ValueError, match="line 1: .*first bad word"):
    prepare("abxi", abxi(tmp_path / "long", text=f"0 1|{10**30}\n"))


@pytest.mark.parametrize(
  "columns, message",
  [
    ({"user": [1, None]}, "events: row 2: column 'user' holds None"),
    ({"user": [1.0, 1.5]}, "events: row 2: column 'user' holds 1.5, needs Int64"),
    ({"item": ["x", " "]}, "item ' ' has no name"),
    ({"item": ["x", "x "]}, "the items 'x' and 'x ' look the same"),
    ({"user": ["caf\u00e9", "cafe\u0301"]}, r"the users 'cafe\\u0301' and 'caf\\xe9' look the same"),
    ({"domain": ["a", None]}, "events: row 2: column 'domain' holds None"),
    ({"domain": ["a", "a\t"]}, r"the domains 'a' and 'a\\t' look the same"),
    ({"timestamp": [1.5, 2.0]}, "events: row 1: column 'timestamp' holds 1.5, needs Int64"),
    ({"action": [1, 2**40]}, "events: row 2: column 'action' holds 1099511627776, needs Int32"),
    ({"split": [0, 3]}, "events: row 2: column 'split' holds 3, needs an integer in 0..2"),
    ({"split": [0, 256]}, "events: row 2: column 'split' holds 256, needs an integer in 0..2"),
  ],
)
def test_a_log_of_a_program_passes_the_same_check(columns, message):
  events = pl.DataFrame({"user": [1, 1], "item": ["x", "y"]} | columns)
  with pytest.raises(ValueError, match=message):
    prepare_log(InteractionLog(events), PrepareOptions(), source="test")


def test_an_empty_log_is_named():
  empty = pl.DataFrame(schema={"user": pl.Int64, "item": pl.Int64})
  with pytest.raises(ValueError, match=r"the log has no events; raw rows: 7, dropped: \{'bots': 7\}"):
    prepare_log(InteractionLog(empty, raw_rows=7, dropped={"bots": 7}), PrepareOptions(), source="test")
  with pytest.raises(ValueError, match=r"the events have no column \['item'\]"):
    prepare_log(InteractionLog(pl.DataFrame({"user": [1]})), PrepareOptions(), source="test")


@pytest.mark.parametrize(
  "columns, message",
  [
    ({"item_id": np.array([1, 2**32 + 2, 2, 3])}, r"item_id\[1\] holds 4294967298, needs Int32"),
    ({"item_id": [1.9, 2.5, 3.0, 4.0]}, r"item_id\[0\] holds 1.9, needs Int32"),
    ({"item_id": [1.0, NAN, 3.0, 4.0]}, r"item_id\[1\] holds nan, needs Int32"),
    ({"item_id": [1, 2, 3, 2**64]}, "item_id is an array of object with shape .4,., needs integers along one axis"),
    ({"item_id": ["1", "2", "3", "4"]}, "item_id is an array of <U1"),
    ({"item_id": [True] * 4}, "item_id is an array of bool"),
    ({"item_id": [[1, 2], [3, 4]]}, r"item_id is an array of int64 with shape \(2, 2\)"),
    ({"item_id": [1, 2, 3, 0]}, r"item_id\[3\] = 0 is outside 1..3"),
    ({"domain_id": [1, 2**32 + 1, 1, 1]}, r"domain_id\[1\] holds 4294967297, needs Int32"),
    ({"action": [0, 0.5, 0, 0]}, r"action\[1\] holds 0.5, needs Int32"),
    ({"timestamp": [1, 2, 3.5, 4]}, r"timestamp\[2\] holds 3.5, needs Int64"),
    ({"timestamp": np.array([1, 2, 3, 4], "datetime64[s]")}, r"timestamp is an array of datetime64\[s\]"),
    ({"split": np.array([0, 0, 1, 258])}, r"split\[3\] holds 258, needs an integer in 0..2"),
    ({"split": [0, 0, 1, -1]}, r"split\[3\] holds -1, needs an integer in 0..2"),
    ({"user": [0, 0, 0, 0.5]}, r"user\[3\] holds 0.5, needs an integer in 0.."),
    ({"user": [0, 0, 0, 2**40]}, r"user\[3\] holds 1099511627776, needs an integer in 0..2147483645"),
    ({"num_items": 2**31}, "num_items=2147483648 must be in 0..2147483645"),
    ({"item_domain": [0, 1, 1, 1, 7]}, r"item_domain\[4\] holds 7, needs an integer in 0..1"),
    ({"domain_names": ("a", "a")}, "domain_names must be different, but 'a' occurs more than once"),
    ({"domain_names": ("a", "a ")}, "look the same"),
    ({"user": [0, 0, 1, 1], "raw_users": ["ann", "ann"]}, "raw_users must be different, but 'ann' occurs"),
  ],
)  # fmt: skip
def test_columns_of_a_program_pass_the_same_check(columns, message):
  with pytest.raises(ValueError, match=message):
    PreparedData.from_columns(**{"user": [0] * 4, "item_id": [1, 2, 3, 4], **columns})


def test_whole_numbers_of_any_type_are_columns():
  for dtype in (np.int8, np.uint16, np.int64, np.uint64, np.float16, np.float32, np.float64):
    data = PreparedData.from_columns(user=np.zeros(3, dtype), item_id=np.array([3, 1, 2], dtype))
    assert (data.item_id.tolist(), data.item_id.dtype) == ([3, 1, 2], np.int32)
  empty = PreparedData.from_columns(user=[], item_id=[])
  assert (empty.num_users, empty.num_items, empty.num_events) == (0, 0, 0)


def test_offsets_of_no_users_are_refused_unless_they_hold_0():
  with pytest.raises(ValueError, match="offsets must be 1 integers from 0 to 2"):
    PreparedData.from_columns(offsets=[], item_id=[1, 2])
  assert PreparedData.from_columns(offsets=[0], item_id=[]).num_users == 0


def test_shards_that_would_name_their_users_alike_are_refused(tmp_path):
  shards(tmp_path)
  write(tmp_path, {"testing/partition_0.tfrecord": record(sequence_data=[5, 7], sequence_event_type=[9, 9])})
  with pytest.raises(
    ValueError, match=r"testing: \['partition_0.tfrecord', 'partition_0.tfrecord.gz'\] are the same shard"
  ):
    prepare("kuairand-1k", tmp_path)


def test_domains_of_merged_sources_that_get_the_same_name_are_refused(tmp_path):
  write(
    tmp_path, {"1.csv": "user,item,timestamp,domain\nu,x,1,b/c\n", "2.csv": "user,item,timestamp,domain\nu,x,1,c\n"}
  )
  sources = [
    {"source": "table", "raw": tmp_path / f"{i}.csv", "name": name, "domain": "domain"}
    for i, name in ((1, "a"), (2, "a/b"))
  ]
  with pytest.raises(ValueError, match=r"the domains \['a/b/c'\] of two sources get the same name"):
    prepare("merge", sources=sources)


def test_domains_that_look_like_numbers_keep_one_order():
  text = ["10", "010", "\u00b2", "--1", "-1", "other"]  # int() refuses the superscript 2.
  events = pl.DataFrame({"user": [1] * 6, "item": list(range(6)), "domain": text})
  data = prepare_log(InteractionLog(events), PrepareOptions(), source="test")
  assert data.domain_names == ("-1", "010", "10", "--1", "other", "\u00b2")


def test_kuairand_values_with_decimals_stay_different_domains(tmp_path):
  log = KUAIRAND_HEAD + "".join(f"0,{i},2,3,164941205015{i},1,0,0,0,0,0,0,0,9,0,0,0,0,4\n" for i in (1, 2, 3))
  write(tmp_path, {"log_standard_1.csv": log, "video_features_basic_1.csv": "video_id,rate\n1,9.0\n2,9.5\n3,\n3,9\n"})
  assert prepare("kuairand-csv", tmp_path, domain="rate").domain_names == ("9", "9.5")


def test_a_title_that_stands_only_in_a_later_row_is_found(tmp_path):
  write(tmp_path, {
    "a.csv": 'user,item,timestamp,title\nu1,i1,1,\nu1,i2,2,B\nu2,i1,3,"  "\nu3,i1,4,Name\nu4,i1,5,Other\n',
    "r.json": json.dumps(REVIEW_2014) + "\n",
    "meta.json": '{"asin": "B9"}\n{"asin": "B9", "title": ""}\n{"asin": "B9", "title": "Brush"}\n',
  })  # fmt: skip
  assert prepare("table", tmp_path / "a.csv", title="title").item_titles() == ["", "Name", "B"]
  data = prepare("amazon-reviews", tmp_path / "r.json", metadata=str(tmp_path / "meta.json"))
  assert data.item_titles() == ["", "Brush"]
