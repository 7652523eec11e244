"""Generative ranking of generated events, whose true probabilities are known: how close is it to the entropy floor?

python -m experiments.train --config=experiments/configs/synthetic_ranking.py --workdir=runs/synthetic_ranking
"""

from jaxrec.train.ranking_task import default_config


def get_config():
  """Returns the settings of a small model."""
  config = default_config()
  config.name = "synthetic_ranking"
  config.data.source = "planted_actions"
  config.data.max_length = 90
  config.model = dict(
    name="ranking", width=32, num_layers=2, num_heads=2, head_width=16, value_width=16, head_hidden=32
  )
  config.optimizer.learning_rate = 3e-3
  config.optimizer.schedule = "warmup_cosine"
  config.optimizer.warmup_steps = 50
  config.train.batch_size = 16
  config.train.num_epochs = 20
  config.train.average = 0.995
  return config
