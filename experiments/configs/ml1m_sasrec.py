"""SASRec on MovieLens-1M, the baseline architecture of arXiv 2402.17152 (2 blocks, 1 head, width 50).

    python -m experiments.train --config=experiments/configs/ml1m_sasrec.py --workdir=runs/ml1m_sasrec

Protocol and choices: see `ml1m_hstu`.

| HR@10 / NDCG@10 | |
|---|---|
| published (best epoch on the test item) | .2853 / .1603 |
| validation, epoch 40 of 40 | .2965 / .1640 |
| test, the same parameters | .2773 / .1571 |
| test, retrained with the validation events | not measured |

One seed (42). Time: 1,840 steps in 16 minutes on one core of a shared 2-core CPU.
"""

from experiments.configs import ml1m_hstu


def get_config():
  """Returns the settings of SASRec."""
  config = ml1m_hstu.get_config()
  config.name = "ml1m_sasrec"
  config.model = dict(
    name="sasrec", width=50, num_layers=2, num_heads=1, hidden=50, feed_forward_activation="relu",
    max_positions=211, input_dropout=0.2, dropout=0.2,
  )  # fmt: skip
  return config
