"""The held-out loss: over all items, of the held-out targets, at the temperature of the objective."""

import numpy as np
import pytest
import tiny_run

from jaxrec.data.batches.evaluation import evaluation_batches
from jaxrec.data.load import load_data
from jaxrec.data.prepared import TEST
from jaxrec.evaluation.catalogue import Catalogue
from jaxrec.evaluation.log_perplexity import log_perplexity
from jaxrec.evaluation.model import ModelRanker


@pytest.fixture(scope="module")
def config():
  config = tiny_run.get_config()
  config.objective = {"name": "full_softmax", "temperature": 0.5}
  return config


@pytest.fixture(scope="module")
def data(config):
  return load_data(config.data)


def ranker(vectors, query=(1.0,)):
  """A ranker with the same query for everybody."""
  queries = lambda batch: np.tile(np.array([query], np.float32), (len(batch.user), 1))  # noqa: E731
  return ModelRanker(queries, Catalogue(np.asarray(vectors, np.float32)))


def test_a_uniform_guess_has_the_logarithm_of_the_items(config, data):
  assert log_perplexity(ranker(np.zeros((97, 1))), data, config, TEST) == pytest.approx(np.log(96), rel=1e-6)


def test_it_is_the_mean_log_probability_of_the_targets(config, data):
  scores = np.random.default_rng(0).normal(size=(97, 1))
  logits = scores[1:, 0] / 0.5
  log_probability = logits - np.log(np.exp(logits).sum())
  (batch,) = evaluation_batches(data, TEST, data.num_users, config.data.max_length)
  targets = np.asarray(batch.target_item)[np.asarray(batch.user) >= 0]
  assert len(targets) > 100
  found = log_perplexity(ranker(scores), data, config, TEST)
  assert found == pytest.approx(-log_probability[targets - 1].mean(), rel=1e-5)


def test_a_loss_without_a_softmax_is_refused(config, data):
  config = config.copy_and_resolve_references()
  config.objective = {"name": "bce"}
  with pytest.raises(ValueError, match="config.objective.name='bce' has no softmax over items"):
    log_perplexity(ranker(np.zeros((97, 1))), data, config, TEST)
