"""Packed candidates give every ranker the outputs and gradients of separate rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from candidates import NUM_CATEGORIES, NUM_ITEMS, category_of
from golden_checks.compile import quick_jit

from jaxrec.batches import PackedCandidates
from jaxrec.models.ctr import VARIANTS, build
from jaxrec.objectives.click import ClickObjective

SIZES = {"width": 3, "max_age": 6, "top_k": 2, "hidden": (9, 8), "num_bits": 8, "bits_per_bucket": 2}


def packed_batch():
  """Three users with two targets each: a full window, one with padding in both histories, one with an empty history."""
  history = np.array([[3, 1, 4, 1, 5, 9, 2], [0, 0, 0, 6, 5, 3, 5], [0, 0, 0, 0, 0, 8, 9]], np.int32)
  item = np.array([[5, 9, 3, 2], [1, 2, 6, 6], [9, 7, 8, 4]], np.int32)
  return PackedCandidates(
    history_item=history, history_category=category_of(history), end=np.array([[5, 7], [4, 6], [5, 7]], np.int32),
    item=item, category=category_of(item), label=(item % 2).astype(np.float64), user_id=np.arange(3, dtype=np.int32),
    history_length=4,
  )  # fmt: skip


@pytest.fixture(autouse=True)
def in_float64():
  """With float32 the batch norm of six candidates makes rounding as large as the smallest gradients."""
  with jax.enable_x64(True):
    yield


def gradients_of(name, **options):
  """Returns loss, gradients, moved statistics and evaluated logits for packed and for separate rows."""
  model = build({"name": name, **SIZES, **options}, num_items=NUM_ITEMS, num_categories=NUM_CATEGORIES)
  packed = packed_batch()
  shapes = jax.eval_shape(model.init, jax.random.key(0), packed)
  rng = np.random.default_rng(1)
  variables = jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape)), shapes)
  state = {name: jax.tree.map(jnp.abs, value) for name, value in variables.items() if name != "params"}

  @quick_jit
  def run(params, batch):
    found = ClickObjective().gradients(model, params, batch, jax.random.key(0), model_state=state)
    output = model.apply({"params": params, **state}, batch, deterministic=True)
    return found.losses, found.weights, found.grads, found.model_state, (output.logit, output.kept, output.features)

  return [run(variables["params"], batch) for batch in (packed, packed.unpacked())]


@pytest.mark.parametrize("name", VARIANTS)
def test_outputs_and_gradients_are_those_of_separate_rows(name):
  packed, separate = gradients_of(name)
  assert jax.tree.structure(packed) == jax.tree.structure(separate)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9), packed, separate)


@pytest.mark.parametrize(
  "name, options",
  [
    ("dare", {"attention_width": (2, 1, 4)}),
    ("dare", {"use_age": False}),
    ("dare", {"age_mode": "add"}),
    ("twin_hard", {"top_k": 20}),
    ("dare", {"batch_norm": False, "auxiliary": False, "features": "product"}),
  ],
)
def test_so_are_those_of_other_widths_and_ages(name, options):
  packed, separate = gradients_of(name, **options)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9), packed, separate)


def test_events_after_a_target_do_not_change_its_candidates():
  model = build({"name": "dare", **SIZES, "init_scale": 1.0}, num_items=NUM_ITEMS, num_categories=NUM_CATEGORIES)
  batch = packed_batch()
  variables = jax.jit(model.init)(jax.random.key(0), batch)
  later = batch.history_item.copy()
  later[:, 5:] = 7
  changed = batch.replace(history_item=later, history_category=category_of(later))
  before, after = (np.asarray(model.apply(variables, b).logit).reshape(3, 2, 2) for b in (batch, changed))
  np.testing.assert_array_equal(before[:, 0], after[:, 0])
  assert np.abs(before - after)[:, 1].min() > 0
