"""A click-through config so small that a test can train it: `--config=tests/tiny_click.py`."""

from jaxrec.train.click_task import default_config


def get_config():
  config = default_config()
  config.name = "tiny_click"
  config.data.source = "planted_interest"
  config.data.options = {
    "num_users": 60, "num_categories": 8, "items_per_category": 12, "mean_events": 40.0, "group_size": 2,
  }  # fmt: skip
  config.data.history_length = 12
  config.data.min_events = 20
  config.data.targets_per_user = 4
  config.model = {"name": "dare", "width": 4, "top_k": 5, "hidden": (8,), "auxiliary_hidden": (8,)}
  config.optimizer.learning_rate = 1e-4  # At 0.01 Adam amplifies rounding to 6e-4 of a gradient's norm in 30 steps.
  config.train.update({"batch_size": 64, "evaluate_every_steps": 4, "log_every_steps": 1, "checkpoint_every_steps": 2})
  return config
