"""Click-through where one table cannot serve both roles: DARE (arXiv 2410.02604) and its baselines on planted styles.

    python -m experiments.train --config=experiments/configs/ctr_styles.py:dare-4 --workdir=runs/ctr_styles_dare
    python -m experiments.train --config=experiments/configs/ctr_styles.py:dare-4 --workdir=runs/ctr_styles_dare_1 \
      --config.model.init_scale=1.0 --config.model.attention_init_scale=1.0

The argument is a name of `jaxrec.models.ctr.VARIANTS`, optionally with a width: "dare-4" (published widths are 16 for
thousands of categories; here 4, 8 and 16 for 300). Data: see `jaxrec.data.generators.planted_styles`.

Test AUC of what knows the rule: .750 with categories and styles, .675 with categories alone; regressions on counts lie
between .669 and .690. (2,000 users, negatives from all events; the category alone is what counts can know.) Numbers of
models: `experiments/results/click_tables.md`.
"""

from ml_collections import ConfigDict

from experiments.configs import _click_through


def get_config(choice: str = "") -> ConfigDict:
  """Returns the settings of a variant; see the module."""
  config = _click_through.config("ctr_styles", choice, width=8)
  config.data.source = "planted_styles"
  config.data.min_events = 100
  config.data.options = {"num_users": 5000}  # A test AUC of 2,000 users is uncertain by .008.
  config.data.exclude_clicked = False  # Else whoever clicked an item before is a positive, and popularity tells too.
  config.data.negatives_from = "split"  # From all events, popularity tells positives of the test.
  config.data.target_stride = 1
  config.data.targets_per_user = 95
  config.data.targets_per_row = 19
  config.train.batch_size = 2052
  config.train.num_epochs = 8  # DARE stops within 4; TWIN of width 4 still improves then.
  config.train.evaluate_every_steps = 100
  config.train.patience = 4
  return config
