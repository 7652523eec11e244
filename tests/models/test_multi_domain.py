"""TAPE, domain states, and the model that combines them with attention inside each domain."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import PYTHON_PATH, xla_flags
from programs import multi_domain_devices
from sequences import NUM_ITEMS, batch_of

from jaxrec.batches import next_item_batch
from jaxrec.layers.domain_states import Combination, DomainStateAttention, attend_states, read_states
from jaxrec.layers.intra_domain import BLOCK, domain_states, intra_domain_context
from jaxrec.layers.norm import layer_norm
from jaxrec.layers.transitions import TransitionAwarePositionalEmbedding
from jaxrec.models import build

SIZES = {"width": 8, "num_layers": 2, "max_positions": 9, "num_heads": 2, "head_width": 4, "value_width": 4}
HSTU = {"name": "hstu", **SIZES, "attention_length": 9}
MULTI = {**HSTU, "name": "multi_domain_hstu"}
INTRA = {**MULTI, "tape": False, "states": "none"}
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
BATCH = batch_of([[[3, 1, 4, 1, 5, 9, 2]], [[2, 6], [5, 3, 5]]], length=8, num_domains=3)


def big(shapes, seed=1):
  """Parameters far from their small initial values."""
  leaves, tree = jax.tree.flatten(shapes)
  rng = np.random.default_rng(seed)
  return jax.tree.unflatten(tree, [jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype) for x in leaves])


@functools.cache
def _model_and_params(config, num_domains):
  model = build(dict(config), num_items=NUM_ITEMS, num_domains=num_domains)
  return model, big(jax.eval_shape(model.init, jax.random.key(0), BATCH)["params"])


def model_and_params(config, num_domains=3):
  return _model_and_params(tuple(sorted(config.items())), num_domains)


@functools.cache
def compiled(model):
  return jax.jit(lambda params, batch: model.apply({"params": params}, batch), compiler_options=QUICK)


def queries(config, batch, num_domains=3):
  model, params = model_and_params(config, num_domains)
  return np.asarray(compiled(model)(params, batch))


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def states_of(layer, params, z, context):
  """The states that tokens read, in the order of the batch."""
  return context.order.undo(layer.apply({"params": params}, context.order(z), context))


def random_rows(seed, num_domains, shape=(3, 17)):
  """Sequence ids of packed rows with padding, and domains."""
  rng = np.random.default_rng(seed)
  sequence = np.cumsum(rng.random(shape) < 0.2, axis=1) + 1
  sequence[:, -3:] = 0
  sequence[1] = 0
  domain = np.where(sequence != 0, rng.integers(1, num_domains + 1, shape), 0)
  return jnp.asarray(sequence, jnp.int32), jnp.asarray(domain, jnp.int32)


def readable(sequence, domain, num_states=1):
  """`[B, N, N]`: whether j is one of the K latest events of its domain up to i, and of another domain than i."""
  sequence, domain = np.asarray(sequence), np.asarray(domain)
  may_read = np.zeros((*sequence.shape, sequence.shape[1]), bool)
  for b, i in np.ndindex(*sequence.shape):
    for d in set(domain[b].tolist()) - {0, domain[b, i]}:
      earlier = [j for j in range(i + 1) if sequence[b, j] == sequence[b, i] != 0 and domain[b, j] == d]
      may_read[b, i, earlier[-num_states:]] = True
  return may_read


@pytest.mark.parametrize("num_states", [1, 2, 4])
@pytest.mark.parametrize("num_domains", [1, 2, 5, 64])
def test_the_states_to_read_are_those_that_a_search_finds(num_domains, num_states):
  sequence, domain = random_rows(num_domains, num_domains)
  states = domain_states(sequence, domain, domain, num_domains, num_states, block=4)
  found = np.zeros((3, 20, 20), bool)
  may_read, carried = np.asarray(states.may_read), np.asarray(states.carried)
  for b, x, t, s in np.argwhere(may_read):
    key = 4 * x + s if s < 4 else carried[b, x, s - 4]
    assert not found[b, 4 * x + t, key]  # Each state is read once.
    found[b, 4 * x + t, key] = True
  np.testing.assert_array_equal(found[:, :17, :17], readable(sequence, domain, num_states))
  assert not found[:, 17:].any() and (num_domains == 1 or found.any())


def test_tape_adds_exactly_zero_where_the_domain_stays_and_only_there():
  layer = TransitionAwarePositionalEmbedding(num_domains=4, width=6)
  here, following = jnp.meshgrid(jnp.arange(5), jnp.arange(5), indexing="ij")
  params = big(jax.eval_shape(layer.init, jax.random.key(0), here, following)["params"])
  r = np.asarray(layer.apply({"params": params}, here, following))
  changes = np.asarray((here != following) & (here != 0) & (following != 0))
  np.testing.assert_array_equal(r[~changes], 0)
  assert (np.abs(r[changes]).max(axis=-1) > 1e-3).all()


def test_tape_is_equation_2():
  layer = TransitionAwarePositionalEmbedding(num_domains=3, width=6)
  pair = jnp.array([[3]]), jnp.array([[1]])
  params = big(jax.eval_shape(layer.init, jax.random.key(0), *pair)["params"])
  table = np.asarray(params["domain_table"])
  expected = table[0] * (table[2] @ np.asarray(params["weight"]) + np.asarray(params["bias"]))
  np.testing.assert_allclose(layer.apply({"params": params}, *pair)[0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("num_states", [1, 3])
def test_domain_states_are_masked_attention_to_the_latest_events_of_each_other_domain(num_states):
  """Against the dense form: j may be read by i where it is one of the latest of its domain, and that is not i's."""
  sequence, domain = random_rows(7, 3)
  layer = DomainStateAttention(num_domains=3, num_heads=2)
  batch = batch_of([[]] * 3, length=17).replace(sequence_id=sequence, domain_id=domain, target_domain=domain % 3 + 1)
  context = intra_domain_context(batch, 3, num_states=num_states)
  z = jnp.asarray(np.random.default_rng(2).normal(size=(3, 17, 8)), jnp.float32)
  params = big(jax.eval_shape(layer.init, jax.random.key(0), z, context)["params"])
  found = states_of(layer, params, z, context)
  p = jax.tree.map(np.asarray, params)
  normal = np.asarray(layer_norm(z))
  q = normal @ p["query"]["kernel"] + p["asked_table"][np.asarray(batch.target_domain)]
  k = normal @ p["key"]["kernel"] + p["domain_table"][np.asarray(domain)]
  v = normal @ p["value"]["kernel"]
  may_read = readable(sequence, domain, num_states)
  expected = np.zeros_like(found)
  for b, i in np.ndindex(3, 17):
    read = np.flatnonzero(may_read[b, i])
    for h in (slice(0, 4), slice(4, 8)):
      weight = np.exp([q[b, i, h] @ k[b, j, h] / 2 for j in read])
      expected[b, i, h] = sum((w * v[b, j, h] for w, j in zip(weight, read, strict=True)), np.zeros(4)) / max(
        weight.sum(), 1e-30
      )
  np.testing.assert_allclose(found, expected, atol=1e-4)
  assert np.abs(expected).max() > 0.1


def test_read_target_returns_the_state_of_the_target_domain():
  sequence, domain = jnp.ones((1, 4), jnp.int32), jnp.array([[1, 2, 1, 3]])
  batch = batch_of([[]], length=4).replace(
    sequence_id=sequence, domain_id=domain, target_domain=jnp.array([[2, 1, 2, 3]])
  )
  context = intra_domain_context(batch, 3)
  layer = DomainStateAttention(num_domains=3, read="target")
  z = jnp.asarray(np.random.default_rng(2).normal(size=(1, 4, 8)), jnp.float32)
  params = big(jax.eval_shape(layer.init, jax.random.key(0), z, context)["params"])
  found = states_of(layer, params, z, context)[0]
  values = np.asarray(layer_norm(z) @ params["value"]["kernel"])[0]
  np.testing.assert_array_equal(found[0], 0)  # Domain 2 has no event yet.
  np.testing.assert_allclose(found[1], values[0], atol=1e-5)
  np.testing.assert_allclose(found[2], values[1], atol=1e-5)
  np.testing.assert_array_equal(found[3], 0)  # Its own domain.


def test_nothing_to_read_gives_zero_and_zero_gradients():
  q, k, v = jnp.ones((2, 1, 3)), jnp.ones((4, 1, 3)), jnp.ones((4, 1, 5))
  may_read = jnp.array([[False] * 4, [True, False, True, False]])
  out, pull = jax.vjp(lambda *x: attend_states(*x, may_read), q, k, v)
  np.testing.assert_array_equal(out[0], 0)
  np.testing.assert_allclose(out[1], 1)
  assert all(np.isfinite(gradient).all() for gradient in pull(jnp.ones_like(out)))
  np.testing.assert_array_equal(pull(jnp.ones_like(out).at[1].set(0))[0], 0)


@pytest.mark.parametrize("only_target", [False, True])
@pytest.mark.parametrize(("num_domains", "num_states"), [(2, 1), (5, 1), (2, 4), (5, 2)])
def test_states_read_in_blocks_equal_the_dense_form_with_gradients(num_domains, num_states, only_target):
  """Rows of several blocks, the last one incomplete; with two domains some events are many blocks back."""
  shape = (2, 2 * BLOCK + 13)
  sequence, domain = random_rows(5, num_domains, shape)
  rare = jnp.where(sequence != 0, jnp.minimum(domain, 2), 0).at[:, : BLOCK + 9].min(1)
  sequence, domain = (jnp.minimum(sequence, 1), rare) if num_domains == 2 else (sequence, domain)
  target = jnp.where(domain > 0, domain % num_domains + 1, 0)
  batch = batch_of([[]] * 2, length=shape[1]).replace(sequence_id=sequence, domain_id=domain, target_domain=target)
  context = intra_domain_context(batch, num_domains, num_states=num_states)
  q, k, v, direction = jax.random.normal(jax.random.key(0), (4, *shape, 2, 3))
  may_read = readable(sequence, domain, num_states)
  if only_target:
    may_read &= np.asarray(target)[:, :, None] == np.asarray(domain)[:, None]
  assert may_read.any() and not may_read.all(axis=2).any()

  def in_blocks(q, k, v):
    return context.order.undo(
      read_states(DomainStateAttention(num_domains), *(context.order(x) for x in (q, k, v)), context, only_target)
    )

  def dense(q, k, v):
    return attend_states(q, k, v, jnp.asarray(may_read))

  def with_gradients(read):
    def run(*inputs):
      out, pull = jax.vjp(read, *inputs)
      return out, *pull(direction)

    return jax.jit(run, compiler_options=QUICK)(q, k, v)

  for one, other in zip(with_gradients(in_blocks), with_gradients(dense), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("kind", ["sum", "gate"])
def test_a_combination_with_zero_is_the_own_representation(kind):
  layer, own = Combination(kind), jnp.arange(6.0).reshape(1, 2, 3)
  variables = layer.init(jax.random.key(0), own, own)
  np.testing.assert_array_equal(layer.apply(variables, own, jnp.zeros_like(own)), own)
  assert np.abs(layer.apply(variables, own, own) - own).max() > 0.1


@pytest.mark.parametrize(
  "options",
  [{}, {"read": "target", "combination": "gate"}, {"read": "key_value"}, {"states": "top"}, {"target_domain": True}],
  ids=str,
)
def test_with_one_domain_the_model_is_a_plain_hstu(options, optimized):
  one = batch_of([[[3, 1, 4, 1, 5, 9, 2]], [[2, 6], [5, 3, 5]]], length=8)
  model, params = model_and_params({**MULTI, **options}, num_domains=1)
  plain = model_and_params({**HSTU, **{k: v for k, v in options.items() if k == "target_domain"}}, num_domains=1)
  shared = pick(params, plain[1])
  # Both with the compiler's optimizations, without which they round differently (4e-6).
  expected = jax.jit(plain[0].apply)({"params": shared}, one)
  np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, one), expected, atol=1e-6)


def pick(params, like):
  """The parameters that the other model has too."""
  return {k: pick(params[k], v) if isinstance(v, dict) else params[k] for k, v in like.items()}


def test_events_of_other_domains_in_a_gap_reach_a_domain_through_its_states_only():
  """Domains 1 2 3 2 1: the items of the three in the middle change places; the last event is of domain 1."""
  sequence, domain = jnp.ones((1, 5), jnp.int32), jnp.array([[1, 2, 3, 2, 1]])
  first = batch_of([[[3, 1, 4, 7, 5]]], length=5).replace(domain_id=domain, target_domain=jnp.ones_like(domain))
  permuted = first.replace(item_id=jnp.array([[3, 7, 4, 1, 5]]))
  assert (first.sequence_id == sequence).all()
  before, after = queries(INTRA, first), queries(INTRA, permuted)
  np.testing.assert_allclose(after[0, [0, 4]], before[0, [0, 4]], atol=1e-6)
  before, after = queries(MULTI, first), queries(MULTI, permuted)
  np.testing.assert_allclose(after[0, 0], before[0, 0], atol=1e-6)
  assert np.abs(after[0, 4] - before[0, 4]).max() > 1e-3


@pytest.mark.parametrize("config", [MULTI, {**MULTI, "read": "key_value"}, {**MULTI, "states": "top"}], ids=str)
def test_of_the_future_only_the_target_domain_is_known(config):
  changed = jnp.arange(8) >= 4
  other = BATCH.replace(
    item_id=jnp.where(changed & (BATCH.item_id != 0), BATCH.item_id % NUM_ITEMS + 1, BATCH.item_id),
    domain_id=jnp.where(changed & (BATCH.domain_id != 0), BATCH.domain_id % 3 + 1, BATCH.domain_id),
    target_item=BATCH.target_item % NUM_ITEMS + 1,
    target_domain=jnp.where(changed, BATCH.target_domain % 3 + 1, BATCH.target_domain),
  )
  before, after = queries(config, BATCH), queries(config, other)
  np.testing.assert_allclose(after[:, :4], before[:, :4], atol=1e-6)
  retargeted = BATCH.replace(
    target_domain=jnp.where(jnp.arange(8) == 3, BATCH.target_domain % 3 + 1, BATCH.target_domain)
  )
  changed = np.abs(queries(config, retargeted) - before).max(axis=-1)
  assert (changed[:, :3] < 1e-6).all() and (changed[:, 3] > 1e-3).all()


def test_attention_inside_a_domain_does_not_read_the_target_domain():
  retargeted = BATCH.replace(target_domain=BATCH.target_domain % 3 + 1)
  np.testing.assert_array_equal(queries(INTRA, retargeted), queries(INTRA, BATCH))


def test_a_target_domain_embedding_gives_any_model_the_target_domain():
  retargeted = BATCH.replace(target_domain=jnp.where(BATCH.target_domain > 0, BATCH.target_domain % 3 + 1, 0))
  for config in (
    {**HSTU, "target_domain": True},
    {"name": "sasrec", "width": 8, "max_positions": 9, "target_domain": True},
  ):
    changed = np.abs(queries(config, retargeted) - queries(config, BATCH)).max(axis=-1)
    assert (changed[np.asarray(BATCH.sequence_id) != 0] > 1e-4).all()
  np.testing.assert_array_equal(queries(HSTU, retargeted), queries(HSTU, BATCH))


def test_users_without_a_domain_and_64_domains_are_fine():
  few = queries(MULTI, BATCH.replace(domain_id=jnp.minimum(BATCH.domain_id, 2)), num_domains=64)
  is_real = np.asarray(BATCH.sequence_id != 0)
  np.testing.assert_allclose(np.linalg.norm(few, axis=-1), is_real, atol=1e-5)


@pytest.mark.parametrize(
  ("option", "text"),
  [
    ({"states": "some"}, "states='some' is not one of"),
    ({"read": "none"}, "read='none' is not one of"),
    ({"combination": "product"}, "combination='product' is not one of"),
    ({"states": "top", "read": "key_value"}, "it needs states='every_layer'"),
    ({"last_states": 0}, "self.last_states=0 must be at least 1"),
    ({"num_bottlenecks": 1}, "bottleneck tokens need attention among all events"),
  ],
)
def test_a_wrong_option_is_refused_by_name(option, text):
  with pytest.raises(ValueError, match=text):
    model_and_params({**MULTI, **option})


def test_a_step_on_eight_devices_is_that_of_one():
  environment = os.environ | {"XLA_FLAGS": xla_flags(8), "PYTHONPATH": PYTHON_PATH}
  command = [sys.executable, multi_domain_devices.__file__]
  one, eight = json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
  np.testing.assert_allclose(eight, one, atol=1e-5)


def within_domain(config, batch, num_domains=3, own="query"):
  model, params = model_and_params(config, num_domains)
  apply = jax.jit(lambda params, batch: model.apply({"params": params}, batch, own=own, method="within_domain"),
                  compiler_options=QUICK)  # fmt: skip
  return np.asarray(apply(params, batch))


def test_within_the_domain_hstu_is_the_model_with_attention_inside_domains():
  (_, params), (intra, _) = model_and_params(HSTU), model_and_params(INTRA)
  expected = compiled(intra)(params, BATCH)
  np.testing.assert_allclose(within_domain(HSTU, BATCH), expected, rtol=1e-5, atol=1e-6)
  assert not np.allclose(within_domain(HSTU, BATCH), queries(HSTU, BATCH), atol=0.01)


@pytest.mark.parametrize("name", ["sasrec", "bert4rec"])
def test_within_the_domain_events_of_other_domains_change_nothing(name):
  config = {"name": name, "width": 8, "num_layers": 2, "num_heads": 2, "hidden": 6, "max_positions": 9}
  # A masked event counts to the domain of its target, here 2.
  hidden = BATCH.replace(domain_id=BATCH.domain_id.at[0, 0].set(0)) if name == "bert4rec" else BATCH
  domain = np.asarray(jnp.where(hidden.domain_id == 0, hidden.target_domain, hidden.domain_id))
  place = (0, 2)  # An event of domain 2 in the middle of the first row.
  before = within_domain(config, hidden)
  after = within_domain(config, hidden.replace(item_id=hidden.item_id.at[place].set(10)))
  changed = np.abs(after - before).max(axis=-1) > 1e-6
  same = (domain == domain[place]) & (np.asarray(BATCH.sequence_id) == 1) & (np.arange(2) == 0)[:, None]
  expected = same & ((np.arange(8) >= 2)[None] | (name == "bert4rec"))
  assert changed.tolist() == expected.tolist() and expected.sum() == (4 if name == "bert4rec" else 2)
  one = {"num_domains": 1}
  alone = BATCH.replace(domain_id=jnp.minimum(BATCH.domain_id, 1), target_domain=jnp.minimum(BATCH.target_domain, 1))
  np.testing.assert_allclose(within_domain(config, alone, **one), queries(config, alone, **one), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_within_the_domain_of_the_target_events_read_it_and_themselves(causal):
  rng = np.random.default_rng(0)
  sequence = np.array([[1] * 6 + [2] * 9 + [0], [1] * 15 + [0], [0] * 16])
  domain, target = (rng.integers(low, 4, sequence.shape) * (sequence != 0) for low in (1, 0))
  batch = next_item_batch(jnp.asarray(domain), domain_id=jnp.asarray(domain))
  batch = batch.replace(sequence_id=jnp.asarray(sequence), target_domain=jnp.asarray(target))
  context = intra_domain_context(batch, num_domains=3, causal=causal, own="target")
  inverse = np.asarray(context.order.inverse)
  found = [mask[i][:, i] for mask, i in zip(np.asarray(context.mask.to_dense(16)), inverse, strict=True)]
  wanted = np.where(target != 0, target, domain)
  same = (sequence[:, :, None] == sequence[:, None]) & (sequence != 0)[:, :, None]
  place = np.arange(16)
  before = place[:, None] >= place if causal else np.ones((16, 16), bool)
  expected = same & ((wanted[:, :, None] == domain[:, None]) & before | (place[:, None] == place))
  np.testing.assert_array_equal(found, expected)
  np.testing.assert_array_equal(context.mask.is_read(16), context.mask.to_dense(16).any(axis=1))
  with pytest.raises(ValueError, match="own='targets' is not one of"):
    intra_domain_context(batch, num_domains=3, causal=causal, own="targets")


@pytest.mark.parametrize("name", ["hstu", "sasrec"])
def test_an_event_outside_the_domain_of_the_target_changes_its_own_query_only(name):
  config = HSTU if name == "hstu" else {"name": name, "width": 8, "num_heads": 2, "hidden": 6, "max_positions": 9}
  batch = next_item_batch(jnp.array([[3, 1, 4, 1, 5, 9]]), domain_id=jnp.array([[1, 2, 1, 1, 2, 1]]))
  batch = batch.replace(target_domain=jnp.full((1, 6), 1))
  before, after = (
    within_domain(config, x, own="target") for x in (batch, batch.replace(item_id=batch.item_id.at[0, 1].set(10)))
  )
  changed = np.abs(after - before).max(axis=-1) > 1e-6
  assert changed.tolist() == [[False, True, False, False, False, False]]


def test_a_model_inside_domains_or_with_bottlenecks_has_no_other_within_domain():
  for config in (INTRA, {**HSTU, "num_bottlenecks": 1, "bottleneck_stride": 2}):
    model, params = model_and_params(config)
    with pytest.raises(NotImplementedError, match="attention inside a domain is for models of all events"):
      model.apply({"params": params}, BATCH, method="within_domain")
