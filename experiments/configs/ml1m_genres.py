"""MovieLens-1M with the first genre of a movie as its domain (18 domains): three encoders, with AutoCDSR.

    python -m experiments.train --config=experiments/configs/ml1m_genres.py:hstu-autocdsr --workdir=runs/ml1m_autocdsr

The argument is an encoder (hstu, sasrec, bert4rec) and a variant, see `_cross_domain.py`. Protocol: see `ml1m_hstu`.
Not measured.
"""

from ml_collections import ConfigDict

from experiments.configs import _cross_domain, ml1m_hstu


def get_config(choice: str = "") -> ConfigDict:
  """Returns the settings of an encoder and a variant; see the module."""
  config = ml1m_hstu.get_config(ml1m_hstu.SHORT)
  config.name = "ml1m_genres"
  config.data.options = {"domain": "first_genre"}
  config.data.request_time = "last_event"
  config.train.retrain = False
  return _cross_domain.apply(config, choice, width=48, num_heads=2, dropout=0.2, stride=16)
