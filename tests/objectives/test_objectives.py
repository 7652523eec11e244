"""Objectives: from a config and a model to one number."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sequences import NUM_ITEMS, batch_of

from jaxrec.objectives import item_losses
from jaxrec.objectives.item import LOSSES, ItemObjective, build
from jaxrec.objectives.negatives import log_probability

BATCH = batch_of([[[3, 1, 4, 1]], [[5, 9], [2, 6]], []], length=5)
UNIFORM = [{"loss": "sampled_softmax"}, {"loss": "bce"}, {"loss": "gbce"}, {"loss": "sampled_softmax", "log_q": True}]


class Lookup(nn.Module):
  """Query and scoring vectors straight from two tables; dropout on the queries."""

  num_items: int = NUM_ITEMS
  dropout: float = 0.0

  def setup(self):
    self.query = nn.Embed(self.num_items + 1, 4)
    self.item = nn.Embed(self.num_items + 1, 4)
    self.drop = nn.Dropout(self.dropout)

  def __call__(self, batch, deterministic=True):
    self.item(batch.item_id)
    return self.drop(self.query(batch.item_id), deterministic=deterministic)

  def item_vectors(self, item_id=None):
    return self.item(jnp.arange(self.num_items + 1) if item_id is None else item_id)


MODEL = Lookup()
PARAMS = MODEL.init(jax.random.key(0), BATCH)["params"]


def loss_of(objective, batch=BATCH, key=0, model=MODEL, **options):
  return objective(model, PARAMS, batch, jax.random.key(key), **options)


class FixedDraw(ItemObjective):
  """Draws the items 2, 5, 7, however they are shared."""

  def sample_negatives(self, key, batch, num_items):
    lead = {"position": batch.target_item.shape, "row": batch.target_item.shape[:1], "batch": ()}[self.sharing]
    return jnp.broadcast_to(jnp.array([2, 5, 7]), (*lead, 3))


@pytest.mark.parametrize("options", UNIFORM, ids=str)
def test_sharing_the_same_ids_gives_the_same_loss(options):
  values = [loss_of(FixedDraw(sharing=s, num_negatives=3, **options))[0] for s in ("position", "row", "batch")]
  np.testing.assert_allclose(values, values[0], rtol=1e-5)


@pytest.mark.parametrize("sharing, shape", [("position", (3, 5, 8)), ("row", (3, 8)), ("batch", (8,))])
@pytest.mark.parametrize("sampler", ["uniform", "log_uniform", "in_batch", "in_batch_frequency"])
def test_a_draw_has_one_sample_for_each_that_shares_none(sampler, sharing, shape):
  objective = ItemObjective(num_negatives=8, sampler=sampler, sharing=sharing)
  ids = objective.sample_negatives(jax.random.key(0), BATCH, NUM_ITEMS)
  assert ids.shape == shape and int(ids.min()) >= 1 and int(ids.max()) <= NUM_ITEMS


def test_log_q_of_a_uniform_draw_shifts_all_scores_alike_and_so_changes_nothing():
  plain, corrected = (loss_of(ItemObjective(log_q=q, num_negatives=6))[0] for q in (False, True))
  np.testing.assert_allclose(plain, corrected, rtol=1e-5)


def test_log_q_subtracts_the_log_probability_of_each_item():
  ids = jnp.array([2, 5, 7])
  query, items = PARAMS["query"]["embedding"][BATCH.item_id], PARAMS["item"]["embedding"]
  scores = (query * items[BATCH.target_item]).sum(axis=-1), query @ items[ids].T
  positive, negative = item_losses.sampled_logits(*scores, BATCH.target_item, ids, 0.5)
  log_q = functools.partial(log_probability, "log_uniform", num_items=NUM_ITEMS)
  value = item_losses.sampled_softmax(positive - log_q(BATCH.target_item), negative - log_q(ids))
  expected = item_losses.weighted_mean(value, BATCH.target_weight)
  objective = FixedDraw(sharing="batch", sampler="log_uniform", log_q=True, temperature=0.5)
  np.testing.assert_allclose(loss_of(objective)[0], expected, rtol=1e-5)


def test_the_loss_is_the_mean_over_weights_and_their_sum_comes_with_it():
  objective = ItemObjective(loss="full_softmax")
  loss, metrics = loss_of(objective)
  assert metrics["weight"] == 8 and metrics["loss"] == loss
  halves = [BATCH.replace(target_weight=BATCH.target_weight.at[row].set(0)) for row in (0, 1)]
  np.testing.assert_allclose(loss, np.mean([loss_of(objective, half)[0] for half in halves]), rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_targets_of_weight_zero_contribute_nothing(loss):
  objective = ItemObjective(loss=loss, num_negatives=4, sampler="in_batch")
  silent = BATCH.replace(target_weight=BATCH.target_weight.at[0, 2].set(0))
  changed = silent.replace(target_item=silent.target_item.at[0, 2].set(9))
  assert loss_of(objective, silent)[0] == loss_of(objective, changed)[0]
  nothing = BATCH.replace(target_weight=jnp.zeros_like(BATCH.target_weight))
  assert loss_of(objective, nothing)[0] == 0


def test_bce_is_gbce_without_calibration_and_gbce_weighs_the_positive_less():
  choices = [{"loss": "bce", "gbce_t": 0.7}, {"loss": "gbce", "gbce_t": 0.0}, {"loss": "gbce", "gbce_t": 1.0}]
  bce, same, gbce = (loss_of(FixedDraw(num_negatives=3, **options))[0] for options in choices)
  np.testing.assert_allclose(bce, same, rtol=1e-6)
  assert gbce < bce


def test_the_key_decides_the_draw_and_dropout_is_only_for_training():
  objective, model = ItemObjective(loss="full_softmax"), Lookup(dropout=0.5)
  assert loss_of(objective, key=1, model=model)[0] != loss_of(objective, key=2, model=model)[0]
  evaluated = (loss_of(objective, key=key, model=model, deterministic=True)[0] for key in (1, 2))
  assert len({float(value) for value in evaluated}) == 1
  assert loss_of(ItemObjective(num_negatives=4), key=1)[0] != loss_of(ItemObjective(num_negatives=4), key=2)[0]


@pytest.mark.parametrize("loss", LOSSES)
def test_training_lowers_the_loss_of_a_tiny_model(loss):
  objective = ItemObjective(loss=loss, num_negatives=8, sharing="batch", temperature=0.2)
  optimizer = optax.adam(0.03)

  @jax.jit
  def train(params):
    def step(state, key):
      params, moments = state
      (_, metrics), gradient = jax.value_and_grad(lambda p: objective(MODEL, p, BATCH, key), has_aux=True)(params)
      updates, moments = optimizer.update(gradient, moments)
      return (optax.apply_updates(params, updates), moments), metrics["loss"]

    return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(jax.random.key(1), 60))[1]

  history = train(PARAMS)
  assert history[-10:].mean() < 0.5 * history[:3].mean()


def test_a_config_names_the_loss_and_sets_fields():
  assert build({"name": "gbce", "gbce_t": 0.9}) == ItemObjective(loss="gbce", gbce_t=0.9)


@pytest.mark.parametrize(
  "config, text",
  [
    ({"name": "hinge"}, "objective loss='hinge' is not one of"),
    ({"name": "bce", "sampler": "hard"}, "objective sampler='hard' is not one of"),
    ({"name": "bce", "sharing": "user"}, "objective sharing='user' is not one of"),
    ({"name": "bce", "negatives": 3}, r"objective has no field \['negatives'\]; it has .*'num_negatives'"),
    ({"name": "sampled_softmax", "sampler": "in_batch", "log_q": True}, "log_q has no meaning for sampler='in_batch'"),
    ({"name": "bce", "sampler": "in_batch_frequency", "log_q": True}, "log_q has no meaning for sampler='in_batch_"),
    ({"name": "full_softmax", "log_q": True}, "log_q has no meaning for .*loss='full_softmax'"),
    ({"name": "bce", "num_negatives": 0}, r"objective\.num_negatives=0 must be an integer of at least 1"),
    ({"name": "sampled_softmax", "num_negatives": -3}, r"objective\.num_negatives=-3 must be an integer of at least 1"),
    ({"name": "bce", "num_negatives": 2**31}, r"objective\.num_negatives=2147483648 must be .* below 2\^31"),
    ({"name": "full_softmax", "chunk_size": 0}, r"objective\.chunk_size=0 must be an integer of at least 1"),
    ({"name": "full_softmax", "temperature": 0.0}, r"objective\.temperature=0\.0 must be finite and above 0"),
    ({"name": "gbce", "gbce_t": float("nan")}, r"objective\.gbce_t=nan in 0\.\.1"),
  ],
)
def test_a_wrong_config_is_refused_by_name(config, text):
  with pytest.raises(ValueError, match=text):
    build(config)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_catalogue_of_one_item_has_a_finite_loss(loss):
  one = BATCH.replace(target_item=jnp.minimum(BATCH.target_item, 1), item_id=jnp.minimum(BATCH.item_id, 1))
  model, key = Lookup(num_items=1), jax.random.key(0)
  value, _ = ItemObjective(loss=loss, num_negatives=4)(model, model.init(key, one)["params"], one, key)
  assert np.isfinite(value)
