"""`planted` with eight ordinary events between the validation and the test event of a user.

    python -m experiments.train --config=experiments/configs/planted_gap.py:hstu-intra_tape_ddsr_last4 --workdir=run

The argument is that of `planted`. There the validation event follows the latest informative event and leaves an older
one to the test event, so that a model that reads the latest event of each domain is far better on validation than on
test. With the gap both are nearly alike. Not measured; about as long as `planted`.
"""

from ml_collections import ConfigDict

from experiments.configs import planted


def get_config(choice: str = "") -> ConfigDict:
  """Returns the settings of an encoder and a variant; see `planted`."""
  config = planted.get_config(choice)
  config.name = config.name.replace("planted", "planted_gap", 1)
  config.data.options = {"num_users": 2000, "gap": 8}
  return config
