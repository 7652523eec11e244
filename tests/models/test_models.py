"""One contract for every model: order, padding, packing, dropout, precision, sizes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sequences import NUM_ITEMS, batch_of

from experiments.configs import ml1m_hstu
from jaxrec.layers.attention import MASS, masses_by_layer
from jaxrec.models import MODELS, STUModel, build

SIZES = {"width": 8, "num_layers": 1, "max_positions": 9}
HSTU = {"name": "hstu", **SIZES, "num_heads": 2, "head_width": 3, "value_width": 5, "attention_length": 7}
MULTI = {**HSTU, "name": "multi_domain_hstu", "num_domains": 3}
SASREC = {"name": "sasrec", **SIZES, "num_heads": 2, "hidden": 6}
LIGR = {**SASREC, "layer": "ligr"}
BERT4REC = {"name": "bert4rec", **SIZES, "num_heads": 2, "hidden": 6}
STU = {**HSTU, "name": "stu"}
ENCODERS = {
  **BERT4REC, "name": "domain_encoders", "num_domains": 3, "num_domain_layers": 1, "num_bottlenecks": 2,
  "bottleneck_stride": 2,
}  # fmt: skip

# Parameters of an HSTU layer: LN(x) W_uvqk, W_o and b_o, time and position tables.
UVQK, OUTPUT, TABLES = 8 * 2 * (5 + 5 + 3 + 3), 2 * 5 * 8 + 8, 129 + 13
STU_LAYER = 2 * 8 + UVQK + UVQK // 8 + 2 * 10 + 3 * 10 * 8  # Norm of x, W and b, norm of the output, W_out.
TAPE = 3 * 8 + 8 * 8 + 8  # Domains, W and b.
STATES = 3 * 10 * 10 + 2 * 4 * 10  # Projections of the width of attention; target domains and domains, 0..3 each.
TOP = 3 * 8 * 8 + 2 * 4 * 8  # The same at the width of the model.
EMBEDDINGS = 11 * 8 + 9 * 8
ATTENTION, FEED_FORWARD = 4 * (8 * 8 + 8), 8 * 6 + 6 + 6 * 8 + 8
LIGR_LAYER = ATTENTION + 2 * 16 + 2 * (8 * 8 + 8) + 3 * 8 * 6  # Norms, gates, and SwiGLU without biases.

# name -> config, number of parameters with two layers
CONTRACT = {
  "hstu": (HSTU, EMBEDDINGS + 2 * (UVQK + OUTPUT + TABLES)),
  "hstu_concat_ua": ({**HSTU, "concat_ua": True}, EMBEDDINGS + 2 * (UVQK + 3 * 2 * 5 * 8 + 8 + TABLES)),
  "hstu_softmax": ({**HSTU, "activation": "softmax"}, EMBEDDINGS + 2 * (UVQK + OUTPUT + TABLES)),
  "hstu_no_bias": ({**HSTU, "time_bias": False, "position_bias": False}, EMBEDDINGS + 2 * (UVQK + OUTPUT)),
  "hstu_time_only": ({**HSTU, "position_bias": False}, EMBEDDINGS + 2 * (UVQK + OUTPUT + 129)),
  "hstu_tables_by_head": ({**HSTU, "bias_tables": "head"}, EMBEDDINGS + 2 * (UVQK + OUTPUT + 2 * TABLES)),
  "hstu_normalized_by_keys": ({**HSTU, "normalizer": "keys"}, EMBEDDINGS + 2 * (UVQK + OUTPUT + TABLES)),
  "hstu_dropout_on_the_output": ({**HSTU, "dropout_on": "output"}, EMBEDDINGS + 2 * (UVQK + OUTPUT + TABLES)),
  "hstu_feed_forward": (
    {**HSTU, "feed_forward": 6},
    EMBEDDINGS + 2 * (UVQK + OUTPUT + TABLES + 3 * 6 * 8),
  ),
  "hstu_linear": ({**HSTU, "linear_activation": "none"}, EMBEDDINGS + 2 * (UVQK + OUTPUT + TABLES)),
  "stu": (STU, EMBEDDINGS + 2 * STU_LAYER),
  "stu_group_norm": ({**STU, "group_norm": True, "scale": 0.3}, EMBEDDINGS + 2 * (STU_LAYER - 2 * 10 + 2 * 2)),
  "hstu_target_domain": (
    {**HSTU, "target_domain": True, "num_domains": 3},
    EMBEDDINGS + 3 * 8 + 2 * (UVQK + OUTPUT + TABLES),
  ),
  "multi_domain": (MULTI, EMBEDDINGS + TAPE + 2 * (UVQK + OUTPUT + TABLES + STATES)),
  "multi_domain_last_states": ({**MULTI, "last_states": 3}, EMBEDDINGS + TAPE + 2 * (UVQK + OUTPUT + TABLES + STATES)),
  "multi_domain_gate": (
    {**MULTI, "combination": "gate"},
    EMBEDDINGS + TAPE + 2 * (UVQK + OUTPUT + TABLES + STATES + 20 * 10 + 10),
  ),
  "multi_domain_keys_and_values": ({**MULTI, "read": "key_value"}, EMBEDDINGS + TAPE + 2 * (UVQK + OUTPUT + TABLES)),
  "multi_domain_decoupled": (
    {**MULTI, "attention_width": 6},
    EMBEDDINGS + TAPE + (11 + 9) * 6 + 2 * (UVQK - 2 * 8 * 2 * 3 + 2 * 6 * 2 * 3 + OUTPUT + TABLES + STATES),
  ),
  "multi_domain_top": ({**MULTI, "states": "top"}, EMBEDDINGS + TAPE + TOP + 2 * (UVQK + OUTPUT + TABLES)),
  "hstu_decoupled": (
    {**HSTU, "attention_width": 6},
    EMBEDDINGS + (11 + 9) * 6 + 2 * (UVQK - 2 * 8 * 2 * 3 + 2 * 6 * 2 * 3 + OUTPUT + TABLES),
  ),
  "sasrec_decoupled": (
    {**SASREC, "attention_width": 6},
    EMBEDDINGS + (11 + 9) * 6 + 2 * (ATTENTION - 2 * 8 * 8 + 2 * 6 * 8 + FEED_FORWARD),
  ),
  "bert4rec_decoupled": (
    {**BERT4REC, "attention_width": 6},
    EMBEDDINGS + 8 + (12 + 9) * 6 + 2 * (ATTENTION - 2 * 8 * 8 + 2 * 6 * 8 + FEED_FORWARD + 2 * 16) + 16 + 72 + 16,
  ),
  "sasrec": (SASREC, EMBEDDINGS + 2 * (ATTENTION + FEED_FORWARD)),
  "sasrec_ligr": (LIGR, EMBEDDINGS + 2 * LIGR_LAYER),
  "sasrec_ligr_decoupled": (
    {**LIGR, "attention_width": 6},
    EMBEDDINGS + (11 + 9) * 6 + 2 * (LIGR_LAYER - 2 * 8 * 8 + 2 * 6 * 8),
  ),
  # One more item (the mask), two norms per layer, and the head: a norm, a dense layer, a norm.
  "bert4rec": (BERT4REC, EMBEDDINGS + 8 + 2 * (ATTENTION + FEED_FORWARD + 2 * 16) + 16 + 72 + 16),
  "bert4rec_event_domain": (
    {**BERT4REC, "event_domain": True, "num_domains": 3},
    EMBEDDINGS + 8 + 3 * 8 + 2 * (ATTENTION + FEED_FORWARD + 2 * 16) + 16 + 72 + 16,
  ),
  # A layer for each domain, two tokens, and a norm more.
  "domain_encoders": (
    ENCODERS,
    EMBEDDINGS + 8 + (3 + 2) * (ATTENTION + FEED_FORWARD + 2 * 16) + 2 * 8 + 16 + 16 + 72 + 16,
  ),
}
BIDIRECTIONAL = {"bert4rec", "bert4rec_decoupled", "bert4rec_event_domain", "domain_encoders"}
CAUSAL = sorted(set(CONTRACT) - BIDIRECTIONAL)
QUICK_COMPILATION = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def one_of_each_kind():
  """The configs of the table: the first of each model, and the others for `make test-all`."""
  kinds = {config["name"]: name for name, (config, _) in reversed(CONTRACT.items())}
  return [name if name in kinds.values() else pytest.param(name, marks=pytest.mark.exhaustive) for name in CONTRACT]


BATCH = batch_of([[[3, 1, 4, 1, 5, 9]], [[2, 6], [5, 3, 5]], []], length=7, num_domains=3)  # The last row is padding.


def model_of(name, **overrides):
  return build(CONTRACT[name][0], num_items=NUM_ITEMS, **overrides)


def shapes_of(name, **overrides):
  """Parameters as shapes and dtypes; finding them compiles nothing."""
  return jax.eval_shape(model_of(name, **overrides).init, jax.random.key(0), BATCH)["params"]


@functools.cache
def params_of(name):
  """Parameters far from their small initial values, so that every part of a model matters."""
  leaves, tree = jax.tree.flatten(shapes_of(name))
  rng = np.random.default_rng(1)
  return jax.tree.unflatten(tree, [jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype) for x in leaves])


@functools.cache
def compiled(name, **overrides):
  model = model_of(name, **overrides)

  def apply(params, batch, key=None):
    rngs = None if key is None else {"dropout": key}
    return model.apply({"params": params}, batch, deterministic=key is None, rngs=rngs)

  return jax.jit(apply, compiler_options=QUICK_COMPILATION)


def queries(name, batch, **overrides):
  return np.asarray(compiled(name, **overrides)(params_of(name), batch))


def test_every_model_is_in_the_table():
  assert {config["name"] for config, _ in CONTRACT.values()} == set(MODELS)


@pytest.mark.parametrize("name", CAUSAL)
def test_later_items_and_times_do_not_change_earlier_outputs(name):
  later = jnp.arange(7) >= 3
  changed = BATCH.replace(
    item_id=jnp.where(later & (BATCH.item_id != 0), BATCH.item_id % NUM_ITEMS + 1, BATCH.item_id),
    timestamp=jnp.where(later, BATCH.timestamp + 10**6, BATCH.timestamp),
    target_time=jnp.where(later, BATCH.target_time + 10**7, BATCH.target_time),
  )
  before, after = queries(name, BATCH), queries(name, changed)
  np.testing.assert_allclose(after[:, :3], before[:, :3], atol=1e-6)
  assert np.abs(after[0, 3:] - before[0, 3:]).max() > 1e-3


@pytest.mark.parametrize("name", CAUSAL)
def test_earlier_items_change_later_outputs(name):
  changed = BATCH.replace(item_id=BATCH.item_id.at[0, 0].set(8))
  assert (np.abs(queries(name, changed) - queries(name, BATCH))[0, :6].max(-1) > 1e-4).all()


@pytest.mark.parametrize("name", sorted(BIDIRECTIONAL))
def test_a_bidirectional_model_reads_later_items(name):
  changed = BATCH.replace(item_id=BATCH.item_id.at[0, 5].set(8))
  assert (np.abs(queries(name, changed) - queries(name, BATCH))[0, :5].max(-1) > 1e-4).all()


@pytest.mark.parametrize("name", CONTRACT)
def test_a_packed_row_gives_the_same_as_padded_separate_rows(name):
  separate = batch_of([[[2, 6]], [[5, 3, 5]], []], length=7, num_domains=3)
  packed, alone = queries(name, BATCH)[1], queries(name, separate)
  np.testing.assert_allclose(packed[:2], alone[0, :2], atol=1e-5)
  np.testing.assert_allclose(packed[2:5], alone[1, :3], atol=1e-5)


@pytest.mark.parametrize("name", ["hstu", "stu", "sasrec", "bert4rec"])
def test_the_length_of_the_padding_does_not_change_results(name):
  longer = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 70))), BATCH)  # Also more than one tile of attention.
  np.testing.assert_allclose(queries(name, longer)[:, :7], queries(name, BATCH), atol=1e-5)


@pytest.mark.parametrize("name", CONTRACT)
def test_query_vectors_have_unit_length_and_padding_is_zero(name):
  is_real = np.asarray(BATCH.sequence_id != 0)
  out = queries(name, BATCH)
  assert out.dtype == np.float32 and out.shape == (3, 7, 8)
  np.testing.assert_allclose(np.linalg.norm(out, axis=-1), is_real, atol=1e-5)


@pytest.mark.parametrize("name", ["hstu_decoupled", "sasrec_decoupled", "bert4rec_decoupled"])
def test_with_a_second_table_attention_reads_it_and_not_the_first(name):
  model = model_of(name, num_domains=2)
  batch = BATCH.replace(domain_id=jnp.where(BATCH.item_id == 0, 0, 1 + BATCH.item_id % 2))

  @functools.partial(jax.jit, compiler_options=QUICK_COMPILATION)
  def mass(params):
    state = model.apply({"params": params}, batch, True, mutable=[MASS])[1]
    return masses_by_layer(state[MASS])[0]

  def with_other(part):
    params = params_of(name)
    return {**params, part: {"table": -params[part]["table"]}}

  before = mass(params_of(name))
  np.testing.assert_array_equal(mass(with_other("items")), before)
  assert np.abs(mass(with_other("attention_items")) - before).max() > 1e-3


@pytest.mark.parametrize("name", CONTRACT)
def test_the_number_of_parameters_is_the_one_of_the_equations(name):
  params = jax.tree.leaves(shapes_of(name, num_layers=2))
  assert sum(x.size for x in params) == CONTRACT[name][1]
  assert all(x.dtype == jnp.float32 for x in params)


@pytest.mark.parametrize("name", ["hstu", "hstu_dropout_on_the_output", "stu", "sasrec", "sasrec_ligr", "bert4rec"])
@pytest.mark.parametrize("where", ["dropout", "input_dropout"])
def test_dropout_changes_the_output_by_its_key_and_only_in_training(name, where):
  apply = compiled(name, **{where: 0.5})
  one, same, other = (np.asarray(apply(params_of(name), BATCH, jax.random.key(seed))) for seed in (1, 1, 2))
  np.testing.assert_array_equal(one, same)
  assert np.abs(one - other).max() > 1e-2
  np.testing.assert_allclose(apply(params_of(name), BATCH), queries(name, BATCH), atol=1e-6)


@pytest.mark.parametrize("name", one_of_each_kind())
def test_bfloat16_is_near_float32(name):
  out = queries(name, BATCH, dtype=jnp.bfloat16)
  assert out.dtype == np.float32  # Results are float32 even then.
  assert 0 < np.abs(out - queries(name, BATCH)).max() < 0.1


@pytest.mark.parametrize("name", CONTRACT)
def test_gradients_are_finite_with_rows_of_padding_and_reach_every_parameter(name):
  def loss(params):
    out = model_of(name).apply({"params": params}, BATCH)
    return (out * jnp.sin(jnp.arange(out.size).reshape(out.shape))).sum()

  gradients = jax.jit(jax.grad(loss), compiler_options=QUICK_COMPILATION)(params_of(name))
  for path, value in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.isfinite(value).all(), path
    # Softmax ignores a constant added to all scores of a query, so the bias of the keys has no gradient.
    assert np.abs(value).max() > 0 or [part.key for part in path[-2:]] == ["key", "bias"], path


@pytest.mark.parametrize("name", ["hstu", "sasrec", "bert4rec"])
def test_item_vectors_are_a_unit_vector_for_padding_and_each_item(name):
  vectors = model_of(name).apply({"params": params_of(name)}, method="item_vectors")
  assert vectors.shape == (NUM_ITEMS + 1, 8)
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)
  some = model_of(name).apply({"params": params_of(name)}, jnp.array([[4, 2]]), method="item_vectors")
  np.testing.assert_allclose(some[0], vectors[jnp.array([4, 2])], atol=1e-6)


def test_output_norms_are_unit_length_layer_norm_or_none():
  plain = queries("hstu", BATCH, output_norm="none")[0, :6]
  np.testing.assert_allclose(
    queries("hstu", BATCH)[0, :6], plain / np.linalg.norm(plain, axis=-1, keepdims=True), atol=1e-5
  )
  normal = queries("hstu", BATCH, output_norm="layer_norm")[0, :6]
  np.testing.assert_allclose(normal, (plain - plain.mean(-1, keepdims=True)) / plain.std(-1, keepdims=True), atol=1e-4)


def test_an_unknown_model_is_refused_with_the_known_ones():
  known = r"\['bert4rec', 'domain_encoders', 'hstu', 'multi_domain_hstu', 'sasrec', 'stu'\]"
  with pytest.raises(ValueError, match=f"model 'gru4rec' is not one of {known}"):
    build({"name": "gru4rec"}, num_items=3)


def test_an_unknown_field_is_refused_with_the_known_ones():
  with pytest.raises(ValueError, match=r"model 'sasrec' has no field \['head_width', 'layers'\]; it has .*num_layers"):
    build({**SASREC, "layers": 2, "head_width": 3}, num_items=3)


@pytest.mark.parametrize(
  "option, kind",
  [
    ({"feed_forward": "200"}, "int"), ({"num_layers": 1.5}, "int"), ({"num_layers": True}, "int"),
    ({"dropout": "0.2"}, "float"), ({"time_bias": "no"}, "bool"), ({"activation": 3}, "str"),
  ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(option, kind):
  ((name, value),) = option.items()
  with pytest.raises(ValueError, match=re.escape(f"config.model.{name}={value!r} must be of type {kind}")):
    build({**HSTU, **option}, num_items=3)
  build({**HSTU, "dropout": 0}, num_items=3)


@pytest.mark.parametrize(
  "name, option, text",
  [
    ("hstu", {"output_norm": "l1"}, "output_norm='l1' is not one of"),
    ("hstu", {"linear_activation": "relu"}, "linear_activation='relu' is not one of"),
    ("hstu", {"bias_tables": "layer"}, r"bias_tables='layer' is not one of \('shared', 'head'\)"),
    ("hstu", {"normalizer": "n"}, "normalizer='n' is not one of"),
    ("hstu", {"normalizer": "keys", "activation": "softmax"}, "self.normalizer='keys' is for activation='silu'"),
    ("hstu", {"dropout_on": "input"}, "dropout_on='input' is not one of"),
    ("hstu", {"activation": "relu"}, "activation='relu' is not one of"),
    ("hstu", {"attention_width": 4, "num_bottlenecks": 1}, "bottleneck tokens have one table only"),
    ("stu", {"attention_width": 4}, "self.attention_width=4: STU projects queries, keys and values together"),
    ("sasrec", {"layer": "gru"}, r"layer='gru' is not one of \('sasrec', 'ligr'\)"),
    ("sasrec", {"num_heads": 3}, "width=8 must be divisible by self.num_heads=3"),
    ("sasrec", {"feed_forward_activation": "silu"}, "activation='silu' is not one of"),
  ],
)
def test_a_wrong_option_is_refused_by_name(name, option, text):
  with pytest.raises(ValueError, match=text):
    shapes_of(name, **option)


def test_an_option_of_a_config_trains_stu_in_place_of_hstu():
  config = {**ml1m_hstu.get_config().model, "name": "stu"}  # --config.model.name=stu
  assert isinstance(build(config, num_items=NUM_ITEMS), STUModel)


def test_parameters_keep_the_names_of_saved_checkpoints():
  names = {"items", "embedding", "layers_0"}
  assert set(shapes_of("hstu")) == names
  assert set(shapes_of("hstu_target_domain")) == {*names, "asked"}
  assert set(shapes_of("hstu_decoupled")) == {*names, "attention_items", "attention_embedding"}
  assert set(shapes_of("multi_domain_top")) == {*names, "transitions", "top_states"}
  states = shapes_of("multi_domain")["layers_0"]["domain_states"]
  assert set(states) == {"query", "key", "value", "asked_table", "domain_table"}
