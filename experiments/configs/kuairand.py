"""KuaiRand-1K as AutoCDSR (arXiv 2505.21811) published it, seven kinds of music as domains: three encoders, AutoCDSR.

    python -m experiments.train --config=experiments/configs/kuairand.py:hstu-autocdsr --workdir=runs/kuairand_autocdsr

The argument is an encoder (hstu, sasrec, bert4rec) and a variant, see `_cross_domain.py`.

Protocol: the 3,101 training rows are trained on; the last event of an evaluation row chooses the epoch, that of a
testing row is the test. Full ranking over all 944,384 items, and beside it the authors' ranking among 100 random ones
(`sampled/...`).
Numbers: `experiments/results/cross_domain.md`. Five epochs of HSTU take 5 minutes on one CPU core.
"""

from ml_collections import ConfigDict

from experiments.configs import _cross_domain
from jaxrec.train.config import default_config


def get_config(choice: str = "") -> ConfigDict:
  """Returns the settings of an encoder and a variant; see the module."""
  config = default_config()
  config.name = "kuairand"
  config.data.source = "kuairand-1k"
  config.data.options = {"min_user_events": 10}
  config.data.max_length = 400
  config.data.row_length = 400
  config.data.request_time = "last_event"
  config.data.train_users = "without_held_out"
  config.objective = dict(name="sampled_softmax", num_negatives=512, sharing="row", temperature=0.05)
  config.optimizer.learning_rate = 2e-3
  config.optimizer.schedule = "warmup_cosine"
  config.optimizer.warmup_steps = 20
  config.train.batch_size = 64
  config.train.num_epochs = 5
  config.eval.ks = (1, 10, 20, 50, 200)
  config.eval.sampled_negatives = 100
  config = _cross_domain.apply(config, choice, width=32, num_heads=2, dropout=0.2, stride=16)
  if "hstu" in config.model.name:
    config.model.time_bias = False
  return config
