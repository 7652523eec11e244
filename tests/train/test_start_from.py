"""Branches: training that starts from the best parameters of another run."""

import jax
import numpy as np
import pytest
import tiny_run

from jaxrec.train import loop
from jaxrec.train.runs import load_run
from jaxrec.train.writers import read_records


def config_of(**settings):
  config = tiny_run.get_config()
  config.data.options = {"num_users": 60, "num_items": 48, "mean_events": 8.0}
  config.train.num_epochs = 1
  config.train.log_every_steps, config.train.start_optimizer = 1, "new"
  for name, value in settings.items():
    group, key = name.split("__")
    config[group][key] = value
  return config


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """A pattern of the folders of converged runs, of which there is one for seed 42."""
  folder = tmp_path_factory.mktemp("base")
  loop.run(config_of(), str(folder / "42"))
  return folder


def test_a_branch_starts_where_the_base_was_best_and_sees_the_batches_of_its_seed(base, tmp_path):
  start_from = f"{base}/{{seed}}"
  loop.run(config_of(train__start_from=start_from, optimizer__learning_rate=0.0), str(tmp_path / "still"))
  before, after = (load_run(folder).params for folder in (str(base / "42"), str(tmp_path / "still")))
  jax.tree.map(np.testing.assert_array_equal, before, after)
  for name in ("one", "two"):
    loop.run(config_of(train__start_from=start_from), str(tmp_path / name))
  losses = [
    [record["loss"] for record in read_records(str(folder / "metrics.jsonl")) if record["kind"] == "train"]
    for folder in (base / "42", tmp_path / "one", tmp_path / "two")
  ]
  assert losses[1] == losses[2] and losses[1][0] < losses[0][0]


def test_a_base_of_another_model_or_without_a_run_is_refused(base, tmp_path):
  with pytest.raises(ValueError, match="start_from=.* is a run of another model: config.model.width was 8, is 4"):
    loop.run(config_of(train__start_from=f"{base}/42", model__width=4), str(tmp_path / "narrow"))
  with pytest.raises(FileNotFoundError, match="41"):
    loop.run(config_of(train__start_from=f"{base}/41"), str(tmp_path / "nowhere"))
