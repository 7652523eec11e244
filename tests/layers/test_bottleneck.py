"""Bottleneck tokens: which token attends to which, by brute force, and the effect on models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sequences import NUM_ITEMS, batch_of

from jaxrec.layers.attention import MASS, cross_domain_share, masses_by_layer, sizes_by_layer
from jaxrec.layers.bottleneck import with_bottlenecks
from jaxrec.models import build

NUM_DOMAINS, STRIDE, NUM_TOKENS, LENGTH = 3, 2, 2, 12
quick_jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
ROWS = [[[3, 1, 4, 1, 5, 9, 2], [6, 5, 3]], [[2, 7], [1], [8, 2, 8, 1, 8]], []]
BATCH = batch_of(ROWS, LENGTH, num_domains=NUM_DOMAINS)
SIZES = {"width": 8, "num_layers": 2, "max_positions": 12, "num_domains": NUM_DOMAINS, "bottleneck_stride": STRIDE}
HSTU = {"name": "hstu", **SIZES, "num_heads": 2, "head_width": 3, "value_width": 5, "attention_length": 12}
SASREC = {"name": "sasrec", **SIZES, "num_heads": 2, "hidden": 6}
BERT4REC = {"name": "bert4rec", **SIZES, "num_heads": 2, "hidden": 6}
STU = {**HSTU, "name": "stu"}
MODELS = {"hstu": HSTU, "stu": STU, "sasrec": SASREC, "bert4rec": BERT4REC}


def context_of(batch, causal):
  items = jnp.zeros((*batch.item_id.shape, 4))
  return with_bottlenecks(items, jnp.ones((NUM_TOKENS, 4)), batch, NUM_DOMAINS, STRIDE, causal)[1]


def unsorted_mask(context):
  """`[B, Q, S]`: queries and keys in the order of the tokens."""
  by_query = context.bottlenecks.queries.undo(context.mask.to_dense(context.key_time.shape[1]))
  return np.asarray(context.bottlenecks.keys.undo(by_query.swapaxes(1, 2)).swapaxes(1, 2))


def tokens_by_hand(row):
  """(sequence, domain, index) of the events, and (sequence, index of the last event) of the bottlenecks."""
  items, points = [], []
  for number, sequence in enumerate(ROWS[row], 1):
    domains = [item % NUM_DOMAINS + 1 for item in sequence]
    items += [(number, domain, index) for index, domain in enumerate(domains)]
    points += [(number, index) for index in range(len(sequence)) if (index + 1) % STRIDE == 0]
  return items, points


def may_attend_by_hand(row, causal):
  items, points = tokens_by_hand(row)
  num_keys = LENGTH + LENGTH // STRIDE * NUM_TOKENS
  num_queries = LENGTH + LENGTH // STRIDE * NUM_TOKENS * NUM_DOMAINS
  dense = np.zeros((num_queries, num_keys), bool)

  def read_bottlenecks(query, sequence, index):
    for point, (other, last) in enumerate(points):
      if other == sequence and (last <= index or not causal):
        dense[query, LENGTH + point * NUM_TOKENS : LENGTH + (point + 1) * NUM_TOKENS] = True

  for query, (sequence, domain, index) in enumerate(items):
    for key, (other, other_domain, other_index) in enumerate(items):
      dense[query, key] = (other, other_domain) == (sequence, domain) and (other_index <= index or not causal)
    read_bottlenecks(query, sequence, index)
  for point, (sequence, last) in enumerate(points):
    for token in range(NUM_TOKENS):
      for domain in range(1, NUM_DOMAINS + 1):
        query = LENGTH + (point * NUM_TOKENS + token) * NUM_DOMAINS + domain - 1
        for key, (other, other_domain, index) in enumerate(items):
          dense[query, key] = (other, other_domain) == (sequence, domain) and (index <= last or not causal)
        read_bottlenecks(query, sequence, last)
  return dense


@pytest.mark.parametrize("causal", [True, False])
def test_the_mask_is_the_one_written_out_by_hand(causal):
  context = context_of(BATCH, causal)
  dense = unsorted_mask(context)
  for row in range(len(ROWS)):
    np.testing.assert_array_equal(dense[row], may_attend_by_hand(row, causal), err_msg=f"row {row}")


def test_a_hidden_domain_reads_its_whole_sequence():
  batch = BATCH.replace(domain_id=BATCH.domain_id.at[0, 1].set(0))
  context = context_of(batch, causal=False)
  dense = unsorted_mask(context)[0]
  assert dense[1, :LENGTH].tolist() == [True] * 7 + [False] * 5
  assert dense[:, 1].nonzero()[0].tolist() == [1]


def test_a_bottleneck_averages_over_the_domains_with_an_earlier_event():
  weight = np.asarray(context_of(BATCH, causal=True).bottlenecks.domain_weight)
  # Row 0: 3 1 4 1 5 9 2 are of domains 1 2 2 2 3 1 3; the insertion points are after two, four and six events.
  np.testing.assert_allclose(weight[0, ::NUM_TOKENS][:3], [[1 / 2, 1 / 2, 0], [1 / 2, 1 / 2, 0], [1 / 3] * 3])
  assert (weight[2] == 0).all()


def test_bottleneck_tokens_follow_the_events():
  items = jax.random.normal(jax.random.key(0), (3, LENGTH, 4)) * (BATCH.item_id != 0)[..., None]
  x, context = with_bottlenecks(items, jnp.ones((NUM_TOKENS, 4)), BATCH, NUM_DOMAINS, STRIDE, causal=True)
  np.testing.assert_array_equal(x[:, :LENGTH], items)
  assert context.group[0].tolist() == [1, 2, 2, 2, 3, 1, 3, 1, 3, 1, 0, 0] + [4] * 12
  np.testing.assert_array_equal(x[0, LENGTH : LENGTH + 8], jnp.ones((8, 4)))
  np.testing.assert_array_equal(x[0, LENGTH + 8 :], jnp.zeros((4, 4)))


@pytest.mark.parametrize("stride", [0, 13])
def test_a_stride_outside_the_row_is_refused(stride):
  with pytest.raises(ValueError, match=f"stride={stride} must be between 1 and the 12 positions"):
    with_bottlenecks(jnp.zeros((3, LENGTH, 4)), jnp.ones((1, 4)), BATCH, NUM_DOMAINS, stride, True)


def moved(params):
  """Parameters away from the zeros and small numbers that they start from."""
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), params)


@functools.cache
def model_and_params(name, **overrides):
  model = build({**MODELS[name], **overrides}, num_items=NUM_ITEMS)
  return model, moved(quick_jit(model.init)(jax.random.key(0), BATCH)["params"])


@functools.cache
def compiled(model):
  return quick_jit(model.apply)


def queries_of(name, batch, **overrides):
  model, params = model_and_params(name, num_bottlenecks=NUM_TOKENS, **overrides)
  return np.asarray(compiled(model)({"params": params}, batch))


def changed_at(column, item):
  """The batch with another item, of the same domain, at one column of the first row."""
  return BATCH.replace(item_id=BATCH.item_id.at[0, column].set(item))


@pytest.mark.parametrize("name", ["hstu", "stu", "sasrec"])
def test_domains_exchange_information_only_through_bottlenecks(name):
  before, after = queries_of(name, BATCH)[0], queries_of(name, changed_at(0, 6))[0]
  differs = (before != after).any(axis=-1)
  # Events 0 and 5 are of domain 1; the others receive event 0 through the first insertion point, after event 1.
  assert differs.tolist() == [True] * 7 + [False] * 5
  first_layer = (
    queries_of(name, BATCH, num_layers=1)[0],
    queries_of(name, changed_at(0, 6), num_layers=1)[0],
  )
  assert (first_layer[0] != first_layer[1]).any(axis=-1).tolist() == [True] + [False] * 4 + [True] + [False] * 6
  last = queries_of(name, changed_at(6, 5))[0]
  assert (before != last).any(axis=-1).tolist() == [False] * 6 + [True] + [False] * 5


def mass_of(name, **overrides):
  model, params = model_and_params(name, **overrides)
  query, state = quick_jit(lambda params: model.apply({"params": params}, BATCH, mutable=[MASS]))(params)
  np.testing.assert_allclose(query, compiled(model)({"params": params}, BATCH), rtol=1e-5, atol=1e-6)
  return masses_by_layer(state[MASS])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("bottlenecks", [0, NUM_TOKENS])
def test_masses_come_layer_by_layer_and_asking_for_them_changes_nothing_else(name, bottlenecks):
  masses = mass_of(name, num_bottlenecks=bottlenecks)
  groups = NUM_DOMAINS + 1 + bool(bottlenecks)
  tokens = LENGTH + (LENGTH // STRIDE * NUM_TOKENS if bottlenecks else 0)
  assert [mass.shape for mass in masses] == [(3, tokens, 2, groups)] * 2
  masses = [mass[:, :LENGTH] for mass in masses]
  if name in ("sasrec", "bert4rec"):
    np.testing.assert_allclose(
      masses[0].sum(axis=-1)[0], np.repeat([[1.0, 1.0]] * 10 + [[0.0, 0.0]] * 2, 1, axis=0), rtol=1e-5
    )
  if bottlenecks:
    own = (BATCH.domain_id[..., None] == jnp.arange(groups)) | (jnp.arange(groups) == NUM_DOMAINS + 1)
    assert (np.asarray(masses[0]) * ~np.asarray(own)[:, :, None] == 0).all()


@pytest.mark.parametrize("name", ["sasrec", "bert4rec"])
@pytest.mark.parametrize("bottlenecks", [0, NUM_TOKENS])
def test_sizes_are_the_masses_with_the_query_itself_apart(name, bottlenecks):
  model = build({**MODELS[name], "num_bottlenecks": bottlenecks}, num_items=NUM_ITEMS)
  params = quick_jit(model.init)(jax.random.key(0), BATCH)["params"]
  params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), params)
  _, state = quick_jit(functools.partial(model.apply, mutable=[MASS, "attention_sizes"]))({"params": params}, BATCH)
  for mass, layer in zip(masses_by_layer(state[MASS]), sizes_by_layer(state["attention_sizes"]), strict=True):
    mass, sizes, counts = mass[:, :LENGTH], layer.sizes[:, :LENGTH], layer.counts[:, :LENGTH]
    is_own = (BATCH.domain_id[..., None] == jnp.arange(mass.shape[-1])) & (BATCH.sequence_id != 0)[..., None]
    np.testing.assert_allclose(sizes[..., :-1] + sizes[..., -1:] * is_own[:, :, None], mass, atol=1e-6)
    assert float(sizes[..., -1].max()) > 0.9  # The first event of a causal sequence; in both directions the only one.
    np.testing.assert_array_equal(sizes[..., :-1].max(axis=2) > 0, counts > 0)
  assert counts.sum(axis=-1).max() > 3


def test_softmax_masses_are_those_of_the_attention_matrix():
  mass = mass_of("sasrec", num_layers=1)[0]
  share = cross_domain_share(mass, BATCH.domain_id)
  assert float(share[0, 0].max()) == 0  # The first event reads itself only.
  np.testing.assert_allclose(
    share[0, 1], mass[0, 1, :, 1], rtol=1e-5
  )  # The second, of domain 2, reads one of domain 1.
