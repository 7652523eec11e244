"""A small HSTU on synthetic users who act in two domains, books and films; the shortest whole run.

    make demo
    python -m experiments.train --config=experiments/configs/demo.py --workdir=runs/demo

Data: 2,000 users, 960 items, 40 events a user on average. A user's latest genre in books tells most of the time which
genre of films comes next (`transfer`), so a model that reads both domains can do much better than popularity.

Time: 90 s of processor time, compilation included. Test events, best epoch on validation, seed 42: HR@10 .4310,
NDCG@10 .3280 (popularity .0340, .0167).
"""

from ml_collections import ConfigDict

from jaxrec.train.config import default_config


def get_config() -> ConfigDict:
  """Returns the settings of the demo."""
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
