"""KuaiRand-1K as published with AutoCDSR (arXiv 2505.21811): three encoders, with AutoCDSR.

    python -m experiments.train --config=experiments/configs/kuairand.py:hstu-autocdsr --workdir=runs/kuairand_autocdsr

The argument is an encoder (hstu, sasrec, bert4rec) and a variant, see `_cross_domain.py`. Domains are the seven event
types of the published rows (tabs of the app).

Protocol: trains on the 3,101 training rows; the last event of an evaluation row chooses the epoch, that of a testing
row is the test. Full ranking over all 944,384 items, and the authors' ranking among 100 random items (`sampled/...`),
which chooses the epoch, because full ranking finds one target in a thousand.
Numbers: `experiments/results/cross_domain.md`; popularity is as good as the models. Eight epochs of HSTU take 6 minutes
on one CPU core.
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
  config.data.max_length = 800
  config.data.row_length = 800
  config.data.request_time = "last_event"
  config.data.train_users = "without_held_out"
  # Dot products: most items are met once or never, and a vector that nothing has moved then scores about 0.
  config.objective = dict(name="sampled_softmax", num_negatives=512, sharing="row", temperature=1.0)
  config.optimizer.learning_rate = 5e-4
  config.optimizer.schedule = "warmup_cosine"
  config.optimizer.warmup_steps = 20
  config.train.batch_size = 32
  config.train.num_epochs = 8
  config.eval.ks = (1, 10, 20, 50, 200)
  config.eval.sampled_negatives = 100
  config = _cross_domain.apply(config, choice, width=32, num_heads=2, dropout=0.2, stride=16, output_norm="none")
  config.eval.metric = "sampled/NDCG@10"  # Full ranking finds one item in a thousand: too few to choose an epoch by.
  if "hstu" in config.model.name:
    config.model.time_bias = False
  return config
