"""Click-through rankers: one contract for every variant, and the loss."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from candidates import NUM_CATEGORIES, NUM_ITEMS, candidate_batch
from golden_checks.compile import quick_jit

from jaxrec.layers.ctr.decoupled import DecoupledEmbedding, FieldWidths
from jaxrec.models.ctr import VARIANTS, build
from jaxrec.objectives.click import click_loss, ctr_loss, l2_penalty

SIZES = {"width": 3, "max_age": 6, "top_k": 3, "hidden": (9, 8), "num_bits": 8, "bits_per_bucket": 2}
BATCH = candidate_batch([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5], [8, 9], [7]], [5, 9, 3, 2])

ITEMS_AND_CATEGORIES = 10 * 3 + 5 * 3
TABLES = ITEMS_AND_CATEGORIES + 7 * 3


def head_size(inputs, *hidden):
  """A norm, layers with one PReLU slope each, the output."""
  sizes = [inputs, *hidden]
  layers = sum(a * b + b + 1 for a, b in zip(sizes, sizes[1:], strict=False))
  return 2 * inputs + layers + sizes[-1] + 1


def heads(width, auxiliary=True):
  return head_size(width, 9, 8) + auxiliary * head_size(width, 200)


PARAMETERS = {
  "dare": 2 * TABLES + heads(27),
  "twin": TABLES + heads(27),
  "twin_projection": TABLES + 12 * 9 + heads(27),
  "twin_projection_small": TABLES + 12 * 9 + heads(27),
  "twin_3e": 3 * TABLES + heads(27),
  "twin_4e": 4 * TABLES + heads(27),
  "twin_without_tr": TABLES + heads(18),
  "twin_hard": TABLES + heads(27),
  "twin_hard_item": TABLES + heads(27),
  "twin_latest": TABLES + heads(27),
  "twin_category_only": TABLES + heads(27),
  "din": ITEMS_AND_CATEGORIES + (24 * 36 + 36 + 1 + 36 + 1) + heads(18),
  "eta": TABLES + heads(27),
  "sdim": TABLES + heads(27, auxiliary=False),
}


def model_of(name, **options):
  return build({"name": name, **SIZES, **options}, num_items=NUM_ITEMS, num_categories=NUM_CATEGORIES)


@functools.cache
def variables_of(name, **options):
  """Variables far from their small initial values."""
  shapes = jax.eval_shape(model_of(name, **options).init, jax.random.key(0), BATCH)
  leaves, tree = jax.tree.flatten(shapes)
  rng = np.random.default_rng(1)
  variables = jax.tree.unflatten(tree, [jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype) for x in leaves])
  return variables | {name: jax.tree.map(jnp.abs, variables[name]) for name in variables if name == "batch_stats"}


@functools.cache
def compiled(name, **options):
  model = model_of(name, **options)
  return quick_jit(lambda variables, batch: model.apply(variables, batch, True))


def output(name, batch, **options):
  return compiled(name, **options)(variables_of(name, **options), batch)


def test_every_variant_is_in_the_table():
  assert set(PARAMETERS) == set(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_number_of_parameters_is_the_one_of_the_equations(name):
  shapes = jax.eval_shape(model_of(name).init, jax.random.key(0), BATCH)["params"]
  assert sum(x.size for x in jax.tree.leaves(shapes)) == PARAMETERS[name]


@pytest.mark.parametrize("name", VARIANTS)
def test_values_on_padding_change_nothing(name):
  padding = BATCH.history_item == 0
  changed = BATCH.replace(
    history_category=np.where(padding, 2, BATCH.history_category), history_age=np.where(padding, 5, BATCH.history_age)
  )
  np.testing.assert_allclose(output(name, changed).logit, output(name, BATCH).logit, atol=1e-6)


@pytest.mark.parametrize("name", ["dare", "din", "eta", "sdim"])
def test_more_padding_changes_nothing(name):
  longer = candidate_batch([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5], [8, 9], [7]], [5, 9, 3, 2], length=9)
  np.testing.assert_allclose(output(name, longer).logit, output(name, BATCH).logit, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_only_real_events_are_kept_and_at_most_k_of_them(name):
  kept = np.asarray(output(name, BATCH).kept)
  assert not (kept & (BATCH.history_item == 0)).any()
  if name not in ("sdim", "twin_category_only"):
    np.testing.assert_array_equal(kept.sum(axis=1), [3, 3, 2, 1])


@pytest.mark.parametrize("name", VARIANTS)
def test_with_running_statistics_no_row_depends_on_another(name):
  others = candidate_batch([[3, 1, 4, 1, 5, 9], [4], [8, 9], [6, 1]], [5, 1, 3, 7])
  before, after = output(name, BATCH).logit, output(name, others).logit
  np.testing.assert_allclose(after[::2], before[::2], atol=1e-6)
  assert np.abs(after - before)[1::2].min() > 1e-5


@pytest.mark.parametrize("name", ["dare", "sdim"])
def test_the_statistics_of_the_evaluated_batch_make_rows_depend_on_each_other(name):
  others = candidate_batch([[3, 1, 4, 1, 5, 9], [4], [8, 9], [6, 1]], [5, 1, 3, 7])
  before, after = (output(name, batch, evaluation_norm="batch").logit for batch in (BATCH, others))
  assert np.abs(after - before)[::2].min() > 1e-3


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_are_finite_and_reach_every_parameter(name):
  model, variables = model_of(name), variables_of(name)

  def loss(params):
    out, _ = model.apply({**variables, "params": params}, BATCH, False, mutable=["batch_stats"])
    return ctr_loss(out.logit, out.auxiliary_logit, BATCH.label)[0]

  for path, value in jax.tree_util.tree_leaves_with_path(quick_jit(jax.grad(loss))(variables["params"])):
    assert np.isfinite(value).all(), path
    # Softmax ignores a constant added to all scores.
    assert np.abs(value).max() > 0 or "attention_unit" in jax.tree_util.keystr(path), path


def test_in_dare_the_search_depends_on_the_attention_tables_alone_and_the_pooled_vector_on_both():
  variables = variables_of("dare")
  embedding = variables["params"]["embedding"]
  table = embedding["lookup_representation"]["item_table"]
  other = {**embedding, "lookup_representation": {**embedding["lookup_representation"], "item_table": -table}}
  changed = {**variables, "params": {**variables["params"], "embedding": other}}
  before, after = output("dare", BATCH), compiled("dare")(changed, BATCH)
  np.testing.assert_array_equal(before.score, after.score)
  assert np.abs(before.features - after.features).max() > 0.1


def test_twin_is_dare_with_equal_tables():
  variables = variables_of("twin")
  shared = variables["params"]["embedding"]["lookup_shared"]
  twice = {"lookup_attention": shared, "lookup_representation": shared}
  copied = {**variables, "params": {**variables["params"], "embedding": twice}}
  np.testing.assert_allclose(compiled("dare")(copied, BATCH).logit, output("twin", BATCH).logit, atol=1e-6)


def test_attention_may_be_narrower_than_representation():
  out = output("dare", BATCH, attention_width=2)
  embedding = variables_of("dare", attention_width=2)["params"]["embedding"]
  assert embedding["lookup_attention"]["item_table"].shape == (10, 2)
  assert embedding["lookup_representation"]["item_table"].shape == (10, 3)
  assert out.features.shape == (4, 27)


# Items 1, 5 and 9 are of category 1; 3 of category 3; 4 of category 4.
HARD = candidate_batch([[1, 5, 2, 9, 1, 3], [5, 2, 3, 3, 2, 6], [2, 3]], [5, 9, 4])


def test_a_hard_search_keeps_the_latest_events_of_the_candidate_category_and_fills_up_with_the_latest_others():
  kept = [[0, 1, 0, 1, 1, 0], [1, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1]]
  np.testing.assert_array_equal(output("twin_hard", HARD).kept, kept)
  np.testing.assert_allclose(output("twin_hard", HARD).score, output("twin", HARD).score, atol=1e-6)


def test_a_hard_search_among_one_category_keeps_no_others():
  kept = [[0, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0], [0] * 6]
  np.testing.assert_array_equal(output("twin_category_only", HARD).kept, kept)


def test_the_latest_events_are_kept_whatever_their_scores():
  kept = [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]]
  np.testing.assert_array_equal(output("twin_latest", HARD).kept, kept)


def test_scores_without_the_category_are_those_of_item_and_age_alone():
  """Of width 3 each: <item, item> / sqrt(3) + <age, age> / sqrt(3)."""
  tables = variables_of("twin_hard_item")["params"]["embedding"]["lookup_shared"]
  item, age = (np.asarray(tables[f"{name}_table"], np.float64) for name in ("item", "age"))
  expected = np.einsum("bm,bnm->bn", item[HARD.item], item[HARD.history_item]) + age[HARD.history_age] @ age[0]
  found, is_real = output("twin_hard_item", HARD), HARD.history_item != 0
  np.testing.assert_allclose(np.asarray(found.score)[is_real], expected[is_real] / math.sqrt(3), rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(found.kept, output("twin_hard", HARD).kept)
  model, variables = model_of("twin_hard_item"), variables_of("twin_hard_item")
  queries = model.apply(variables, HARD.item, HARD.category, method="search_queries")
  history = (HARD.history_item[0], HARD.history_category[0], HARD.history_age[0])
  keys = model.apply(variables, *history, method="search_keys")
  np.testing.assert_allclose((queries @ keys.T)[0], found.score[0], atol=1e-5)


@pytest.mark.parametrize("name, reads_outside", [("twin_hard", False), ("twin_category_only", True)])
def test_the_auxiliary_head_of_the_published_hard_search_reads_what_it_keeps(name, reads_outside):
  other = HARD.replace(history_item=np.where(np.asarray(output(name, HARD).kept), HARD.history_item, 7))
  before, after = output(name, HARD).auxiliary_logit, output(name, other).auxiliary_logit
  assert (np.abs(after - before)[:2] > 1e-4).tolist() == [reads_outside] * 2  # Row 3 has padding, which is 7 now.


def test_a_hard_search_fills_up_to_twenty_of_two_hundred_events_as_published():
  rng = np.random.default_rng(0)
  batch = candidate_batch(rng.integers(1, 10, (8, 200)).tolist(), [1] * 8, length=200)
  few = batch.replace(history_category=np.where(rng.random((8, 200)) < 0.03, 1, 2).astype(np.int32))
  kept = np.asarray(output("twin_hard", few, top_k=20).kept)
  is_same = few.history_category == 1
  assert 0 < is_same.sum(axis=1).min() and is_same.sum(axis=1).max() < 20
  assert (kept.sum(axis=1) == 20).all() and kept[is_same].all()
  for row in range(8):  # Of the others the latest, without a gap.
    others = kept[row][~is_same[row]]
    assert others[-others.sum() :].all()


def test_with_three_tables_candidates_and_events_are_represented_by_the_same_one():
  embedding = variables_of("twin_3e")["params"]["embedding"]
  assert set(embedding) == {"lookup_attention_target", "lookup_attention_history", "lookup_representation"}
  four = {f"lookup_representation_{side}": embedding["lookup_representation"] for side in ("target", "history")}
  tables = {**embedding, **four}
  tables.pop("lookup_representation")
  variables = variables_of("twin_3e")
  copied = {**variables, "params": {**variables["params"], "embedding": tables}}
  np.testing.assert_allclose(compiled("twin_4e")(copied, BATCH).logit, output("twin_3e", BATCH).logit, atol=1e-6)


def test_an_added_age_is_part_of_one_product():
  embedding = DecoupledEmbedding(3, 2, FieldWidths(2, 1, 3), tables="shared", age_mode="add")
  item, category, age = jnp.array([1, 2]), jnp.array([2, 1]), jnp.array([0, 5])
  out, variables = quick_jit(embedding.init_with_output)(jax.random.key(0), item, category, age)
  tables = variables["params"]["lookup_shared"]
  both = np.concatenate([tables["item_table"][item], tables["category_table"][category]], axis=1)
  np.testing.assert_allclose(out.attention, both + tables["age_table"][age], rtol=1e-6)
  model, variables = model_of("dare", age_mode="add", width=2), variables_of("dare", age_mode="add", width=2)
  assert variables["params"]["embedding"]["lookup_attention"]["age_table"].shape == (7, 4)
  batch = jax.tree.map(jnp.asarray, BATCH)
  target, history = batch.item, (batch.history_item, batch.history_category, batch.history_age)
  of_target = quick_jit(lambda v, *ids: model.apply(v, *ids, method=lambda m, *ids: m.embedding(*ids, "target")))
  q, _ = of_target(variables, target, batch.category, 0 * target)
  k, _ = quick_jit(lambda v, *ids: model.apply(v, *ids, method=lambda m, *ids: m.embedding(*ids)))(variables, *history)
  k = jnp.where((batch.history_item != 0)[..., None], k, 0)  # Padding has no vector.
  expected = np.einsum("bm,bnm->bn", q, k) / 2  # 4 entries: sqrt(4).
  np.testing.assert_allclose(output("dare", BATCH, age_mode="add", width=2).score, expected, rtol=1e-4, atol=1e-5)
  search = quick_jit(lambda v, *ids: model.apply(v, *ids, method="search_queries"))
  np.testing.assert_allclose(search(variables, BATCH.item, BATCH.category), q / 2, rtol=1e-5)


@pytest.mark.parametrize("projection", ["per_field", "joint"])
def test_an_age_is_added_after_maps_per_field_and_before_a_joint_map(projection):
  embedding = DecoupledEmbedding(3, 2, FieldWidths(2, 1, 3), tables="shared", projection=projection, age_mode="add")
  ids = jnp.array([1, 2])
  out, variables = quick_jit(embedding.init_with_output)(jax.random.key(0), ids, ids, ids)
  tables, maps = variables["params"]["lookup_shared"], variables["params"]["projections_attention_history"]
  fields = {name: tables[f"{name}_table"][ids] for name in ("item", "category", "age")}
  if projection == "per_field":
    fields = {name: x @ maps[name]["kernel"] for name, x in fields.items()}
  expected = np.concatenate([fields["item"], fields["category"]], axis=1) + fields["age"]
  if projection == "joint":
    expected = expected @ maps["kernel"] + maps["bias"]
  np.testing.assert_allclose(out.attention, expected, rtol=1e-4, atol=1e-6)


def test_without_batch_norm_a_row_of_its_own_can_be_trained_on():
  one = jax.tree.map(lambda x: x[:1], BATCH)
  model, variables = model_of("dare", batch_norm=False), variables_of("dare", batch_norm=False)
  assert set(variables) == {"params"} and set(variables["params"]["head"]) == {
    "hidden_0", "activation_0", "hidden_1", "activation_1", "output",
  }  # fmt: skip
  train = quick_jit(lambda variables: model.apply(variables, one, False, mutable=["batch_stats"]))
  out, updated = train(variables)
  assert not updated
  np.testing.assert_allclose(out.logit, output("dare", BATCH, batch_norm=False).logit[:1], rtol=1e-4, atol=1e-5)
  with pytest.raises(ValueError, match="a batch of 1 row has no statistics"):
    jax.eval_shape(lambda v: model_of("dare").apply(v, one, False, mutable=["batch_stats"]), variables_of("dare"))


def test_a_search_by_hashes_keeps_events_similar_to_the_candidate():
  batch = candidate_batch([[1, 2, 3, 4, 5, 6]] * 2, [2, 4])
  kept = np.asarray(output("eta", batch, use_age=False, num_bits=64, top_k=1).kept)
  assert batch.history_item[kept].tolist() == [2, 4]


def test_an_old_event_has_the_age_of_the_oldest_row_of_the_table():
  older = BATCH.replace(history_age=np.where(BATCH.history_age == 6, 60, BATCH.history_age))
  np.testing.assert_array_equal(output("dare", older).logit, output("dare", BATCH).logit)


def test_projections_are_maps_of_each_field_or_of_all_fields():
  embedding = DecoupledEmbedding(3, 2, FieldWidths(2, 1, 0), tables="shared", projection="per_field")
  ids = jnp.array([1, 2])
  out, variables = embedding.init_with_output(jax.random.key(0), ids, ids, ids, "target")
  tables, maps = variables["params"]["lookup_shared"], variables["params"]["projections_attention_target"]
  assert set(maps) == {"item", "category"}
  expected = np.concatenate(
    [tables["item_table"][ids] @ maps["item"]["kernel"], tables["category_table"][ids] @ maps["category"]["kernel"]], 1
  )
  np.testing.assert_allclose(out.attention, expected, rtol=1e-5)


def test_search_vectors_have_the_scores_as_dot_products():
  model, variables = model_of("dare"), variables_of("dare")
  queries = model.apply(variables, BATCH.item, BATCH.category, method="search_queries")
  history = (BATCH.history_item[0], BATCH.history_category[0], BATCH.history_age[0])
  keys = model.apply(variables, *history, method="search_keys")
  np.testing.assert_allclose((queries @ keys.T)[0], output("dare", BATCH).score[0], atol=1e-5)


@pytest.mark.parametrize(
  "name, option, text",
  [
    ("dare", {"tables": "shared"}, r"model 'dare' has no free field \['tables'\]; it has .*attention_width"),
    ("twin", {"layers": 2}, r"model 'twin' has no free field \['layers'\]"),
    ("bst", {}, r"model 'bst' is not one of \['dare', 'din', "),
    ("twin", {"attention_width": 2}, "there is one table for both"),
    ("sdim", {"evaluation_norm": "mean"}, "self.evaluation='mean' is not one of"),
    ("dare", {"search": "tree"}, "self.search='tree' must be one of"),
    ("dare", {"projection": "low_rank"}, "self.projection='low_rank' is not one of"),
    (
      "twin",
      {"attention_init_scale": 0.1},
      "must be self.init_scale=0.01 if tables='shared': there is one table for both",
    ),
    ("dare", {"projection_init_scale": 0.1}, "must be None if projection='none': there are no maps"),
    ("twin", {"category_in_score": False, "age_mode": "add"}, "needs score='dot' and age_mode='concat'"),
    ("dare", {"age_mode": "multiply"}, "self.age_mode='multiply' is not one of"),
    ("dare", {"age_mode": "add", "width": (2, 1, 2)}, "the age must be as wide as item and category together, or 0"),
  ],
)
def test_a_wrong_option_is_refused_by_name(name, option, text):
  with pytest.raises(ValueError, match=text):
    jax.eval_shape(model_of(name, **option).init, jax.random.key(0), BATCH)


@pytest.mark.parametrize("name", ["din", "sdim"])
def test_a_model_whose_scores_are_not_dot_products_has_no_search_vectors(name):
  with pytest.raises(ValueError, match="has no scores that are dot products"):
    model_of(name).apply(variables_of(name), BATCH.item, BATCH.category, method="search_queries")


def test_the_loss_is_the_sum_of_both_heads_and_the_penalty():
  params = {"dense": {"kernel": jnp.full(4, 2.0), "bias": jnp.ones(9)}}
  loss, parts = ctr_loss(jnp.array([0.0]), jnp.array([math.log(3)]), jnp.array([1.0]), params=params, l2=0.5)
  np.testing.assert_allclose(parts["main"], math.log(2), rtol=1e-6)
  np.testing.assert_allclose(parts["auxiliary"], math.log(4 / 3), rtol=1e-6)
  assert float(parts["penalty"]) == 16
  np.testing.assert_allclose(loss, math.log(2) + math.log(4 / 3) + 8, rtol=1e-6)


def test_a_click_of_tiny_probability_still_has_a_gradient():
  """The published loss, the logarithm of a softmax plus 1e-8, is flat there."""

  def published(logit):
    return -jnp.log(jax.nn.sigmoid(logit) + 1e-8).mean()

  logit = jnp.array([-60.0])
  assert abs(float(jax.grad(published)(logit)[0])) < 1e-8
  assert float(jax.grad(click_loss)(logit, jnp.ones(1))[0]) == -1
  probable = jnp.array([-2.0, 0.0, 3.0])
  np.testing.assert_allclose(click_loss(probable, jnp.ones(3)), published(probable), atol=1e-6)


def test_tables_and_biases_are_not_penalised():
  params = variables_of("dare")["params"]
  doubled = jax.tree_util.tree_map_with_path(
    lambda path, x: 2 * x if path[-1].key == "bias" or path[-1].key.endswith("table") else x, params
  )
  assert float(l2_penalty(doubled)) == float(l2_penalty(params)) > 0
