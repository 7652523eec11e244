"""Planted transfer: one domain determines what comes next in another, a third is noise, and the truth is known.

    python -m experiments.train --config=experiments/configs/planted.py:hstu-autocdsr --workdir=runs/planted_autocdsr

The argument is an encoder (hstu, sasrec, bert4rec) and a variant, see `_cross_domain.py`. Data:
`jaxrec.data.generators.planted_transfer`. All held-out events are in the target domain.

Numbers: `experiments/results/cross_domain.md`. 50 epochs in about 2 minutes on one CPU core.
"""

from ml_collections import ConfigDict

from experiments.configs import _cross_domain
from jaxrec.train.config import default_config


def get_config(choice: str = "") -> ConfigDict:
  """Returns the settings of an encoder and a variant; see the module."""
  config = default_config()
  config.name = "planted"
  config.data.source = "planted"
  config.data.options = {"num_users": 2000}
  config.data.max_length = 64
  config.data.row_length = 256
  config.data.request_time = "last_event"
  config.objective = dict(name="full_softmax", temperature=0.1)
  config.optimizer.learning_rate = 4e-3
  config.optimizer.schedule = "warmup_cosine"
  config.optimizer.warmup_steps = 20
  config.train.batch_size = 128
  config.train.num_epochs = 50
  config.train.evaluate_every_epochs = 5
  return _cross_domain.apply(config, choice, width=32, num_heads=2, dropout=0.1, stride=8)
