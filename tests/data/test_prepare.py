"""From an interaction log to the prepared folder: ids, filters, order, splits, and what a failure leaves behind."""

import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from conftest import REPOSITORY
from event_logs import prepared
from raw_files import ML1M_MOVIES, ML1M_RATINGS, write

from jaxrec.data import prepared_files
from jaxrec.data.preparation.filters import PrepareOptions
from jaxrec.data.preparation.prepare import prepare, prepare_log
from jaxrec.data.prepared import PreparedData
from jaxrec.data.sources import InteractionLog


def sequences(data):
  raw = ["", *data.items["raw_id"]]
  return {data.user_raw_id(u): "".join(raw[i] for i in data.item_id[data.user_slice(u)]) for u in range(data.num_users)}


def test_events_are_sorted_by_user_and_time():
  data = prepared("b x 3, a y 2, b z 1, a x 1")
  assert sequences(data) == {"a": "xy", "b": "zx"}
  assert data.timestamp.tolist() == [1, 2, 1, 3]
  assert data.offsets.tolist() == [0, 2, 4]


def test_events_of_the_same_second_keep_the_order_of_the_file():
  letters = "qwertzuiopasdfghjkl"
  text = ",".join(f"a {letter} 5" for letter in letters)
  assert sequences(prepared(text + ", a y 4")) == {"a": "y" + letters}


def test_a_source_with_its_own_order_is_not_sorted_by_its_times():
  data = prepared("a x 3, a y 1, a z 4", {"in_order": True})
  assert sequences(data) == {"a": "xyz"}
  assert data.timestamp.tolist() == [3, 3, 4]
  assert data.meta["counts"]["times_raised_to_keep_the_order"] == 1


def test_leave_one_out_keeps_short_users_for_training():
  data = prepared("a x 1, a y 2, a z 3, a x 4, b x 1, b y 2")
  assert data.split.tolist() == [0, 0, 1, 2, 0, 0]
  assert data.meta["counts"]["users_train_only"] == 1


def test_several_events_of_a_user_can_be_held_out():
  data = prepared("a x 1, a y 2, a z 3, a x 4, a y 5, b x 1, b y 2, b x 3, b y 4", held_out_events=2)
  assert data.split.tolist() == [0, 1, 1, 2, 2, 0, 0, 0, 0]
  assert data.meta["split"] == {"kind": "leave_one_out", "held_out_events": 2}
  assert data.meta["counts"]["users_train_only"] == 1


def test_by_time_splits_at_the_given_seconds():
  data = prepared("a x 1, a y 5, b z 5, b x 7, b y 9", split="by_time", validation_time=5, test_time=9)
  assert data.split.tolist() == [0, 1, 1, 1, 2]
  assert data.meta["split"] == {"kind": "by_time", "validation_time": 5, "test_time": 9}


def test_by_time_takes_the_last_tenth_by_default():
  data = prepared(",".join(f"a x {t}" for t in range(101)), split="by_time")
  assert (data.meta["split"]["validation_time"], data.meta["split"]["test_time"]) == (90, 95)
  assert np.bincount(data.split).tolist() == [90, 5, 6]


def test_by_time_takes_other_quantiles():
  options = {"split": "by_time", "validation_quantile": 0.5, "test_quantile": 0.75}
  data = prepared(",".join(f"a x {t}" for t in range(101)), **options)
  assert data.meta["split"] == {"kind": "by_time", "validation_time": 50, "test_time": 75}


@pytest.mark.parametrize("times", [(5, 5), (0, 3), (3, 100), (8, 3)])
def test_by_time_refuses_an_empty_split(times):
  with pytest.raises(ValueError, match="leaves a split empty; the times of the events are 1 to 9"):
    prepared("a x 1, a y 5, a z 9", split="by_time", validation_time=times[0], test_time=times[1])


def test_the_k_core_is_repeated_until_both_limits_hold():
  # Dropped: z (1 event), then b (1 event left), then y (1 event left), then a (1 event left) ...
  text = "a x 1, a y 2, b y 1, b z 2, c x 1, c w 2, d x 1, d w 2"
  data = prepared(text, min_user_events=2, min_item_events=2)
  assert sequences(data) == {"c": "xw", "d": "xw"}
  assert data.items["raw_id"].to_list() == ["w", "x"]
  dropped = data.meta["counts"]["dropped"]
  assert sum(dropped.values()) == 4
  assert set(dropped) == {"users with too few events", "items with too few events"}


def test_without_an_item_limit_the_catalogue_keeps_items_without_events():
  items = pl.DataFrame({"item": ["x", "never", "y"], "title": ["Ex", None, "Why"]})
  data = prepared("a x 1, a y 2", {"items": items})
  assert data.item_titles() == ["", "Ex", "never", "Why"]
  assert data.item_id.tolist() == [1, 3]
  assert data.num_items == 3


def test_min_domain_events_needs_events_in_every_domain():
  data = prepared("a x 1 p, a y 2 q, b x 1 p, b x 2 p", min_domain_events=1)
  assert sequences(data) == {"a": "xy"}


def test_low_ratings_are_dropped():
  events = pl.DataFrame({"user": [1, 1], "item": [1, 2], "rating": [3.5, 4.0]})
  data = prepare_log(InteractionLog(events), PrepareOptions(min_rating=4), source="test")
  assert data.items["raw_id"].to_list() == ["2"]
  assert data.meta["counts"]["dropped"] == {"rated below min_rating": 1}


@pytest.mark.parametrize("keep, expected", [("keep", "yxx"), ("first", "yx"), ("last", "yx")])
def test_duplicates_are_kept_by_default(keep, expected):
  data = prepared("a x 9, a y 1, a x 3", duplicates=keep)
  assert sequences(data) == {"a": expected}
  assert data.timestamp[-1] == (3 if keep == "first" else 9)


def test_the_same_raw_id_in_two_domains_is_one_item_or_two():
  text = "a x 1 p, a x 2 q"
  assert prepared(text).num_items == 1
  two = prepared(text, item_identity="per_domain")
  assert two.num_items == 2
  assert two.item_domain().tolist() == [0, 1, 2]
  titled = prepared(text, {"items": pl.DataFrame({"item": ["x"], "title": ["Ex"]})}, item_identity="per_domain")
  assert titled.item_titles() == ["", "Ex", "Ex"]


def test_integer_ids_are_sorted_by_value_and_strings_by_letters():
  events = pl.DataFrame({"user": [10, 9, 2], "item": [100, 20, 3]})
  data = prepare_log(InteractionLog(events), PrepareOptions(), source="test")
  assert data.users["raw_id"].to_list() == ["2", "9", "10"]
  assert data.items["raw_id"].to_list() == ["3", "20", "100"]


def test_integers_as_domain_names_are_sorted_by_value():
  assert prepared("a x 1 10, a y 2 9, a z 3 other").domain_names == ("9", "10", "other")


def test_a_named_domain_without_events_is_refused():
  with pytest.raises(ValueError, match=r"\['q'\] have no events"):
    prepared("a x 1 p", {"domains": ("p", "q")})


def test_domains_that_the_filters_emptied_are_counted():
  data = prepared("a x 1 p, a y 2 p, b z 1 q", min_user_events=2)
  assert data.meta["counts"]["domains_emptied_by_filters"] == ["q"]


def test_an_item_outside_the_catalogue_is_refused():
  with pytest.raises(ValueError, match=r"1 item\(s\) of the events are not in the catalogue, such as \['y'\]"):
    prepared("a x 1, a y 2", {"items": pl.DataFrame({"item": ["x"]})})


@pytest.mark.parametrize(
  "options, message",
  [
    ({"min_user_events": 9}, "no event is left after filtering; dropped: .*too few events.*lower the limits"),
    ({"min_rating": 3.0}, "needs ratings, but the source has none"),
    ({"split": "given"}, "split='given' needs a source that says"),
    ({"split": "random"}, "split='random' is not known; give one of leave_one_out, by_time, given"),
    ({"held_out_events": 0}, "held_out_events=0 must be an integer of at least 1"),
    ({"held_out_events": 2, "split": "given"}, "held_out_events=2 needs split='leave_one_out', not 'given'"),
    ({"test_time": 3}, "need split='by_time'"),
    ({"test_quantile": 0.5}, "need split='by_time'"),
    ({"split": "by_time", "test_quantile": 95}, "test_quantile=95 must be between 0 and 1"),
    ({"split": "by_time", "test_quantile": 0.9, "test_time": 3}, "give one of them"),
    ({"min_item_events": -1}, "must not be negative"),
  ],
)
def test_options_that_do_not_fit_the_log_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    prepared("a x 1, a y 2", **options)


def ml1m(folder):
  return write(folder, {"ratings.dat": ML1M_RATINGS, "movies.dat": ML1M_MOVIES})


def test_an_unknown_option_is_refused(tmp_path):
  with pytest.raises(
    ValueError, match=r"unknown option\(s\) \['min_user_event'\] for source 'movielens-1m'; known: domain, "
  ):
    prepare("movielens-1m", ml1m(tmp_path), min_user_event=5)


def test_a_loaded_folder_equals_the_prepared_data(tmp_path):
  data = prepare("movielens-1m", ml1m(tmp_path / "raw"), tmp_path / "a" / "out")
  loaded = PreparedData.load(tmp_path / "a" / "out")
  for name in ("item_id", "domain_id", "timestamp", "action", "split", "offsets"):
    assert np.array_equal(getattr(data, name), getattr(loaded, name))
  assert isinstance(loaded.item_id, np.memmap)
  assert loaded.meta == data.meta
  assert loaded.item_titles()[loaded.item_id[0]] == "One Flew Over the Cuckoo's Nest (1975)"
  assert loaded.user_index(2) == loaded.user_index("2") == 1
  assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["out"]


def test_a_failed_preparation_leaves_nothing_behind(tmp_path):
  raw = ml1m(tmp_path / "raw")
  (raw / "ratings.dat").write_text(ML1M_RATINGS + "broken")
  with pytest.raises(ValueError, match="line 4"):
    prepare("movielens-1m", raw, tmp_path / "out")
  assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_failed_write_leaves_nothing_behind_and_keeps_the_old_folder(tmp_path, monkeypatch):
  prepare("movielens-1m", ml1m(tmp_path / "raw"), tmp_path / "out")

  def full(*_):
    raise OSError("disk full")

  monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
  with pytest.raises(OSError, match="disk full"):
    prepare("movielens-1m", tmp_path / "raw", tmp_path / "out", overwrite=True)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]
  assert PreparedData.load(tmp_path / "out").num_users == 2


def test_an_existing_folder_is_replaced_only_on_demand(tmp_path):
  prepare("movielens-1m", ml1m(tmp_path / "raw"), tmp_path / "out")
  with pytest.raises(ValueError, match="exists already"):
    prepare("movielens-1m", tmp_path / "raw", tmp_path / "out")
  data = prepare("movielens-1m", tmp_path / "raw", tmp_path / "out", overwrite=True, domain="first_genre")
  assert data.num_domains == 2
  assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
  (tmp_path / "thesis.tex").write_text("")
  with pytest.raises(ValueError, match="not a folder of prepared data"):
    prepare("synthetic", out=tmp_path, overwrite=True)


@pytest.mark.parametrize(
  "name, damage, message",
  [
    ("meta.json", lambda path: path.write_text("{"), "cannot be read as the description"),
    ("meta.json", lambda path: path.write_text('{"format": 99}'), 'needs "format": 1'),
    ("item_id.npy", lambda path: path.unlink(), "missing or damaged"),
    ("item_id.npy", lambda path: path.write_bytes(path.read_bytes()[:-4]), "missing or damaged|truncated"),
    ("item_id.npy", lambda path: np.save(path, np.array([1, 2, 4], np.int32)), r"item_id\[2\] = 4 is outside 1..3"),
    ("split.npy", lambda path: np.save(path, np.array([0, 0, 1], np.int32)), "holds int32"),
    ("offsets.npy", lambda path: np.save(path, np.array([0, 4, 3])), "offsets must be 3 integers from 0 to 3"),
    ("users.parquet", lambda path: path.unlink(), "missing"),
  ],
)
def test_a_damaged_folder_is_named(tmp_path, name, damage, message):
  prepare("movielens-1m", ml1m(tmp_path / "raw"), tmp_path / "out")
  damage(tmp_path / "out" / name)
  with pytest.raises(ValueError, match=f"out.*({message})") as raised:
    PreparedData.load(tmp_path / "out")
  assert name.split(".")[0] in str(raised.value)


def test_a_damaged_id_map_is_named_when_it_is_read(tmp_path):
  data = prepare("movielens-1m", ml1m(tmp_path / "raw"), tmp_path / "out")
  (tmp_path / "out" / "items.parquet").write_bytes(b"PAR1")
  with pytest.raises(ValueError, match=r"items\.parquet: missing or damaged"):
    data.item_titles()


def test_an_unknown_user_is_named():
  with pytest.raises(ValueError, match="user '7' is not in the prepared data"):
    prepared("a x 1").user_index(7)


def test_a_folder_without_prepared_data_is_refused(tmp_path):
  with pytest.raises(ValueError, match="no such folder of prepared data"):
    PreparedData.load(tmp_path / "nothing")
  with pytest.raises(ValueError, match=r"meta\.json: cannot be read"):
    PreparedData.load(tmp_path)


@pytest.mark.parametrize(
  "columns, message",
  [
    ({"user": [0, 1, 0]}, "user must be 0-based and never decrease"),
    ({}, "exactly one of user and offsets"),
    ({"offsets": [0, 2]}, "offsets must be 2 integers from 0 to 3"),
    ({"user": [0, 0, 0], "num_items": 2}, r"item_id\[2\] = 3 is outside 1..2"),
    ({"user": [0, 0, 0], "titles": ["a"]}, "titles has 1 entries, needs 3"),
    ({"user": [0, 0, 0], "domain_id": [1, 1]}, "domain_id has 2 entries, needs 3"),
  ],
)
def test_columns_that_do_not_fit_together_are_refused(columns, message):
  with pytest.raises(ValueError, match=message):
    PreparedData.from_columns(item_id=[1, 2, 3], **columns)


def test_a_user_without_events_is_allowed():
  data = PreparedData.from_columns(user=[0, 2], item_id=[1, 2])
  assert data.num_users == 3
  assert data.user_slice(1) == slice(1, 1)


def command(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "experiments.prepare", *arguments], capture_output=True, text=True, check=False
  )


def test_the_command_prints_stages_and_a_table(tmp_path):
  ml1m(tmp_path / "raw")
  out = tmp_path / "out"
  done = command(
    "--source=movielens-1m", f"--raw={tmp_path / 'raw'}", f"--out={out}", "--domain=first_genre", "--min_user_events=1"
  )
  assert done.returncode == 0, done.stderr
  assert "reading movielens-1m" in done.stderr and "writing" in done.stderr
  table = [line.split() for line in done.stdout.splitlines()]
  assert table[0] == ["domain", "users", "items", "events", "training", "validation", "test"]
  assert table[3] == ["all", "2", "3", "3", "3", "0", "0"]
  assert json.loads((out / "meta.json").read_text())["options"]["min_user_events"] == 1


def test_the_command_names_an_option_that_the_source_does_not_have(tmp_path):
  done = command("--source=movielens-1m", f"--raw={ml1m(tmp_path)}", f"--out={tmp_path / 'out'}", "--edition=2018")
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1].startswith("prepare: unknown option(s) ['edition'] for source 'movielens-1m'")


def test_importing_the_data_package_does_not_import_polars():
  code = "import sys, jaxrec.data; sys.exit('polars' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


def folder_of(data_dir, name):
  if not (data_dir / name).is_dir():
    pytest.skip(f"no folder {data_dir / name}")
  return data_dir / name


def test_movielens_1m_has_the_published_counts(data_dir, tmp_path):
  data = prepare("movielens-1m", folder_of(data_dir, "ml-1m"), tmp_path / "out")
  assert (data.num_users, data.num_items, data.num_events) == (6040, 3883, 1_000_209)
  assert len(np.unique(data.item_id)) == 3706
  first = data.user_slice(data.user_index(1))
  assert [data.item_titles()[item] for item in data.item_id[first][:2]] == [
    "Girl, Interrupted (1999)",
    "Back to the Future (1985)",
  ]
  inside = np.ones(data.num_events - 1, bool)
  inside[data.offsets[1:-1] - 1] = False
  assert (np.diff(data.timestamp)[inside] >= 0).all()
  assert round(float((np.diff(data.timestamp)[inside] == 0).mean()), 2) == 0.53


@pytest.mark.parametrize("name, counts", [("Beauty", (22363, 12101, 198502)), ("Sports", (35598, 18357, 296337))])
def test_the_5core_sets_keep_the_published_order(data_dir, name, counts):
  raw = folder_of(data_dir, "amazon-5core")
  data = prepare("amazon-5core", raw, name=name)
  assert (data.num_users, data.num_items, data.num_events) == counts
  assert data.has_timestamps
  last_line = next(raw.glob(f"{name}*.txt")).read_text().splitlines()[-1].split()
  assert data.item_id[data.user_slice(data.num_users - 1)].tolist() == [int(word) for word in last_line[1:]]


def test_the_abxi_set_has_the_published_counts(data_dir):
  data = prepare("abxi", folder_of(data_dir, "abxi-food-kitchen"))
  assert (data.num_users, data.num_items) == (7144, 28095)
  assert np.bincount(data.domain_id).tolist() == [0, 83663, 89885]
  assert data.domain_names == ("food", "kitchen")


def test_the_taobao_sample_has_the_published_counts(data_dir):
  data = prepare("taobao", folder_of(data_dir, "taobao-sample"), outside_period="keep")
  assert (data.num_users, data.num_items, data.num_events) == (815, 55368, 84475)


def test_the_kuairand_shards_have_the_published_counts(data_dir):
  data = prepare("kuairand-1k", folder_of(data_dir, "kuairand-1k"))
  assert (data.num_users, data.num_items, data.num_domains) == (5101, 944384, 7)
  assert np.bincount(data.split).tolist() == [data.num_events - 2000, 1000, 1000]
  test_events = np.bincount(data.domain_id[data.split == 2], minlength=8)
  assert dict(zip(data.domain_names, test_events[1:].tolist(), strict=True)) == {
    "0": 41,
    "1": 0,
    "4": 136,
    "7": 1,
    "8": 13,
    "9": 808,
    "11": 1,
  }


def test_the_format_of_the_folder_is_numbered():
  assert prepared_files.FORMAT == prepared("a x 1").meta["format"]
