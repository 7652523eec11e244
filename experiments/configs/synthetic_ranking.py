"""Generative ranking of generated events, whose true probabilities are known: how close is it to the entropy floor?

    python -m experiments.train --config=experiments/configs/synthetic_ranking.py --workdir=runs/synthetic_ranking
    python -m experiments.evaluate --workdir=runs/synthetic_ranking  # the row "truth" is the floor

The argument is the rule that weights the actions: `synthetic_ranking.py:mgda`.

Four minutes on one busy CPU core. Seeds 1 to 3: log losses .7% to 1.3% above the floor, without history 13% and 22%:
`experiments/results/ranking.md`.
"""

from jaxrec.train.ranking_task import default_config


def get_config(weighting: str = "fixed"):
  """Returns the settings of a small model; `weighting` is a name of `jaxrec.multi_objective.weighting`."""
  config = default_config()
  config.name = "synthetic_ranking"
  config.data.source = "planted_actions"
  config.data.max_length = 90
  config.model = dict(
    name="ranking", width=32, num_layers=2, num_heads=2, head_width=16, value_width=16, head_hidden=32
  )
  config.optimizer.learning_rate = 3e-3
  config.optimizer.schedule = "warmup_cosine"
  config.optimizer.warmup_steps = 50
  config.train.batch_size = 16
  config.train.num_epochs = 20
  config.train.average = 0.995
  config.multi_objective.weighting = {"name": weighting}
  if weighting == "uncertainty":
    config.multi_objective.weighting.learning_rate = 1e-2
  return config
