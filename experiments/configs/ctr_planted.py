"""Click-through on planted interest, whose truth is known: DARE (arXiv 2410.02604) and its baselines.

    python -m experiments.train --config=experiments/configs/ctr_planted.py:dare --workdir=runs/ctr_planted_dare
    python -m experiments.sweep --configs=experiments/configs/ctr_planted.py \
      --override=model.name=dare,twin,din --seeds=1,2,3 --metrics=AUC,GAUC --out=runs/ctr_planted

The argument is a name of `jaxrec.models.ctr.VARIANTS`, optionally with a width: "dare-8". Data: see
`jaxrec.data.generators.planted_interest`.

Numbers: `experiments/results/click_through_one_scale.md`.
"""

from ml_collections import ConfigDict

from experiments.configs import _click_through


def get_config(choice: str = "") -> ConfigDict:
  """Returns the settings of a variant; see the module."""
  config = _click_through.config("ctr_planted", choice, width=8)
  config.data.source = "planted_interest"
  config.data.history_length = 100
  config.data.min_events = 100
  config.train.batch_size = 512
  config.train.evaluate_every_steps = 50
  config.train.patience = 4
  return config
