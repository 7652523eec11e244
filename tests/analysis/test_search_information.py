"""The published measure of a search: counts by hand, what is left out, and scores without items."""

import math

import jax
import numpy as np
import pytest
from candidates import NUM_CATEGORIES, NUM_ITEMS, candidate_batch, category_of

from jaxrec.analysis.search_information import count_information, without_items
from jaxrec.data.prepared import TRAIN
from jaxrec.models.ctr import build


class Given:
  """Examples that are one batch, whatever the split."""

  num_items, num_categories = NUM_ITEMS, NUM_CATEGORIES

  def __init__(self, batch):
    self.all = batch

  def num_examples(self, split):
    return len(self.all.label)

  def training_clicks(self):
    return np.bincount(self.all.item, minlength=NUM_ITEMS + 1)

  def batch(self, split, examples):
    return jax.tree.map(lambda x: x[examples], self.all)


def mutual_information(cells):
  """In bits, of a table of two rows and two columns of counts."""
  total = sum(map(sum, cells))
  return sum(
    x / total * math.log2(x * total / (sum(row) * sum(r[i] for r in cells)))
    for row in cells
    for i, x in enumerate(row)
    if x
  )


# Candidates of category 1 (item 5). The latest event has category 1 (item 9) for 3 of 4 clicked and 1 of 4 others.
HISTORIES = [[2, 9], [2, 9], [3, 9], [2, 2], [3, 9], [2, 2], [2, 2], [3, 2]]
LABELS = [1, 1, 1, 1, 0, 0, 0, 0]
BATCH = candidate_batch(HISTORIES, [5] * 8, LABELS, length=2)


def counted(batch=BATCH, ages=2, **options):
  limits = {"min_samples": 1, "min_count": 1, "max_rare": 0, **options}
  return count_information(Given(batch), ages, batch_size=3, **limits)


def test_the_gain_of_an_event_is_the_information_of_its_category_and_age():
  gain = counted().gain(BATCH)
  assert gain[0, 1] == pytest.approx(mutual_information([[3, 1], [1, 3]]))
  assert gain[3, 1] == pytest.approx(mutual_information([[1, 3], [3, 1]]))  # Item 2 at age 1: the others.
  assert gain[0, 0] == pytest.approx(mutual_information([[3, 2], [1, 2]]))  # Item 2 at age 2.
  swapped = BATCH.replace(history_age=BATCH.history_age[:, ::-1])
  assert counted().gain(swapped)[0, 1] == pytest.approx(0)  # Category 1 never has age 2.


@pytest.mark.parametrize("size", [1, 2, 100])
def test_the_order_and_size_of_batches_change_nothing(size):
  turned = count_information(Given(jax.tree.map(lambda x: x[::-1], BATCH)), 2, min_samples=1, batch_size=size)
  np.testing.assert_array_equal(turned.key, counted().key)
  np.testing.assert_array_equal(turned.counts, counted().counts)


def test_padding_has_no_gain_and_is_not_counted():
  batch = candidate_batch([[9], [9], [2], [2]], [5] * 4, [1, 1, 0, 0], length=3)
  information = counted(batch, ages=3)
  assert information.gain(batch)[:, :2].max() == 0 and information.gain(batch)[0, 2] == pytest.approx(1)
  assert len(information.key) == 2


def test_ages_of_a_bin_share_the_mean_of_their_counts():
  """Both ages in one bin: of clicked candidates 3 of 8 events have category 1, of others 1 of 8."""
  gain = counted(first_ages=(1,)).gain(BATCH)
  assert gain[0, 1] == pytest.approx(mutual_information([[1.5, 0.5], [2.5, 3.5]]))
  with pytest.raises(ValueError, match="must ascend from 1"):
    counted(first_ages=(2, 3))


def test_candidates_of_which_too_little_is_known_are_left_out():
  assert counted(min_samples=8).is_supported(BATCH).all()
  assert not counted(min_samples=9).is_supported(BATCH).any()
  # With clicked and with other candidates, at age 1: category 1 thrice and once, 2 once and thrice; at age 2: category
  # 2 thrice and twice, 3 once and twice.
  assert counted(min_count=2, max_rare=2).is_supported(BATCH).all()
  assert not counted(min_count=2, max_rare=0).is_supported(BATCH).any()
  other = BATCH.replace(item=np.full(8, 2, np.int32), category=category_of(np.full(8, 2)))
  assert not counted().is_supported(other).any() and not counted(min_samples=9).gain(BATCH).any()


@pytest.mark.parametrize("name", ["dare", "twin", "twin_4e", "twin_projection"])
def test_scores_without_items_are_products_of_category_and_age(name):
  """Of any event: another item of the same category has the same score, and of TWIN it is that of the equation."""
  options = {"width": 4, "max_age": 3, "hidden": (8,), "auxiliary_hidden": (8,), "init_scale": 1.0}
  model = build({"name": name, **options}, num_items=NUM_ITEMS, num_categories=NUM_CATEGORIES)
  variables = without_items(jax.jit(model.init)(jax.random.key(0), BATCH))
  apply = jax.jit(lambda batch: model.apply(variables, batch, deterministic=True).score)
  other = BATCH.replace(item=np.full(8, 1, np.int32), history_item=np.where(BATCH.history_item == 9, 1, 6))
  np.testing.assert_allclose(apply(BATCH), apply(other), atol=1e-6)
  if name == "twin":
    tables = build({"name": name, **options}, num_items=NUM_ITEMS, num_categories=NUM_CATEGORIES)
    original = jax.jit(tables.init)(jax.random.key(0), BATCH)["params"]["embedding"]["lookup_shared"]
    category, age = (np.asarray(original[f"{field}_table"], np.float64) for field in ("category", "age"))
    products = np.einsum("bm,bnm->bn", category[BATCH.category], category[BATCH.history_category])
    np.testing.assert_allclose(apply(BATCH), (products + age[BATCH.history_age] @ age[0]) / 2, atol=1e-5)


def test_only_training_candidates_are_counted():
  splits = []

  class Watched(Given):
    def batch(self, split, examples):
      splits.append(split)
      return super().batch(split, examples)

  count_information(Watched(BATCH), 2, min_samples=1)
  assert set(splits) == {TRAIN}
