"""Click-through models on MovieLens-1M: will this film get 4 stars or more? For comparison with `ml1m_ranking.py`.

    python -m experiments.train --config=experiments/configs/ctr_ml1m_liked.py:din --workdir=runs/ctr_ml1m_liked_din

Every rating after a user's first is a candidate whose label is whether it is 4 or more; the last one of each user is
for test, the second-to-last for validation. Histories hold the films rated before, without their stars: these models
read no actions. The category is the combination of genres.

Numbers: `experiments/results/ranking.md`.
"""

from ml_collections import ConfigDict

from experiments.configs import _click_through


def get_config(choice: str = "din") -> ConfigDict:
  """Returns the settings of a variant; see `ctr_ml1m.py`."""
  config = _click_through.config("ctr_ml1m_liked", choice, width=16)
  config.data.source = "movielens-1m"
  config.data.label = "liked"
  config.data.history_length = 50
  config.optimizer.learning_rate = 1e-3
  config.train.num_epochs = 3
  config.train.evaluate_every_steps = 120
  config.train.patience = 3
  return config
