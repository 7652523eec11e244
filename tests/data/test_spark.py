"""The preparation on Spark writes, byte for byte, what the one of one machine writes with the same shards."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from conftest import REPOSITORY

from jaxrec.data.preparation.prepare import prepare
from jaxrec.data.prepared import PreparedData
from jaxrec.data.sources import parquet_parts
from jaxrec.data.spark import event_filters
from jaxrec.data.spark.prepare_on_spark import prepare_on_spark

pytestmark = [
  pytest.mark.slow, pytest.mark.exhaustive,
  pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas"),  # Of which nothing is used.
]  # fmt: skip
SHARDS = 3


@pytest.fixture(scope="module")
def session():
  """Two worker processes with a Java process and Python processes of their own; they share files only."""
  sql = pytest.importorskip("pyspark.sql", reason="needs the package pyspark: pip install '.[spark]', and Java 17")
  pytest.importorskip("pyarrow")
  os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, sys.path)])
  os.environ["PYSPARK_PYTHON"] = sys.executable
  builder = sql.SparkSession.builder.master("local-cluster[2,1,1024]").config("spark.ui.enabled", "false")
  found = builder.config("spark.sql.shuffle.partitions", 2).config("spark.sql.adaptive.enabled", "false").getOrCreate()
  found.sparkContext.setLogLevel("ERROR")
  yield found
  found.stop()


def events(number=4000, seed=0):
  """Events of 200 users in no order, with equal times, repeated pairs, titles that come late, and all columns."""
  rng = np.random.default_rng(seed)
  user, item = (rng.zipf(1.3, number) % 200, rng.zipf(1.2, number) % 150)
  return pl.DataFrame(
    {
      "user": pl.Series([f"u{u:03} é" for u in user]),
      "item": item.astype(np.int64),
      "timestamp": 1_500_000_000_000 + rng.integers(0, 3000, number) * 700,
      "shop": pl.Series(np.array(["10", "9", "b"])[(item + (rng.random(number) < 0.2)) % 3]),
      "title": pl.Series(
        [None if lucky else f"Item {i}" for i, lucky in zip(item, rng.random(number) < 0.7, strict=True)]
      ),
      "stars": rng.integers(1, 6, number).astype(np.float64),
      "did": pl.Series(np.array(["view", "buy", "cart"])[rng.integers(0, 3, number)]),
      "like": rng.random(number) < 0.3,
      "seconds": rng.random(number).astype(np.float32) * 99,
      "kind": pl.Series(np.array(["x", "y"])[rng.integers(0, 2, number)]),
    }
  )


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
  folder, table = tmp_path_factory.mktemp("log"), events()
  for number, (first, last) in enumerate(((0, 900), (900, 900), (900, 2100), (2100, 4000))):
    table[first:last].write_parquet(folder / f"part-{number}.parquet", row_group_size=500)
  return folder


def files_of(folder):
  return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def assert_same(one: pathlib.Path, other: pathlib.Path):
  assert files_of(one) == files_of(other)
  for name in files_of(one):
    if name.suffix == ".npy":
      assert (one / name).read_bytes() == (other / name).read_bytes(), name
    elif name.suffix == ".parquet":
      assert pl.read_parquet(one / name).equals(pl.read_parquet(other / name)), name
  assert json.loads((one / "meta.json").read_text()) == json.loads((other / "meta.json").read_text())


OPTIONS = {
  "nothing": {"timestamp": None},
  "core": {"min_user_events": 8, "min_item_events": 8, "duplicates": "last", "time_unit": "ms"},
  "everything": {
    "time_unit": "ms", "domain": "shop", "title": "title", "rating": "stars", "min_rating": 2.0, "action": "did",
    "actions": "like=binary,seconds=regression,kind=multi_class", "duplicates": "first", "min_domain_events": 2,
    "min_user_events": 4, "split": "by_time", "item_identity": "per_domain", "ids": "string",
  },
  "domains of items": {
    "time_unit": "ms", "domain": "shop", "min_user_events": 5, "held_out_events": 2, "min_item_events": 3,
    "outside_period": "drop",
  },
}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_two_workers_write_what_one_machine_writes(session, parts, tmp_path, monkeypatch, options):
  one = prepare("table", parts, tmp_path / "one", shards=SHARDS, **options)
  monkeypatch.setattr(parquet_parts, "PIECE_ROWS", 800)
  meta = prepare_on_spark(parts, tmp_path / "spark", shards=SHARDS, session=session, **options)
  assert meta == one.meta
  assert_same(one.path, tmp_path / "spark")
  PreparedData.load(tmp_path / "spark").check_content()


def test_a_wrong_value_is_named_and_nothing_is_left(session, parts, tmp_path):
  bad = events(50).with_columns(pl.Series("item", [None if row == 33 else row for row in range(50)], pl.Int64))
  bad.write_parquet(tmp_path / "bad.parquet")
  with pytest.raises(ValueError, match=r"bad.parquet: row 34: column 'item' holds None, needs text"):
    prepare_on_spark(tmp_path / "bad.parquet", tmp_path / "out", shards=2, session=session, time_unit="ms")
  assert [path.name for path in tmp_path.iterdir()] == ["bad.parquet"]


def test_events_that_are_all_dropped_are_an_error(session, parts, tmp_path):
  with pytest.raises(ValueError, match="no event is left; dropped: {'users with too few events': 4000}"):
    prepare_on_spark(parts, tmp_path / "out", shards=2, session=session, time_unit="ms", min_user_events=4001)


def test_a_tie_that_is_broken_otherwise_is_noticed(session, tmp_path, monkeypatch):
  """The comparison above sees the bug that is feared most: of events with equal times another one."""
  options, part = {"duplicates": "last", "action": "did"}, tmp_path / "log.parquet"
  log = {"user": ["a", "b"] * 20, "item": ["x"] * 40, "timestamp": [7] * 40, "did": [*range(40, 0, -1)]}
  pl.DataFrame(log).write_parquet(part)
  one = prepare("table", part, tmp_path / "one", shards=2, **options)
  prepare_on_spark(part, tmp_path / "right", shards=2, session=session, **options)
  assert_same(one.path, tmp_path / "right")
  monkeypatch.setattr(event_filters, "by_time", lambda _: ["timestamp"])
  prepare_on_spark(part, tmp_path / "wrong", shards=2, session=session, **options)
  with pytest.raises(AssertionError):
    assert_same(one.path, tmp_path / "wrong")


def test_the_command_writes_a_folder_and_says_what_it_holds(session, parts, tmp_path):
  command = [
    sys.executable,
    "-m",
    "experiments.prepare",
    "--engine=spark",
    f"--raw={parts}",
    f"--out={tmp_path / 'out'}",
  ]
  how = {"cwd": REPOSITORY, "capture_output": True, "text": True}
  refused = subprocess.run([*command, "--source=taobao"], **how)
  assert refused.returncode == 1 and "--engine=spark needs --source=table and --raw" in refused.stderr
  done = subprocess.run([*command, "--source=table", "--time_unit=ms", "--shards=2", "--min_user_events=4"], **how)
  assert done.returncode == 0, done.stderr
  assert re.search(r"\d+ users, \d+ items, 1 domains, [\d,]+ events\n", done.stdout)
  assert f"written to {tmp_path / 'out'} in 2 shards" in done.stdout
  assert PreparedData.load(tmp_path / "out").num_events > 3000
