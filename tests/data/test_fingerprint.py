"""The fingerprint of prepared data: what it depends on, and how two are compared."""

import dataclasses
import json

import numpy as np
import polars as pl
import pytest

from jaxrec.data.fingerprint import changed_parts, differences, fingerprint
from jaxrec.data.prepared import PreparedData

COLUMNS = {
  "user": [0, 0, 0, 1, 1, 1], "item_id": [1, 2, 3, 3, 2, 1], "domain_id": [1, 2, 1, 1, 2, 1],
  "timestamp": [1, 2, 3, 4, 5, 6], "action": [1, 1, 1, 2, 2, 2], "domain_names": ["book", "film"],
  "titles": ["a", "b", "c"], "raw_items": ["x", "y", "z"], "raw_users": ["u", "v"],
}  # fmt: skip


def data(**changes):
  return PreparedData.from_columns(**{**COLUMNS, **changes})


@pytest.mark.parametrize(
  ("changes", "parts"),
  [
    ({"raw_users": ["u", "w"]}, ["users"]),
    ({"raw_items": ["x", "yz", ""]}, ["items"]),  # The same letters.
    ({"titles": ["a", "", "bc"]}, ["titles"]),
    ({"domain_names": ["film", "book"]}, ["domains"]),
    ({"item_domain": [0, 1, 2, 2]}, ["items.domain_id"]),
    ({"user": [0, 0, 1, 1, 1, 1], "split": [0, 1, 2, 0, 1, 2]}, ["offsets"]),
    ({"item_id": [1, 2, 3, 2, 3, 1], "item_domain": [0, 1, 2, 1]}, ["item_id"]),
    ({"domain_id": [1, 2, 2, 1, 2, 1], "item_domain": [0, 1, 2, 1]}, ["domain_id"]),
    ({"timestamp": [1, 2, 3, 4, 5, 7]}, ["timestamp"]),
    ({"action": [1, 1, 1, 2, 2, 3]}, ["action"]),
    ({"split": [0, 1, 2, 0, 0, 2]}, ["split"]),
  ],
)
def test_each_part_has_a_hash_of_its_own(changes, parts):
  assert changed_parts(data().fingerprint, data(**changes).fingerprint) == parts


def test_further_columns_of_the_items_count():
  one, other = (
    dataclasses.replace(data(), item_table=data().items.with_columns(category=pl.Series(values)))
    for values in ([["a"], ["b"], []], [["a"], ["b"], ["c"]])
  )
  assert changed_parts(one.fingerprint, other.fingerprint) == ["items.category"]


def test_it_is_saved_and_depends_on_neither_place_nor_time(tmp_path):
  first, second = data().save(tmp_path / "one"), data().save(tmp_path / "two" / "other name")
  saved = json.loads((tmp_path / "one" / "meta.json").read_text())["fingerprint"]
  assert saved == first.fingerprint == second.fingerprint == data().fingerprint == fingerprint(first)


def test_it_is_the_same_in_every_version():
  """Runs compare with what older versions wrote: a change of this value makes them all differ."""
  hashes = data().fingerprint["hashes"]
  assert (hashes["item_id"], hashes["titles"]) == ("58ae9358cf64b70e", "1716b2e33abe221e")


def test_data_that_were_changed_in_memory_have_another_one(tmp_path):
  loaded = data().save(tmp_path / "out")
  changed = dataclasses.replace(loaded, path=None, action=np.ones(6, np.int32), item_table=loaded.items,
                                user_table=loaded.users)  # fmt: skip
  assert changed_parts(loaded.fingerprint, changed.fingerprint) == ["action"]
  assert changed.save(tmp_path / "other").fingerprint == changed.fingerprint


def test_differences_name_numbers_and_parts():
  more = data(user=[0, 0, 0, 1, 1, 1, 1], item_id=[1, 2, 3, 3, 2, 1, 4], domain_id=None, timestamp=None, action=None,
              titles=None, raw_items=None, domain_names=None)  # fmt: skip
  text = differences(data().fingerprint, more.fingerprint)
  assert text.startswith("items: 3 when trained, 4 now; domains: 2 when trained, 1 now; events: 6 when trained, 7 now;")
  assert differences(data().fingerprint, data().fingerprint) == ""


@pytest.mark.parametrize("name", ["item_id", "timestamp", "split", "offsets"])
def test_a_changed_column_is_named(tmp_path, name):
  data().save(tmp_path / "out")
  path = tmp_path / "out" / f"{name}.npy"
  values = np.load(path)
  if name == "timestamp":
    values[1] = values[2]  # Times that fall are another error.
  elif name != "offsets":
    values[1:3] = values[2:0:-1]
  np.save(path, values)
  loaded = PreparedData.load(tmp_path / "out")
  if name == "offsets":
    loaded.check_content()
  else:
    with pytest.raises(ValueError, match=f"out: {name} changed after the folder was written"):
      loaded.check_content()
