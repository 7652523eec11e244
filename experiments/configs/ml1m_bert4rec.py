"""BERT4Rec on MovieLens-1M (2 layers, 2 heads, width 64).

    python -m experiments.train --config=experiments/configs/ml1m_bert4rec.py --workdir=runs/ml1m_bert4rec

Paper: arXiv 1904.06690; protocol: see `ml1m_hstu`. Not measured.
"""

from ml_collections import ConfigDict

from experiments.configs import ml1m_hstu


def get_config() -> ConfigDict:
  """Returns the settings of BERT4Rec."""
  config = ml1m_hstu.get_config(ml1m_hstu.SHORT)
  config.name = "ml1m_bert4rec"
  config.data.task = "masked_item"
  config.data.mask_probability = 0.2
  config.data.mask_last_probability = 0.1
  config.model = {
    "name": "bert4rec", "width": 64, "num_layers": 2, "num_heads": 2, "hidden": 256,
    "max_positions": 201, "input_dropout": 0.1, "dropout": 0.1, "output_norm": "l2",
  }  # fmt: skip
  return config
