"""Click-through on MovieLens-1M: was this the film rated next? DARE (arXiv 2410.02604) and its baselines.

    python -m experiments.train --config=experiments/configs/ctr_ml1m.py:dare --workdir=runs/ctr_ml1m_dare

The argument is a name of `jaxrec.models.ctr.VARIANTS`, optionally with a width ("dare-16") and the total attention
width of all fields ("dare-16-64"). Every rating counts as a click; the category is the combination of genres. Users
with 210 ratings or more, the published threshold for other data.

Numbers: `experiments/results/click_through.md`.
"""

from ml_collections import ConfigDict

from experiments.configs import _click_through


def get_config(choice: str = "") -> ConfigDict:
  """Returns the settings of a variant; see the module."""
  config = _click_through.config("ctr_ml1m", choice, width=16)
  config.data.source = "movielens-1m"
  config.train.batch_size = 512
  config.train.num_epochs = 4  # Half a minute each on one CPU core.
  config.train.evaluate_every_steps = 40
  config.train.patience = 3
  return config
