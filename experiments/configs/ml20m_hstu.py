"""HSTU on MovieLens-20M: 4 layers, 4 heads, width 256, the sizes of the independent re-run.

    python -m experiments.train --config=experiments/configs/ml20m_hstu.py --workdir=runs/ml20m_hstu

Protocol: as in `ml1m_hstu`. The re-run (RecTools' tutorial, stable order of ties, epoch by validation): .3441 / .2066.
Not measured here for want of the files; time and memory, from generated files of the same size and format, are in
`experiments/results/preparation_cpu.md`. MovieLens-32M: --config.data.source=movielens-32m.
"""

from ml_collections import ConfigDict

from experiments.configs import ml1m_hstu


def get_config() -> ConfigDict:
  """Returns the settings."""
  config = ml1m_hstu.get_config()
  config.name = "ml20m_hstu"
  config.data.source = "movielens-20m"
  config.model.update(num_layers=4, num_heads=4, width=256, head_width=64, value_width=64)
  config.optimizer.learning_rate = 1e-3
  config.train.num_epochs = 40
  config.train.retrain = False
  return config
