"""Metrics among sampled negatives beside those of full ranking, and training without the users that are held out."""

import jax
import numpy as np
import pytest
import tiny_run
from ml_collections import ConfigDict
from raw_files import shards

from jaxrec import parallel
from jaxrec.batches import next_item_batch
from jaxrec.data.batches import training
from jaxrec.data.batches.evaluation import evaluation_batches
from jaxrec.data.preparation.prepare import prepare
from jaxrec.data.prepared import PreparedData
from jaxrec.evaluation.baselines import evaluate_baseline, random_order
from jaxrec.evaluation.model import evaluate, user_ranks
from jaxrec.evaluation.protocols import evaluation_negatives, ranking_metrics, ranks_of_users
from jaxrec.models import SASRec
from jaxrec.train import sequence_task
from jaxrec.train.config import default_config

NUM_ITEMS = 50


def some_data(num_users=400):
  rng = np.random.default_rng(0)
  return PreparedData.from_columns(
    offsets=5 * np.arange(num_users + 1),
    item_id=rng.integers(1, NUM_ITEMS + 1, 5 * num_users),
    domain_id=rng.integers(1, 3, 5 * num_users),
    num_items=NUM_ITEMS,
    domain_names=("books", "films"),
  )


def scores(data, vectors, batch_size=64, **options):
  """The metrics of a ranker whose query is 1 for everybody, so that the score of an item is its entry of `vectors`."""
  batches = evaluation_batches(data, 2, batch_size, 8)
  one = lambda batch: np.ones((len(batch.user), 1), np.float32)  # noqa: E731
  vectors = np.asarray(vectors, np.float32)[:, None]
  return ranking_metrics(one, vectors, data, batches, ks=(1, 10), **options)


def test_sampled_metrics_come_beside_those_of_full_ranking():
  data, vectors = some_data(), np.arange(NUM_ITEMS + 1)
  full, both = scores(data, vectors), scores(data, vectors, sampled_negatives=20)
  assert both == full | {key: value for key, value in both.items() if key.startswith("sampled/")}
  assert {key.removeprefix("sampled/") for key in both if key.startswith("sampled/")} == set(full)
  assert both["sampled/domain/films/count"] == both["domain/films/count"] > 0
  assert both["sampled/NDCG@10"] > full["NDCG@10"]


def test_a_sampled_rank_is_one_more_than_the_negatives_that_are_not_below_the_target():
  """Scores are ids; a negative equal to the target counts for nothing, one drawn twice counts twice."""
  data, vectors = some_data(), np.arange(NUM_ITEMS + 1)
  (batch,) = evaluation_batches(data, 2, 400, 8)
  negatives = np.asarray(evaluation_negatives(batch.user, batch.target_item, 9, NUM_ITEMS))
  ranks = 1 + (negatives > batch.target_item[:, None]).sum(axis=1)
  result = scores(data, vectors, sampled_negatives=9)
  assert result["sampled/MRR"] == pytest.approx(np.mean(1 / ranks))


def test_equal_scores_rank_the_target_behind_all_negatives():
  result = scores(some_data(), np.zeros(NUM_ITEMS + 1), sampled_negatives=3)
  assert result["sampled/HR@1"] <= 0.02  # (1/50)^3 of the rows draw the target only.
  assert result["sampled/HR@10"] == 1.0


def test_seen_items_and_the_protocol_change_full_ranking_only():
  data, vectors = some_data(), np.arange(NUM_ITEMS + 1)
  one = scores(data, vectors, sampled_negatives=9)
  other = scores(data, vectors, sampled_negatives=9, exclude_seen=False, protocol="full_per_domain")
  assert one["MRR"] != other["MRR"] and one["sampled/MRR"] == other["sampled/MRR"]


def test_every_batch_size_meets_the_same_negatives():
  data, vectors = some_data(), np.random.default_rng(1).normal(size=NUM_ITEMS + 1)
  one, other = (scores(data, vectors, batch_size=size, sampled_negatives=9) for size in (64, 37))
  assert one == pytest.approx(other, abs=1e-12)


def test_negatives_are_uniform_over_the_catalogue_and_differ_between_rows():
  user, target = np.arange(500), np.full(500, 3)
  drawn = np.asarray(evaluation_negatives(user, target, 100, NUM_ITEMS))
  counts = np.bincount(drawn.reshape(-1), minlength=NUM_ITEMS + 1)
  assert counts[0] == 0 and len(counts) == NUM_ITEMS + 1
  assert np.sum((counts[1:] - 1000) ** 2 / 1000) < 49 + 4 * np.sqrt(2 * 49)
  assert len(np.unique(drawn, axis=0)) == 500
  assert (drawn != np.asarray(evaluation_negatives(user, target, 100, NUM_ITEMS, seed=1))).any()
  assert (drawn != np.asarray(evaluation_negatives(user, target + 1, 100, NUM_ITEMS))).any()


def test_a_row_draws_the_same_negatives_wherever_it_stands():
  user, target = np.array([4, 9, -1]), np.array([1, 2, 0])
  drawn = np.asarray(evaluation_negatives(user, target, 5, NUM_ITEMS))
  moved = np.asarray(evaluation_negatives(user[::-1].copy(), target[::-1].copy(), 5, NUM_ITEMS))
  np.testing.assert_array_equal(drawn, moved[::-1])


def test_a_negative_number_of_negatives_is_refused():
  with pytest.raises(ValueError, match="sampled_negatives=-1 must not be negative"):
    scores(some_data(), np.zeros(NUM_ITEMS + 1), sampled_negatives=-1)


@pytest.fixture
def published(tmp_path) -> PreparedData:
  """Three records, users 0, 1, 2: for training, with a validation event, with a test event."""
  return prepare("kuairand-1k", shards(tmp_path), min_user_events=3)


def config_with(train_users: str) -> ConfigDict:
  config = tiny_run.get_config()
  config.data.train_users = train_users
  return config


def users_of_an_epoch(data, config, last_split):
  options = sequence_task.training_options(config, data, last_split, parallel.make_mesh())
  batches = training.TrainingBatches(data, options)
  return sorted(user for step in range(batches.batches_per_epoch) for user in batches.users(step).tolist())


def test_users_with_held_out_events_are_trained_on_unless_the_config_says_otherwise(published):
  assert users_of_an_epoch(published, tiny_run.get_config(), last_split=0) == [0, 1, 2]
  assert users_of_an_epoch(published, config_with("without_held_out"), last_split=0) == [0]


def test_the_final_phase_trains_on_the_users_whose_last_event_is_for_validation(published):
  assert users_of_an_epoch(published, config_with("without_held_out"), last_split=1) == [0, 1]


def test_held_out_users_are_evaluated_all_the_same(published):
  for split in (1, 2):
    (batch,) = evaluation_batches(published, split, 1, 8)
    assert batch.user.tolist() == [split]


def test_leave_one_out_data_have_no_user_without_held_out_events():
  with pytest.raises(ValueError, match="train_users='without_held_out' leaves no user to train on"):
    sequence_task.train_users(config_with("without_held_out"), some_data(), last_split=0)


@pytest.mark.parametrize("protocol", ["full", "full_per_domain"])
def test_ranks_of_users_are_those_behind_the_means(protocol):
  data = some_data()
  baseline = random_order(data)
  batches = evaluation_batches(data, 2, 7, 16)
  ranks = ranks_of_users(
    lambda batch: baseline.queries(batch.user), baseline.item_vectors, data, batches, protocol=protocol
  )
  metrics = evaluate_baseline(baseline, data, batches, ks=(10,), protocol=protocol)
  assert metrics["MRR"] == pytest.approx((1 / ranks.rank).mean())
  assert ranks.user.tolist() == sorted(batches.users.tolist())
  assert ranks.target_item.tolist() == data.item_id[data.offsets[1:][ranks.user] - 1].tolist()


def test_where_both_protocols_are_reported_the_ranks_of_a_model_are_those_among_all_items():
  data, config = some_data(20), default_config()
  config.data.max_length, config.eval.protocol = 5, "both"
  model = SASRec(num_items=NUM_ITEMS, width=4, num_layers=1, num_heads=1, max_positions=5)
  params = jax.jit(model.init)(jax.random.key(0), next_item_batch(data.item_id[None, :5]))["params"]
  metrics = evaluate(model, params, data, config, split=2)
  rank = user_ranks(model, params, data, config, split=2).rank
  assert metrics["MRR"] == pytest.approx((1 / rank).mean()) != metrics["within_domain/MRR"]
