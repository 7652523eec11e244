"""Cross-domain attention as an objective: its value, its gradient beside that of the recommendation, and the step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sequences import NUM_ITEMS, batch_of

from jaxrec.layers.attention import MASS, cross_domain_share, masses_by_layer
from jaxrec.models import build
from jaxrec.multi_objective import multi_objective
from jaxrec.multi_objective.weighting import fixed, pareto
from jaxrec.objectives.autocdsr import CrossDomainObjective, cross_domain_attention, shared_parameters
from jaxrec.objectives.item import ItemObjective
from jaxrec.train.state import create_state
from jaxrec.train.step import make_train_step

BATCH = batch_of([[[3, 1, 4, 1, 5, 9]], [[2, 6], [5, 3, 5]], [[8, 9, 7]], [[3, 2, 3, 8]]], length=7, num_domains=2)
SIZES = {"width": 8, "num_layers": 2, "max_positions": 9, "num_domains": 2}
HSTU = {"name": "hstu", **SIZES, "num_heads": 2, "head_width": 3, "value_width": 5, "attention_length": 7}
SASREC = {"name": "sasrec", **SIZES, "num_heads": 2, "hidden": 6}
BERT4REC = {"name": "bert4rec", **SIZES, "num_layers": 1, "num_heads": 2, "hidden": 6}
MODELS = {
  "hstu": HSTU,
  "sasrec": SASREC,
  "bert4rec": BERT4REC,
  "hstu_plus": {**HSTU, "num_layers": 1, "num_bottlenecks": 1, "bottleneck_stride": 2},
}
OBJECTIVE = CrossDomainObjective(ItemObjective("full_softmax", temperature=0.1))
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


@pytest.mark.parametrize("name", MODELS)
def test_the_gradients_are_those_of_the_two_losses(name):
  model, params = model_and_params(name)
  key = jax.random.key(3)

  def attention_loss(params):
    _, state = model.apply({"params": params}, BATCH, mutable=[MASS])
    return cross_domain_attention(masses_by_layer(state[MASS]), BATCH)[0]

  @quick_jit
  def both(params):
    found = OBJECTIVE.gradients(model, params, BATCH, key, deterministic=True)
    return found.losses, found.weights, tuple(found.to_params_gradient(grad) for grad in found.grads)

  def recommendation_loss(params):
    return OBJECTIVE(model, params, BATCH, key, deterministic=True)[0]

  losses, weight, grads = both(params)
  expected = [quick_jit(jax.value_and_grad(loss))(params) for loss in (recommendation_loss, attention_loss)]
  np.testing.assert_allclose(losses, [value for value, _ in expected], rtol=1e-5)
  np.testing.assert_allclose(weight, [BATCH.target_weight.sum(), (BATCH.sequence_id > 0).sum()])
  for grad, (_, one) in zip(grads, expected, strict=True):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grad, one)
  assert 0 < float(losses[1]) < 1


def test_the_gram_matrix_leaves_out_the_item_table():
  model, params = model_and_params("sasrec")

  def gradients(params):
    return OBJECTIVE.gradients(model, params, BATCH, jax.random.key(0), deterministic=True)[2]

  assert set(shared_parameters(jax.eval_shape(gradients, params)[0])) == {"embedding", "layers_0", "layers_1"}


def test_one_domain_is_refused():
  model = build({**SASREC, "num_domains": 1}, num_items=NUM_ITEMS)
  with pytest.raises(ValueError, match="model.num_domains=1: attention across domains needs at least two"):
    OBJECTIVE.gradients(model, {}, BATCH, jax.random.key(0))


def run(name, weighting, steps=1, optimizer=None, **options):
  model, _ = model_and_params(name)
  optimizer = multi_objective(weighting, optimizer or optax.adam(0.01), select=shared_parameters)
  state = create_state(model, optimizer, BATCH, seed=0)
  step = make_train_step(model, OBJECTIVE, optimizer, seed=1, **options)
  for _ in range(steps):
    state, scalars = step(state, BATCH)
  return state, {name: float(value) for name, value in scalars.items()}


def test_a_step_tells_losses_weights_and_the_angle():
  _, scalars = run("sasrec", pareto())
  names = {"recommendation", "cross_domain_attention"}
  assert set(scalars) == {
    "loss",
    "grad_norm",
    "cosine",
    *names,
    *(f"{kind}/{name}" for kind in ("weight", "norm") for name in names),
  }
  rho = scalars["cosine"]
  assert scalars["weight/recommendation"] == 1
  np.testing.assert_allclose(scalars["weight/cross_domain_attention"], (1 - 2 * rho) / (2 - rho), rtol=1e-3)


def test_a_step_in_parts_is_the_step_of_the_whole_batch():
  sgd = optax.sgd(0.1)  # Adam makes a step of the rounding errors of zero gradients.
  whole, scalars = run("sasrec", pareto(), optimizer=sgd)
  parts, scalars_of_parts = run("sasrec", pareto(), optimizer=sgd, accumulate=2)
  for name, value in scalars.items():
    np.testing.assert_allclose(scalars_of_parts[name], value, rtol=1e-4, err_msg=name)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole.params, parts.params)


@pytest.mark.parametrize("name", ["hstu", "hstu_plus"])
def test_a_heavy_weight_drives_attention_out_of_other_domains(name):
  _, before = run(name, fixed([1, 0]), steps=30)
  _, after = run(name, fixed([1, 100]), steps=30)
  assert after["cross_domain_attention"] < 0.5 * before["cross_domain_attention"]
