"""HSTU-large on MovieLens-1M, the public architecture of arXiv 2402.17152 (8 layers, 2 heads of 25, width 50).

    python -m experiments.train --config=experiments/configs/ml1m_hstu_large.py --workdir=runs/ml1m_hstu_large

Protocol and choices: see `ml1m_hstu`.

| HR@10 / NDCG@10 | |
|---|---|
| published (best epoch on the test item) | .3294 / .1893 |
| validation, epoch 28 of 32 | .3472 / .2011 |
| test, the same parameters | .3404 / .1994 |
| test, retrained with the validation events, 28 epochs | .3404 / .2028 |

One seed (42). Time: 1,504 steps in 57 minutes, and 1,316 in 50, on one core of a shared 2-core CPU.
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
