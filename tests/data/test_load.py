"""Data by configuration: where raw and prepared folders are looked for, and that nothing is prepared twice."""

import numpy as np
from ml_collections import ConfigDict
from raw_files import ML1M_MOVIES, ML1M_RATINGS, write

from jaxrec.data.load import load_data, prepared_folder, raw_folder


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


def test_raw_files_come_from_the_data_folder_and_prepared_ones_go_to_the_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXREC_DATA", str(tmp_path / "data"))
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
  raw = write(tmp_path / "data" / "ml-1m", {"ratings.dat": ML1M_RATINGS, "movies.dat": ML1M_MOVIES})
  data = load_data(settings(source="movielens-1m"))
  assert (raw_folder("movielens-1m"), raw_folder("table")) == (str(raw), None)
  assert data.num_events == 3
  assert data.path == prepared_folder("movielens-1m", str(raw), {}) and data.path.parent == tmp_path / "cache/prepared"


def test_other_options_are_prepared_in_another_folder():
  folders = {prepared_folder("table", raw, options) for raw in (None, "a") for options in ({}, {"ids": "int"})}
  assert len(folders) == 4


def test_a_config_can_name_the_only_domain():
  whole, films = (load_data(settings(options={"num_users": 20}, only_domain=name)) for name in ("", "film"))
  assert films.num_items == whole.num_items
  assert films.num_events == (whole.domain_id == films.domain_names.index("film") + 1).sum()
