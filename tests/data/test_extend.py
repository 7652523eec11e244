"""A day's events onto prepared data: known ids keep their numbers, new ones come after them."""

import json

import numpy as np
import polars as pl
import pytest
from event_logs import prepared

from jaxrec.cli import prepare as program
from jaxrec.data.preparation.filters import PrepareOptions
from jaxrec.data.preparation.prepare import prepare, prepare_log
from jaxrec.data.prepared import PreparedData
from jaxrec.data.sources import InteractionLog

MONDAY = "user,item,timestamp\nbob,tea,1\nbob,jam,2\nann,tea,3\nann,rye,4\nann,jam,5\nbob,rye,6\n"
TUESDAY = "user,item,timestamp\nzoe,tea,11\nann,ale,12\nabe,rye,13\nann,tea,14\nzoe,ale,15\nbob,egg,7\n"


@pytest.fixture
def monday(tmp_path):
  """The prepared folder of a first day."""
  return prepare("table", written(tmp_path, "monday", MONDAY), tmp_path / "prepared-monday")


def written(folder, name, text):
  path = folder / f"{name}.csv"
  path.write_text(text)
  return path


def histories(data):
  raw = ["", *data.items["raw_id"]]
  return {
    data.user_raw_id(u): " ".join(raw[i] for i in data.item_id[data.user_slice(u)]) for u in range(data.num_users)
  }


def test_known_ids_keep_their_numbers_and_new_ones_come_after_them(monday, tmp_path):
  data = prepare("table", written(tmp_path, "tuesday", TUESDAY), tmp_path / "both", extends=monday.path)
  assert monday.users["raw_id"].to_list() == ["ann", "bob"]
  assert data.users["raw_id"].to_list() == ["ann", "bob", "abe", "zoe"]
  assert (
    data.items["raw_id"].to_list() == [*monday.items["raw_id"], "ale", "egg"] == ["jam", "rye", "tea", "ale", "egg"]
  )
  assert histories(data) == {"ann": "tea rye jam ale tea", "bob": "tea jam rye egg", "abe": "rye", "zoe": "tea ale"}
  assert data.meta["extends"] == {"new_users": 2, "new_items": 2, "new_domains": 0, "new_events": 6}
  assert histories(PreparedData.load(monday.path)) == {"ann": "tea rye jam", "bob": "tea jam rye"}


def test_the_events_and_splits_are_those_of_both_days_prepared_at_once(monday, tmp_path):
  both = MONDAY + TUESDAY.split("\n", 1)[1]
  at_once = prepare("table", written(tmp_path, "both", both))
  extended = prepare("table", written(tmp_path, "tuesday", TUESDAY), extends=monday.path)
  assert histories(extended) == histories(at_once)
  for user in at_once.users["raw_id"]:
    one, other = (data.user_slice(data.user_index(user)) for data in (at_once, extended))
    for name in ("timestamp", "split", "action"):
      assert getattr(at_once, name)[one].tolist() == getattr(extended, name)[other].tolist()
  assert extended.meta["counts"] == at_once.meta["counts"]


def test_late_events_are_sorted_in_and_those_of_the_same_second_come_last():
  monday = prepared("a x 5, a y 7")
  assert histories(prepared("a z 7, a w 6, a v 4", base=monday)) == {"a": "v x w y z"}


def test_events_are_ordered_by_full_precision_before_their_times_are_cut():
  monday = prepared("a x 1")
  data = prepared("a late 2900, a early 2100", base=monday, fields={"time_unit": "ms"})
  assert histories(data) == {"a": "x early late"}
  assert data.timestamp.tolist() == [1, 2, 2]


def test_limits_on_events_drop_new_users_and_items_only_counted_over_both_days():
  monday = prepared("a x 1, a y 2, b x 1, b y 2", min_user_events=2, min_item_events=2)
  data = prepared("a new 3, b new 4, a rare 5, c x 6", base=monday, min_user_events=2, min_item_events=2)
  assert histories(data) == {"a": "x y new", "b": "x y new"}
  assert data.items["raw_id"].to_list() == ["x", "y", "new"]
  assert data.meta["counts"]["dropped"] == {"users with too few events": 1, "items with too few events": 1}


def test_known_users_and_items_stay_without_events_enough():
  monday = prepared("a x 1, b y 2")
  data = prepared("c y 3, c y 4, c y 5", base=monday, min_user_events=3, min_item_events=3, min_domain_events=3)
  assert histories(data) == {"a": "x", "b": "y", "c": "y y y"}


def test_repeated_events_are_found_over_both_days():
  monday = prepared("a x 1, a y 2", duplicates="first")
  assert histories(prepared("a y 3, a z 4", base=monday, duplicates="first")) == {"a": "x y z"}
  last = prepared("a x 3, a z 4", base=monday, duplicates="last")
  assert histories(last) == {"a": "y x z"}
  assert last.meta["counts"]["dropped"] == {"duplicate": 1}


def test_new_domains_come_after_known_ones_and_items_of_each_are_apart():
  monday = prepared("a x 1 toys, a x 2 books", item_identity="per_domain")
  data = prepared("a x 3 films, a x 4 toys, b x 5 books", base=monday, item_identity="per_domain")
  assert monday.domain_names == ("books", "toys")
  assert data.domain_names == ("books", "toys", "films")
  assert data.item_id.tolist() == [2, 1, 3, 2, 1]
  assert data.items["domain_id"].to_list() == [1, 2, 3]
  assert data.meta["extends"]["new_domains"] == 1


def test_titles_of_new_items_are_added_and_known_ones_stay():
  catalogue = [{"item": ["x"], "title": ["Ex"]}, {"item": ["w", "x"], "title": ["We", "Other"]}]
  tables = [{"items": pl.DataFrame(table)} for table in catalogue]
  data = prepared("a w 2, a x 3", tables[1], prepared("a x 1", tables[0]))
  assert data.item_titles() == ["", "Ex", "We"]
  assert data.item_id.tolist() == [1, 2, 1]


def test_typed_actions_are_those_of_both(tmp_path):
  table = "user,item,timestamp,like\na,x,1,1\na,y,2,0\n"
  options = {"actions": "like=binary"}
  monday = prepare("table", written(tmp_path, "monday", table), tmp_path / "one", **options)
  data = prepare("table", written(tmp_path, "tuesday", table.replace("1\n", "0\n")), extends=monday.path)
  assert data.actions["like"].tolist() == [1, 0, 0, 0]
  assert data.actions["like"].dtype == np.uint8


def test_options_that_are_not_given_are_those_of_the_folder(tmp_path):
  text = "uid;sku;timestamp\na;x;1\na;y;2\nb;x;3\nb;y;4\n"
  options = {"user": "uid", "item": "sku", "separator": ";", "min_user_events": 2}
  monday = prepare("table", written(tmp_path, "monday", text), tmp_path / "one", **options)
  data = prepare("table", written(tmp_path, "tuesday", text.replace("b;y;4", "c;y;4")), extends=monday.path)
  assert [data.meta["options"][name] for name in options] == [*options.values()]
  assert "c" not in data.users["raw_id"]


@pytest.mark.parametrize("given", ["test_time", "test_quantile"])
def test_the_times_of_a_split_are_given_anew(tmp_path, given):
  text = "user,item,timestamp\n" + "".join(f"a,i{time},{time}\n" for time in range(10))
  times = {"split": "by_time", "validation_time": 6, "test_time": 8}
  monday = prepare("table", written(tmp_path, "monday", text), tmp_path / "one", **times)
  log = written(tmp_path, "tuesday", "user,item,timestamp\na,x,20\na,y,30\n")
  with pytest.raises(ValueError, match="split at validation_time=6: give validation_time or validation_quantile"):
    prepare("table", log, extends=monday.path)
  value = 25 if given == "test_time" else 0.95
  data = prepare("table", log, extends=monday.path, validation_time=15, **{given: value})
  assert data.split[-2:].tolist() == [1, 2]


WRONG = {
  "other identity": ({"item_identity": "per_domain"}, "item_identity='per_domain': .* was prepared with 'raw'"),
  "no times": ({"timestamp": ""}, "times: .*prepared-monday have them, the new events have none"),
  "other actions": ({"actions": "timestamp=regression", "timestamp": ""}, "times: "),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_the_folder_is_refused(monday, tmp_path, options, message):
  with pytest.raises(ValueError, match=message):
    prepare("table", written(tmp_path, "tuesday", TUESDAY), extends=monday.path, **options)


def test_other_actions_than_those_of_the_folder_are_refused():
  like = pl.DataFrame({"user": ["a"], "item": ["x"], "timestamp": [1], "action.like": [1.0]})
  log = InteractionLog(like, action_kinds={"like": "binary"})
  with pytest.raises(ValueError, match="the new events have {'like': 'binary'}; they must be the same"):
    prepare_log(log, PrepareOptions(), source="test", base=prepared("a x 1"))


def test_new_names_that_look_like_known_ones_are_refused():
  with pytest.raises(ValueError, match="the users 'a' and 'a ' look the same"):
    new = pl.DataFrame({"user": ["a "], "item": ["x"], "timestamp": [1]})
    prepare_log(InteractionLog(new), PrepareOptions(), source="test", base=prepared("a x 1"))


def test_a_damaged_folder_is_not_extended(monday, tmp_path):
  path = monday.path / "item_id.npy"
  content = bytearray(path.read_bytes())
  content[-4] = 1 if content[-4] != 1 else 2
  path.write_bytes(bytes(content))
  with pytest.raises(ValueError, match="item_id changed after the folder was written"):
    prepare("table", written(tmp_path, "tuesday", TUESDAY), extends=monday.path)


def test_generated_data_extends_nothing(monday):
  with pytest.raises(ValueError, match="'synthetic' generates all of its data"):
    prepare("synthetic", extends=monday.path)


def test_the_program_says_how_many_are_new(monday, tmp_path, call):
  flags = [f"--raw={written(tmp_path, 'tuesday', TUESDAY)}", f"--extends={monday.path}", f"--out={tmp_path / 'both'}"]
  text = call(program, "--source=table", *flags)
  assert "extends earlier data, whose ids stay: 2 new users, 2 new items, 0 new domains, 6 new events" in text
  assert json.loads((tmp_path / "both" / "meta.json").read_text())["num_items"] == 5


def test_a_folder_can_be_replaced_by_what_extends_it(monday, tmp_path):
  log = written(tmp_path, "tuesday", TUESDAY)
  data = prepare("table", log, monday.path, extends=monday.path, overwrite=True)
  assert data.path == monday.path and data.num_events == 12
