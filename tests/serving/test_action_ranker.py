"""Ranking by a weighted sum of predicted actions."""

import dataclasses

import jax
import numpy as np
import pytest
from random_ranker import events_of

from jaxrec.batches import ActionType
from jaxrec.data.batches.ranking_batches import history_batch
from jaxrec.data.batches.ranking_rows import RankingColumns
from jaxrec.data.generators.planted_actions import planted_actions
from jaxrec.models.ranking import RankingModel
from jaxrec.serving.action_ranker import ActionRanker, action_values
from jaxrec.serving.histories import joined

DATA = planted_actions(num_users=3, num_genres=2, items_per_genre=4, mean_events=6.0)
ACTIONS = (
  ActionType("like", "binary"),
  ActionType("reaction", "multi_class", 3),
  ActionType("seconds", "regression", 2, mean=30, scale=10),
)


def ranker_of(columns):
  model = RankingModel(
    num_items=DATA.num_items, actions=ACTIONS, heads=ACTIONS, max_positions=6,
    features=tuple(columns.feature_sizes.items()), num_context_ids=columns.num_context_ids, width=8, num_layers=1,
    num_heads=1, head_width=8, value_width=8, attention_length=6, implementation="reference",
  )  # fmt: skip
  batch = history_batch(columns, "one_token", DATA.offsets[:-1], DATA.offsets[1:], 16)
  params = jax.jit(model.init)(jax.random.key(0), batch)["params"]
  params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), params)
  return ActionRanker(model, params, DATA, columns, "one_token", max_length=6)


@pytest.fixture(scope="module")
def ranker():
  return ranker_of(RankingColumns(DATA, ("domain",)))


@pytest.fixture(scope="module")
def asked_by_users():
  """A ranker that reads who asks, at what hour and weekday, and what the reaction was to earlier requests."""
  return ranker_of(RankingColumns(DATA, ("domain",), context=("user",), request=("hour",)))


def test_the_list_is_sorted_by_the_weighted_sum(ranker):
  weights = {"like": 2.0, "reaction:1": 1.0, "seconds": -0.01}
  found = ranker.rank("1", weights=weights, k=5, exclude_seen=False)
  assert [item.rank for item in found] == [1, 2, 3, 4, 5]
  sums = [sum(w * item.actions[name] for name, w in weights.items()) for item in found]
  assert sums == pytest.approx([item.score for item in found], abs=1e-5) and sums == sorted(sums, reverse=True)
  assert all(0 <= item.actions["like"] <= 1 and item.actions["seconds"] != 0 for item in found)


def test_items_of_the_history_are_left_out(ranker):
  seen = {DATA.item_raw_id(int(item)) for item in DATA.item_id[DATA.user_slice(0)]}
  found = ranker.rank("0", k=100)
  assert found and not seen & {item.item for item in found} and len(found) == DATA.num_items - len(seen)
  assert [item.score for item in found] == [item.actions["like"] for item in found]


def test_given_candidates_are_ranked_alone(ranker):
  found = ranker.rank("2", candidates=np.array([3, 5]), exclude_seen=False)
  assert {item.item for item in found} == {"3", "5"}


def test_given_events_are_ranked_like_the_user_who_has_them(ranker):
  events = events_of(1)
  history = ranker.histories([events])
  assert ranker.rank_history(history, k=8) == ranker.rank("1", k=8)
  more = ranker.histories({"1": [*events, ("2", events[-1][1] + 60, {"like": True, "reaction": 1, "seconds": 5})]})
  assert ranker.rank_history(more, exclude_seen=False)[0].score != ranker.rank("1", exclude_seen=False)[0].score
  both = joined([history, more])
  items = np.array([[1, 2], [3, 4]])
  of_both = ranker.values_after(both, items)
  for row, one in enumerate((history, more)):
    for name, values in ranker.values_after(one, items[row : row + 1]).items():
      np.testing.assert_allclose(of_both[name][row], values[0], rtol=1e-5)
  assert ranker.rank_history(ranker.histories([[("no item", 5, dict.fromkeys(ranker.read_actions, 0))]])) == []


def test_the_request_has_a_time_and_a_user(asked_by_users):
  last = int(DATA.timestamp[DATA.user_slice(1)][-1])
  now, later = (asked_by_users.rank("1", at=last + hours * 3600, k=8, exclude_seen=False) for hours in (0, 5))
  assert now == asked_by_users.rank("1", k=8, exclude_seen=False) and now[0].score != later[0].score
  columns, item = asked_by_users.columns, np.array([[3, 4]])
  features = columns.candidate_features(item, np.array([0]), np.array([last + 5 * 3600]))
  assert features["hour"].tolist() == [[(last // 3600 + 5) % 24 + 1] * 2]
  scores = []
  for user in ("1", "2"):
    history = asked_by_users.histories({user: events_of(1)})
    scores.append(asked_by_users.rank_history(history, exclude_seen=False)[0].score)
  assert scores[0] == now[0].score != scores[1]
  with pytest.raises(ValueError, match="user 'stranger' is not in the data, and the model reads the features"):
    asked_by_users.rank_history(asked_by_users.histories({"stranger": events_of(1)}))


def test_values_of_a_multi_class_action_sum_to_one():
  values = action_values(ACTIONS[1], np.array([[0.0, 1.0, 2.0]]))
  assert sum(v[0] for v in values.values()) == pytest.approx(1) and list(values) == [
    "reaction:0",
    "reaction:1",
    "reaction:2",
  ]


def test_classes_have_the_names_of_the_data(ranker):
  meta = {**DATA.meta, "action_names": {"action.reaction": ["buy", "cart", "view"]}}
  named = dataclasses.replace(ranker, data=dataclasses.replace(DATA, meta=meta))
  assert named.value_names == ("like", "reaction:buy", "reaction:cart", "reaction:view", "seconds")
  found, expected = named.rank("1", weights={"reaction:cart": 1.0}), ranker.rank("1", weights={"reaction:1": 1.0})
  assert [item[:5] for item in found] == [item[:5] for item in expected]
  assert found[0].actions["reaction:cart"] == expected[0].actions["reaction:1"]


def test_wrong_arguments_are_errors(ranker):
  with pytest.raises(ValueError, match=r"weights name \['love'\]; the model predicts \['like', 'reaction:0'"):
    ranker.rank("0", weights={"love": 1.0})
  with pytest.raises(ValueError, match="user '77' is not in the prepared data"):
    ranker.rank("77")
  with pytest.raises(
    ValueError, match=r"event 0: \('1', 5, 'music'\) has no actions; .* \{\"like\": \.\.\., \"reaction\""
  ):
    ranker.histories([[("1", 5, "music")]])
  with pytest.raises(ValueError, match="history 1 has no event of a known item"):
    ranker.values_after(ranker.histories([events_of(1), []]), np.array([[1], [1]]))


def test_a_user_who_has_seen_every_candidate_gets_no_item(ranker):
  assert ranker.rank("0", candidates=DATA.item_id[DATA.user_slice(0)]) == []
