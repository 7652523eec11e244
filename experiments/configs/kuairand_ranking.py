"""Generative ranking on KuaiRand (raw CSV files): clicks, likes, follows, long views and seconds of play.

    python -m experiments.train --config=experiments/configs/kuairand_ranking.py --workdir=runs/kuairand_ranking \
      --config.data.raw=KuaiRand-1K/data

All rows of the log are read, those without a click too. Protocol: the last 5% of all events are for test, the 5% before
them for validation. Not measured.
"""

from jaxrec.train.ranking_task import default_config


def get_config():
  """Returns the settings of a model over long histories, with Stochastic Length."""
  config = default_config()
  config.name = "kuairand_ranking"
  config.data.source = "kuairand-csv"
  config.data.options = {"keep": "all", "split": "by_time", "min_item_events": 5}
  config.data.max_length = 1024
  config.data.stochastic_length = 1.7
  config.data.context = ("user",)
  config.data.heads = ("is_click", "is_like", "is_follow", "long_view", "play_seconds")
  config.model = dict(
    name="ranking", width=64, num_layers=3, num_heads=4, head_width=16, value_width=16, input_dropout=0.1, dropout=0.1
  )
  config.optimizer.learning_rate = 1e-3
  config.train.batch_size = 16
  config.train.num_epochs = 5
  return config
