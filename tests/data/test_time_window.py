"""Data as they were at a time: what is left out, what is held out, and the cuts of windows that follow each other."""

import numpy as np
import pytest
import tiny_run

from jaxrec.data.load import load_data
from jaxrec.data.prepared import PreparedData
from jaxrec.data.time_window import rolling_cuts, time_window
from jaxrec.train import click_task
from jaxrec.train.config import check_config
from jaxrec.train.sequence_task import SequenceTask, evaluate_baselines

TIMES = [[10, 25, 30, 45], [5, 30, 60], [55, 58]]


@pytest.fixture
def data():
  item = np.arange(9) % 4 + 1
  return PreparedData.from_columns(
    user=np.repeat(np.arange(3), [4, 3, 2]), item_id=item, timestamp=np.concatenate(TIMES), num_items=5,
    actions={"like": item % 2}, action_kinds={"like": "binary"},
  )  # fmt: skip


def test_later_events_are_left_out_and_the_last_ones_held_out(data):
  then = time_window(data, (25, 40, 50))
  assert then.timestamp.tolist() == [10, 25, 30, 45, 5, 30]
  assert then.split.tolist() == [0, 1, 1, 2, 0, 1]
  assert then.offsets.tolist() == [0, 4, 6, 6]  # The third user is not there yet.
  assert (then.num_users, then.num_items, then.num_events) == (3, 5, 6)
  assert then.actions["like"].tolist() == data.actions["like"][:6].tolist()
  assert then.meta["split"] == {"kind": "by_time", "validation_time": 25, "test_time": 40}
  assert then.meta["counts"]["dropped_by_time_cuts"] == {"later": 3}
  assert data.num_events == 9


@pytest.mark.parametrize(
  ("cuts", "text"),
  [
    ((25, 40), "must be three times"),
    ((25, 40, 40), "each later than the one before"),
    ((25.0, 40, 50), "whole seconds"),
    ((1, 2, 50), r"leave \[0, 0, 6\] events for training, validation and test"),
  ],
)
@pytest.mark.unchecked_shapes
def test_cuts_that_hold_nothing_are_refused(data, cuts, text):
  with pytest.raises(ValueError, match=text):
    time_window(data, cuts)


def test_data_without_times_have_no_window():
  with pytest.raises(ValueError, match="need times, but the data has none"):
    time_window(PreparedData.from_columns(user=[0] * 3, item_id=[1, 2, 3]), (1, 2, 3))


def test_windows_follow_each_other_to_the_end_and_test_every_event_once():
  times = np.random.default_rng(0).integers(0, 10**6, 1000)
  cuts = rolling_cuts(times, 4, 0.75)
  assert [after[1] for after in cuts[:-1]] == [before[0] for before in cuts[1:]]
  assert [after[2] for after in cuts[:-1]] == [before[1] for before in cuts[1:]]
  tested = sum((times >= start) & (times < end) for _, start, end in cuts)
  assert set(tested[times >= cuts[0][1]].tolist()) == {1} and not tested[times < cuts[0][1]].any()
  sizes = [((times >= start) & (times < end)).sum() for _, start, end in cuts]
  assert max(sizes) - min(sizes) <= 2 and (times < cuts[0][0]).mean() == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(("count", "first"), [(0, 0.5), (2, 0.0), (2, 1.0), (9, 0.5)])
def test_windows_that_do_not_fit_are_refused(count, first):
  with pytest.raises(ValueError, match="count"):
    rolling_cuts(np.array([1, 2, 2, 3]), count, first)


def test_a_config_can_name_a_window_and_popularity_counts_what_came_before_it():
  config = tiny_run.get_config()
  whole = load_data(config.data)
  config.data.time_cuts = rolling_cuts(whole.timestamp, 2, 0.6)[0]
  config.eval.targets, config.eval.recent_days = "all", (1,)
  check_config(config)
  data = load_data(config.data)
  assert data.num_events < whole.num_events and data.timestamp.max() < config.data.time_cuts[2]
  scores = evaluate_baselines(config, data, 2)
  assert set(scores) == {"popularity", "random", "popularity_1d"}
  assert scores["popularity"]["count"] + scores["popularity"]["without_history"] == (data.split == 2).sum()
  assert SequenceTask.from_config(config).data.num_events == data.num_events


def test_drawn_candidates_have_no_window():
  config = click_task.default_config()
  config.data.source, config.data.time_cuts = "planted_interest", (1, 2, 3)
  with pytest.raises(ValueError, match="split by their place in the history"):
    click_task.check_config(config)
  config.data.label = "like"
  click_task.check_config(config)


def test_a_config_with_wrong_cuts_is_refused():
  config = tiny_run.get_config()
  config.data.time_cuts = (3, 2, 1)
  with pytest.raises(ValueError, match=r"time_cuts=\(3, 2, 1\) must be three times"):
    check_config(config)
