"""The ranking model: nothing leaks, packing changes nothing, layouts agree where they must."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.batches import ACTION, CANDIDATE, EVENT, ActionType
from jaxrec.data.batches.ranking_batches import RankingBatches, RankingOptions, training_examples
from jaxrec.data.batches.ranking_rows import RankingColumns
from jaxrec.data.generators.planted_actions import planted_actions
from jaxrec.models.ranking import RankingModel, build

DATA = planted_actions(num_users=6, num_genres=2, items_per_genre=4, mean_events=8.0)
ACTIONS = (
  ActionType("like", "binary"),
  ActionType("reaction", "multi_class", 3),
  ActionType("seconds", "regression", 2, mean=30, scale=10),
)
LAYOUTS = ("interleaved", "one_token")


def batch_of(layout, packing=True, context=("user",), **options):
  options = RankingOptions(max_length=12, layout=layout, packing=packing, row_length=40 if packing else 0, **options)
  columns = RankingColumns(DATA, ("domain",), context)
  return RankingBatches(columns, training_examples(DATA, 0, options), options, 1000, shuffle=False)[0]


def model_of(**fields):
  sizes = {"num_items": DATA.num_items, "actions": ACTIONS, "heads": ACTIONS, "max_positions": 12}
  shape = {"width": 8, "num_layers": 2, "num_heads": 2, "head_width": 4, "value_width": 4, "attention_length": 12}
  more = {"features": (("domain", 2),), "num_context_ids": DATA.num_users, "implementation": "reference"}
  return RankingModel(**sizes, **{**shape, **more, **fields})


def params_of(model, seed=0):
  """Parameters so large that every input shows in every output."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), batch_of("one_token"))["params"]
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: (0.4 * rng.normal(size=x.shape)).astype(np.float32), shapes)


MODEL = model_of()
PARAMS = params_of(MODEL)
VARIANTS = {"hstu": {}, "stu": {"layer": "stu"}, "semi_local": {"window": 3, "global_tokens": 1}}
run = jax.jit(lambda model, params, batch: model.apply({"params": params}, batch), static_argnums=0)


def by_event(batch, predictions):
  """(user, position) -> predictions of its CANDIDATE token."""
  chosen = np.argwhere(np.asarray(batch.kind) == CANDIDATE)
  return {
    (int(batch.user_id[r, c]), int(batch.position[r, c])): {n: np.asarray(x[r, c]) for n, x in predictions.items()}
    for r, c in chosen
  }


def assert_same(a, b, events, **tolerance):
  for event in events:
    for name in a[event]:
      np.testing.assert_allclose(a[event][name], b[event][name], err_msg=f"{event} {name}", **tolerance)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("context", [(), ("user",)])
def test_no_later_event_and_no_own_action_changes_a_prediction(layout, context, variant):
  model = model_of(**VARIANTS[variant], num_context_ids=DATA.num_users if context else 0)
  params = params_of(model)
  batch = batch_of(layout, context=context)
  before = by_event(batch, run(model, params, batch))
  user, position = 2, 4
  is_user = batch.user_id == user
  own, later = is_user & (batch.position == position) & (batch.kind > 1), is_user & (batch.position > position)
  changed = dataclasses.replace(
    batch,
    item_id=np.where(later & (batch.item_id > 0), batch.item_id % DATA.num_items + 1, batch.item_id),
    timestamp=np.where(later, batch.timestamp + 9999, batch.timestamp),
    actions={
      "like": np.where(own | later, 1 - batch.actions["like"], batch.actions["like"]),
      "reaction": np.where(own | later, (batch.actions["reaction"] + 1) % 3, batch.actions["reaction"]),
      "seconds": np.where(own | later, batch.actions["seconds"] + 50, batch.actions["seconds"]),
    },
  )
  after = by_event(changed, run(model, params, changed))
  assert_same(before, after, [event for event in before if event[0] != user or event[1] <= position], atol=0, rtol=0)
  moved = [event for event in before if event[0] == user and event[1] > position]
  assert all(np.abs(before[event]["like"] - after[event]["like"]) > 1e-6 for event in moved)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_action_changes_the_predictions_of_later_events(layout):
  batch = batch_of(layout)
  before = by_event(batch, run(MODEL, PARAMS, batch))
  for name, change in (("like", lambda x: 1 - x), ("reaction", lambda x: (x + 1) % 3), ("seconds", lambda x: x + 20)):
    own = (batch.user_id == 1) & (batch.position == 2) & (batch.kind > 1)
    values = np.where(own, change(batch.actions[name]), batch.actions[name])
    changed = dataclasses.replace(batch, actions={**batch.actions, name: values})
    after = by_event(batch, run(MODEL, PARAMS, changed))
    assert np.abs(before[1, 3]["like"] - after[1, 3]["like"]) > 1e-6


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_rows_equal_separate_ones(layout, variant):
  model = model_of(**VARIANTS[variant])
  params = params_of(model)
  found = [by_event(batch, run(model, params, batch)) for batch in (batch_of(layout), batch_of(layout, packing=False))]
  assert found[0].keys() == found[1].keys()
  assert_same(*found, found[0], atol=2e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_example_a_user_equals_one_example_an_event(layout):
  """What generative training saves: all impressions of a user from one encoding."""
  whole, single = (batch_of(layout, packing=False, unit=unit) for unit in ("user", "impression"))
  found = [by_event(batch, run(MODEL, PARAMS, batch)) for batch in (whole, single)]
  chosen = np.argwhere(single.weight > 0)
  single_events = {(int(single.user_id[r, c]), int(single.position[r, c])): (r, c) for r, c in chosen}
  assert single_events.keys() == found[0].keys()
  outputs = run(MODEL, PARAMS, single)
  targets = {
    event: {name: np.asarray(x[place]) for name, x in outputs.items()} for event, place in single_events.items()
  }
  assert_same(found[0], targets, targets, atol=2e-5)


def test_layouts_agree_without_history_and_on_the_first_event():
  none = model_of(num_layers=0)
  params = params_of(none)
  for model, weights, events in ((none, params, None), (MODEL, PARAMS, [(u, 0) for u in range(DATA.num_users)])):
    found = [by_event(batch_of(layout), run(model, weights, batch_of(layout))) for layout in LAYOUTS]
    assert_same(*found, events or found[0], atol=2e-5)


def test_without_layers_only_the_own_item_and_position_matter():
  model = model_of(num_layers=0)
  params, batch = params_of(model), batch_of("one_token")
  before = by_event(batch, run(model, params, batch))
  others = batch.kind == EVENT
  changed = dataclasses.replace(batch, item_id=np.where(others, 1, batch.item_id))
  assert_same(before, by_event(changed, run(model, params, changed)), before, atol=0)


def test_a_window_hides_what_is_neither_recent_nor_global():
  model = model_of(num_layers=1, window=2, global_tokens=1)
  params, batch = params_of(model), batch_of("one_token", context=())
  before = by_event(batch, run(model, params, batch))
  user = next(user for user, position in before if position == 5)
  for position, changes in ((0, True), (1, False), (2, False), (3, True), (4, True)):
    own = (batch.user_id == user) & (batch.kind == EVENT) & (batch.position == position)
    changed = dataclasses.replace(batch, item_id=np.where(own, batch.item_id % DATA.num_items + 1, batch.item_id))
    after = by_event(batch, run(model, params, changed))
    assert bool(np.abs(before[user, 5]["like"] - after[user, 5]["like"]) > 1e-6) == changes


def test_dropout_changes_the_predictions():
  model, batch = model_of(dropout=0.5), batch_of("one_token")
  rngs = {"dropout": jax.random.key(1)}
  dropped = model.apply({"params": PARAMS}, batch, False, rngs=rngs)
  assert float(jnp.abs(dropped["like"] - run(MODEL, PARAMS, batch)["like"]).max()) > 1e-3


def test_padding_is_zero_and_gradients_are_finite():
  batch = batch_of("interleaved")
  encoded = jax.jit(lambda params: MODEL.apply({"params": params}, batch, method="encode"))(PARAMS)
  assert not np.asarray(encoded)[batch.kind == 0].any() and (batch.kind == ACTION).any()
  grads = jax.jit(jax.grad(lambda params: sum(x.sum() for x in run(MODEL, params, batch).values())))(PARAMS)
  assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(grads))


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"layer": "sasrec"}, "layer='sasrec'"),
    ({"global_tokens": 2}, "window=0 and self.global_tokens=2"),
    ({"window": -1}, "window=-1"),
  ],
)
def test_wrong_fields_are_errors(fields, message):
  with pytest.raises(ValueError, match=message):
    model_of(**fields).init(jax.random.key(0), batch_of("one_token"))
  with pytest.raises(ValueError, match="no free field"):
    build({"depth": 3}, num_items=1)


def test_a_training_step_leaves_out_rows_of_items_wherever_they_occur():
  model, batch = model_of(id_dropout=0.5), batch_of("one_token")
  whole = dataclasses.replace(model, id_dropout=0.0)

  def out(params, key=None, of=model):
    return of.apply({"params": params}, batch, key is None, rngs=None if key is None else {"dropout": key})["like"]

  np.testing.assert_array_equal(out(PARAMS), out(PARAMS, of=whole))  # Predictions know all rows.
  table = jax.grad(lambda params: out(params, jax.random.key(1)).sum())(PARAMS)["items"]["table"]
  occurring = np.unique(batch.item_id[batch.item_id > 0])
  is_read = np.any(np.asarray(table) != 0, axis=1)[occurring]
  assert 0 < is_read.sum() < len(occurring)
  left_out = occurring[~is_read]
  changed = jax.tree.map(np.copy, PARAMS)
  changed["items"]["table"][left_out] += 1
  np.testing.assert_array_equal(out(changed, jax.random.key(1)), out(PARAMS, jax.random.key(1)))
  other = jax.grad(lambda params: out(params, jax.random.key(2)).sum())(PARAMS)["items"]["table"]
  assert np.any((np.asarray(other)[left_out] != 0).any(axis=1))  # Another step, other items.


def test_a_share_of_left_out_items_is_below_one():
  with pytest.raises(ValueError, match="id_dropout=1.0 is not in"):
    params_of(model_of(id_dropout=1.0))
