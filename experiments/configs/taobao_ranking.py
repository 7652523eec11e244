"""Generative ranking on Taobao: is an event a mere view, or does the user buy the item, put it into the cart, like it?

    python -m experiments.train --config=experiments/configs/taobao_ranking.py --workdir=runs/taobao_ranking

The log has a row for each behaviour, so that the views before it are part of the history. Protocol: the last 5% of all
events are for test, the 5% before them for validation. Not measured.
"""

from jaxrec.train.ranking_task import default_config


def get_config():
  """Returns the settings of a small model."""
  config = default_config()
  config.name = "taobao_ranking"
  config.data.source = "taobao"
  config.data.options = {"split": "by_time"}
  config.data.max_length = 200
  config.data.heads = ("behavior", "buy", "cart", "fav")
  config.data.actions = ("behavior",)
  config.data.features = ("category",)
  config.model = dict(
    name="ranking", width=32, num_layers=2, num_heads=2, head_width=16, value_width=16, input_dropout=0.2, dropout=0.2
  )
  config.optimizer.learning_rate = 1e-3
  config.train.batch_size = 32
  config.train.num_epochs = 20
  config.train.patience = 5
  return config
