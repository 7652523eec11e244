"""Generative ranking of generated histories of about 4,000 events: what does Stochastic Length cost?

    python -m experiments.train --config=experiments/configs/long_ranking.py --workdir=runs/long_whole
    python -m experiments.train --config=experiments/configs/long_ranking.py:1.6 --workdir=runs/long_1.6

The argument is alpha, 0 for whole histories. A user's taste in each genre lasts for a hundred events and more
(`memory`), so that a part of a long history still tells it; what is held out is always predicted from whole histories.
All events of about two weeks are for validation, those of the next two weeks for test.
"""

from jaxrec.data.generators.common import HOUR, START_SECOND
from jaxrec.train.ranking_task import default_config

CUTS = tuple(START_SECOND + HOUR * hours for hours in (6350, 6700, 7050))  # An event every 1.65 hours on average.


def get_config(alpha: str = "0"):
  """Returns the settings of a small model; `alpha` is that of Stochastic Length."""
  config = default_config()
  config.name = f"long_ranking_{alpha}"
  config.data.source = "planted_actions"
  config.data.options = {"num_users": 64, "mean_events": 6200.0, "memory": 64.0}
  config.data.time_cuts = CUTS
  config.data.max_length = 4096
  config.data.stochastic_length = float(alpha)
  config.model = dict(
    name="ranking", width=32, num_layers=1, num_heads=2, head_width=16, value_width=16, head_hidden=32
  )
  config.optimizer.learning_rate = 3e-3
  config.optimizer.schedule = "warmup_cosine"
  config.optimizer.warmup_steps = 30
  config.train.batch_size = 1
  config.train.num_epochs = 8
  config.train.average = 0.98
  config.eval.batch_size = 8
  return config
