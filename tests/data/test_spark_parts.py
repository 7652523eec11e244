"""What workers of Spark do, without Spark: pieces of files are read, and a shard is written, as on one machine."""

import json
import sys

import numpy as np
import polars as pl
import pytest
from data.test_prepared_shards import SHARDS, assert_equal, some_data

from jaxrec.data import fingerprint, prepared_shards
from jaxrec.data.column_checks import COLUMNS
from jaxrec.data.prepared import PreparedData
from jaxrec.data.spark import event_pieces, prepare_on_spark, shard_writer
from jaxrec.data.spark.event_pieces import PLACE, EventPieces
from jaxrec.data.spark.shard_writer import ShardWriter


def write(path, **columns):
  pl.DataFrame({"user": ["a", "b"], "item": ["x", "y"], "timestamp": [2, 1], **columns}).write_parquet(path)
  return path


def data_of_active_users():
  """The data of `some_data` without the users who have no event."""
  data = some_data()
  kinds = {name: described["kind"] for name, described in data.action_meta.items()}
  columns = {name: getattr(data, name) for name in ("item_id", "domain_id", "timestamp", "action")}
  return PreparedData.from_columns(
    offsets=np.unique(data.offsets), **columns, actions=data.actions, action_kinds=kinds, num_items=data.num_items
  )


def test_workers_write_the_shards_that_one_machine_writes(tmp_path):
  data = data_of_active_users()
  one = data.save(tmp_path / "one", shards=SHARDS)
  user = np.repeat(np.arange(data.num_users, dtype=np.int32), np.diff(data.offsets))
  actions = {f"action.{name}": values for name, values in data.actions.items()}
  columns = {"item": data.item_id - 1, "domain": data.domain_id, "timestamp": data.timestamp, "action": data.action}
  events = pl.DataFrame({"user": user, **columns, **actions, PLACE: np.arange(data.num_events)})
  (tmp_path / "workers").mkdir()
  kinds = {name: described["kind"] for name, described in data.action_meta.items()}
  writer = ShardWriter(tmp_path / "workers", SHARDS, data.num_domains, "s", kinds, 1, None)
  dealt = prepared_shards.deal(np.diff(data.offsets), SHARDS)
  found = [
    writer.write(index, events.filter(pl.col("user").is_in(users)).sample(fraction=1, shuffle=True, seed=index))
    for index, users in enumerate(dealt)
  ]
  described = shard_writer.described(found)
  assert {name: described[name] for name in ("shards", "times", "has_actions")} == {
    name: one.meta[name] for name in ("shards", "times", "has_actions")
  }
  assert described["actions"] == data.action_meta
  assert described["tally"]["splits"] == np.bincount(data.split, minlength=3).tolist()
  assert json.loads(json.dumps(described)) == described
  for shard in one.path.glob("shard-*"):
    for file in shard.iterdir():
      assert (tmp_path / "workers" / shard.name / file.name).read_bytes() == file.read_bytes(), file
  assert sorted(path.name for path in (tmp_path / "workers").iterdir()) == sorted(
    p.name for p in one.path.glob("shard-*")
  )
  before = (tmp_path / "workers" / shard.name / "item_id.npy").stat().st_mtime_ns
  index = int(shard.name[6:11])
  assert writer.write(index, events.filter(pl.col("user").is_in(dealt[index])))["entry"] == found[index]["entry"]
  assert (tmp_path / "workers" / shard.name / "item_id.npy").stat().st_mtime_ns == before  # The first attempt stays.


def test_shards_are_hashed_in_blocks_of_users_as_data_in_one_piece(tmp_path):
  data = some_data().save(tmp_path / "data", shards=SHARDS)
  for users in (1, 7, 1000):
    blocks = list(prepared_shards.columns_in_order(data.path, data.meta, users))
    assert_equal(
      {name: np.concatenate([b[name] for b in blocks]) for name in COLUMNS}, {n: getattr(data, n) for n in COLUMNS}
    )
    hashes = fingerprint.hashes_of_blocks(blocks)
    assert fingerprint.fingerprint(data, hashes) == data.fingerprint


def test_pieces_of_files_are_read_in_any_order_and_keep_their_place(tmp_path, monkeypatch):
  monkeypatch.setattr("jaxrec.data.sources.parquet_parts.PIECE_ROWS", 1)
  parts = [write(tmp_path / f"{name}.parquet", did=["view", "buy"], stars=[1.0, 5.0]) for name in "ab"]
  table = prepare_on_spark._table({"action": "did", "rating": "stars", "time_unit": "s"})
  pieces = EventPieces.of(parts, table, 2.0)
  assert pieces.names_of_actions == ["action"]
  found = pl.concat([event_pieces._events(pieces, **piece) for piece in pieces.pieces.to_dicts()[::-1]]).sort(PLACE)
  assert found["user"].to_list() == ["a", "b"] * 2 and found["action"].to_list() == ["view", "buy"] * 2
  assert found[event_pieces.RATED].to_list() == [False, True] * 2 and found[PLACE].is_unique().all()


def test_times_of_dates_are_kept_in_their_unit(tmp_path):
  dates = pl.Series([1, 2]).cast(pl.Datetime("us"))
  part = write(tmp_path / "a.parquet", timestamp=dates)
  assert EventPieces.of([part], prepare_on_spark._table({}), None).time_unit == "us"


REFUSED = {
  "text": ({"separator": ";"}, "are options of text files"),
  "no ratings": ({"min_rating": 2}, "min_rating=2 needs ratings"),
  "unknown": ({"nonsense": 2}, "unknown option"),
  "columns": ({"domain": "shop"}, r"no column \['shop'\]"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_options_are_refused_before_spark_starts(tmp_path, options, message):
  part = write(tmp_path / "a.parquet")
  with pytest.raises(ValueError, match=message):
    prepare_on_spark.prepare_on_spark(part, tmp_path / "out", shards=1, **options)


def test_files_that_are_not_parquet_are_refused(tmp_path):
  (tmp_path / "log.csv").write_text("user,item\n")
  with pytest.raises(ValueError, match="log.csv: no Parquet files; on Spark the source must be"):
    prepare_on_spark.prepare_on_spark(tmp_path / "log.csv", tmp_path / "out", shards=1)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "pyspark.sql", None)
  with pytest.raises(ImportError, match=r"pip install 'jaxrec\[spark\]'"):
    prepare_on_spark.prepare_on_spark(write(tmp_path / "a.parquet"), tmp_path / "out", shards=1)
