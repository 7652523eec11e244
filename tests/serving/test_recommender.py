"""Recommendations by models whose scores are known, for users of the data and for strangers."""

import datetime
import functools
import logging

import numpy as np
import pytest
from known_scores import (
  DAY,
  FirstOfTargetDomain,
  HoursSinceLastEvent,
  NextItem,
  WithReservedRows,
  known_data,
  recommender,
)

from jaxrec.data.prepared import PreparedData
from jaxrec.serving.histories import histories_of_events, histories_of_users
from jaxrec.serving.recommendation import describe, table


@pytest.fixture(scope="module")
def known():
  return recommender()


def ids(found):
  return [one.item for one in found.items]


def test_items_follow_the_last_event_of_the_whole_history(known):
  (found,) = known.recommend(users=["cyd"], k=3)
  assert [tuple(item) for item in found.items] == [
    (1, "f4", "Alien", "films", 0.0), (2, "f5", "Brazil", "films", -1.0), (3, "f6", "Heat", "films", -2.0)
  ]  # fmt: skip
  assert (found.user, found.ranked_by, found.unknown) == ("cyd", "model", 0)


def test_seen_items_are_excluded_unless_exclude_seen_is_false(known):
  assert ids(known.recommend(users=["ann"], k=6)[0]) == ["f6", "b3"]
  assert ids(known.recommend(users=["ann"], k=6, exclude_seen=False)[0]) == ["f6", "b1", "b2", "b3", "f4", "f5"]


def test_recommendations_can_be_limited_to_a_domain(known):
  assert [ids(one) for one in known.recommend(users=["bob", "cyd"], k=2, domain="books")] == [["b1", "b2"]] * 2
  assert [ids(one) for one in known.recommend(users=["bob", "cyd"], k=2, domain="films")] == [[], ["f4", "f5"]]


def test_results_are_in_the_order_of_the_given_users(known):
  assert [one.user for one in known.recommend(users=["cyd", "ann", "bob"])] == ["cyd", "ann", "bob"]
  assert [ids(one)[0] for one in known.recommend(users=["cyd", "ann", "cyd"])] == ["f4", "f6", "f4"]


def test_allowed_items_are_the_only_candidates(known, caplog):
  assert ids(known.recommend(users=["cyd"], allowed=["b2", "f6", "b3"])[0]) == ["f6", "b2"]
  assert ids(known.recommend(users=["cyd"], allowed=["b2", "f6"], domain="books")[0]) == ["b2"]
  assert ids(known.recommend(users=["ann"], allowed=["b2", "f6", "b3", "b1", "f4"])[0]) == ["f6", "b3"]
  with caplog.at_level(logging.WARNING):
    assert ids(known.recommend(users=["cyd"], allowed=["b2", "x9"])[0]) == ["b2"]
  assert "1 of 2 allowed items are not in the data" in caplog.text
  with pytest.raises(ValueError, match="none of the 1 allowed items"):
    known.recommend(users=["cyd"], allowed=["x9"])


def test_a_held_out_event_is_not_read_and_gets_its_rank(known):
  # Ann's history is then 1, 4, 2 and the order after 2 is 3, 4, 5, 6, 1, 2; 4 is seen, so 5 is second.
  (found,) = known.recommend(users=["ann"], k=3, hold_out=True)
  assert ids(found) == ["b3", "f5", "f6"]
  assert (found.held_out.item, found.held_out.rank, len(found.history.item_id)) == ("f5", 2, 3)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"users": ["cyd"], "hold_out": True}, "user 'cyd' has no test event to hold out"),
    ({"users": ["ann"], "domain": "music"}, "domain='music' is unknown; the data has 'books', 'films'"),
    ({"users": ["eve"]}, "user 'eve' is not in the prepared data .*'ann'"),
    ({"users": []}, r"users=\[\] must be a list with at least one entry"),
    ({"users": "ann"}, "users='ann' must be a list"),
    ({"users": ["ann"], "k": 0}, "k=0 must be at least 1"),
    ({}, "give exactly one of users= and histories="),
    ({"users": ["ann"], "histories": [[]]}, "give exactly one of users= and histories="),
    ({"histories": [[]], "hold_out": True}, "histories have no test event"),
    ({"histories": ["b1"]}, "history 0 is 'b1'; it must be a list of events"),
    ({"histories": [["b1"]]}, "history 0, event 0: .* has no time"),
    ({"histories": [[("b1", 5, "books", 1, 2)]]}, r"must be \(item, time\), .* or \(item, time, domain, action\)"),
    ({"histories": [[("b1", 5, "music")]]}, "domain 'music' is unknown"),
    ({"histories": [[(1.5, 5)]]}, "1.5 must be an id of the raw data"),
    ({"histories": [[("b1", "noon")]]}, "time 'noon' must be seconds since 1970 or a datetime"),
    ({"histories": [[("b1", float("nan"))]]}, "time nan must be seconds"),
    ({"histories": [[("b1", 1_700_000_000_000)]]}, "give seconds, not milliseconds"),
    ({"histories": [[("b1", 5), ("b2", 4)]]}, "history 0, event 1 is earlier than event 0"),
    ({"histories": [[("b1", 5), ("x9", 6)]], "unknown": "raise"}, "history 0, event 1: item .*x9.* is not in the data"),
    ({"histories": [[]], "unknown": "ignore"}, "unknown='ignore' must be one of"),
    ({"users": ["ann"], "at": DAY}, "at=86400 is earlier than the last event"),
    ({"users": ["ann"], "at": 10**13}, "give seconds, not milliseconds"),
  ],
)
def test_a_wrong_request_is_refused_with_what_is_needed(known, arguments, message):
  with pytest.raises(ValueError, match=message):
    known.recommend(**arguments)


def test_a_stranger_gets_what_a_user_with_the_same_events_gets(known):
  events = [("b1", 0), ("f4", DAY), ("b2", 2 * DAY), ("f5", 3 * DAY)]
  stranger, named = known.recommend(histories=[events, events[:1]], k=6)
  assert stranger.items == known.recommend(users=["ann"], k=6)[0].items
  assert (stranger.user, stranger.ranked_by) == (None, "model")
  assert ids(named) == ["b2", "b3", "f4", "f5", "f6"]
  assert known.recommend(histories={"eve": events})[0].user == "eve"


def test_events_of_unknown_items_are_skipped_and_counted(known):
  (found,) = known.recommend(histories=[[("x9", 1), ("b3", 2), ("x8", 3)]], k=1)
  assert (ids(found), found.unknown, len(found.history.item_id)) == (["f4"], 2, 1)


def test_a_history_without_a_known_item_gets_the_most_popular_items(known):
  """Of the events, 4 and 5 have two each and the others one; ties are in the order of the ids."""
  first, second = known.recommend(histories=[[("x9", 1)], [("b3", 1)]], k=3)
  assert (ids(first), first.ranked_by, first.unknown) == (["f4", "f5", "b1"], "popularity", 1)
  assert (ids(second), second.ranked_by) == (["f4", "f5", "f6"], "model")
  (books,) = known.recommend(histories=[[]], k=3, domain="books", allowed=["b3", "f4", "b2"])
  assert ids(books) == ["b2", "b3"]


def test_times_may_be_datetimes_and_the_request_may_come_later():
  known = recommender(model=HoursSinceLastEvent)
  noon = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)
  options = {"histories": [[("b1", noon)]], "k": 1}
  assert known.recommend(**options)[0].items[0].score == 0
  assert known.recommend(**options, at=noon + datetime.timedelta(hours=5))[0].items[0].score == 5


def test_each_user_may_have_a_time_of_request():
  known = recommender(model=HoursSinceLastEvent)
  given = {"histories": [[("b1", 0)], [], [("b1", 0)], [("b1", 7200)]]}
  found = known.score(["b2"], **given, at=[None, 9, 3600, datetime.datetime(1970, 1, 1, 5)])
  np.testing.assert_array_equal(found[:, 0], [0, np.nan, 1, 3])
  with pytest.raises(ValueError, match="at=3600 is earlier than the last event of a history, at 7200"):
    known.score(["b2"], **given, at=[None, None, None, 3600])
  with pytest.raises(ValueError, match="at has 2 times, for 4 histories"):
    known.score(["b2"], **given, at=[1, 2])


def test_data_without_times_take_plain_items():
  known = recommender(known_data(timestamp=None))
  assert ids(known.recommend(histories=[["b1", "f4"]], k=1)[0]) == ["f5"]
  with pytest.raises(ValueError, match="the data has no times"):
    known.recommend(histories=[["b1"]], at=5)


def test_items_that_share_a_raw_id_are_told_apart_by_their_domain():
  known = recommender(known_data(raw_items=["1", "2", "3", "1", "2", "3"]))
  events = [("2", 0, "books"), ("1", 1, "films")]
  assert histories_of_events(known.data, [events]).item_id.tolist() == [2, 4]
  with pytest.raises(ValueError, match="raw id '2' is an item of each of 'books', 'films'; name a domain"):
    known.recommend(histories=[[("2", 0)]])


def test_a_model_that_needs_a_target_domain_is_given_it():
  known = recommender(model=FirstOfTargetDomain)
  options = {"users": ["ann"], "k": 1, "exclude_seen": False}
  assert ids(known.recommend(**options, domain="books")[0]) == ["b1"]
  assert ids(known.recommend(**options, domain="films")[0]) == ["f4"]
  assert ids(known.recommend(**options, domain="books", hold_out=True)[0]) == ["b1"]  # Ann's test event is a film.
  assert ids(known.recommend(**options, hold_out=True)[0]) == ["f4"]
  with pytest.raises(ValueError, match="needs a target domain; give domain=, one of books, films"):
    known.recommend(**options)


def test_scores_are_products_of_user_and_item_vectors(known):
  scores = known.score(["f4", "b1"], users=["cyd"])
  np.testing.assert_array_equal(scores, [[0, -3]])
  np.testing.assert_array_equal(known.user_vectors(users=["cyd"]) @ known.item_vectors().T, [[-3, -4, -5, 0, -1, -2]])
  assert np.isnan(known.score(["b1"], histories=[[]])).all()
  with pytest.raises(ValueError, match="item 'x9' is not in the prepared data"):
    known.score(["x9"], users=["ann"])


def test_similar_items_are_those_with_the_nearest_direction(known):
  vectors = np.array([[0, 0], [1, 0], [2, 0.1], [0, 1], [0, 3], [-1, 0], [5, 5]], np.float32)
  known = recommender()
  known.__dict__["_vectors"] = vectors
  assert [one.item for one in known.similar("b1", k=3)] == ["b2", "f6", "b3"]
  assert [one.item for one in known.similar("b1", k=1, domain="films")] == ["f6"]


def test_a_table_has_a_row_for_each_recommended_item(known):
  histories = histories_of_users(known.data, np.array([2, 1]))
  rows = table(known.data, histories, known.best_items(histories, 2, domain="films"))
  assert rows.rows() == [
    ("cyd", 1, "f4", "Alien", "films", 0.0, "model"), ("cyd", 2, "f5", "Brazil", "films", -1.0, "model")
  ]  # fmt: skip


def test_a_recommendation_reads_as_titles(known):
  (found,) = known.recommend(users=["ann"], k=2, hold_out=True)
  lines = describe(known.data, found, history=2).splitlines()
  assert lines[0] == "User ann"
  assert lines[1].split("  ")[1] == "2 of 3 events, newest first"
  assert lines[2].split() == ["1970-01-03", "books:", "Ulysses", "1.", "0.000", "books:", "Dune"]
  assert lines[3].split()[:7] == ["1970-01-02", "films:", "Alien", "2.", "-2.000", "films:", "Brazil"]
  assert lines[3].endswith(" <- chosen next")
  assert lines[4] == "  chosen next: films: Brazil, rank 2"


@pytest.mark.parametrize(("domain", "expected"), [(None, "f6 f5 f4 b3 b2 b1"), ("films", "f6 f5 f4")])
def test_rows_of_items_that_do_not_exist_yet_are_no_candidates(domain, expected):
  known = recommender(model=WithReservedRows)
  options = {"users": ["ann"], "exclude_seen": False, "domain": domain}
  assert ids(known.recommend(**options, k=8)[0]) == expected.split()
  assert known.recommend(**options, hold_out=True)[0].held_out.rank == 2  # Item 5 of 6.


def test_a_model_of_fewer_items_than_the_data_is_refused():
  with pytest.raises(ValueError, match="the model has 4 items, the data 6: they don't belong together"):
    recommender(model=functools.partial(NextItem, num_items=4)).recommend(users=["ann"])


def test_titles_and_ids_reach_the_terminal_escaped():
  data = PreparedData.from_columns(
    user=[0, 0, 0, 1, 1], item_id=[1, 2, 3, 2, 2], num_items=4,
    titles=["\x1b]0;OWNED\x07\x1b[31mred", "a\nUser 99", "Amélie\xa0!", ""],
    raw_items=["i1", "i2", "i3", "\u202e4"], raw_users=["ann\r\x1b[2J", "bob"],
  )  # fmt: skip
  known = recommender(data, functools.partial(NextItem, num_items=4))
  (found,) = known.recommend(users=["ann\r\x1b[2J"], k=4, exclude_seen=False)
  text = describe(data, found)
  assert "\x1b" not in text and "\x07" not in text and "\r" not in text and "\u202e" not in text
  assert len(text.splitlines()) == 6
  assert text.startswith("User ann\\r\\x1b[2J\n")
  assert all(shown in text for shown in (r"\x1b]0;OWNED\x07\x1b[31mred", r"a\nUser 99", "Amélie\xa0!", r"\u202e4"))


def test_a_held_out_item_is_shown_where_domains_share_raw_ids():
  known = recommender(known_data(raw_items=["1", "2", "3", "1", "2", "3"]))
  (found,) = known.recommend(users=["ann"], k=2, hold_out=True)  # Film 2 is held out; book 3 and film 2 are the best.
  text = describe(known.data, found)
  assert text.count("<- chosen next") == 1 and "films: Brazil <- chosen next" in text
  assert text.endswith("chosen next: films: Brazil, rank 2")
