"""Every source, read from a few real rows."""

import json

import numpy as np
import polars as pl
import pytest
from raw_files import (
  KUAIRAND_HEAD,
  ML1M_MOVIES,
  ML1M_RATINGS,
  REVIEW_2014,
  REVIEW_2018,
  REVIEW_2023,
  TAOBAO,
  TMALL_HEAD,
  abxi,
  packed,
  read,
  record,
  rows,
  shards,
  write,
)

from jaxrec.data.batches.evaluation import evaluation_batches
from jaxrec.data.preparation.prepare import prepare
from jaxrec.data.sources import GENERATED, generator, reading, source_names, source_reader
from jaxrec.data.sources.crc32c import masked_crc
from jaxrec.data.sources.tfrecord import varints


def test_ml1m_ratings_and_the_whole_catalogue_are_read(tmp_path):
  raw = write(
    tmp_path,
    {
      "ratings.dat": ML1M_RATINGS,
      "movies.dat": ML1M_MOVIES.encode() + "1::Am\xe9lie: a (2001)::Comedy\n".encode("latin-1"),
    },
  )
  log = read("movielens-1m", raw)
  assert rows(log, "user", "item", "action", "timestamp")[1] == (1, 661, 3, 978302109)
  assert log.items.select("item", "title", "genres").rows()[-1] == (1, "Amélie: a (2001)", "Comedy")


def test_ml1m_first_genre_is_the_domain(tmp_path):
  data = prepare(
    "movielens-1m", write(tmp_path, {"ratings.dat": ML1M_RATINGS, "movies.dat": ML1M_MOVIES}), domain="first_genre"
  )
  assert data.domain_names == ("Animation", "Drama")
  assert data.item_domain().tolist() == [0, 1, 2, 2]
  assert data.domain_id.tolist() == [2, 1, 2]


def test_ml100k_is_read_with_titles_and_genres(tmp_path):
  flags = "|".join("1" if i in (3, 5) else "0" for i in range(19))
  raw = write(
    tmp_path, {"u.data": "196\t242\t3\t881250949\n", "u.item": f"242|Kolya (1996)|24-Jan-1997||http://x|{flags}\n"}
  )
  log = read("movielens-100k", raw)
  assert rows(log, "user", "item", "action", "timestamp") == [(196, 242, 3, 881250949)]
  assert log.items.rows() == [(242, "Kolya (1996)", "Animation|Comedy")]


def test_ml20m_half_stars_and_quoted_titles_are_read(tmp_path):
  raw = write(
    tmp_path,
    {
      "ratings.csv": "userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n",
      "movies.csv": 'movieId,title,genres\n2,"Net, The (1995)",Action|Crime\n',
    },
  )
  log = read("movielens-20m", raw)
  assert rows(log, "user", "item", "action", "timestamp") == [(1, 2, 7, 1112486027)]
  assert log.items["title"].to_list() == ["Net, The (1995)"]


def test_rows_that_end_in_carriage_returns_are_read(tmp_path):
  files = {"ratings.dat": ML1M_RATINGS.replace("\n", "\r\n"), "movies.dat": ML1M_MOVIES.replace("\n", "\r\n")}
  log = read("movielens-1m", write(tmp_path, files))
  assert log.events["timestamp"].to_list() == [978300760, 978302109, 978298413]


def test_the_edition_of_amazon_ratings_is_detected(tmp_path):
  write(
    tmp_path,
    {
      "ratings_A.csv": "U1,B1,5.0,1000000000\nU2,B1,3.0,1000000001\n",
      "B.csv": "B1,U1,5.0,1000000000\nB1,U2,3.0,1000000001\n",
      "C.csv.gz": "user_id,parent_asin,rating,timestamp\nU1,B1,5.0,1588615855070\nU2,B1,3.0,1588615855999\n",
    },
  )
  assert rows(read("amazon-ratings", tmp_path, name="A"), "user", "item") == [("U1", "B1"), ("U2", "B1")]
  assert rows(read("amazon-ratings", tmp_path, name="B"), "user", "item") == [("U1", "B1"), ("U2", "B1")]
  assert rows(read("amazon-ratings", tmp_path, name="C"), "user", "item", "timestamp")[0] == ("U1", "B1", 1588615855070)


@pytest.mark.parametrize(
  "review, expected",
  [
    (REVIEW_2014, ("A1", "B9", 5, 1252800000)),
    (REVIEW_2018, ("A2", "B8", 4, 1514851200)),
    (REVIEW_2023, ("AE", "B7", 5, 1588615855070)),
  ],
)
@pytest.mark.parametrize("ending", [".json", ".json.gz"])
def test_amazon_reviews_of_each_edition_are_read(tmp_path, review, expected, ending):
  raw = write(tmp_path, {f"r{ending}": json.dumps(review) + "\n"}) / f"r{ending}"
  assert rows(read("amazon-reviews", raw), "user", "item", "action", "timestamp") == [expected]


def test_amazon_titles_come_from_the_metadata(tmp_path):
  write(
    tmp_path,
    {"reviews_X_5.json": json.dumps(REVIEW_2014) + "\n", "meta.json": '{"asin": "B9", "title": "Brush", "price": 3}\n'},
  )
  data = prepare("amazon-reviews", tmp_path, name="X", metadata=str(tmp_path / "meta.json"))
  assert data.item_titles() == ["", "Brush"]
  assert data.domain_names == ("X",)


def test_fields_that_are_not_read_may_have_any_type(tmp_path):
  lines = [{**REVIEW_2014, "helpful": value} for value in ([0, 1], "none", None, {"a": 1})]
  raw = write(tmp_path, {"r.json": "".join(json.dumps(line) + "\n" for line in lines)}) / "r.json"
  assert len(read("amazon-reviews", raw).events) == 4


def test_5core_events_keep_their_order_and_get_times_from_the_npz(tmp_path):
  raw = write(tmp_path, {"Beauty.txt": "1 7 5 6\n2 5 7\n"})
  np.savez(
    raw / "Beauty.npz",
    items=np.array([5, 6, 7, 5, 7]),
    offsets=np.array([0, 3, 5]),
    user_ids=np.array([1, 2]),
    timestamps=np.array([20, 10, 30, 40, 50]),
  )
  data = prepare("amazon-5core", raw)
  assert data.items["raw_id"].to_list() == ["5", "6", "7"]
  assert data.item_id.tolist() == [3, 1, 2, 1, 3]
  assert data.timestamp.tolist() == [30, 30, 30, 40, 50]  # The file has 30, 20, 10.
  assert data.meta["counts"]["times_raised_to_keep_the_order"] == 2


def test_kuairand_logs_keep_the_clicks_and_their_other_feedback(tmp_path):
  log = KUAIRAND_HEAD + (
    "0,183,20220408,1800,1649412050158,1,1,0,0,0,0,0,0,9233,0,0,0,0,4\n"
    "0,187,20220408,1800,1649412061000,0,0,0,0,0,0,0,0,9233,0,0,0,0,1\n"
  )
  features = "video_id,author_id,music_type\n183,5,9.0\n187,5,\n"
  raw = write(tmp_path, {"log_standard_4_08_to_4_21_1k.csv": log, "video_features_basic_1k.csv": features})
  got = read("kuairand-csv", raw)
  assert rows(got, "user", "item", "timestamp", "action", "domain") == [(0, 183, 1649412050158, 3, "4")]
  assert got.dropped == {"without is_click": 1}
  everything = read("kuairand-csv", raw, keep="all", domain="music_type")
  assert rows(everything, "item", "domain") == [(183, "9"), (187, "unknown")]


def test_kuairand_shards_define_the_split(tmp_path):
  data = prepare("kuairand-1k", shards(tmp_path), min_user_events=3)
  assert data.items["raw_id"].to_list() == ["5", "7", "300"]
  assert data.item_id.reshape(3, 3).tolist() == [[1, 3, 2]] * 3
  assert data.split.reshape(3, 3).tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2]]
  assert data.domain_names == ("4", "9")
  assert data.user_raw_id(2) == "testing/partition_0/0"
  assert data.meta["counts"]["dropped"] == {"outside the published vocabulary": 3}


def test_the_core_of_the_kuairand_shards_has_items_that_occur_in_training(tmp_path):
  other = record(sequence_data=[7, 5, 9, 300], sequence_event_type=[9, 9, 4, 4])
  raw = shards(tmp_path, testing=other)
  write(raw, {"training/partition_1.tfrecord": record(sequence_data=[5, 7], sequence_event_type=[9, 9])})
  data = prepare("kuairand-1k", raw, min_user_events=0, min_training_events=2)
  assert data.items["raw_id"].to_list() == ["5", "7"]  # 300 has one training event, 9 none.
  dropped = {"outside the published vocabulary": 2, "of items with few training events": 4}
  assert data.meta["counts"]["dropped"] == dropped
  assert [data.split[data.user_slice(u)].tolist() for u in range(4)] == [[0, 0], [0, 0], [0, 1], [0, 2]]


def test_all_events_of_held_out_kuairand_rows_can_be_targets(tmp_path):
  data = prepare("kuairand-1k", shards(tmp_path), min_user_events=3, held_out="all")
  assert data.split.reshape(3, 3).tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
  batches = evaluation_batches(data, 2, 4, max_length=8, targets="all")
  assert batches.users.tolist() == [2, 2] and batches.without_history == 1
  with pytest.raises(ValueError, match="held_out='some' must be one of"):
    prepare("kuairand-1k", shards(tmp_path), held_out="some")


def test_varints_of_every_length_are_read():
  numbers = [0, 1, 127, 128, 16383, 16384, 2**31, 2**62, -1, -(2**63)]
  assert varints(np.frombuffer(packed(numbers), np.uint8)).tolist() == numbers


def test_checksums_do_not_depend_on_the_other_records():
  records = [b"", b"a", b"123456789", b"bc"]
  assert masked_crc(records).tolist() == [masked_crc([one])[0] for one in records]


def test_taobao_rows_outside_the_nine_days_are_dropped_and_counted(tmp_path):
  log = read("taobao", write(tmp_path, {"UserBehavior.csv": TAOBAO}))
  assert rows(log, "user", "item", "action") == [(1, 2268318, 1), (1, 2333346, 2), (2, 2268318, 3)]
  assert log.dropped == {"another behavior": 0, "outside the nine days of the log": 1}
  assert log.items.rows()[0] == (2268318, 2520377)


def test_taobao_behaviors_can_be_chosen_and_be_domains(tmp_path):
  data = prepare("taobao", write(tmp_path, {"UserBehavior.csv": TAOBAO}), behaviors="pv,cart", domain="behavior")
  assert data.domain_names == ("cart", "pv")
  assert data.domain_id.tolist() == [2, 1]


def test_tmall_days_become_seconds(tmp_path):
  log = read(
    "tmall",
    write(tmp_path, {"user_log_format1.csv": TMALL_HEAD + "328862,323294,833,2882,2661.0,0829,0\n1,2,3,4,,1111,2\n"}),
  )
  assert rows(log, "user", "item", "timestamp", "action") == [(328862, 323294, 1409270400, 1), (1, 2, 1415664000, 3)]


def test_abxi_pairs_are_read_in_their_order(tmp_path):
  data = prepare("abxi", abxi(tmp_path))
  assert data.domain_names == ("food", "kitchen")
  assert data.item_id.tolist() == [1, 2, 2, 1]
  assert data.domain_id.tolist() == [1, 2, 2, 1]
  assert data.items["raw_id"].to_list() == ["B1", "B2"]


def test_a_table_is_read_by_the_names_of_its_columns(tmp_path):
  raw = write(tmp_path, {"a.csv": 'who,note,what,when\nann,"a, ""b""\nc",x,5\nbob,,y,6\n'}) / "a.csv"
  log = read("table", raw, user="who", item="what", timestamp="when")
  assert rows(log, "user", "item", "timestamp") == [("ann", "x", 5), ("bob", "y", 6)]


def test_a_table_without_header_is_read_by_position(tmp_path):
  raw = write(tmp_path, {"a.tsv.gz": "7\t8\tbooks\n7\t9\tfilms\n"}) / "a.tsv.gz"
  data = prepare(
    "table", raw, header=False, names="user,item,domain", separator="\\t", timestamp=None, domain="domain", ids="int"
  )
  assert data.domain_names == ("books", "films")
  assert not data.has_timestamps
  assert data.item_id.tolist() == [1, 2]


def test_a_parquet_table_is_read_with_dates(tmp_path):
  table = pl.DataFrame({"user": [1, 1], "item": ["b", "a"], "timestamp": ["2020-01-02", "2020-01-01"]})
  table.with_columns(pl.col("timestamp").str.to_datetime()).write_parquet(tmp_path / "a.parquet")
  data = prepare("table", tmp_path / "a.parquet")
  assert data.timestamp.tolist() == [1577836800, 1577923200]
  assert data.item_titles() == ["", "a", "b"]


def test_merged_sources_share_users_and_not_items(tmp_path):
  write(
    tmp_path,
    {"a.csv": "user,item,timestamp\nann,x,10\nann,y,30\n", "b.csv": "user,item,timestamp\nann,x,20\nbob,z,5\n"},
  )
  sources = [{"source": "table", "raw": tmp_path / f"{name}.csv", "name": name} for name in "ab"]
  data = prepare("merge", sources=sources)
  assert data.domain_names == ("a", "b")
  assert data.num_items == 4
  assert data.items["raw_id"].to_list() == ["x", "y", "x", "z"]
  assert data.item_id[data.user_slice(data.user_index("ann"))].tolist() == [1, 3, 2]
  assert data.meta["counts"]["users_in_several_domains"] == 1


def merged_actions(folder, kinds):
  """Two tables with actions; `kinds` are those of the second."""
  write(
    folder,
    {
      "a.csv": "user,item,timestamp,like,kind,seconds\nann,x,10,1,view,2.5\nann,y,30,0,buy,1\n",
      "b.csv": "user,item,timestamp,like,kind\nann,x,20,1,cart\n",
    },
  )
  actions = {"a": "like=binary,kind=multi_class,seconds=regression", "b": kinds}
  sources = [{"source": "table", "raw": folder / f"{n}.csv", "name": n, "actions": actions[n]} for n in "ab"]
  return prepare("merge", sources=sources)


def test_merged_sources_keep_the_actions_that_all_have(tmp_path):
  data = merged_actions(tmp_path, "like=binary,kind=multi_class")
  assert {name: values.tolist() for name, values in data.actions.items()} == {"like": [1, 1, 0], "kind": [2, 1, 0]}
  assert data.action_meta["like"]["kind"] == "binary" and data.action_names["action.kind"] == ("buy", "cart", "view")
  with pytest.raises(ValueError, match="the action 'like' has several kinds: {'a': 'binary', 'b': 'regression'}"):
    merged_actions(tmp_path, "like=regression")


STRANGERS = {
  "a.csv": "user,item,timestamp\n2,x,10\n2,y,30\n7,x,500\n9,x,1\n9,y,2\n",
  "b.csv": "user,item,timestamp\nbob,z,900\nann,x,820\nann,y,840\nann,x,860\n",
}


def strangers(folder, **options):
  sources = [{"source": "table", "raw": write(folder, STRANGERS) / f"{name}.csv", "name": name} for name in "ab"]
  return prepare("merge", sources=sources, **options)


def test_users_paired_by_number_are_one_user_each(tmp_path):
  data = strangers(tmp_path, pair_users="by_number")
  assert data.num_users == 2  # 2 with ann, 7 with bob; 9 has no partner.
  raw = data.items["raw_id"].to_list()
  assert [raw[item - 1] for item in data.item_id] == ["x", "y", "x", "y", "x", "x", "z"]
  assert data.domain_id[data.user_slice(0)].tolist() == [1, 1, 2, 2, 2]
  assert data.meta["counts"]["dropped"] == {
    "a: of users without a partner": 2, "b: of users without a partner": 0
  }  # fmt: skip
  with pytest.raises(ValueError, match="pair_users='at random' must be one of"):
    strangers(tmp_path, pair_users="at random")


def test_relative_times_mix_histories_of_different_years(tmp_path):
  data = strangers(tmp_path, pair_users="by_number", pair_times="relative")
  assert data.domain_id[data.user_slice(0)].tolist() == [2, 1, 2, 1, 2]
  assert data.timestamp[data.user_slice(0)].tolist() == [166666, 250000, 500000, 750000, 833333]


def test_a_part_of_a_source_is_every_second_user(tmp_path):
  write(tmp_path, STRANGERS)
  sources = [
    {"source": "table", "raw": tmp_path / "a.csv", "name": name, "part": part}
    for name, part in (("odd", "1/2"), ("even", "2/2"))
  ]
  data = prepare("merge", sources=sources, pair_users="by_number")
  assert data.num_users == 1 and data.num_items == 3  # Users 2 and 7; 9 has no partner.
  assert data.domain_id.tolist() == [1, 1, 2]
  with pytest.raises(ValueError, match="part='3/2' of source 'odd' must be such as '1/2'"):
    prepare("merge", sources=[sources[0] | {"part": "3/2"}, sources[1]])


def test_reading_in_chunks_equals_reading_at_once(tmp_path, monkeypatch):
  text = "user,item,timestamp,title\n" + "".join(f'{i},{i % 7},{i},"a ""{i}""\nb"\n' for i in range(60))
  raw = write(tmp_path, {"a.csv.gz": text}) / "a.csv.gz"
  at_once = read("table", raw, title="title")
  monkeypatch.setattr(reading, "CHUNK_BYTES", 33)
  in_chunks = read("table", raw, title="title")
  assert at_once.events.equals(in_chunks.events)
  assert at_once.items.equals(in_chunks.items)
  assert len(at_once.events) == 60


def test_every_source_name_has_a_reader():
  for name in source_names():
    if name != "merge":
      assert (generator if name in GENERATED else source_reader)(name).__doc__.startswith("Returns")
