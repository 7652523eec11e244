"""Trains a small model, compares it with popularity and random order, and prints recommendations for a few users.

    make demo        or: python -m experiments.demo [FOLDER]

The config is that of `experiments/configs/demo.py`. A second call prints the results of the finished run; delete its
folder to train again.
"""

from __future__ import annotations

from absl import app, logging
from ml_collections import ConfigDict

from jaxrec.cli import evaluate
from jaxrec.serving.recommendation import describe
from jaxrec.serving.recommender import Recommender
from jaxrec.train.config import default_config
from jaxrec.train.loop import run
from jaxrec.train.runs import load_run

FOLDER = "runs/demo"
NUM_USERS = 3
TEST = 2


def main(argv: list[str]) -> None:
  """Trains and evaluates the demo and prints recommendations; the workdir is the argument, by default runs/demo."""
  if len(argv) > 2:
    raise app.UsageError(f"expected at most one folder, got {argv[1:]}")
  folder = argv[1] if len(argv) == 2 else FOLDER
  logging.set_verbosity(logging.ERROR)  # The progress bar and the tables are enough output.
  run(demo_config(), folder)
  loaded = load_run(folder)
  task, data = loaded.task, loaded.task.data

  print(f"\nRank of each user's last event among all {data.num_items} items (without those already seen):\n")
  print(evaluate.table(evaluate.score(task, loaded.params, TEST), data.domain_names, (10,)))

  print("\nRecommendations after each history:")
  recommender = Recommender(task.model, loaded.params, data, task.config)
  users = [data.user_raw_id(user) for user in range(NUM_USERS)]
  for one in recommender.recommend(users=users, k=8, hold_out=True):
    print(f"\n{describe(data, one, history=8)}")
  print(f"\nCurves: {folder}/curves.png")


def demo_config() -> ConfigDict:
  """Returns the config of the demo."""
  config = default_config()
  config.name = "demo"
  config.data.source = "synthetic"
  config.data.options = {"num_users": 2000, "num_items": 960, "num_domains": 2, "mean_events": 40.0, "transfer": 0.7}
  config.data.max_length = 64
  config.data.row_length = 128
  config.model = {
    "name": "hstu", "width": 64, "num_layers": 2, "num_heads": 2, "head_width": 32, "value_width": 32,
    "dropout": 0.1, "input_dropout": 0.1, "max_positions": 64, "attention_length": 64,
  }  # fmt: skip
  config.objective = {"name": "full_softmax"}
  config.optimizer.learning_rate = 3e-3
  config.train.batch_size = 64
  config.train.num_epochs = 10
  config.train.log_every_steps = 10
  return config


def define_flags() -> None:
  """Defines no flags; the folder is an argument."""
