"""Histories with actions as tokens: both layouts by hand, examples, Stochastic Length, packing, shards."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxrec.batches import ACTION, CANDIDATE, CONTEXT, EVENT
from jaxrec.data.batches.ranking_batches import RankingBatches, RankingOptions, held_out_examples, training_examples
from jaxrec.data.batches.ranking_rows import RankingColumns, all_events, num_tokens
from jaxrec.data.batches.stochastic_length import StochasticLength, shortened, shortened_lengths
from jaxrec.data.generators.planted_actions import planted_actions
from jaxrec.data.prepared import PreparedData

LAYOUTS = ("interleaved", "one_token")


def small(**columns):
  return PreparedData.from_columns(
    user=[0, 0, 0, 1, 1, 1], item_id=[3, 1, 2, 2, 3, 1], timestamp=[10, 20, 30, 15, 25, 35], split=[0, 0, 1, 0, 0, 2],
    actions={"like": [1, 0, 1, 0, 1, 1]}, action_kinds={"like": "binary"}, **columns,
  )  # fmt: skip


@pytest.fixture(scope="module")
def data():
  return planted_actions(num_users=30, num_genres=2, items_per_genre=5, mean_events=14.0)


def batches_of(data, examples_per_batch=8, shuffle=True, last_split=0, features=(), context=(), **options):
  options = RankingOptions(**options)
  columns = RankingColumns(data, features, context)
  return RankingBatches(
    columns, training_examples(data, last_split, options), options, examples_per_batch, shuffle=shuffle
  )


def test_interleaved_tokens_are_items_and_actions_in_turn():
  batch = batches_of(small(), 1, shuffle=False, layout="interleaved", context=("user",))[0]
  assert batch.kind.tolist() == [[CONTEXT, CANDIDATE, ACTION, CANDIDATE, ACTION]]
  assert batch.item_id.tolist() == [[0, 3, 0, 1, 0]] and batch.actions["like"].tolist() == [[0, 1, 1, 0, 0]]
  assert batch.start.tolist() == [[0] * 5] and batch.end.tolist() == [[0, 1, 2, 3, 4]]
  assert batch.weight.tolist() == [[0, 1, 0, 1, 0]] and batch.position.tolist() == [[0, 0, 0, 1, 1]]
  assert batch.timestamp.tolist() == [[0, 0, 0, 10, 10]] and batch.context_id.tolist() == [[1, 0, 0, 0, 0]]


def test_one_token_layout_has_events_and_then_the_items_of_the_targets():
  batch = batches_of(small(), 1, shuffle=False, layout="one_token", context=("user",), features=("domain",))[0]
  assert batch.kind.tolist() == [[CONTEXT, EVENT, EVENT, CANDIDATE, CANDIDATE]]
  assert batch.item_id.tolist() == [[0, 3, 1, 3, 1]] and batch.actions["like"].tolist() == [[0, 1, 0, 1, 0]]
  assert batch.end.tolist() == [[0, 1, 2, 1, 2]]  # A target reads the context and the events before it.
  assert batch.weight.tolist() == [[0, 0, 0, 1, 1]] and batch.position.tolist() == [[0, 0, 1, 0, 1]]
  assert batch.features["domain"].tolist() == [[0, 1, 1, 1, 1]]


def test_events_and_candidates_know_their_requests_and_the_prefix_does_not():
  actions = {"actions": {"page": [2, 0, 1]}, "action_kinds": {"page": "multi_class"}}
  data = PreparedData.from_columns(user=[0] * 3, item_id=[3, 1, 2], timestamp=[3600, 7300, 90000], **actions)
  columns = RankingColumns(data, ("domain",), ("user",), ("hour", "page"))
  options = RankingOptions(layout="one_token")
  batch = RankingBatches(columns, training_examples(data, 2, options), options, 1, shuffle=False)[0]
  assert batch.features["hour"].tolist() == [[0, 2, 3, 2, 2, 3, 2]]
  assert batch.features["page"].tolist() == [[0, 3, 1, 2, 3, 1, 2]]
  assert columns.feature_sizes == {"domain": 1, "hour": 24, "page": 3}
  found = columns.candidate_features(np.array([[1, 2]]), np.array([1]))
  assert {name: x.tolist() for name, x in found.items()} == {"domain": [[1, 1]], "hour": [[3, 3]], "page": [[1, 1]]}
  with pytest.raises(ValueError, match="the feature 'tab' of the request is none of"):
    RankingColumns(data, request=("tab",))


def test_examples_that_share_a_row_keep_to_themselves():
  batch = batches_of(small(), 2, shuffle=False, layout="interleaved", row_length=8)[0]
  assert batch.sequence_id.tolist() == [[1] * 4 + [2] * 4] and batch.user_id.tolist() == [[0] * 4 + [1] * 4]
  assert batch.start.tolist() == [[0] * 4 + [4] * 4] and batch.end.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize("unit", ["user", "session", "impression"])
@pytest.mark.parametrize("max_length", [4, 100])
def test_every_training_event_is_predicted_once_from_at_most_max_length_events(data, unit, max_length):
  options = RankingOptions(max_length=max_length, unit=unit, session_gap=4000)
  examples = training_examples(data, 0, options)
  found = np.concatenate([np.arange(a, b) for a, b in zip(examples.target, examples.end, strict=True)])
  assert sorted(found.tolist()) == np.flatnonzero(data.split == 0).tolist()
  assert (examples.end - examples.first).max() <= max_length and (examples.first <= examples.target).all()
  user = np.searchsorted(data.offsets, np.stack([examples.first, examples.end - 1]), side="right")
  assert (user[0] == user[1]).all()
  if unit == "user" and max_length == 100:
    assert len(examples) == data.num_users
  if unit == "impression":
    assert len(examples) == (data.split == 0).sum()


def test_sessions_end_where_nothing_happened_for_long():
  data = PreparedData.from_columns(user=[0] * 4 + [1], item_id=[1] * 5, timestamp=[0, 10, 100, 105, 106], split=[0] * 5)
  examples = training_examples(data, 0, RankingOptions(unit="session", session_gap=50))
  assert list(zip(examples.target.tolist(), examples.end.tolist(), strict=True)) == [(0, 2), (2, 4), (4, 5)]
  assert examples.first.tolist() == [0, 0, 4]


def test_held_out_events_are_predicted_from_everything_before():
  examples = held_out_examples(small(), 2, 10)
  assert (examples.first.tolist(), examples.target.tolist(), examples.end.tolist()) == ([3], [5], [6])
  assert len(held_out_examples(small(), 1, 10)) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_epoch_holds_every_event_once_in_another_order(data, layout):
  batches = batches_of(data, layout=layout, context=("user",))
  count = batches.batches_per_epoch
  for epoch in (0, 1):
    whole = [batches[epoch * count + i] for i in range(count)]
    assert sum(int(batch.weight.sum()) for batch in whole) == (data.split == 0).sum()
    assert {batch.kind.shape for batch in whole} == {(batches.rows_per_batch, batches.row_length)}
  assert (batches[0].item_id != batches[count].item_id).any()
  again = batches_of(data, layout=layout, context=("user",))
  jax.tree.map(np.testing.assert_array_equal, again[count + 1], batches[count + 1])


def test_hosts_share_a_batch(data):
  options = RankingOptions()
  columns, examples = RankingColumns(data), training_examples(data, 0, options)
  parts = [
    RankingBatches(columns, examples, dataclasses.replace(options, shard_index=i, shard_count=2), 8) for i in (0, 1)
  ]
  joined = jax.tree.map(lambda *x: np.concatenate(x), parts[0][1], parts[1][1])
  jax.tree.map(np.testing.assert_array_equal, joined, parts[0].whole(1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packing_holds_what_separate_rows_hold(data, layout):
  for packing in (True, False):
    batches = batches_of(data, 1000, layout=layout, packing=packing, shuffle=False)
    batch = batches[0]
    found = batch.kind != 0
    rows = np.stack([batch.user_id, batch.position, batch.kind, batch.item_id, batch.end - batch.start], -1)[found]
    if packing:
      packed = sorted(map(tuple, rows.tolist()))
  assert sorted(map(tuple, rows.tolist())) == packed
  assert len(packed) == num_tokens(layout, 0, *(np.array([(data.split == 0).sum()]),) * 2)[0]


def test_stochastic_length_follows_its_formula():
  data = planted_actions(num_users=2000, mean_events=40.0)
  options = RankingOptions(max_length=100)
  examples, stochastic = training_examples(data, 0, options), StochasticLength(1.6, "recent")
  length = examples.end - examples.first
  kept, targets = shortened_lengths(examples, 100, stochastic, seed=3)
  most = round(100**0.8)
  assert (kept == targets).all() and set(np.unique(kept[length > most]) - most) >= {0}
  is_long = length > most
  assert (kept[~is_long] == length[~is_long]).all() and np.isin(kept[is_long], [most, *np.unique(length)]).all()
  chance = np.minimum(100**1.6 / length[is_long] ** 2.0, 1)
  assert (kept[is_long] == length[is_long]).mean() == pytest.approx(chance.mean(), abs=0.03)


@pytest.mark.parametrize("rule", ["recent", "uniform", "recency"])
def test_a_shortened_history_is_a_subsequence_by_the_rule(data, rule):
  options = RankingOptions(max_length=16)
  columns, examples, stochastic = RankingColumns(data), training_examples(data, 0, options), StochasticLength(1.5, rule)
  events = all_events(examples)
  kept, again, other = (shortened(events, examples, columns.events, 16, stochastic, (0, epoch)) for epoch in (0, 0, 1))
  counts = np.bincount(kept.example, minlength=len(examples))
  assert (counts == shortened_lengths(examples, 16, stochastic, 0)[0]).all() and counts.min() < 16
  assert (np.diff(kept.event)[np.diff(kept.example) == 0] > 0).all() and np.isin(kept.event, events.event).all()
  assert (kept.event == again.event).all() and ((kept.event == other.event).all() == (rule == "recent"))
  stays = events.is_target & (examples.target > examples.first)[events.example]
  assert np.isin(events.event[stays], kept.event[kept.is_target]).all()
  if rule == "recent":
    cut = np.flatnonzero(counts < examples.end - examples.first)[0]
    expected = np.arange(examples.end[cut] - counts[cut], examples.end[cut])
    assert kept.event[kept.example == cut].tolist() == expected.tolist()


def test_recency_prefers_late_events():
  data = PreparedData.from_columns(user=np.repeat(np.arange(400), 5), item_id=np.ones(2000), split=np.zeros(2000))
  examples = training_examples(data, 0, RankingOptions(max_length=5))
  columns = RankingColumns(data)
  found = {}
  for rule in ("uniform", "recency"):
    kept = shortened(all_events(examples), examples, columns.events, 5, StochasticLength(1.01, rule), (0, 0))
    found[rule] = np.bincount(kept.event % 5, minlength=5)
  assert found["recency"][4] > found["uniform"][4] * 1.05 and found["recency"][0] < found["uniform"][0] * 0.95


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"layout": "two_tokens"}, "layout='two_tokens'"),
    ({"unit": "day"}, "unit='day'"),
    ({"stochastic": (0.5, "recent")}, "alpha=0.5 must be above 1"),
    ({"stochastic": (1.5, "best")}, "rule='best'"),
    ({"context": ("age",)}, "context feature 'age' is no column of the users"),
    ({"features": ("colour",)}, "'colour' is no column of the items"),
    ({"row_length": 3}, "does not fit into row_length=3"),
  ],
)
def test_wrong_options_are_errors(options, message):
  with pytest.raises(ValueError, match=message):
    if "stochastic" in options:
      StochasticLength(*options["stochastic"])
    batches_of(small(), **options)
