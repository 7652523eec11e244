"""Click-through on Taobao or an excerpt of it: DARE (arXiv 2410.02604) and its baselines.

    python -m experiments.train --config=experiments/configs/ctr_taobao.py:dare --workdir=runs/ctr_taobao_dare
    python -m experiments.train --config=experiments/configs/ctr_taobao.py:dare-16-full --workdir=runs/full_dare \
      --config.data.raw=UserBehavior.csv

The argument is a name of `jaxrec.models.ctr.VARIANTS`, optionally with a width ("dare-16"), the total attention width
of all fields ("dare-16-64"), and "full" for the published settings: users with 210 views or more, batches of 2,048, 150
steps between validations. Without "full" the settings suit an excerpt of several hundred users: users with 40 views or
more, small batches.

Published, full data, width 16 (AUC): DIN .9044, TWIN .9169, TWIN hard .9100, TWIN with projections .8964, TWIN-4E
.9041, DARE .9257. Numbers: `experiments/results/click_through.md`.
"""

from ml_collections import ConfigDict

from experiments.configs import _click_through


def get_config(choice: str = "") -> ConfigDict:
  """Returns the settings of a variant; see the module."""
  is_full = choice.endswith("-full")
  config = _click_through.config("ctr_taobao", choice.removesuffix("-full"), width=16)
  config.data.source = "taobao"
  config.data.options = {"behaviors": "pv"}
  if not is_full:
    config.data.min_events = 40
    config.data.min_history = 10
    config.train.batch_size = 256
    config.train.evaluate_every_steps = 20
    config.train.patience = 5
  return config
