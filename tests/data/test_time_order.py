"""Events are ordered by their time in full precision, in every source and however times are written."""

import datetime
import json

import numpy as np
import polars as pl
import pytest
from raw_files import KUAIRAND_HEAD, write

from jaxrec.data.preparation.filters import PrepareOptions, sort_events
from jaxrec.data.preparation.prepare import prepare, prepare_log
from jaxrec.data.prepared import PreparedData
from jaxrec.data.sources import InteractionLog

# Four events of a user in the order of the file, with the nanoseconds after second 1433221332.
ORDER = "cabd"
FRACTION = {"c": 900_000_001, "a": 900_000_000, "b": 950_000_000, "d": 1_000_000_000}
NANOSECONDS = [1_433_221_332 * 10**9 + FRACTION[item] for item in ORDER]


EAST = datetime.timezone(datetime.timedelta(hours=2))


def items_of(data, user=0):
  """The raw ids of a user's items, in order, as one word."""
  return "".join(data.items["raw_id"][int(item) - 1] for item in data.item_id[data.user_slice(user)])


def table_of(times):
  return pl.DataFrame({"user": ["u"] * len(times), "item": list(ORDER)[: len(times)], "timestamp": times})


def test_times_in_nanoseconds_order_events_inside_a_microsecond(tmp_path):
  table_of(NANOSECONDS).write_csv(tmp_path / "a.csv")
  data = prepare("table", tmp_path / "a.csv", time_unit="ns")
  assert items_of(data) == "acbd"
  assert data.timestamp.tolist() == [1433221332, 1433221332, 1433221332, 1433221333]


@pytest.mark.parametrize(
  "unit, write_time",
  [
    ("ms", lambda ns: ns // 10**6),
    ("us", lambda ns: ns // 10**3),
    ("float_s", lambda ns: ns / 10**9),
    ("iso", lambda ns: f"{datetime.datetime.fromtimestamp(ns / 10**9, datetime.UTC):%Y-%m-%dT%H:%M:%S.%fZ}"),
    ("iso", lambda ns: str(datetime.datetime.fromtimestamp(ns / 10**9, datetime.UTC))),
    ("iso", lambda ns: datetime.datetime.fromtimestamp(ns / 10**9, EAST).isoformat()),
  ],
)  # fmt: skip
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_events_inside_a_second_are_ordered_however_times_are_written(tmp_path, unit, write_time, ending):
  late_first = [NANOSECONDS[i] for i in (2, 1, 3)]  # b, a, d: .95, .90 and the next second.
  table = table_of([write_time(time) for time in late_first])
  getattr(table, f"write_{ending}")(tmp_path / f"a.{ending}")
  data = prepare("table", tmp_path / f"a.{ending}", time_unit=unit)
  assert items_of(data) == "acb"  # The file names them c, a, b.
  assert data.timestamp.tolist() == [1433221332, 1433221332, 1433221333]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "America/New_York"])
def test_parquet_times_keep_their_own_precision_and_time_zone(tmp_path, unit, zone):
  fractions = [900, 100, 500]
  times = (
    pl.Series([1_433_221_332_000 + fraction for fraction in fractions]).cast(pl.Datetime("ms")).dt.cast_time_unit(unit)
  )
  times = times.dt.replace_time_zone("UTC").dt.convert_time_zone(zone) if zone else times
  table_of([0, 0, 0]).with_columns(timestamp=times).write_parquet(tmp_path / "a.parquet")
  data = prepare("table", tmp_path / "a.parquet")
  assert items_of(data) == "abc"
  assert data.timestamp.tolist() == [1433221332] * 3


def test_parquet_dates_and_floats_become_seconds(tmp_path):
  table_of([datetime.date(2015, 6, 3), datetime.date(2015, 6, 2)]).write_parquet(tmp_path / "a.parquet")
  assert prepare("table", tmp_path / "a.parquet").timestamp.tolist() == [1433203200, 1433289600]
  table_of([1433221332.75, 1433221332.25]).write_parquet(tmp_path / "b.parquet")
  data = prepare("table", tmp_path / "b.parquet")
  assert items_of(data) == "ac"
  assert data.timestamp.tolist() == [1433221332] * 2


def test_amazon_2023_and_kuairand_order_events_inside_a_second(tmp_path):
  times = [1588615855900, 1588615855100, 1588615855500]
  reviews = [
    {"user_id": "u", "parent_asin": item, "rating": 5.0, "timestamp": t} for item, t in zip("cab", times, strict=True)
  ]
  ratings = "user_id,parent_asin,rating,timestamp\n" + "".join(
    f"u,{r['parent_asin']},5.0,{r['timestamp']}\n" for r in reviews
  )
  clicks = KUAIRAND_HEAD + "".join(
    f"0,{i},20220408,1800,{t},1,0,0,0,0,0,0,0,9,0,0,0,0,4\n" for i, t in zip((3, 1, 2), times, strict=True)
  )
  write(tmp_path, {
    "A.jsonl": "".join(json.dumps(review) + "\n" for review in reviews), "A.csv": ratings, "log_standard_1.csv": clicks,
  })  # fmt: skip
  assert items_of(prepare("amazon-reviews", tmp_path / "A.jsonl")) == "abc"
  assert items_of(prepare("amazon-ratings", tmp_path / "A.csv")) == "abc"
  assert items_of(prepare("kuairand-csv", tmp_path)) == "123"


def test_the_last_duplicate_inside_a_second_is_kept(tmp_path):
  write(
    tmp_path, {"a.csv": "user,item,timestamp,action\nu,a,1649348400900,2\nu,a,1649348400100,1\nu,b,1649348400500,3\n"}
  )
  options = {"time_unit": "ms", "action": "action"}
  last = prepare("table", tmp_path / "a.csv", duplicates="last", **options)
  assert (items_of(last), last.action.tolist()) == ("ba", [3, 2])
  first = prepare("table", tmp_path / "a.csv", duplicates="first", **options)
  assert (items_of(first), first.action.tolist()) == ("ab", [1, 3])


def test_merged_sources_are_ordered_by_the_finest_of_their_units(tmp_path):
  write(tmp_path, {
    "s.csv": "user,item,timestamp\nu,b,1433221332\n",
    "ms.csv": "user,item,timestamp\nu,d,1433221332900\nu,a,1433221331999\nu,c,1433221332100\n",
  })  # fmt: skip
  sources = [
    {"source": "table", "raw": tmp_path / f"{unit}.csv", "name": unit, "time_unit": unit} for unit in ("s", "ms")
  ]
  data = prepare("merge", sources=sources)
  assert items_of(data) == "abcd"
  assert data.timestamp.tolist() == [1433221331, 1433221332, 1433221332, 1433221332]


def test_a_log_of_a_program_has_its_unit():
  events = pl.DataFrame({"user": [1, 1], "item": ["b", "a"], "timestamp": [1999, 1001]})
  data = prepare_log(InteractionLog(events, time_unit="ms"), PrepareOptions(), source="test")
  assert (items_of(data), data.timestamp.tolist()) == ("ab", [1, 1])
  with pytest.raises(ValueError, match="time_unit='m' is not known; give one of s, ms, us, ns"):
    prepare_log(InteractionLog(events, time_unit="m"), PrepareOptions(), source="test")


@pytest.mark.parametrize(
  "values, unit, message",
  [
    (["1433221332"], "iso", "holds '1433221332', needs a time like 2015-06-02T05:02:12.5Z"),
    (["02/06/2015"], "iso", "holds '02/06/2015', needs a time like"),
    (["1433221332.5"], "s", "holds '1433221332.5', needs Int64"),
    (["1433221332123"], "us", "looks like milliseconds, not microseconds"),
    (["1433221332123456"], "ms", "1433221332123456 is not a time in ms; it looks like microseconds"),
    (["1433221332"], "hours", "time unit='hours' is not known; give one of 's', 'ms', 'us', 'ns', 'float_s', 'iso'"),
    (["nan"], "float_s", "holds 'nan', needs Float64"),
  ],
)  # fmt: skip
def test_a_time_that_is_written_otherwise_is_named(tmp_path, values, unit, message):
  write(tmp_path, {"a.csv": "user,item,timestamp\n" + "".join(f"u,i,{value}\n" for value in values)})
  with pytest.raises(ValueError, match=message) as raised:
    prepare("table", tmp_path / "a.csv", time_unit=unit)
  assert unit == "hours" or "a.csv: line 2: column 'timestamp'" in str(raised.value)


@pytest.mark.parametrize("values", [[datetime.timedelta(1)], [datetime.time(1)], [True], [[1]]])
def test_a_parquet_column_that_holds_no_times_is_named(tmp_path, values):
  table_of(values).write_parquet(tmp_path / "a.parquet")
  with pytest.raises(ValueError, match="column 'timestamp' is a column of .*, needs"):
    prepare("table", tmp_path / "a.parquet")


def test_times_before_1970_are_dropped_and_counted_in_official_files(tmp_path):
  rows = [("B3", 1588615855900), ("B1", -62135769600000), ("B2", 1588615800500)]
  write(tmp_path, {
    "E.jsonl": "".join(
      json.dumps({"user_id": "A", "parent_asin": i, "rating": 5.0, "timestamp": t}) + "\n" for i, t in rows
    ),
    "E.csv": "user_id,parent_asin,rating,timestamp\n" + "".join(f"A,{i},5.0,{t}\n" for i, t in rows),
  })  # fmt: skip
  for source, name in (("amazon-reviews", "E.jsonl"), ("amazon-ratings", "E.csv")):
    data = prepare(source, tmp_path / name)
    assert data.items["raw_id"].to_list() == ["B2", "B3"]
    assert data.meta["counts"]["dropped"] == {"before 1970": 1}
    assert data.meta["counts"]["raw_rows"] == 3
    with pytest.raises(ValueError, match=f"{name}: line .*: -62135769600000 is not a time in ms"):
      prepare(source, tmp_path / name, outside_period="refuse")
  with pytest.raises(ValueError, match="outside_period='keep' is not known; give one of drop, refuse"):
    prepare("amazon-ratings", tmp_path / "E.csv", outside_period="keep")


def test_times_before_1970_of_a_table_are_dropped_on_demand(tmp_path):
  write(tmp_path, {"a.csv": "user,item,timestamp\nu,x,-5\nu,y,7\n", "b.csv": "user,item,timestamp\nu,x,-5\n"})
  with pytest.raises(ValueError, match="line 2: column 'timestamp': -5 is not a time in s"):
    prepare("table", tmp_path / "a.csv")
  data = prepare("table", tmp_path / "a.csv", outside_period="drop")
  assert data.items["raw_id"].to_list() == ["y"]
  assert data.meta["counts"]["dropped"] == {"before 1970": 1}
  write(tmp_path, {"iso.csv": "user,item,timestamp\nu,x,1969-12-31T23:59:59.5Z\nu,y,1970-01-01T00:00:07Z\n"})
  assert prepare("table", tmp_path / "iso.csv", time_unit="iso", outside_period="drop").timestamp.tolist() == [7]
  with pytest.raises(ValueError, match="line 2: column 'timestamp': 1969-12-31T23:59:59.5Z is not a time in ns"):
    prepare("table", tmp_path / "iso.csv", time_unit="iso")
  with pytest.raises(ValueError, match=r"b\.csv: all times are before 1970, such as -5"):
    prepare("table", tmp_path / "b.csv", outside_period="drop")


def test_a_column_of_a_program_whose_times_fall_is_refused():
  with pytest.raises(ValueError, match=r"timestamp\[2\] = 5 is before timestamp\[1\] = 6 of the same user"):
    PreparedData.from_columns(user=[0, 0, 0, 1], item_id=[1, 2, 3, 1], timestamp=[1, 6, 5, 2])
  falling_between_users = PreparedData.from_columns(user=[0, 0, 1], item_id=[1, 2, 1], timestamp=[6, 6, 2])
  assert falling_between_users.timestamp.tolist() == [6, 6, 2]


def test_a_folder_whose_times_fall_is_refused(tmp_path):
  PreparedData.from_columns(user=[0, 0], item_id=[1, 2], timestamp=[1, 2]).save(tmp_path / "d")
  np.save(tmp_path / "d" / "timestamp.npy", np.array([2, 1]))
  with pytest.raises(ValueError, match=r"d: timestamp\[1\] = 1 is before"):
    PreparedData.load(tmp_path / "d")


@pytest.mark.parametrize("scale", [1, 10**9, 10**17])
def test_events_are_sorted_by_user_then_time_then_order_whatever_the_span_of_the_times(scale):
  rng = np.random.default_rng(0)
  users, times = rng.integers(0, 200, 1000), rng.integers(0, 60, 1000) * scale
  events = pl.DataFrame({"user": users.astype(np.int32), "timestamp": times, "order": np.arange(1000)})
  found = sort_events(events, False, {})
  assert found.rows() == sorted(events.rows())
