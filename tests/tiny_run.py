"""A config so small that a test can train it: `--config=tests/tiny_run.py`."""

from jaxrec.train.config import default_config


def get_config():
  config = default_config()
  config.name = "tiny_run"
  config.data.source = "synthetic"
  config.data.options = {"num_users": 200, "num_items": 96, "mean_events": 12.0}
  config.data.max_length = 16
  config.model = {
    "name": "hstu", "width": 8, "num_layers": 1, "num_heads": 1, "head_width": 8, "value_width": 8, "dropout": 0.2,
    "input_dropout": 0.2, "max_positions": 16, "attention_length": 16,
  }  # fmt: skip
  config.objective = {"name": "sampled_softmax", "num_negatives": 16}
  config.optimizer.learning_rate = 0.01
  config.train.batch_size = 32
  config.train.num_epochs = 3
  config.train.log_every_steps = 4
  config.eval.ks = (1, 10)
  config.eval.batch_size = 64
  return config
