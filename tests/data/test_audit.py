"""The audit of prepared data, against figures counted by hand and against a plain loop over events."""

import json

import numpy as np
import pytest

from jaxrec.cli import audit as program
from jaxrec.data.audit import audit
from jaxrec.data.preparation.from_events import from_events
from jaxrec.data.prepared import PreparedData


@pytest.fixture(scope="module")
def data():
  """Three users: the order of the file decides about both targets of the first, about one of the second, of none."""
  return PreparedData.from_columns(
    user=[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2],
    item_id=[1, 1, 2, 3, 1, 2, 3, 4, 5, 1, 1],
    timestamp=[10, 10, 20, 20, 30, 40, 40, 50, 60, 70, 80],
    domain_id=[1, 1, 1, 2, 1, 1, 2, 2, 2, 1, 1],
    domain_names=["near", "far"],
    num_items=20,
  )


def test_targets_that_the_order_of_ties_decides_are_counted(data):
  figures = audit(data)
  # Test: 3 at time 20 could be 2. Validation: 2 at 20 could be 3, and 3 at 40 could be 2; 1 at 70 stands alone.
  assert [figures["test"][name] for name in ("targets", "order_decides", "tied")] == [3, 1, 1]
  assert [figures["validation"][name] for name in ("targets", "order_decides", "tied")] == [3, 2, 2]
  assert [figures["test"][f"domain/{name}"]["order_decides"] for name in ("near", "far")] == [0, 1]
  assert [figures["validation"][f"domain/{name}"]["order_decides"] for name in ("near", "far")] == [1, 1]
  assert figures["neighbours_tied"] == 3 / 11


def test_ties_inside_a_split_change_the_history_but_not_the_targets():
  data = from_events(
    {"user": [0, 0, 0, 0], "item": ["a", "b", "c", "d"], "timestamp": [1, 2, 5, 5]},
    split="by_time", validation_time=2, test_time=5,
  )  # fmt: skip
  assert (audit(data)["test"]["order_decides"], audit(data)["test"]["tied"]) == (0, 2)


def test_a_tie_with_the_same_item_decides_nothing():
  data = PreparedData.from_columns(user=[0, 0, 0, 0], item_id=[1, 2, 3, 3], timestamp=[1, 2, 3, 3])
  assert (audit(data)["test"]["order_decides"], audit(data)["duplicates"]) == (0, 1)


def test_duplicates_popularity_and_new_items_are_counted(data):
  figures = audit(data)
  assert (figures["duplicates"], figures["repeated_items"]) == (1, 2)  # Item 1 at time 10; and at 10 and 80.
  # Training events: 1 1, 1 2, 5. Most popular of 20 items: item 1 (1%), items 1 and 2 (10%; 2 before 5 by id).
  test = figures["test"]  # Items 3, 4, 1.
  assert [test[name] for name in ("top_1_percent", "top_10_percent", "not_in_training", "seen_before")] == [1, 1, 2, 1]
  assert [figures["validation"][name] for name in ("top_1_percent", "top_10_percent", "not_in_training")] == [1, 2, 1]
  assert (test["users_not_in_training"], test["items_not_in_training"], test["items"]) == (0, 2, 3)


def test_leakage_of_time_is_counted(data):
  figures = audit(data)
  # Training times 10 10 30 40 60; test times 20 50 80.
  assert figures["training_after_first_test"] == 3 / 5 and figures["training_after_median_test"] == 1 / 5
  assert figures["test"]["later_training"] == pytest.approx((3 / 5 + 1 / 5 + 0) / 3)
  assert figures["validation"]["item_only_later"] == 1  # Item 2 at 20, whose only training event is at 40.


def test_an_audit_equals_a_plain_loop_over_events():
  rng = np.random.default_rng(3)
  user = np.sort(rng.integers(0, 12, 150))
  time = np.concatenate([np.sort(rng.integers(0, 6, n)) for n in np.bincount(user, minlength=12)])
  data = PreparedData.from_columns(user=user, item_id=rng.integers(1, 9, 150), timestamp=time, num_items=9)
  events = [*zip(user.tolist(), data.item_id.tolist(), time.tolist(), data.split.tolist(), strict=True)]
  training = [event for event in events if event[3] == 0]
  expected = {"order_decides": 0, "tied": 0, "seen_before": 0, "not_in_training": 0, "item_only_later": 0}
  for i, (u, item, t, split) in enumerate(events):
    if split != 2:
      continue
    rivals = [s for v, other, when, s in events if (v, when) == (u, t) and other != item]
    times = [when for _, other, when, _ in training if other == item]
    expected["order_decides"] += any(s != 2 for s in rivals)
    expected["tied"] += bool(rivals)
    expected["seen_before"] += any(event[:2] == (u, item) for event in events[:i])
    expected["not_in_training"] += not times
    expected["item_only_later"] += bool(times) and min(times) > t
  test = audit(data)["test"]
  assert {name: test[name] for name in expected} == expected and expected["order_decides"] > 0
  later = [np.mean([when > t for _, _, when, _ in training]) for _, _, t, split in events if split == 2]
  assert test["later_training"] == pytest.approx(np.mean(later))


def test_data_without_times_has_no_figures_of_time():
  figures = audit(PreparedData.from_columns(user=[0, 0, 0, 0], item_id=[1, 2, 1, 3]))
  assert figures["neighbours_tied"] is None and figures["test"]["order_decides"] is None
  assert figures["test"]["not_in_training"] == 1
  assert "-" in program.report(figures)


def test_the_program_audits_a_folder_or_a_source(data, call, tmp_path):
  data.save(tmp_path / "prepared")
  text = call(program, f"--data={tmp_path / 'prepared'}")
  assert [line.split()[:4] for line in text.splitlines() if line.startswith("test  ")][1:] == [
    ["test", "all", "3", "33.3%"], ["test", "near", "1", "0.0%"], ["test", "far", "2", "50.0%"]
  ]  # fmt: skip
  raw = tmp_path / "log.csv"
  raw.write_text("user,item,timestamp\na,x,5\na,y,6\na,z,6\n")
  figures = json.loads(call(program, "--source=table", f"--raw={raw}", "--min_user_events=1", "--json"))
  assert figures["test"]["order_decides"] == 1 and figures["options"]["min_user_events"] == 1


@pytest.mark.parametrize("arguments", [[], ["--data=x", "--source=table"], ["--data=x", "--min_user_events=2"]])
def test_the_program_wants_one_data_set(arguments, call):
  with pytest.raises(SystemExit, match="--source"):
    call(program, *arguments)
