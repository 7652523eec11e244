"""Coverage, novelty, popularity, diversity and serendipity of lists, against dense definitions and by hand."""

import itertools
import math

import numpy as np
import polars as pl
import pytest

from jaxrec.data.batches.evaluation import evaluation_batches
from jaxrec.data.prepared import PreparedData
from jaxrec.evaluation.baselines import evaluate_baseline, popularity
from jaxrec.evaluation.beyond_accuracy import BeyondAccuracy, KnownItems, ListReport, gini

NUM_ITEMS, K = 15, 4


@pytest.fixture(scope="module")
def data():
  """Forty users, two domains, up to three genres an item; items 14 and 15 are met by nobody."""
  rng = np.random.default_rng(0)
  user = np.repeat(np.arange(40), 6)
  item = rng.integers(1, 14, 240)
  domain = np.where(np.arange(NUM_ITEMS + 1) > 8, 2, 1)
  data = PreparedData.from_columns(
    user=user, item_id=item, domain_id=domain[item], num_items=NUM_ITEMS, item_domain=np.r_[0, domain[1:]]
  )
  genres = ["|".join(sorted(rng.choice(list("abcd"), rng.integers(0, 4), replace=False))) for _ in range(NUM_ITEMS)]
  data.__dict__["items"] = data.items.with_columns(genres=pl.Series(genres))
  return data


@pytest.fixture(scope="module")
def lists():
  """Random lists of four different items, the last ones of two lists missing, and a target for each user."""
  rng = np.random.default_rng(1)
  items = np.stack([rng.permutation(NUM_ITEMS)[:K] + 1 for _ in range(40)])
  items[3, 2:], items[4, 1:] = 0, 0
  return items, rng.integers(1, NUM_ITEMS + 1, 40)


def dense(data, items, target, chosen):
  """The definitions, list by list in plain Python; `chosen` says which lists count."""
  known = [(u, i) for u in range(40) for i in data.item_id[data.user_slice(u)][:-1].tolist()]
  events = {i: sum(item == i for _, item in known) for i in range(1, NUM_ITEMS + 1)}
  users = {i: len({u for u, item in known if item == i}) for i in events}
  score = {i: (NUM_ITEMS - sum(n > events[i] for n in events.values())) / NUM_ITEMS * (events[i] > 0) for i in events}
  genres = {i: {*text.split("|")} - {""} for i, text in zip(data.items["item_id"], data.items["genres"], strict=True)}
  values = {"Novelty": [], "Popularity": [], "Diversity": [], "Serendipity": []}
  for row, goal in zip(items[chosen].tolist(), target[chosen].tolist(), strict=True):
    found = [i for i in row if i]
    values["Novelty"].append(np.mean([math.log2(40 / max(users[i], 1)) for i in found]))
    values["Popularity"].append(np.mean([events[i] for i in found]))
    values["Serendipity"].append(
      max((NUM_ITEMS - row.index(goal)) / NUM_ITEMS - score[goal], 0) / K if goal in row else 0
    )
    pairs = [(genres[a], genres[b]) for a, b in itertools.combinations(found, 2)]
    if pairs:
      values["Diversity"].append(np.mean([1 - len(a & b) / max(len(a | b), 1) for a, b in pairs]))
  return {f"{name}@{K}": np.mean(value) for name, value in values.items()}


def test_the_metrics_of_two_batches_equal_the_dense_definitions(data, lists):
  items, target = lists
  domain = data.item_domain()[target]
  report = BeyondAccuracy.zero(KnownItems.before(data, 2), K, data.domain_names)
  for part in (slice(0, 17), slice(17, 40)):
    report = report.update(items[part], target[part], domain[part])
  result = report.result()
  expected = dense(data, items, target, np.ones(40, bool))
  assert {name: result[name] for name in expected} == pytest.approx(expected, rel=1e-12)
  assert expected[f"Serendipity@{K}"] > 0
  for index, name in enumerate(data.domain_names, 1):
    own = dense(data, items, target, domain == index)
    assert {key: result[f"domain/{name}/{key}"] for key in own} == pytest.approx(own, rel=1e-12)


def test_coverage_and_gini_are_those_of_the_catalogue(data, lists):
  items, target = lists
  chosen = np.where(items > 6, 6, items)  # Nothing above item 6 is recommended.
  report = BeyondAccuracy.zero(KnownItems.before(data, 2), K, data.domain_names)
  result = report.update(chosen, target, data.item_domain()[target]).result()
  assert result[f"Coverage@{K}"] == 6 / NUM_ITEMS
  assert result[f"domain/{data.domain_names[1]}/Coverage@{K}"] == 0
  times = np.bincount(chosen[chosen > 0], minlength=NUM_ITEMS + 1)[1:]
  differences = np.abs(times[:, None] - times[None])
  assert result[f"Gini@{K}"] == pytest.approx(differences.sum() / (2 * NUM_ITEMS * times.sum()))
  assert gini(np.full(7, 3)) == 0


def test_padding_rows_are_left_out(data, lists):
  items, target = lists
  report = BeyondAccuracy.zero(KnownItems.before(data, 2), K, data.domain_names)
  padded = target.copy()
  padded[30:] = 0
  domains = data.item_domain()
  whole = report.update(items, padded, domains[padded]).result()
  assert whole == report.update(items[:30], target[:30], domains[target[:30]]).result()


def test_items_without_attributes_have_the_domain_or_no_diversity(lists):
  items, target = lists
  one = PreparedData.from_columns(user=np.zeros(5, int), item_id=[1, 2, 3, 4, 5], num_items=NUM_ITEMS)
  report = BeyondAccuracy.zero(KnownItems.before(one, 2), K, one.domain_names)
  assert f"Diversity@{K}" not in report.update(items, target, np.ones(40, int)).result()
  two = PreparedData.from_columns(
    user=np.zeros(5, int), item_id=[1, 2, 3, 4, 5], domain_id=[1, 1, 2, 2, 2], num_items=NUM_ITEMS
  )
  report = BeyondAccuracy.zero(KnownItems.before(two, 2), 3, two.domain_names)
  assert report.update(np.array([[1, 2, 3]]), np.array([9]), np.array([1])).result()["Diversity@3"] == 2 / 3


def test_the_lists_are_those_of_the_ranking_and_warm_and_cold_targets_are_apart():
  data = PreparedData.from_columns(
    user=np.repeat(np.arange(3), 4), item_id=[1, 2, 3, 4, 1, 2, 4, 6, 1, 3, 2, 5], num_items=6
  )
  batches = evaluation_batches(data, 2, 2, 4)
  report = ListReport.zero(data, 2, 2, (2,))
  result = evaluate_baseline(popularity(data, 1), data, batches, ks=(2,), report=report)
  # Known: 1 three times, 2 three times, 3 twice, 4 once. Lists without seen items: [4, 5], [3, 5], [4, 5].
  # Targets: 4 at rank 1 of user 0, warm; 6 and 5, cold, tied with the other item that nobody has.
  assert result["Coverage@2"] == 3 / 6 and result["Popularity@2"] == pytest.approx((0.5 + 1 + 0.5) / 3)
  assert (result["warm/count"], result["cold/count"], result["warm/HR@2"], result["count"]) == (1, 2, 1.0, 3)
  assert result["HR@2"] == pytest.approx((1 + 2 * result["cold/HR@2"]) / 3)
  seen = evaluate_baseline(popularity(data, 1), data, batches, ks=(2,), report=report, exclude_seen=False)
  assert seen["Coverage@2"] == 2 / 6 and seen["Popularity@2"] == 3


def test_a_list_longer_than_the_catalogue_is_an_error(data):
  with pytest.raises(ValueError, match="number of items 15"):
    ListReport.zero(data, 2, 16, (10,))
