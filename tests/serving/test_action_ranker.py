"""Ranking by a weighted sum of predicted actions."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxrec.batches import ActionType
from jaxrec.data.batches.ranking_batches import history_batch
from jaxrec.data.batches.ranking_rows import RankingColumns
from jaxrec.data.generators.planted_actions import planted_actions
from jaxrec.models.ranking import RankingModel
from jaxrec.serving.action_ranker import ActionRanker, action_values

DATA = planted_actions(num_users=3, num_genres=2, items_per_genre=4, mean_events=6.0)
ACTIONS = (
  ActionType("like", "binary"),
  ActionType("reaction", "multi_class", 3),
  ActionType("seconds", "regression", 2, mean=30, scale=10),
)


@pytest.fixture(scope="module")
def ranker():
  columns = RankingColumns(DATA, ("domain",))
  model = RankingModel(
    num_items=DATA.num_items, actions=ACTIONS, heads=ACTIONS, max_positions=6, features=(("domain", 2),), width=8,
    num_layers=1, num_heads=1, head_width=8, value_width=8, attention_length=6, implementation="reference",
  )  # fmt: skip
  batch = history_batch(columns, "one_token", DATA.offsets[:-1], DATA.offsets[1:], 16)
  params = jax.jit(model.init)(jax.random.key(0), batch)["params"]
  params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), params)
  return ActionRanker(model, params, DATA, columns, "one_token", max_length=6)


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


def test_a_user_who_has_seen_every_candidate_gets_no_item(ranker):
  assert ranker.rank("0", candidates=DATA.item_id[DATA.user_slice(0)]) == []
