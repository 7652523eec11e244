"""Event-by-event inference gives the query vectors that the model returns for the whole history at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.batches import SequenceBatch
from jaxrec.models import build
from jaxrec.serving.incremental import IncrementalModel

NUM_ITEMS, NUM_DOMAINS, LENGTH = 12, 3, 9
SIZES = {"width": 8, "num_layers": 1, "max_positions": LENGTH, "num_heads": 2}
HSTU = {**SIZES, "head_width": 4, "value_width": 4, "attention_length": LENGTH}
MODELS = {
  "hstu": {"name": "hstu", **HSTU, "num_layers": 2},
  "hstu_target_domain": {"name": "hstu", **HSTU, "target_domain": True},
  "hstu_by_keys_and_heads": {"name": "hstu", **HSTU, "normalizer": "keys", "bias_tables": "head", "feed_forward": 6},
  "stu": {"name": "stu", **HSTU},
  "sasrec": {"name": "sasrec", **SIZES, "hidden": 6},
  "ligr": {"name": "sasrec", **SIZES, "hidden": 6, "layer": "ligr"},
  "intra": {"name": "multi_domain_hstu", **HSTU, "tape": False, "states": "none"},
  "tape_and_states": {"name": "multi_domain_hstu", **HSTU, "num_layers": 2, "attention_width": 6},
  "states_of_the_target_domain": {"name": "multi_domain_hstu", **HSTU, "read": "target", "combination": "gate"},
  "last_two_states": {"name": "multi_domain_hstu", **HSTU, "last_states": 2},
  "last_three_keys_and_values": {"name": "multi_domain_hstu", **HSTU, "read": "key_value", "last_states": 3},
  "last_two_states_on_top": {"name": "multi_domain_hstu", **HSTU, "states": "top", "last_states": 2},
  "keys_and_values": {"name": "multi_domain_hstu", **HSTU, "read": "key_value"},
  "states_on_top": {"name": "multi_domain_hstu", **HSTU, "states": "top"},
}


def events(seed, lengths):
  """Returns items, domains and times `[B, LENGTH]` of users with that many events; the last event is the target."""
  rng = np.random.default_rng(seed)
  is_real = np.arange(LENGTH) < np.array(lengths)[:, None]
  shape = is_real.shape
  time = np.cumsum(rng.integers(1, 10**5, shape), axis=1)
  columns = rng.integers(1, NUM_ITEMS + 1, shape), rng.integers(1, NUM_DOMAINS + 1, shape), time
  return tuple(np.where(is_real, x, 0).astype(np.int32) for x in columns)


def batch_of_prefixes(item, domain, time, request_time="target"):
  """Returns all events except the last as inputs, each with the next event as its target."""
  is_real = item[:, 1:] != 0
  fields = {
    "item_id": item[:, :-1], "domain_id": domain[:, :-1], "timestamp": time[:, :-1],
    "sequence_id": np.ones_like(item[:, 1:]), "position": np.arange(LENGTH - 1) + np.zeros_like(item[:, 1:]),
    "target_item": item[:, 1:], "target_domain": domain[:, 1:],
    "target_time": time[:, 1:] if request_time == "target" else time[:, :-1],
    "target_weight": np.ones(is_real.shape),
  }  # fmt: skip
  fields = {name: np.where(is_real, x, 0) for name, x in fields.items()}
  return SequenceBatch(
    **{k: jnp.asarray(v, jnp.float32 if k == "target_weight" else jnp.int32) for k, v in fields.items()}
  )


@functools.cache
def model_and_params(name):
  model = build(MODELS[name], num_items=NUM_ITEMS, num_domains=NUM_DOMAINS)
  shapes = jax.eval_shape(model.init, jax.random.key(0), batch_of_prefixes(*events(0, [LENGTH])))["params"]
  leaves, tree = jax.tree.flatten(shapes)
  rng = np.random.default_rng(1)
  return model, jax.tree.unflatten(tree, [jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype) for x in leaves])


def queries_of_all(name, batch):
  """The query vectors of the whole history at once."""
  model, params = model_and_params(name)
  return jax.jit(model.apply)({"params": params}, batch)


@pytest.mark.parametrize("name, request_time", [*((name, "target") for name in MODELS), ("intra", "last_event")])
def test_event_by_event_equals_the_whole_history_at_once(name, request_time):
  model, params = model_and_params(name)
  item, domain, time = events(2, [LENGTH, 4, 2])
  expected = queries_of_all(name, batch_of_prefixes(item, domain, time, request_time))
  serving = IncrementalModel(model, params, request_time)
  state = serving.start(batch_size=3, capacity=LENGTH)
  for n in range(LENGTH - 1):
    state = serving.observe(state, item[:, n], domain[:, n], time[:, n])
    query = serving.query(state, np.maximum(domain[:, n + 1], 1), time[:, n + 1])
    is_real = item[:, n + 1] != 0
    np.testing.assert_allclose(query[is_real], expected[is_real, n], atol=2e-5)
  assert is_real.sum() == 1  # The other users have shorter histories.


@pytest.mark.parametrize("name", ["hstu", "tape_and_states"])
def test_events_together_and_a_grown_state_are_events_one_by_one(name):
  model, params = model_and_params(name)
  item, domain, time = events(2, [LENGTH, 4])
  item[0, 2] = 0  # Is skipped.
  serving = IncrementalModel(model, params)
  state = serving.start(2, capacity=LENGTH)
  for n in range(LENGTH):
    state = serving.observe(state, item[:, n], domain[:, n], time[:, n])
  together = serving.observe_all(serving.start(2, 4), item[:, :4], domain[:, :4], time[:, :4])
  together = serving.observe_all(serving.grow(together, LENGTH), item[:, 4:], domain[:, 4:], time[:, 4:])
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), together, state)


def test_events_together_are_refused_if_one_has_no_room():
  serving = IncrementalModel(*model_and_params("intra"))
  state = serving.observe(serving.start(1, 2), np.array([1]), np.array([2]), np.array([0]))
  item, time = np.array([[1, 0, 2, 3]]), np.array([[1, 1, 2, 3]])
  assert serving.observe_all(state, item, np.array([[1, 9, 2, 1]]), time).num_events.tolist() == [[2, 2, 0]]
  with pytest.raises(ValueError, match="row 0 has reached its capacity=2 events of domain 2"):
    serving.observe_all(state, item, np.array([[1, 1, 2, 2]]), time)
  with pytest.raises(ValueError, match="capacity=1 is less than the 2 events that the state has room for"):
    serving.grow(state, 1)


def test_a_query_changes_nothing_and_depends_on_the_target_domain():
  model, params = model_and_params("tape_and_states")
  item, domain, time = events(3, [5])
  serving = IncrementalModel(model, params)
  state = serving.start(1, LENGTH)
  for n in range(4):
    state = serving.observe(state, item[:, n], domain[:, n], time[:, n])
  queries = [np.asarray(serving.query(state, np.array([target]), time[:, 4])) for target in (1, 2, 3, 1)]
  np.testing.assert_array_equal(queries[0], queries[3])
  assert min(np.abs(queries[a] - queries[b]).max() for a, b in ((0, 1), (0, 2), (1, 2))) > 1e-3


def test_a_query_reads_the_cache_of_one_domain_only():
  """NaN keys and values of the other domains do not change a query."""
  model, params = model_and_params("intra")
  serving = IncrementalModel(model, params)
  state = serving.start(1, LENGTH)
  for item, domain in ((1, 1), (2, 2), (3, 1)):
    state = serving.observe(state, np.array([item]), np.array([domain]), np.array([item]))
  corrupted = state.replace(cache=jax.tree.map(lambda x: x.at[:, 1:].set(jnp.nan), state.cache))
  target = np.array([2]), np.array([9])
  np.testing.assert_array_equal(serving.query(corrupted, *target), serving.query(state, *target))


def test_item_0_leaves_a_history_unchanged():
  model, params = model_and_params("tape_and_states")
  serving = IncrementalModel(model, params)
  both = serving.start(2, LENGTH)
  one = serving.start(1, LENGTH)
  for item, domain, time in ((1, 1, 5), (4, 2, 9), (7, 2, 11)):
    both = serving.observe(both, np.array([item, 0]), np.array([domain, 0]), np.array([time, 0]))
    one = serving.observe(one, np.array([item]), np.array([domain]), np.array([time]))
  query = serving.query(both, np.array([1, 1]), np.array([20, 20]))
  np.testing.assert_allclose(query[0], serving.query(one, np.array([1]), np.array([20]))[0], atol=1e-6)
  np.testing.assert_array_equal(query[1], 0)
  assert int(both.num_events[1].sum()) == 0


def test_an_event_beyond_the_capacity_is_refused():
  model, params = model_and_params("hstu")
  serving = IncrementalModel(model, params)
  state = serving.start(1, capacity=2)
  with pytest.raises(ValueError, match="capacity=2 events; start with a larger capacity"):
    for n in range(4):
      state = serving.observe(state, np.array([1]), np.array([1]), np.array([n]))


@pytest.mark.parametrize("name", ["hstu", "sasrec", "intra"])
def test_the_latest_event_has_room_too(name):
  """Every query before the refusal equals that of the whole history."""
  model, params = model_and_params(name)
  item, domain, time = events(2, [LENGTH])
  domain = np.ones_like(domain)
  expected = queries_of_all(name, batch_of_prefixes(item, domain, time))
  serving = IncrementalModel(model, params)
  state = serving.start(1, capacity=3)
  for n in range(3):
    state = serving.observe(state, item[:, n], domain[:, n], time[:, n])
    np.testing.assert_allclose(serving.query(state, domain[:, n], time[:, n + 1]), expected[:, n], atol=2e-5)
  with pytest.raises(ValueError, match="row 0 has reached its capacity=3 events"):
    serving.observe(state, item[:, 3], domain[:, 3], time[:, 3])


def test_a_full_history_does_not_block_the_other_rows():
  model, params = model_and_params("hstu")
  serving = IncrementalModel(model, params)
  state = serving.start(2, capacity=2)
  one = np.array([1, 1])
  for n in range(2):
    state = serving.observe(state, np.array([3, 0]), one, np.array([n, n]))
  state = serving.observe(state, np.array([0, 4]), one, np.array([5, 5]))
  assert state.num_events.sum(axis=1).tolist() == [2, 1]
  with pytest.raises(ValueError, match="row 0 has reached its capacity=2 events"):
    serving.observe(state, np.array([3, 4]), one, np.array([6, 6]))


def test_a_full_domain_does_not_block_another():
  model, params = model_and_params("intra")
  serving = IncrementalModel(model, params)
  state = serving.start(1, capacity=2)
  for n, domain in enumerate((1, 1, 2, 3, 2)):
    state = serving.observe(state, np.array([n + 1]), np.array([domain]), np.array([n]))
  assert state.num_events.tolist() == [[2, 2, 1]]
  with pytest.raises(ValueError, match="row 0 has reached its capacity=2 events of domain 1"):
    serving.observe(state, np.array([6]), np.array([1]), np.array([9]))


@pytest.mark.parametrize(
  "name, value, message",
  [
    ("item", 13, r"row 1 has item=13; items are 1\.\.12"),
    ("item", -1, r"row 1 has item=-1; items are 1\.\.12"),
    ("item", 2**32 + 1, r"row 1 has item=4294967297; items are 1\.\.12"),
    ("time", 2**31, r"row 1 has time=2147483648; times are -2147483648\.\.2147483647"),
    ("time", 0.5, "time has dtype float64, needs integers"),
    ("item", 1.5, "item has dtype float64, needs integers"),
  ],
)
@pytest.mark.unchecked_shapes
def test_an_event_that_does_not_exist_is_refused_by_row(name, value, message):
  model, params = model_and_params("hstu")
  serving = IncrementalModel(model, params)
  event = {"item": np.array([1, 1]), "domain": np.array([1, 1]), "time": np.array([0, 0])}
  with pytest.raises(ValueError, match=message):
    serving.observe(serving.start(2, 4), **event | {name: np.array([1, value])})
  ignored = serving.observe(serving.start(2, 4), np.array([1, 0]), np.array([1, 99]), np.array([1, 2**40]))
  assert ignored.num_events.sum(axis=1).tolist() == [1, 0]


def test_an_unknown_domain_is_refused_by_row():
  model, params = model_and_params("hstu")
  serving = IncrementalModel(model, params)
  with pytest.raises(ValueError, match=r"row 1 has domain=4; domains are 1\.\.3"):
    serving.observe(serving.start(2, 4), np.array([1, 1]), np.array([3, 4]), np.array([0, 0]))


def test_models_that_read_in_both_directions_are_refused():
  model = build({"name": "bert4rec", **SIZES, "hidden": 6}, num_items=NUM_ITEMS, num_domains=NUM_DOMAINS)
  params = model.init(jax.random.key(0), batch_of_prefixes(*events(0, [LENGTH])))["params"]
  with pytest.raises(NotImplementedError, match="only causal models without bottleneck tokens"):
    IncrementalModel(model, params).start(1, 4)


def test_an_unknown_request_time_is_refused():
  model, params = model_and_params("hstu")
  with pytest.raises(ValueError, match="request_time='now' must be one of"):
    IncrementalModel(model, params, "now")
