"""HSTU-large on MovieLens-1M, the public architecture of arXiv 2402.17152 (8 layers, 2 heads of 25, width 50).

    python -m experiments.train --config=experiments/configs/ml1m_hstu_large.py --workdir=runs/ml1m_hstu_large

Protocol and choices: see `ml1m_hstu`.

| HR@10 / NDCG@10 | this config, mean of three seeds | `:short`, one seed |
|---|---|---|
| published (best epoch on the test item) | .3294 / .1893 | |
| independent re-run, this order of ties | .3642 / .2164 | |
| validation, epochs 96, 84, 88 of 100; 28 of 32 | .3935 ± .0068 / .2330 ± .0026 | .3472 / .2011 |
| test, the same parameters | .3751 ± .0031 / .2270 ± .0018 | .3404 / .1994 |
| test, retrained with the validation events | not measured | .3404 / .2028 |

Seeds 1, 2, 3; 42. The argument "short" trains with 256 negatives for 32 epochs. Time on one core of a shared 2-core
CPU: 4,700 steps in 97 minutes, 1,504 in 57.
"""

from ml_collections import ConfigDict

from experiments.configs import ml1m_hstu


def get_config(choice: str = "") -> ConfigDict:
  """Returns the settings of the large HSTU; see the module.

  Raises:
    ValueError: another choice.
  """
  config = ml1m_hstu.get_config(choice)
  config.name = "ml1m_hstu_large"
  config.data.row_length = 256
  config.optimizer.learning_rate = 2e-3
  config.train.num_epochs = 32 if choice == ml1m_hstu.SHORT else 100
  config.model.update(num_layers=8, num_heads=2, head_width=25, value_width=25)
  return config
