"""HSTU-large on MovieLens-1M, the public configuration of arXiv 2402.17152 (8 layers, 2 heads of 25, width 50).

python -m experiments.train --config=experiments/configs/ml1m_hstu_large.py --workdir=runs/ml1m_hstu_large
"""

from experiments.configs import ml1m_hstu


def get_config():
  """Returns the settings of the large HSTU."""
  config = ml1m_hstu.get_config()
  config.name = "ml1m_hstu_large"
  config.data.row_length = 256
  config.optimizer.learning_rate = 2e-3
  config.train.num_epochs = 32
  config.model.update(num_layers=8, num_heads=2, head_width=25, value_width=25)
  return config
