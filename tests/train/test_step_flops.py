"""FLOPs of a training step: those that can be counted by hand, and how they grow."""

import pytest
import tiny_run

from jaxrec.train.step_flops import step_cost


def config_of(**model):
  """SASRec of width 32 without dropout, whose step is nearly all matrix products; 256 positions in a step."""
  config = tiny_run.get_config()
  config.data.packing = False
  config.data.rows_per_batch = 16
  config.model = {"name": "sasrec", "width": 32, "num_layers": 1, "hidden": 32, "max_positions": 16} | model
  config.objective = {"name": "full_softmax"}
  return config


@pytest.fixture(scope="module")
def small():
  return step_cost(config_of())


def test_flops_are_those_of_the_matrix_products(small):
  """A product of [T, M] and [M, M] has 2 T M^2 FLOPs, and twice as many in its gradient."""
  positions, width, items = 16 * 16, 32, 96
  layer = 6 * positions * (6 * width**2)  # Query, key, value, output, and two of the feed-forward network.
  attention = 6 * positions * (2 * 16 * width)  # Scores and weighted values, of all pairs of a row.
  scores = 8 * positions * items * width  # The gradient computes them once more.
  assert small.flops == pytest.approx(layer + attention + scores, rel=0.15)


def test_a_layer_more_adds_the_products_of_a_layer(small):
  positions, width = 16 * 16, 32
  added = step_cost(config_of(num_layers=2)).flops - small.flops
  assert added == pytest.approx(6 * positions * (6 * width**2 + 2 * 16 * width), rel=0.15)


def test_loops_do_not_hide_flops(small):
  """Neither microbatches nor chunks of the softmax nor tiles of attention are counted once for many."""
  config = config_of()
  config.train.accumulate = 4
  config.objective.chunk_size = 8
  assert step_cost(config).flops == small.flops


def test_steps_parameters_and_tokens_are_those_of_the_training(small):
  assert small.steps == 3 * 13  # Epochs of 200 users, 16 in a step.
  assert small.table_parameters == 97 * 32 < small.parameters
  assert 0 < small.tokens <= 256


@pytest.mark.parametrize(
  ("group", "values", "message"),
  [
    ("multi_objective", {"objectives": ("cross_domain_attention",)}, "FLOPs are counted for one objective"),
    ("tables", {"placement": "sharded"}, "an item table in the parameters"),
  ],
)
def test_what_is_not_counted_is_refused(group, values, message):
  config = config_of()
  config[group].update(values)
  with pytest.raises(ValueError, match=message):
    step_cost(config)
