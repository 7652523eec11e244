"""Generative ranking on MovieLens-1M: how many stars, and whether it is 4 or more.

    python -m experiments.train --config=experiments/configs/ml1m_ranking.py --workdir=runs/ml1m_ranking
    python -m experiments.train --config=experiments/configs/ml1m_ranking.py:by_time --workdir=runs/ml1m_ranking_time

Protocol: each user's last event is for test, the second-to-last for validation; with the argument `by_time` the last 5%
of all events are for test, and the 5% before them for validation. 7 minutes on one CPU core.

Numbers, three seeds: AUC .8206 of "4 or more", RMSE .910; see `experiments/results/ranking.md`.
"""

from jaxrec.train.ranking_task import default_config


def get_config(split: str = "leave_one_out"):
  """Returns the settings; `split` is that of the data."""
  config = default_config()
  config.name = "ml1m_ranking" if split == "leave_one_out" else f"ml1m_ranking_{split}"
  config.data.source = "movielens-1m"
  config.data.options = {"split": split}
  config.data.max_length = 200
  config.data.features = ("genres",)
  config.data.context = ("user",)
  config.model = dict(
    name="ranking", width=48, num_layers=2, num_heads=2, head_width=24, value_width=24, input_dropout=0.2, dropout=0.2
  )
  config.optimizer.learning_rate = 2e-3
  config.optimizer.schedule = "warmup_cosine"
  config.optimizer.warmup_steps = 100
  config.train.batch_size = 32
  config.train.num_epochs = 8
  config.train.patience = 2
  config.train.average = 0.995
  return config
