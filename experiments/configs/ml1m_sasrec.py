"""SASRec on MovieLens-1M, the baseline configuration of arXiv 2402.17152 (2 blocks, 1 head, width 50).

python -m experiments.train --config=experiments/configs/ml1m_sasrec.py --workdir=runs/ml1m_sasrec
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
