"""K gradients from one forward pass, and the optimizer of their weighted sum."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import PYTHON_PATH, REPOSITORY, xla_flags
from programs import multi_objective_devices

from jaxrec.multi_objective import (
  cagrad,
  fixed,
  gram_matrix,
  mgda,
  multi_objective,
  pareto,
  pcgrad,
  pull_heads,
  task_gradients,
  uncertainty,
  upper_bound_gradient,
)

PARAMS, BATCH = multi_objective_devices.problem()


def trunk(params):
  return {"hidden": jnp.tanh(BATCH["x"] @ params["w"]), "row": jnp.arange(16)}  # one leaf has no gradient


def first(activations, params):
  return jnp.mean((activations["hidden"] @ params["u"] - BATCH["y"]) ** 2), {"rows": activations["row"].sum()}


def second(activations, params):
  return jnp.mean(activations["hidden"] ** 4)


def third(activations, params):
  return (params["v"] ** 2).sum()


HEADS = [first, second, third]


def assert_trees_close(one, other, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other)


def separate(params, trunk=trunk, heads=HEADS):
  """Returns losses and gradients, each from its own forward pass."""

  def loss(params, head):
    result = head(trunk(params), params)
    return result[0] if isinstance(result, tuple) else result

  values, grads = zip(*(jax.value_and_grad(loss)(params, head) for head in heads), strict=True)
  return jnp.stack(values), grads


@pytest.mark.parametrize("batched", [True, False])
def test_gradients_equal_those_of_each_loss(batched):
  losses, aux, grads = jax.jit(lambda p: task_gradients(trunk, HEADS, p, batched=batched))(PARAMS)
  expected, expected_grads = separate(PARAMS)
  np.testing.assert_allclose(losses, expected, rtol=1e-6)
  assert_trees_close(grads, expected_grads, rtol=1e-5, atol=1e-6)
  assert aux == ({"rows": 120}, None, None)


@pytest.mark.parametrize("batched", [True, False])
def test_the_forward_pass_runs_once(batched):
  runs = []

  def counted(params):
    def count(x):
      runs.append(1)
      return x

    x = jax.pure_callback(count, jax.ShapeDtypeStruct((), jnp.float32), jnp.float32(1))
    return params["w"].sum() * x

  heads = [lambda z, p: z**2, lambda z, p: z**3, lambda z, p: z]
  grads = jax.jit(lambda p: task_gradients(counted, heads, p, batched=batched)[2])(PARAMS)
  jax.block_until_ready(grads)
  assert len(runs) == 1


def test_three_objectives_cost_less_than_three_passes():
  wide = {"w": jnp.ones((256, 256)), "u": jnp.ones(256), "v": jnp.ones(256)}

  def deep(params):
    x = jnp.ones((64, 256))
    for _ in range(4):
      x = jnp.tanh(x @ params["w"])
    return x

  heads = [lambda z, p: (z @ p["u"]).sum(), lambda z, p: (z @ p["v"]).sum(), lambda z, p: (z**2).sum()]

  def flops(function):
    return jax.jit(function).lower(wide).compile().cost_analysis()["flops"]

  forward = flops(deep)
  assert flops(lambda p: task_gradients(deep, heads, p)) < 7.5 * forward  # 1 + 3 * 2, and the heads
  assert flops(lambda p: upper_bound_gradient(deep, heads, p, lambda g, x: (x, None))) < 3.5 * forward  # 1 + 2


def test_a_head_with_several_activations_is_pulled_back_once():
  traced = []

  @jax.custom_vjp
  def twice(x):
    return 2 * x

  def pull(_, cotangent):
    traced.append(1)
    return (2 * cotangent,)

  twice.defvjp(lambda x: (twice(x), None), pull)

  def two(params):
    x = twice(params["w"])
    return x, x**2, params["u"]

  heads = [lambda z, p: z[0].sum() + z[1].sum(), lambda z, p: z[2].sum()]
  _, _, grads = task_gradients(two, heads, PARAMS, batched=False)
  np.testing.assert_allclose(grads[0]["w"], 2 + 8 * PARAMS["w"], rtol=1e-5)
  assert len(traced) == 1  # not for the second head, which does not use it


def test_gradients_go_through_custom_rules():
  @jax.custom_vjp
  def cube(x):
    return x**3

  cube.defvjp(lambda x: (cube(x), x), lambda x, g: (3 * x**2 * g,))

  def curved(params):
    return cube(params["w"])

  heads = [lambda z, p: z.sum(), lambda z, p: (z**2).sum()]
  assert_trees_close(task_gradients(curved, heads, PARAMS)[2], separate(PARAMS, curved, heads)[1], rtol=1e-5)


def test_the_upper_bound_weights_come_from_activations_and_its_gradient_is_exact():
  def weigh(gram, losses):
    return mgda().update(gram, losses, (), jax.random.key(0))

  losses, aux, grad, weights, _ = jax.jit(lambda p: upper_bound_gradient(trunk, HEADS[:2], p, weigh))(PARAMS)
  hidden = jnp.tanh(BATCH["x"] @ PARAMS["w"])
  on_hidden = [
    jax.grad(lambda h: first({"hidden": h, "row": jnp.arange(16)}, PARAMS)[0])(hidden),
    jax.grad(lambda h: second({"hidden": h}, PARAMS))(hidden),
  ]
  np.testing.assert_allclose(weights, weigh(gram_matrix(on_hidden), losses)[0], atol=1e-6)
  expected = jax.tree.map(lambda a, b: weights[0] * a + weights[1] * b, *separate(PARAMS)[1][:2])
  assert_trees_close(grad, expected, rtol=1e-4, atol=1e-6)
  assert aux[0] == {"rows": 120}


def test_a_head_that_does_not_return_a_scalar_is_refused():
  with pytest.raises(ValueError, match=r"head 1 must return a scalar loss, but its shape is \(16, 4\)"):
    task_gradients(trunk, [first, lambda z, p: z["hidden"]], PARAMS)


def test_the_gram_matrix_is_in_float32_over_selected_leaves():
  grads = [{"a": jnp.array([300.0, 1.0], jnp.bfloat16), "table": jnp.ones(3)}, {"a": jnp.ones(2), "table": jnp.ones(3)}]
  gram = gram_matrix(grads, select={"a": True, "table": False})
  assert gram.dtype == jnp.float32
  np.testing.assert_array_equal(gram, [[90001, 301], [301, 2]])  # in bfloat16 the 1 would be lost
  np.testing.assert_array_equal(gram, gram_matrix(grads, select=lambda grad: {"a": grad["a"]}))
  with jax.enable_x64(True):
    assert gram_matrix([np.ones(2), np.ones(2)]).dtype == jnp.float64


def optimizer_step(weighting, inner=None, params=PARAMS, heads=HEADS, **options):
  optimizer = multi_objective(weighting, inner or optax.sgd(1.0), num_objectives=len(heads), **options)
  losses, _, grads = task_gradients(trunk, heads, params)
  return optimizer, losses, grads


WEIGHTINGS = {
  "fixed": fixed([1, 0.5, 0.1]),
  "uncertainty": uncertainty(0.1),
  "mgda": mgda("loss+"),
  "pareto": pareto([[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
  "pcgrad": pcgrad(),
  "cagrad": cagrad(),
}


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_the_update_is_the_inner_optimizers_for_the_weighted_sum(name):
  optimizer, losses, grads = optimizer_step(
    WEIGHTINGS[name], optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(1.0))
  )
  update = jax.jit(lambda grads, state: optimizer.update(grads, state, PARAMS, losses=losses))
  updates, state = update(grads, optimizer.init(PARAMS))
  combined = jax.tree.map(lambda *g: sum(w * x for w, x in zip(state.weights, g, strict=True)), *grads)
  scale = min(1, 0.1 / optax.tree.norm(combined))
  assert_trees_close(updates, jax.tree.map(lambda x: -scale * x, combined), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(state.norms, [optax.tree.norm(grad) for grad in grads], rtol=1e-5)
  np.testing.assert_allclose(jnp.diagonal(state.cosines), 1, rtol=1e-5)
  assert (state.count, state.num_nonfinite) == (1, 0)


def test_non_finite_gradients_show_in_the_update_and_are_counted():
  optimizer, losses, grads = optimizer_step(fixed([1, 0, 0]))
  broken = (grads[0], grads[1], {**grads[2], "v": grads[2]["v"].at[0].set(jnp.nan)})
  updates, state = optimizer.update(broken, optimizer.init(PARAMS), PARAMS, losses=losses)
  assert np.isnan(state.weights).all() and np.isnan(updates["w"]).all()
  assert (state.num_nonfinite, state.count) == (1, 1)
  updates, state = optimizer.update(grads, state, PARAMS, losses=losses)
  assert np.isfinite(updates["w"]).all() and (state.num_nonfinite, state.count) == (1, 2)


def test_cotangents_can_be_combined_before_they_are_pulled_back_once():
  losses, _, cotangents, pull = pull_heads(trunk, HEADS[:2], PARAMS)
  optimizer = multi_objective(mgda(), optax.sgd(1.0), select=lambda cotangent: cotangent[0])
  updates, state = optimizer.update(cotangents, optimizer.init(PARAMS), PARAMS, losses=losses, to_params_gradient=pull)
  expected = jax.tree.map(lambda a, b: -(state.weights[0] * a + state.weights[1] * b), *separate(PARAMS)[1][:2])
  assert_trees_close(updates, expected, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(state.norms, [optax.tree.norm(activations) for activations, _ in cotangents], rtol=1e-5)


def test_a_given_gram_matrix_is_used_and_extra_arguments_reach_the_inner_optimizer():
  def update(updates, state, params=None, *, factor):
    return jax.tree.map(lambda x: factor * x, updates), state

  inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
  optimizer = multi_objective(mgda(), inner)
  grads, state = (jnp.array([1.0]), jnp.array([2.0])), optimizer.init(jnp.zeros(1))
  updates, state = optimizer.update(grads, state, losses=jnp.ones(2), gram=jnp.diag(jnp.array([3.0, 1.0])), factor=10)
  np.testing.assert_allclose(state.weights, [0.25, 0.75])
  np.testing.assert_allclose(updates, [17.5])


def test_gradients_summed_over_microbatches_give_the_step_of_the_batch():
  parts = [jax.tree.map(lambda x, i=i: x[i::4], BATCH) for i in range(4)]
  losses, grads = zip(*(multi_objective_devices.gradients(PARAMS, part) for part in parts), strict=True)
  mean_losses, mean_grads = jax.tree.map(lambda *x: sum(x) / 4, *zip(losses, grads, strict=True))
  optimizer = multi_objective(mgda("l2"), optax.sgd(0.1))
  updates, state = optimizer.update(mean_grads, optimizer.init(PARAMS), PARAMS, losses=mean_losses)
  assert_trees_close((updates, state.weights), multi_objective_devices.step(PARAMS, BATCH), rtol=1e-4, atol=1e-6)


def test_the_random_order_of_pcgrad_depends_on_seed_and_step_only():
  grads = tuple(jnp.asarray(np.random.default_rng(3).normal(size=(6, 4)), jnp.float32) - 0.3)

  def weights(seed, steps=1):
    optimizer = multi_objective(pcgrad(), optax.sgd(1.0), num_objectives=6, seed=seed)
    state = optimizer.init(jnp.zeros(4))
    for _ in range(steps):
      _, state = optimizer.update(grads, state, losses=jnp.ones(6))
    return state.weights.tolist()

  assert weights(0) == weights(0)
  assert weights(0) != weights(1)
  assert weights(0) != weights(0, steps=2)


@pytest.fixture(scope="module")
def on_eight_devices():
  flags = {"XLA_FLAGS": xla_flags(8), "PYTHONPATH": PYTHON_PATH}
  command = [sys.executable, multi_objective_devices.__file__]
  result = subprocess.run(command, env={**os.environ, **flags}, capture_output=True, text=True, cwd=REPOSITORY)
  assert result.returncode == 0, result.stderr[-3000:]
  return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("how", ["jit", "shard_map"])
def test_rows_sharded_over_eight_devices_give_the_step_of_one(on_eight_devices, how):
  np.testing.assert_allclose(on_eight_devices[how], on_eight_devices["one"], rtol=1e-4, atol=1e-6)


def test_the_gram_matrix_of_sharded_gradients_is_that_of_the_whole(on_eight_devices):
  np.testing.assert_allclose(on_eight_devices["gram of shards"], on_eight_devices["gram"], rtol=1e-5)


@pytest.mark.unchecked_shapes
@pytest.mark.parametrize(
  ("grads", "losses", "text"),
  [
    ((jnp.ones(1),), jnp.ones(2), "got 1 gradients for num_objectives=2; pass num_objectives to multi_objective"),
    (jnp.ones(1), jnp.ones(2), "grads must be a tuple of 2 gradients, not a ArrayImpl"),
    ((jnp.ones(1), jnp.ones(1)), jnp.ones(3), r"losses must have shape \(2,\), not \(3,\)"),
  ],
)
def test_a_wrong_number_of_gradients_or_losses_is_refused(grads, losses, text):
  optimizer = multi_objective(mgda(), optax.sgd(1.0))
  with pytest.raises(ValueError, match=text):
    optimizer.update(grads, optimizer.init(jnp.ones(1)), losses=losses)


def test_a_weighting_for_another_number_of_objectives_is_refused():
  with pytest.raises(ValueError, match="are for 2 objectives, but there are 3"):
    multi_objective(fixed([1, 2]), optax.sgd(1.0), num_objectives=3).init(jnp.ones(1))
