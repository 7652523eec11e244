"""Data by configuration: where raw and prepared folders are looked for, and that nothing is prepared twice."""

import os

import numpy as np
import pytest
from ml_collections import ConfigDict
from raw_files import ML1M_MOVIES, ML1M_RATINGS, write

from jaxrec.data import load
from jaxrec.data.load import load_data, prepared_folder
from jaxrec.data.preparation.prepare import generate, prepare
from jaxrec.data.preparation.raw_state import raw_folder


def settings(**changes):
  return ConfigDict({"source": "synthetic", "raw": "", "prepared": "", "options": {}, "only_domain": "", **changes})


def test_a_source_is_prepared_once_and_then_loaded(tmp_path):
  group = settings(prepared=str(tmp_path / "prepared"), options={"num_users": 20, "num_items": 48})
  first = load_data(group)
  written = (tmp_path / "prepared" / "meta.json").stat().st_mtime_ns
  np.testing.assert_array_equal(load_data(group).item_id, first.item_id)
  assert (tmp_path / "prepared" / "meta.json").stat().st_mtime_ns == written


def test_generated_data_without_a_folder_stays_in_memory(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path))
  assert load_data(settings(options={"num_users": 3})).path is None
  assert list(tmp_path.iterdir()) == []


def test_generated_data_is_made_once_for_the_runs_of_a_process(monkeypatch):
  made = []
  monkeypatch.setattr(load, "generate", lambda *options: made.append(options) or generate(*options))
  runs = [load_data(settings(options={"num_users": users})) for users in (6, 6, 7)]
  assert runs[0] is runs[1] and [data.num_users for data in runs] == [6, 6, 7] and len(made) == 2
  with pytest.raises(ValueError, match="read-only"):
    runs[0].item_id[0] = 1


def test_raw_files_come_from_the_data_folder_and_prepared_ones_go_to_the_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXREC_DATA", str(tmp_path / "data"))
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
  raw = write(tmp_path / "data" / "ml-1m", {"ratings.dat": ML1M_RATINGS, "movies.dat": ML1M_MOVIES})
  data = load_data(settings(source="movielens-1m"))
  assert (raw_folder("movielens-1m"), raw_folder("table")) == (str(raw), None)
  assert data.num_events == 3 == prepare("movielens-1m").num_events
  assert data.path == prepared_folder("movielens-1m", str(raw), {}) and data.path.parent == tmp_path / "cache/prepared"


def test_other_options_are_prepared_in_another_folder():
  folders = {prepared_folder("table", raw, options) for raw in (None, "a") for options in ({}, {"ids": "int"})}
  assert len(folders) == 4


def test_a_config_can_name_the_only_domain():
  whole, films = (load_data(settings(options={"num_users": 20}, only_domain=name)) for name in ("", "film"))
  assert films.num_items == whole.num_items
  assert films.num_events == (whole.domain_id == films.domain_names.index("film") + 1).sum()


LOG = "user,item,timestamp\n" + "".join(f"u{user},i{item},{item}\n" for user in range(3) for item in range(4))


def table(tmp_path, monkeypatch, **changes):
  """Settings of a table in a CSV file that is prepared into the cache."""
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
  (tmp_path / "log.csv").write_text(LOG)
  return settings(source="table", raw=str(tmp_path / "log.csv"), **changes)


def test_a_raw_file_that_changes_is_prepared_again(tmp_path, monkeypatch):
  group = table(tmp_path, monkeypatch)
  assert load_data(group).num_events == 12
  with open(tmp_path / "log.csv", "a") as file:
    file.write("u9,i1,5\nu9,i2,6\nu9,i3,7\n")
  assert load_data(group).num_events == 15


def test_a_raw_file_that_is_replaced_by_one_of_the_same_size_is_prepared_again(tmp_path, monkeypatch):
  group = table(tmp_path, monkeypatch)
  before = load_data(group)
  (tmp_path / "log.csv").write_text(LOG.replace("i3", "i7"))
  os.utime(tmp_path / "log.csv", ns=(1, 1))
  assert load_data(group).item_titles() != before.item_titles()


def test_a_file_that_is_added_to_a_raw_folder_or_to_a_merged_source_is_noticed(tmp_path):
  raw = write(tmp_path / "raw", {"a.csv": "1", "more/b.csv": "2"})
  merged = {"sources": [{"name": "a", "source": "table", "raw": str(raw)}]}
  before = prepared_folder("table", str(raw), {}), prepared_folder("merge", None, merged)
  assert before == (prepared_folder("table", str(raw), {}), prepared_folder("merge", None, merged))
  write(raw / "more", {"c.csv": "3"})
  after = prepared_folder("table", str(raw), {}), prepared_folder("merge", None, merged)
  assert before[0] != after[0] and before[1] != after[1]


def test_a_mistyped_prepared_folder_is_named(tmp_path):
  with pytest.raises(ValueError, match=r"config.data.prepared='.*typo': no such folder; create it"):
    load_data(settings(source="", prepared=str(tmp_path / "typo")))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"options": {"min_user_events": 9}}, "its min_user_events is 4, config.data.options.min_user_events is 9"),
    ({"options": {"item": "sku"}}, "its item is 'item', config.data.options.item is 'sku'"),
  ],
)
def test_a_folder_that_was_prepared_with_other_options_is_refused(tmp_path, monkeypatch, changes, message):
  group = table(tmp_path, monkeypatch, prepared=str(tmp_path / "out"), options={"min_user_events": 4})
  load_data(group)
  with pytest.raises(ValueError, match=f"out was prepared otherwise: {message}"):
    load_data(ConfigDict({**group.to_dict(), **changes}))


def test_a_folder_of_another_source_is_warned_about(tmp_path, monkeypatch):
  group, lines = table(tmp_path, monkeypatch, prepared=str(tmp_path / "out")), []
  load_data(group)
  monkeypatch.setattr("jaxrec.data.load.logging.warning", lambda text, *values: lines.append(text % values))
  assert load_data(ConfigDict({**group.to_dict(), "source": "movielens-1m"})).num_events == 12
  assert lines[0].endswith("out was prepared from source 'table', not config.data.source='movielens-1m'")


@pytest.mark.parametrize("changes", [{"source": ""}, {"options": {}}, {"options": {"item": "item"}}, {"raw": ""}])
def test_a_folder_is_taken_as_it_is_where_the_config_does_not_say_otherwise(tmp_path, monkeypatch, changes):
  group = table(tmp_path, monkeypatch, prepared=str(tmp_path / "out"), options={"min_user_events": 4})
  first = load_data(group)
  assert load_data(ConfigDict({**group.to_dict(), **changes})).fingerprint == first.fingerprint


def test_files_that_change_after_they_were_prepared_are_named(tmp_path, monkeypatch):
  group = table(tmp_path, monkeypatch, prepared=str(tmp_path / "out"))
  items = np.array(load_data(group).item_id)
  np.save(tmp_path / "out" / "item_id.npy", items[::-1])
  with pytest.raises(ValueError, match="out: item_id changed after the folder was written"):
    load_data(group)


def test_changed_raw_files_of_a_named_folder_are_warned_about(tmp_path, monkeypatch):
  group = table(tmp_path, monkeypatch, prepared=str(tmp_path / "out"))
  lines = []
  load_data(group)
  monkeypatch.setattr("jaxrec.data.load.logging.warning", lambda text, *values: lines.append(text % values))
  assert load_data(group).num_events == 12 and lines == []
  with open(tmp_path / "log.csv", "a") as file:
    file.write("u9,i1,5\n")
  assert load_data(group).num_events == 12
  assert "log.csv is not what it was when" in lines[0]


def test_a_url_of_raw_data_is_refused(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match="config.data.raw='gs://bucket/x' is a URL"):
    load_data(settings(source="table", raw="gs://bucket/x"))
  assert list(tmp_path.iterdir()) == []
