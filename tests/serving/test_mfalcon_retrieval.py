"""M-FALCON with encoders of retrieval equals one candidate at a time, read as the event after the history."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.batches import next_item_batch
from jaxrec.models import build
from jaxrec.serving import mfalcon_retrieval
from jaxrec.serving.mfalcon import plan_microbatch
from jaxrec.serving.mfalcon_retrieval import RetrievalMFalcon

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
SIZES = {"width": 8, "num_layers": 2, "max_positions": 9, "num_heads": 2}
HSTU = {"name": "hstu", **SIZES, "head_width": 4, "value_width": 4, "attention_length": 9}
MULTI = {**HSTU, "name": "multi_domain_hstu"}
CASES = {
  "hstu": HSTU,
  "hstu_target_domain": {**HSTU, "target_domain": True, "normalizer": "keys"},
  "sasrec": {"name": "sasrec", **SIZES},
  "decoupled": {**HSTU, "attention_width": 8},
  "actions": {"name": "stu", **SIZES, "head_width": 4, "value_width": 4, "attention_length": 9, "num_actions": 3},
  "multi": MULTI,
  "multi_two_states": {**MULTI, "last_states": 2, "read": "key_value"},
  "multi_top_target": {**MULTI, "states": "top", "read": "target"},
  "intra": {**MULTI, "tape": False, "states": "none"},
}
BY_DEFAULT = ("hstu_target_domain", "sasrec", "multi", "multi_two_states")
# Users of seven events, of two, of one and of none; the domains of the second lack one.
ITEMS = np.array([[3, 1, 4, 1, 5, 9, 2], [2, 6, 0, 0, 0, 0, 0], [5, 0, 0, 0, 0, 0, 0], [0] * 7], np.int32)
CANDIDATES = np.array([[7, 2, 9, 8, 1], [5, 3, 2, 1, 4], [6, 5, 4, 3, 2], [1, 2, 3, 4, 5]], np.int32)
LENGTHS = (ITEMS != 0).sum(axis=1)
NOW = np.array([900_000, 5_000, 70, 40], np.int32)
NUM_DOMAINS = 3


def domains(items):
  return np.where(items != 0, items % NUM_DOMAINS + 1, 0).astype(np.int32)


def histories(items, times):
  batch = next_item_batch(items, domains(items), times)
  return batch.replace(action=jnp.asarray(items % 4))


@functools.cache
def model_and_params(case):
  model = build(dict(CASES[case]), num_items=10, num_domains=NUM_DOMAINS)
  shapes = jax.eval_shape(model.init, jax.random.key(0), histories(ITEMS, ITEMS))["params"]
  rng = np.random.default_rng(1)
  return model, jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), shapes)


def times_of(items):
  return np.where(items != 0, 1000 * np.arange(items.shape[1]) ** 3 + 7, 0).astype(np.int32)


def one_at_a_time(model, params, reads_time):
  """Query vectors and scores of candidates, each as the last event of a history of its own, `[B, m, M]`, `[B, m]`."""
  users, count = CANDIDATES.shape
  items = np.repeat(np.pad(ITEMS, ((0, 0), (0, 1))), count, axis=0)
  times = np.repeat(np.pad(times_of(ITEMS), ((0, 0), (0, 1))), count, axis=0)
  row, last = np.arange(users * count), np.repeat(LENGTHS, count)
  items[row, last], times[row, last] = CANDIDATES.reshape(-1), np.repeat(NOW, count)
  batch = histories(items, times)
  action = np.array(batch.action)
  action[row, last] = 0
  batch = batch.replace(action=jnp.asarray(action))
  batch = batch if reads_time else batch.replace(target_time=batch.timestamp)
  run = jax.jit(lambda params: model.apply({"params": params}, batch), compiler_options=QUICK)
  vectors = np.asarray(run(params))[row, last].reshape(users, count, -1)  # [B, m, M]
  table = np.asarray(model.apply({"params": params}, method="item_vectors"))
  return vectors, (vectors * table[CANDIDATES]).sum(axis=-1)


@pytest.mark.parametrize(
  "case",
  [pytest.param(c, marks=() if c in BY_DEFAULT else pytest.mark.exhaustive) for c in CASES],
)
def test_candidates_against_the_cache_equal_one_at_a_time(case):
  model, params = model_and_params(case)
  reads_time = case != "sasrec"
  vectors, scores = one_at_a_time(model, params, reads_time)
  scorer = RetrievalMFalcon(model, params, 8, 3, "target" if reads_time else "last_event")
  batch = histories(ITEMS, times_of(ITEMS))
  batch = batch if reads_time else batch.replace(target_time=batch.timestamp)
  encoded = scorer.encode(batch)
  found = scorer.score(encoded, CANDIDATES, NOW, domains(CANDIDATES))
  assert found.shape == scores.shape and np.ptp(scores, axis=1).min() > 1e-2
  np.testing.assert_allclose(found, scores, atol=1e-5)
  if case == "multi":
    np.testing.assert_allclose(scorer.vectors(encoded, CANDIDATES, NOW, domains(CANDIDATES)), vectors, atol=1e-5)


@pytest.fixture(scope="module")
def scorer():
  model, params = model_and_params("multi")
  return RetrievalMFalcon(model, params, 8, 3)


def test_one_program_serves_every_number_of_candidates_and_others_change_nothing(scorer):
  encoded = scorer.encode(histories(ITEMS, times_of(ITEMS)))
  before = scorer.score(encoded, CANDIDATES, NOW, domains(CANDIDATES))
  compiled = mfalcon_retrieval.read_microbatch._cache_size()
  for count in (1, 2, 4):
    few = CANDIDATES[:, :count]
    np.testing.assert_array_equal(scorer.score(encoded, few, NOW, domains(few)), before[:, :count])
  others = np.concatenate([CANDIDATES[:, :1], CANDIDATES[:, 1:] % 10 + 1], axis=1)
  np.testing.assert_array_equal(scorer.score(encoded, others, NOW, domains(others))[:, 0], before[:, 0])
  assert mfalcon_retrieval.read_microbatch._cache_size() == compiled


def test_wrong_arguments_are_errors(scorer):
  batch = histories(ITEMS, ITEMS)
  with pytest.raises(ValueError, match="several histories"):
    scorer.encode(batch.replace(sequence_id=batch.sequence_id * 2))
  with pytest.raises(ValueError, match="have 7 columns, more than self.capacity=6"):
    RetrievalMFalcon(scorer.model, scorer.params, 6).encode(batch)
  with pytest.raises(ValueError, match=r"row 0 has a candidate of domain 4; 1\.\.3"):
    scorer.score(scorer.encode(batch), CANDIDATES, NOW, np.full_like(CANDIDATES, 4))
  with pytest.raises(ValueError, match="request_time='now'"):
    RetrievalMFalcon(scorer.model, scorer.params, 6, 3, "now")
  bidirectional = build({"name": "bert4rec", **SIZES}, num_items=10)
  params = jax.eval_shape(bidirectional.init, jax.random.key(0), batch)["params"]
  with pytest.raises(NotImplementedError, match="only causal models"):
    RetrievalMFalcon(bidirectional, params, 8).encode(batch)


def test_the_plan_reads_the_sizes_of_any_encoder():
  assert plan_microbatch(model_and_params("sasrec")[0], 2048, 100) == 128
