"""Actions that a source writes as text: their numbers, and the names that stay with the data."""

import polars as pl
import pytest
from ml_collections import ConfigDict
from raw_files import write

from jaxrec.cli.prepare import summary
from jaxrec.data.fingerprint import changed_parts
from jaxrec.data.preparation import action_names
from jaxrec.data.preparation.from_events import from_events
from jaxrec.data.preparation.prepare import prepare
from jaxrec.data.prepared import PreparedData
from jaxrec.train.sequence_task import action_weights

LOG = "user,item,timestamp,did,felt\nann,tea,1,view,bored\nann,jam,2,buy,glad\nbob,tea,3,view,glad\n"
OPTIONS = {"action": "did", "actions": "felt=multi_class"}
NAMES = {"action": ("buy", "view"), "action.felt": ("bored", "glad")}


def table(folder, text=LOG, **options):
  return prepare("table", write(folder, {"t.csv": text}) / "t.csv", **{**OPTIONS, **options})


def test_texts_are_numbered_by_name_and_the_folder_keeps_the_names(tmp_path):
  table(tmp_path, out=tmp_path / "data")
  data = PreparedData.load(tmp_path / "data")
  assert data.action_names == NAMES
  assert data.action.tolist() == [2, 1, 2] and data.actions["felt"].tolist() == [0, 1, 1]
  assert "events by action: 1 = buy (1), 2 = view (2)\nevents by felt: 0 = bored (1), 1 = glad (2)" in summary(data)


def test_a_frame_of_texts_or_categories_is_the_same(tmp_path):
  frame = pl.read_csv(LOG.encode())
  for given in (frame, frame.with_columns(pl.col("did", "felt").cast(pl.Categorical))):
    data = from_events(given, **OPTIONS)
    assert data.action_names == NAMES and data.fingerprint == table(tmp_path).fingerprint


def test_numbers_stay_numbers_without_names(tmp_path):
  numbers = LOG.replace("view", "7").replace("buy", "0").replace("bored", "2").replace("glad", "1")
  data = table(tmp_path, numbers)
  assert data.action_names == {} and "action_names" not in data.meta
  assert data.action.tolist() == [7, 0, 7] and data.actions["felt"].tolist() == [2, 1, 1]


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ("2,buy", "2,5", r"t\.csv: line 2: column 'did' holds 'view', needs Int32"),
    ("1,view", "1,5", r"t\.csv: line 3: column 'did' holds 'buy', needs Int32"),
    ("bored", "3", r"t\.csv: line 3: column 'felt' holds 'glad', needs a number"),
    ("2,buy", "2,", r"t\.csv: line 3: column 'did' holds '', needs text"),
    ("2,buy", "2,view ", "the actions 'view' and 'view ' look the same"),
  ],
)
def test_texts_among_numbers_and_names_that_look_the_same_are_refused(tmp_path, old, new, message):
  with pytest.raises(ValueError, match=message):
    table(tmp_path, LOG.replace(old, new))


def test_a_column_of_many_texts_holds_no_actions(tmp_path, monkeypatch):
  monkeypatch.setattr(action_names, "MOST_NAMES", 1)
  with pytest.raises(
    ValueError, match="column 'action' holds 2 different texts such as 'buy', more than 1; does it hold"
  ):
    table(tmp_path)


def test_names_of_a_new_day_come_after_known_ones(tmp_path):
  monday = table(tmp_path, out=tmp_path / "monday")
  new = "user,item,timestamp,did,felt\nann,tea,4,cart,amused\nbob,jam,5,view,glad\n"
  data = table(tmp_path / "new", new, extends=monday.path)
  assert data.action_names == {"action": ("buy", "view", "cart"), "action.felt": ("bored", "glad", "amused")}
  assert data.action.tolist() == [2, 1, 3, 2, 2] and data.actions["felt"].tolist() == [0, 1, 2, 1, 1]


@pytest.mark.parametrize("numbers_first", [True, False])
def test_a_new_day_that_writes_actions_in_another_way_is_refused(tmp_path, numbers_first):
  logs = [LOG, LOG.replace("view", "2").replace("buy", "1")]
  first, second = logs[::-1] if numbers_first else logs
  monday = table(tmp_path, first, out=tmp_path / "monday")
  where = "new events" if numbers_first else "earlier data"
  with pytest.raises(
    ValueError, match=f"column 'action' has names of actions in the {where} only, numbers in the other"
  ):
    table(tmp_path / "new", second, extends=monday.path)


def merged(folder, *texts):
  paths = [write(folder / str(i), {"t.csv": text}) / "t.csv" for i, text in enumerate(texts)]
  options = [{"action": "did"} if "did" in text else {} for text in texts]
  sources = [{"source": "table", "raw": path, "name": f"s{i}", **options[i]} for i, path in enumerate(paths)]
  return prepare("merge", sources=sources)


def test_merged_sources_share_the_names_and_events_without_an_action_have_0(tmp_path):
  data = merged(tmp_path, LOG, LOG.replace("view", "cart"), "user,item,timestamp\nann,tea,9\n")
  assert data.action_names == {"action": ("buy", "cart", "view")}
  ann = data.user_slice(data.user_index("ann"))
  assert sorted(data.action[ann].tolist()) == [0, 1, 1, 2, 3]


def test_merged_sources_write_actions_in_one_way(tmp_path):
  with pytest.raises(
    ValueError, match=r"the actions of \['s0'\] are text, those of \['s1'\] numbers; write them alike"
  ):
    merged(tmp_path, LOG, LOG.replace("view", "2").replace("buy", "1"))


def test_data_with_other_names_have_another_fingerprint(tmp_path):
  one, other = table(tmp_path), table(tmp_path, LOG.replace("view", "visit"))
  assert changed_parts(one.fingerprint, other.fingerprint) == ["names of action"]
  again = one.save(tmp_path / "saved", shards=2)
  assert again.fingerprint == one.fingerprint and again.action_names == NAMES


def test_weights_of_targets_name_the_actions(tmp_path):
  data = table(tmp_path)
  weights = {"buy": 2.0, "2": 0.5}
  assert set(action_weights(ConfigDict({"data": {"action_weights": weights}}), data)) == {(1, 2.0), (2, 0.5)}
  wrong = ConfigDict({"data": {"action_weights": {"cart": 1.0}}})
  with pytest.raises(ValueError, match=r"\['cart'\]=1.0: actions are whole numbers or 'buy', 'view', weights finite"):
    action_weights(wrong, data)
