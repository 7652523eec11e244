"""The objective of ranking: losses by hand, gradients at shared activations against full ones, any weighting."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec import multi_objective
from jaxrec.batches import ActionType
from jaxrec.data.batches.ranking_batches import RankingBatches, RankingOptions, training_examples
from jaxrec.data.batches.ranking_rows import RankingColumns
from jaxrec.data.generators.planted_actions import planted_actions
from jaxrec.models.ranking import RankingModel
from jaxrec.objectives.action_prediction import ACTIVATIONS, HEADS, ActionObjective, action_losses, token_losses
from jaxrec.train.state import create_state
from jaxrec.train.step import make_train_step

DATA = planted_actions(num_users=6, num_genres=2, items_per_genre=4, mean_events=8.0)
OPTIONS = RankingOptions(max_length=12)
BATCH = RankingBatches(RankingColumns(DATA), training_examples(DATA, 0, OPTIONS), OPTIONS, 1000, multiple_of=2)[0]
ACTIONS = (
  ActionType("like", "binary"),
  ActionType("reaction", "multi_class", 3),
  ActionType("seconds", "regression", 2, mean=30, scale=10),
)
MODEL = RankingModel(
  num_items=DATA.num_items, actions=ACTIONS, heads=ACTIONS, max_positions=12, width=8, num_layers=1, num_heads=1,
  head_width=4, value_width=4, attention_length=12, head_hidden=0, dropout=0.2, implementation="reference",
)  # fmt: skip
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def params():
  return jax.jit(MODEL.init)(jax.random.key(0), BATCH)["params"]


def direct_losses(params):
  """The losses without a division into encoder and heads."""
  predictions = MODEL.apply({"params": params}, BATCH, deterministic=False, rngs={"dropout": KEY})
  return action_losses(predictions, BATCH, ACTIONS)


def test_losses_of_each_kind_by_hand():
  label = jnp.array([[1, 0]])
  found = token_losses(jnp.array([[0.0, np.log(3.0)]]), label, ACTIONS[0])
  np.testing.assert_allclose(found, [[np.log(2), -np.log(0.25)]], rtol=1e-6)
  logits = jnp.log(jnp.array([[[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]]))
  np.testing.assert_allclose(token_losses(logits, label, ACTIONS[1]), -np.log([[0.3, 0.6]]), rtol=1e-6)
  found = token_losses(jnp.array([[1.0, -1.0]]), jnp.array([[30.0, 50.0]]), ACTIONS[2])
  np.testing.assert_allclose(found, [[0.5, 4.5]])


def test_only_weighted_candidates_count():
  predictions = {
    head.name: jnp.zeros((*BATCH.kind.shape, *((3,) if head.name == "reaction" else ()))) for head in ACTIONS
  }
  chosen = BATCH.weight > 0
  seconds = BATCH.actions["seconds"][chosen]
  expected = [np.log(2), np.log(3), 0.5 * np.mean(((seconds - 30) / 10) ** 2)]
  np.testing.assert_allclose(action_losses(predictions, BATCH, ACTIONS), expected, rtol=1e-5)


@pytest.mark.parametrize("gradients_at", ["shared", "full"])
def test_a_weighted_sum_of_gradients_is_the_gradient_of_the_weighted_sum(params, gradients_at):
  objective, weights = ActionObjective(ACTIONS, gradients_at), jnp.array([1.0, 0.5, 2.0])

  @jax.jit
  def combined(params):
    found = objective.gradients(MODEL, params, BATCH, KEY)
    total = multi_objective.gradients.weighted_sum(weights, found.grads)
    return (
      found.losses,
      found.to_params_gradient(total),
      jax.grad(lambda p: weights @ direct_losses(p))(params),
      direct_losses(params),
    )

  losses, grad, expected, expected_losses = combined(params)
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grad, expected)


def test_each_full_gradient_is_that_of_its_loss_and_selects_the_encoder(params):
  objective = ActionObjective(ACTIONS, "full")
  found = jax.jit(lambda p: objective.gradients(MODEL, p, BATCH, KEY).grads)(params)
  expected = jax.jit(jax.jacrev(direct_losses))(params)
  for k in range(3):
    jax.tree.map(lambda a, b, k=k: np.testing.assert_allclose(a, b[k], atol=1e-6), found[k], expected)
  assert HEADS not in objective.select(found[0]) and "items" in objective.select(found[0])


def test_shared_gradients_hold_no_array_of_the_encoder(params):
  found = jax.jit(lambda p: ActionObjective(ACTIONS).gradients(MODEL, p, BATCH, KEY).grads)(params)
  assert {*found[0]} == {ACTIVATIONS, HEADS} and found[0][ACTIVATIONS].shape == (*BATCH.kind.shape, 8)
  assert not any(np.asarray(x).any() for x in jax.tree.leaves(found[0][HEADS]["seconds_output"]))


def test_the_encoder_is_passed_backwards_once():
  """Forward and backward cost about 1 : 2, so that three full gradients cost 7 units and three shared ones 3."""
  model = MODEL.clone(num_layers=3)
  shapes = jax.eval_shape(model.init, jax.random.key(0), BATCH)["params"]

  def operations(where):
    def step(params):
      found = ActionObjective(ACTIONS, where).gradients(model, params, BATCH, KEY)
      return found.to_params_gradient(multi_objective.gradients.weighted_sum(jnp.ones(3), found.grads))

    return jax.jit(step).lower(shapes).cost_analysis()["flops"]

  assert operations("full") > 1.7 * operations("shared")


RULES = (
  {"name": "uncertainty", "learning_rate": 0.1}, {"name": "mgda", "normalization": "l2"},
)  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["name"])
def test_every_weighting_trains_inside_the_step(rule):
  objective = ActionObjective(ACTIONS)
  optimizer = multi_objective.multi_objective(
    multi_objective.build(rule), optax.adam(1e-2), num_objectives=3, select=objective.select
  )
  state = create_state(MODEL, optimizer, BATCH, seed=0)
  step = make_train_step(MODEL, objective, optimizer, seed=1)
  scalars = []
  for _ in range(8):
    state, found = step(state, BATCH)
    scalars.append(jax.device_get(found))
  names = [head.name for head in ACTIONS]
  assert sum(scalars[-1][name] for name in names) < sum(scalars[0][name] for name in names)
  assert all(np.isfinite(scalars[-1][f"weight/{name}"]) for name in names)


def test_microbatches_give_the_full_gradients_of_the_whole_batch():
  model = MODEL.clone(dropout=0.0, num_layers=0)
  optimizer = multi_objective.multi_objective(
    multi_objective.build({"name": "fixed", "weights": [1, 2, 3]}), optax.sgd(0.1), num_objectives=3
  )
  state, objective, found = create_state(model, optimizer, BATCH, seed=0), ActionObjective(ACTIONS, "full"), []
  for accumulate in (1, 2):
    step = make_train_step(model, objective, optimizer, seed=1, accumulate=accumulate)
    found.append(step(jax.tree.map(jnp.copy, state), BATCH)[0].params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *found)


def test_an_unknown_kind_of_gradient_is_an_error():
  with pytest.raises(ValueError, match="gradients_at='half'"):
    ActionObjective(ACTIONS, "half")
