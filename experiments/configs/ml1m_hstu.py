"""HSTU on MovieLens-1M, the public configuration of arXiv 2402.17152 (2 layers, 1 head, width 50).

python -m experiments.train --config=experiments/configs/ml1m_hstu.py --workdir=runs/ml1m_hstu
"""

from jaxrec.train.config import default_config


def get_config():
  """Returns the settings of the small HSTU."""
  config = default_config()
  config.name = "ml1m_hstu"
  config.data.source = "movielens-1m"
  config.data.max_length = 200
  config.data.row_length = 512
  config.model = dict(
    name="hstu", width=50, num_layers=2, num_heads=1, head_width=50, value_width=50,
    max_positions=211, attention_length=211, input_dropout=0.2, dropout=0.2,
  )  # fmt: skip
  config.objective = dict(name="sampled_softmax", num_negatives=256, sharing="row", temperature=0.05)
  config.optimizer.learning_rate = 3e-3
  config.optimizer.schedule = "warmup_cosine"
  config.optimizer.warmup_steps = 100
  config.train.num_epochs = 40
  config.train.evaluate_every_epochs = 2
  config.train.retrain = True
  return config
