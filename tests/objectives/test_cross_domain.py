"""Cross-domain attention as an objective: its value, its gradient beside that of the recommendation, and the step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sequences import NUM_ITEMS, batch_of

from jaxrec.layers.attention import MASS, AttentionSizes, cross_domain_share, masses_by_layer, sizes_by_layer
from jaxrec.models import build
from jaxrec.multi_objective import multi_objective
from jaxrec.multi_objective.weighting import fixed, pareto
from jaxrec.objectives.attention_score import attention_parts, cross_domain_attention, excess, visible_share
from jaxrec.objectives.autocdsr import CrossDomainObjective, shared_parameters
from jaxrec.objectives.item import ItemObjective, ParameterItems
from jaxrec.train.state import create_state
from jaxrec.train.step import make_train_step

BATCH = batch_of([[[3, 1, 4, 1, 5, 9]], [[2, 6], [5, 3, 5]], [[8, 9, 7]], [[3, 2, 3, 8]]], length=7, num_domains=2)
SIZES = {"width": 8, "num_layers": 1, "max_positions": 9, "num_domains": 2}
HSTU = {"name": "hstu", **SIZES, "num_heads": 2, "head_width": 3, "value_width": 5, "attention_length": 7}
SASREC = {"name": "sasrec", **SIZES, "num_heads": 2, "hidden": 6}
BERT4REC = {"name": "bert4rec", **SIZES, "num_heads": 2, "hidden": 6}
MODELS = {
  "hstu": HSTU,
  "sasrec": SASREC,
  "sasrec of two layers": {**SASREC, "num_layers": 2},
  "bert4rec": BERT4REC,
  "hstu_plus": {**HSTU, "num_bottlenecks": 1, "bottleneck_stride": 2},
}
OBJECTIVE = CrossDomainObjective(ItemObjective("full_softmax", temperature=0.1))
GATED = dataclasses.replace(OBJECTIVE, gate=True)
HIDDEN = (BATCH.position % 3 == 1) & (BATCH.sequence_id != 0)
MASKED = BATCH.replace(  # As in masked-item training: the target is the event itself, whose item and domain are hidden.
  item_id=jnp.where(HIDDEN, NUM_ITEMS + 1, BATCH.item_id), domain_id=jnp.where(HIDDEN, 0, BATCH.domain_id),
  target_item=BATCH.item_id, target_domain=BATCH.domain_id, target_weight=HIDDEN.astype(jnp.float32),
)  # fmt: skip
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def quick_jit(function):
  return jax.jit(function, compiler_options=QUICK)


@functools.cache
def model_and_params(name):
  model = build(MODELS[name], num_items=NUM_ITEMS)
  shapes = jax.eval_shape(model.init, jax.random.key(0), BATCH)["params"]
  leaves, tree = jax.tree.flatten(shapes)
  rng = np.random.default_rng(1)
  return model, jax.tree.unflatten(tree, [jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype) for x in leaves])


def test_the_share_is_what_leaves_the_own_domain_whatever_the_signs():
  mass = jnp.array([[[[0.0, 1.0, 3.0]], [[0.5, -1.0, 1.0]], [[0.0, 0.0, 0.0]]]])  # [1, 3, 1, 3]
  share = cross_domain_share(mass, jnp.array([[1, 2, 1]]))
  np.testing.assert_allclose(share[0, :, 0], [0.75, 0.4, 0.0], atol=1e-5)


def test_padding_does_not_count_and_a_hidden_domain_is_that_of_the_target():
  batch = batch_of([[[1, 2]]], length=3, num_domains=2)  # domains 2 1, targets' domains 1 2
  mass = jnp.tile(jnp.array([0.0, 0.25, 0.75]), (1, 3, 1, 1))
  share, count = cross_domain_attention([mass], batch)
  np.testing.assert_allclose((share, count), ((0.25 + 0.75) / 2, 2), rtol=1e-5)
  hidden = batch.replace(domain_id=batch.domain_id.at[0, 0].set(0))
  np.testing.assert_allclose(cross_domain_attention([mass], hidden)[0], (0.75 + 0.75) / 2, rtol=1e-5)


def test_the_own_domain_can_be_that_of_the_target():
  batch = batch_of([[[1, 2]]], length=3, num_domains=2)  # domains 2 1, targets' domains 1 2
  batch = batch.replace(target_weight=jnp.array([[1.0, 0.0, 0.0]]))
  mass = jnp.tile(jnp.array([0.0, 0.25, 0.75]), (1, 3, 1, 1))
  np.testing.assert_allclose(cross_domain_attention([mass], batch, "target"), (0.75, 1), rtol=1e-5)
  with pytest.raises(ValueError, match="own='targets' is not one of"):
    CrossDomainObjective(ItemObjective(), "targets")


def layer_of(*queries):
  """Sizes of one head: hidden events, domains 1 and 2, the query itself; and how many of each but the last."""
  sizes, counts = zip(*queries, strict=True)
  return AttentionSizes(jnp.array(sizes, jnp.float32)[None, :, None], jnp.array(counts, jnp.float32)[None])


TWO = batch_of([[[1, 2]]], length=3, num_domains=2)  # domains 2 1, targets' domains 1 2, then padding
PADDING = ([9, 9, 9, 9], [1, 1, 1])


def test_the_visible_share_compares_the_domains_of_the_other_keys_only():
  layer = layer_of(([0.5, 1, 3, 2], [1, 1, 1]), ([0.5, 1, 1, 7], [1, 1, 1]), PADDING)
  share, count = visible_share([layer], TWO)
  np.testing.assert_allclose((share, count), ((1 / 4 + 1 / 2) / 2, 2), rtol=1e-6)
  elsewhere = layer.replace(sizes=layer.sizes * jnp.array([100.0, 1, 1, 0]))  # Attention to [MASK] and to oneself.
  assert visible_share([elsewhere], TWO)[0] == share
  second = layer_of(*[([0, 1, 0, 0], [0, 1, 1])] * 3)  # All attention to domain 1: shares 1 and 0.
  np.testing.assert_allclose(visible_share([layer, second], TWO), ((1 / 4 + 1 / 2 + 1 + 0) / 4, 2), rtol=1e-6)
  by_target = visible_share([layer], TWO.replace(target_weight=jnp.array([[1.0, 0, 0]])), "target")
  np.testing.assert_allclose(by_target, (3 / 4, 1), rtol=1e-6)


def test_a_query_without_keys_of_both_kinds_does_not_count():
  layer = layer_of(([0.5, 1, 3, 2], [1, 1, 1]), ([0, 4, 0, 7], [0, 2, 0]), PADDING)
  np.testing.assert_allclose(visible_share([layer], TWO), (1 / 4, 1), rtol=1e-6)
  nothing = layer_of(*[([1, 0, 0, 1], [1, 0, 0])] * 3)
  assert [float(x) for x in (*visible_share([nothing], TWO), *excess([nothing], TWO))] == [0] * 4
  no_attention = layer_of(*[([0, 0, 0, 1], [1, 2, 3])] * 3)
  assert np.isfinite(
    jax.grad(lambda x: visible_share([no_attention.replace(sizes=x)], TWO)[0])(no_attention.sizes)
  ).all()


def test_queries_outside_the_gate_count_as_nothing_but_count():
  layer = layer_of(([0.5, 1, 3, 2], [1, 1, 1]), ([0.5, 1, 1, 7], [1, 1, 1]), PADDING)
  gate = jnp.array([[False, True, True]])
  np.testing.assert_allclose(visible_share([layer], TWO, gate=gate), (1 / 4, 2), rtol=1e-6)
  np.testing.assert_allclose(excess([layer], TWO, gate=gate & False), (0, 2))


@pytest.mark.parametrize(
  ("name", "own"),
  [("hstu", "query"), ("hstu", "target"), pytest.param("sasrec", "query", marks=pytest.mark.exhaustive),
   ("bert4rec", "query")],
)  # fmt: skip
def test_the_gate_opens_where_the_own_domain_alone_has_less_loss(name, own):
  model, params = model_and_params(name)
  batch = MASKED if name == "bert4rec" else BATCH
  items = ParameterItems(model, batch, {"target": batch.target_item})

  @quick_jit
  def found(params):
    objective = dataclasses.replace(GATED, own=own)
    given = objective.gradients(model, params, batch, jax.random.key(3), deterministic=True)
    return given.losses[1], given.to_params_gradient(given.grads[1]), given.scalars["gated"]

  def expected(params):
    query, state = model.apply({"params": params}, batch, mutable=["attention_sizes"])
    alone = model.apply({"params": params}, batch, own=own, method="within_domain")
    losses = [OBJECTIVE.recommendation.loss_of_positions(x, items, params, batch, NUM_ITEMS) for x in (alone, query)]
    gate = (losses[0] < losses[1]) & (batch.target_weight > 0)
    score = visible_share(sizes_by_layer(state["attention_sizes"]), batch, own, gate)[0]
    return score, (gate * batch.target_weight).sum() / batch.target_weight.sum()

  score, grad, gated = found(params)
  (correct, share), correct_grad = quick_jit(jax.value_and_grad(expected, has_aux=True))(params)
  np.testing.assert_allclose((score, gated), (correct, share), rtol=1e-5)
  assert 0 < gated < 1 and score > 0
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grad, correct_grad)


def test_a_gate_needs_visible_keys_and_a_model_of_all_events():
  with pytest.raises(ValueError, match="gate=True is for scores of visible keys, not 'all_keys'"):
    CrossDomainObjective(ItemObjective(), gate=True, score="all_keys")
  model, params = model_and_params("hstu_plus")
  with pytest.raises(NotImplementedError, match="HSTU: attention inside a domain is for models of all events"):
    jax.eval_shape(lambda params: GATED.gradients(model, params, BATCH, jax.random.key(0))[0], params)


def test_opposite_signs_do_not_hide_attention_to_other_domains():
  silu = jax.nn.silu(jnp.array([0.4409, -1.0]))  # .2683 and -.2689
  layer = layer_of(([0, float(jnp.abs(silu).sum()), 1, 0], [0, 2, 1]), PADDING, PADDING)
  batch = TWO.replace(sequence_id=jnp.array([[1, 0, 0]]))
  np.testing.assert_allclose(visible_share([layer], batch), (0.349, 1), atol=5e-4)
  mass = jnp.array([[[[0, float(silu.sum()), 1.0]]]])
  assert cross_domain_share(mass, jnp.array([[2]])) < 1e-3


def test_the_excess_is_what_exceeds_the_odds_of_the_events():
  # Odds of other domains 1 / 3 and 2, those of the events 1 / 6 and 4: log 2 above and log 2 below.
  layer = layer_of(([5, 1, 3, 0], [9, 1, 6]), ([0, 1, 2, 9], [0, 1, 4]), PADDING)
  np.testing.assert_allclose(excess([layer], TWO), (np.log(2) / 2, 2), rtol=1e-6)
  np.testing.assert_allclose(excess([layer], TWO, margin=0.5), ((np.log(2) - 0.5) / 2, 2), rtol=1e-5)
  for options in ({"score": "all"}, {"margin": 0.5}):
    with pytest.raises(ValueError, match="is not one of|has no meaning"):
      CrossDomainObjective(ItemObjective(), **options)


def test_the_parts_of_attention_are_those_of_the_positions_with_a_target():
  layer = layer_of(([0.5, 1, 3, 3.5], [1, 1, 1]), ([1, 2, 1, 0], [1, 1, 1]), PADDING)
  batch = TWO.replace(target_weight=jnp.array([[3.0, 1.0, 0]]))
  parts = attention_parts([layer, layer], batch)
  expected = {"self": 7 / 16 * 0.75, "hidden": 1 / 16 * 0.75 + 1 / 16, "own": 3 / 8 * 0.75 + 1 / 8,
              "other": 1 / 8 * 0.75 + 1 / 16}  # fmt: skip
  assert list(parts) == [f"attention_{layer}/{name}" for layer in (0, 1) for name in expected]
  for name, value in expected.items():
    np.testing.assert_allclose((parts[f"attention_0/{name}"], parts[f"attention_1/{name}"]), value, rtol=1e-6)


MODELS_AND_SCORES = [
  ("hstu_plus", "visible"),
  ("bert4rec", "visible"),
  ("sasrec of two layers", "excess"),
  ("hstu", "all_keys"),
]
REST = [(name, "visible") for name in ("hstu", "sasrec", "sasrec of two layers")]


@pytest.mark.parametrize(
  ("name", "score"), [*MODELS_AND_SCORES, *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in REST)]
)
def test_the_gradients_are_those_of_the_two_losses(name, score):
  model, params = model_and_params(name)
  key, objective = jax.random.key(3), dataclasses.replace(OBJECTIVE, score=score)

  def attention_loss(params):
    _, state = model.apply({"params": params}, BATCH, mutable=[MASS, "attention_sizes"])
    if score == "all_keys":
      return cross_domain_attention(masses_by_layer(state[MASS]), BATCH)
    return (visible_share if score == "visible" else excess)(sizes_by_layer(state["attention_sizes"]), BATCH)

  @quick_jit
  def both(params):
    found = objective.gradients(model, params, BATCH, key, deterministic=True)
    return found.losses, found.weights, tuple(found.to_params_gradient(grad) for grad in found.grads)

  def recommendation_loss(params):
    return OBJECTIVE(model, params, BATCH, key, deterministic=True)

  losses, weight, grads = both(params)
  expected = [quick_jit(jax.value_and_grad(f, has_aux=True))(params) for f in (recommendation_loss, attention_loss)]
  np.testing.assert_allclose(losses, [value for (value, _), _ in expected], rtol=1e-5)
  num_queries = expected[1][0][1]
  np.testing.assert_allclose(weight, [BATCH.target_weight.sum(), num_queries])
  assert num_queries > 4
  if score == "all_keys":
    assert num_queries == (BATCH.sequence_id > 0).sum()
  for grad, (_, one) in zip(grads, expected, strict=True):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grad, one)
  assert 0 < float(losses[1]) < (3 if score == "excess" else 1)


def test_the_gram_matrix_leaves_out_the_item_table():
  model, params = model_and_params("sasrec of two layers")

  def gradients(params):
    return OBJECTIVE.gradients(model, params, BATCH, jax.random.key(0), deterministic=True)[2]

  assert set(shared_parameters(jax.eval_shape(gradients, params)[0])) == {"embedding", "layers_0", "layers_1"}


def test_one_domain_is_refused():
  model = build({**SASREC, "num_domains": 1}, num_items=NUM_ITEMS)
  with pytest.raises(ValueError, match="model.num_domains=1: attention across domains needs at least two"):
    OBJECTIVE.gradients(model, {}, BATCH, jax.random.key(0))


def run(name, weighting, steps=1, optimizer=None, **options):
  """Returns the state and scalars of the last of some steps."""
  model, _ = model_and_params(name)
  optimizer = multi_objective(weighting, optimizer or optax.adam(0.01), select=shared_parameters)
  state = create_state(model, optimizer, BATCH, seed=0)
  step = make_train_step(model, OBJECTIVE, optimizer, seed=1, **options)
  for _ in range(steps):
    state, scalars = step(state, BATCH)
  return state, {name: float(value) for name, value in scalars.items()}


@functools.cache
def whole_step():
  sgd = optax.sgd(0.1)  # Adam makes a step of the rounding errors of zero gradients.
  return run("sasrec", pareto(), optimizer=sgd)


def test_a_step_tells_losses_weights_and_the_angle():
  _, scalars = whole_step()
  names = {"recommendation", "cross_domain_attention"}
  assert set(scalars) == {
    "loss",
    "grad_norm",
    "cosine",
    *names,
    *(f"{kind}/{name}" for kind in ("weight", "norm") for name in names),
    *(f"attention_{layer}/{part}" for layer in (0,) for part in ("self", "hidden", "own", "other")),
  }
  rho = scalars["cosine"]
  assert scalars["weight/recommendation"] == 1
  np.testing.assert_allclose(scalars["weight/cross_domain_attention"], (1 - 2 * rho) / (2 - rho), rtol=1e-3)


def test_a_step_in_parts_is_the_step_of_the_whole_batch():
  whole, scalars = whole_step()
  parts, scalars_of_parts = run("sasrec", pareto(), optimizer=optax.sgd(0.1), accumulate=2)
  for name, value in scalars.items():
    np.testing.assert_allclose(scalars_of_parts[name], value, rtol=1e-4, err_msg=name)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole.params, parts.params)


def test_steps_with_old_weights_log_the_same_numbers():
  every, reused = (run("sasrec", fixed([1, 0.5]), steps=2, reweight_every=n)[1] for n in (1, 2))
  assert reused.keys() == every.keys() and "attention_0/self" in reused
  for name in ("loss", "cross_domain_attention", "attention_0/other", "attention_0/self"):
    np.testing.assert_allclose(reused[name], every[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["hstu", pytest.param("hstu_plus", marks=pytest.mark.exhaustive)])
def test_a_heavy_weight_drives_attention_out_of_other_domains(name):
  _, before = run(name, fixed([1, 0]), steps=30)
  _, after = run(name, fixed([1, 100]), steps=30)
  assert after["cross_domain_attention"] < 0.5 * before["cross_domain_attention"]
