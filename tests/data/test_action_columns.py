"""Typed actions: from sources and tables through prepared folders, with errors that say where."""

import json

import numpy as np
import polars as pl
import pytest
from raw_files import KUAIRAND_HEAD, ML1M_MOVIES, ML1M_RATINGS, TAOBAO, TMALL_HEAD, read, write

from jaxrec.data.preparation.from_events import from_events
from jaxrec.data.preparation.prepare import prepare
from jaxrec.data.prepared import PreparedData
from jaxrec.data.single_domain import only_domain

KINDS = {"like": "binary", "stars": "multi_class", "watched": "regression"}
COLUMNS = {"like": [0, 1, 1, 0], "stars": [0, 4, 2, 1], "watched": [1.5, 0.0, -2.0, 9.0]}


def small(**changed):
  return PreparedData.from_columns(
    user=[0, 0, 0, 1], item_id=[3, 1, 2, 2], domain_id=[1, 2, 1, 1],
    actions={**COLUMNS, **changed}, action_kinds=KINDS,
  )  # fmt: skip


def test_a_prepared_folder_keeps_actions_with_their_types(tmp_path):
  data = small().save(tmp_path / "data")
  assert {name: values.tolist() for name, values in data.actions.items()} == COLUMNS
  assert [values.dtype for values in data.actions.values()] == [np.uint8, np.int32, np.float32]
  assert isinstance(data.actions["like"], np.memmap)
  assert {name: meta["classes"] for name, meta in data.action_meta.items()} == {"like": 2, "stars": 5, "watched": 0}
  assert data.action_meta["watched"] | {"kind": ""} == {"kind": "", "classes": 0, "least": -2, "most": 9, "mean": 2.125}


def test_a_folder_of_before_actions_still_loads(tmp_path):
  PreparedData.from_columns(user=[0], item_id=[1]).save(tmp_path / "data")
  path = tmp_path / "data/meta.json"
  meta = json.loads(path.read_text())
  del meta["actions"]
  path.write_text(json.dumps(meta))
  assert PreparedData.load(tmp_path / "data").actions == {}


def test_a_missing_or_short_file_of_an_action_is_an_error(tmp_path):
  small().save(tmp_path / "data")
  np.save(tmp_path / "data/action.like.npy", np.zeros(3, np.uint8))
  with pytest.raises(ValueError, match=r"action\.like\.npy: has 3 entries, needs 4"):
    PreparedData.load(tmp_path / "data")
  (tmp_path / "data/action.like.npy").unlink()
  with pytest.raises(ValueError, match=r"action\.like\.npy: missing or damaged"):
    PreparedData.load(tmp_path / "data")


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"like": [0, 2, 0, 0]}, r"like\[1\]: the action 'like' is 2, needs 0 or 1"),
    ({"stars": [0, 0, 0, -1]}, r"stars\[3\]: the action 'stars' is -1, needs a whole number from 0"),
    ({"stars": [0.5, 0, 0, 0]}, r"stars\[0\]: the action 'stars' is 0.5, needs a whole number"),
    ({"watched": [0, 0, np.nan, 0]}, r"watched\[2\]: the action 'watched' is nan, needs a finite number"),
    ({"like": [0, 1]}, "like has 2 entries, needs 4"),
    ({"more": [0, 0, 0, 0]}, "must have the same names"),
  ],
)
def test_a_wrong_action_is_an_error_that_says_where(changed, message):
  with pytest.raises(ValueError, match=message):
    small(**changed)


def test_one_domain_keeps_the_actions_of_its_events():
  data = only_domain(
    PreparedData.from_columns(
      user=[0] * 5, item_id=[1, 2, 3, 4, 5], domain_id=[1, 2, 1, 2, 1],
      actions={"like": [1, 0, 1, 0, 0]}, action_kinds={"like": "binary"},
    ),
    "domain 1",
  )  # fmt: skip
  assert data.item_id.tolist() == [1, 3, 5] and data.actions["like"].tolist() == [1, 1, 0]


def test_movielens_has_ratings_and_likes(tmp_path):
  raw = write(tmp_path, {"ratings.dat": ML1M_RATINGS, "movies.dat": ML1M_MOVIES})
  data = prepare("movielens-1m", raw)
  assert data.actions["rating"].tolist() == [5, 3, 4] and data.actions["liked"].tolist() == [1, 0, 1]
  assert data.action.tolist() == [5, 3, 4]


def test_taobao_and_tmall_have_behaviours(tmp_path):
  log = read("taobao", write(tmp_path / "taobao", {"UserBehavior.csv": TAOBAO}))
  assert log.events["action.behavior"].to_list() == [0, 1, 2] and log.events["action.buy"].to_list() == [0, 1, 0]
  assert log.action_kinds == {"behavior": "multi_class", "buy": "binary", "cart": "binary", "fav": "binary"}
  tmall = TMALL_HEAD + "1,2,3,4,5,1111,0\n1,2,3,4,5,1111,2\n"
  log = read("tmall", write(tmp_path / "tmall", {"user_log_format1.csv": tmall}), domain="category")
  assert log.events["action.purchase"].to_list() == [0, 1] and log.events["action.cart"].to_list() == [0, 0]


def test_kuairand_has_each_kind_of_feedback_and_the_seconds_played(tmp_path):
  log = KUAIRAND_HEAD + (
    "7,5,20220408,1000,1649400000000,1,0,0,0,0,0,1,2500,9000,0,0,0,0,1\n"
    "7,6,20220408,1000,1649400001000,0,1,0,0,0,0,0,0,9000,0,0,0,0,1\n"
  )
  data = prepare("kuairand-csv", write(tmp_path, {"log_standard_x.csv": log}), keep="all", domain="one")
  assert data.actions["play_seconds"].tolist() == [2.5, 0.0] and data.actions["is_like"].tolist() == [0, 1]
  assert data.action.tolist() == [65, 2]


CSV = "user,item,timestamp,like,watched\nann,tea,2,1,0.5\nann,jam,1,0,7\n"


def test_columns_of_a_table_become_actions(tmp_path):
  options = {"actions": "like=binary,watched=regression"}
  data = prepare("table", write(tmp_path, {"t.csv": CSV}) / "t.csv", tmp_path / "data", **options)
  assert data.actions["like"].tolist() == [0, 1] and data.actions["watched"].tolist() == [7, 0.5]  # Sorted by time.
  kinds = {"like": "binary", "watched": "regression"}
  again = from_events(pl.read_csv(CSV.encode()), actions=kinds)
  assert again.actions["watched"].tolist() == [7, 0.5] and again.action_meta == data.action_meta


@pytest.mark.parametrize(
  ("text", "actions", "message"),
  [
    (CSV.replace("ann,jam,1,0,7", "ann,jam,1,3,7"), "like=binary", r"t\.csv: line 3: column 'like' holds 3"),
    (CSV.replace("0,7", "no,7"), "like=binary", r"t\.csv: line 3: column 'like' holds 'no'"),
    (CSV, "like=binary,rated=binary", r"no column \['rated'\]"),
    (CSV, "like=boolean", "kind 'boolean' of action 'like' is not known"),
    (CSV, "like", "must be like 'like=binary"),
    (CSV, "a/b=binary", "must consist of letters"),
  ],
)
def test_a_wrong_column_of_a_table_is_an_error_with_its_line(tmp_path, text, actions, message):
  with pytest.raises(ValueError, match=message):
    prepare("table", write(tmp_path, {"t.csv": text}) / "t.csv", actions=actions)
