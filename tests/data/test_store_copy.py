"""Prepared folders in an object store: a host copies what it opens, once; faults name the URL."""

import fsspec
import numpy as np
import pytest
from data.test_prepared_shards import SHARDS, assert_equal, some_data

from jaxrec.data.load import load_data
from jaxrec.data.prepared import COLUMNS, PreparedData
from jaxrec.train.config import default_config

URL = "memory://bucket/some data"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
  yield tmp_path / "cache"
  fsspec.filesystem("memory").store.clear()


def stored(tmp_path, data, shards=1):
  folder = data.save(tmp_path / f"data in {shards}", shards=shards, overwrite=True).path
  store = fsspec.filesystem("memory")
  for file in folder.rglob("*"):
    if file.is_file():
      store.pipe_file(f"/bucket/some data/{file.relative_to(folder)}", file.read_bytes())
  return store


@pytest.mark.parametrize("shards", [1, SHARDS])
def test_data_of_a_store_are_those_that_were_written(tmp_path, shards):
  stored(tmp_path, some_data(), shards)
  data = PreparedData.load(URL)
  data.check_content()
  for name in (*COLUMNS, "offsets"):
    np.testing.assert_array_equal(getattr(data, name), getattr(some_data(), name))
  assert_equal(dict(data.actions), dict(some_data().actions))
  assert data.fingerprint == some_data().fingerprint


def test_a_host_copies_its_own_shards_once(tmp_path, cache, monkeypatch):
  store = stored(tmp_path, some_data(), SHARDS)
  copied = []
  get_file = type(store).get_file
  monkeypatch.setattr(type(store), "get_file", lambda *a, **k: copied.append(a[1]) or get_file(*a, **k))
  data = PreparedData.load(URL, (2, 4))
  data.check_content()
  assert sorted(path.name for path in data.path.iterdir() if path.is_dir()) == [
    f"shard-0000{index}-of-00008" for index in (4, 5)
  ]
  number = len(copied)
  assert PreparedData.load(URL, (2, 4)).path == data.path and len(copied) == number
  assert PreparedData.load(URL).num_events == some_data().num_events > data.num_events
  assert len(set(copied)) == len(copied)


def test_other_data_at_the_same_url_are_copied_anew(tmp_path):
  stored(tmp_path, some_data())
  before = PreparedData.load(URL)
  other = PreparedData.from_columns(user=[0, 0, 1], item_id=[1, 2, 1])
  stored(tmp_path, other)
  assert PreparedData.load(URL).num_events == 3 and before.num_events == some_data().num_events


def test_a_config_reads_a_url(tmp_path):
  stored(tmp_path, some_data(), SHARDS)
  settings = default_config().data
  settings.prepared, settings.source = URL, ""
  assert load_data(settings, (0, 4)).path != load_data(settings).path.parent
  assert load_data(settings).num_events == some_data().num_events


def test_data_of_a_store_that_were_prepared_otherwise_are_named_by_their_url(tmp_path):
  stored(tmp_path, some_data())
  settings = default_config().data
  settings.prepared, settings.source = URL, some_data().meta["source"]
  settings.options = {"min_user_events": 9}
  with pytest.raises(ValueError, match=f"^{URL} was prepared otherwise: its min_user_events is None"):
    load_data(settings)


def test_a_truncated_file_of_a_store_is_named(tmp_path):
  store = stored(tmp_path, some_data(), SHARDS)
  name = "/bucket/some data/shard-00003-of-00008/item_id.npy"
  store.pipe_file(name, store.cat_file(name)[:-40])
  with pytest.raises(ValueError, match="shard-00003-of-00008/item_id.npy: (missing or damaged|truncated)"):
    PreparedData.load(URL)


FAULTS = {
  "no data": ("memory://bucket/none", "memory://bucket/none: cannot be read as .*FileNotFoundError"),
  "no store": ("nothing://bucket/data", "nothing://bucket/data: cannot be read .*[Pp]rotocol not known"),
}


@pytest.mark.parametrize(("url", "message"), FAULTS.values(), ids=FAULTS)
def test_a_url_that_cannot_be_read_is_named(url, message):
  with pytest.raises(ValueError, match=message):
    PreparedData.load(url)


def test_a_missing_shard_of_a_store_is_named(tmp_path, cache):
  store = stored(tmp_path, some_data(), SHARDS)
  store.rm("/bucket/some data/shard-00001-of-00008", recursive=True)
  with pytest.raises(ValueError, match="some data: cannot be read .*shard-00001-of-00008"):
    PreparedData.load(URL)
  assert not list(cache.rglob("meta.json"))  # Nothing that looks complete is left.
