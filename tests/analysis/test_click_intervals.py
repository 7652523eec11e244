"""Paired intervals of click-through models: the metrics by weights, pairing, and what is refused."""

import numpy as np
import pytest

from jaxrec.analysis.click_intervals import METRICS, ClickScores, click_interval, weighted_auc
from jaxrec.evaluation.metrics import auc, grouped_auc, log_loss


def scores(seed=0, users=40, each=6, seeds=3, signal=1.0):
  """Candidates of several users; every seed sees the same signal with noise of its own."""
  rng = np.random.default_rng(seed)
  user = np.repeat(np.arange(users) * 7, each)
  label = np.tile(np.arange(each) % 3 == 0, users)
  common = signal * label + np.random.default_rng(99).normal(size=len(user))
  return ClickScores(user, label.astype(float), common + 0.1 * rng.normal(size=(seeds, len(user))))


@pytest.mark.parametrize("ties", [False, True])
def test_an_auc_by_weights_is_that_of_repeated_rows(ties):
  rng = np.random.default_rng(1)
  score, label = rng.normal(size=50), rng.random(50) < 0.4
  score = np.round(score, 1) if ties else score
  weight = rng.integers(0, 4, 50)
  expected = auc(np.repeat(score, weight), np.repeat(label, weight))
  assert weighted_auc(score, label)(weight.astype(float)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_the_mean_difference_is_that_of_the_metrics(metric):
  good, bad = scores(0), scores(1, signal=0.3)
  value = {
    "AUC": lambda s, row: auc(row, s.label),
    "GAUC": lambda s, row: grouped_auc(row, s.label, s.user).value,
    "log_loss": lambda s, row: log_loss(1 / (1 + np.exp(-row)), s.label),
  }[metric]
  expected = np.mean([value(good, a) - value(bad, b) for a, b in zip(good.logit, bad.logit, strict=True)])
  found = click_interval(good, bad, metric, resamples=200)
  assert found.mean == pytest.approx(expected, abs=1e-9)
  assert found.low < found.mean < found.high and (found.count, found.seeds) == (40, 3)


def test_what_two_models_have_in_common_cancels():
  """Both err on the same candidates, so the difference is far better known than either AUC."""
  good, bad = scores(0), scores(1, signal=0.7)
  unpaired = ClickScores(good.user, good.label, np.zeros((1, len(good.user))))  # AUC .5 whatever is drawn.
  assert click_interval(good, bad, resamples=300).error < click_interval(good, unpaired, resamples=300).error / 1.5


def test_a_model_does_not_differ_from_itself_and_a_count_is_compared_with_every_seed():
  one = scores(0)
  assert click_interval(one, one, resamples=100)[:4] == (0, 0, 0, 0)
  count = ClickScores(one.user, one.label, one.logit[:1])
  found = click_interval(one, count, resamples=100)
  assert found.seeds == 3 and found.mean == pytest.approx(
    np.mean([auc(row, one.label) for row in one.logit]) - auc(one.logit[0], one.label)
  )


def test_other_candidates_seeds_or_metrics_are_refused():
  one = scores(0)
  with pytest.raises(ValueError, match="the candidates differ: give both runs .*held_out_seed"):
    click_interval(one, one._replace(label=1 - one.label))
  with pytest.raises(ValueError, match="3 seeds are compared with 2"):
    click_interval(one, one._replace(logit=one.logit[:2]))
  with pytest.raises(ValueError, match="metric='HR' must be one of"):
    click_interval(one, one, "HR")
  clicks = one._replace(label=np.ones_like(one.label))
  with pytest.raises(ValueError, match="all 240 candidates have the same label"):
    click_interval(clicks, clicks)
