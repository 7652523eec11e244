"""Food and Kitchen, two domains of Amazon as ABXI (arXiv 2501.15118) published them: three encoders, with AutoCDSR.

    python -m experiments.train --config=experiments/configs/abxi.py:hstu-autocdsr --workdir=runs/abxi_hstu_autocdsr

The argument is an encoder (hstu, sasrec, bert4rec) and a variant, see `_cross_domain.py`.

Protocol: leave-one-out, full ranking over the 28,095 items of both domains without the user's own history; the
second-to-last event chooses the epoch. 7,144 users, each with 5 events or more in each domain, 173,548 events.

Numbers: `experiments/results/cross_domain.md`. HSTU: 20 epochs in about 3 minutes on one CPU core; BERT4Rec: 100 in
about 9.
"""

from ml_collections import ConfigDict

from experiments.configs import _cross_domain
from jaxrec.train.config import default_config


def get_config(choice: str = "") -> ConfigDict:
  """Returns the settings of an encoder and a variant; see the module."""
  config = default_config()
  config.name = "abxi"
  config.data.source = "abxi"
  config.data.max_length = 50
  config.data.row_length = 256
  config.data.request_time = "last_event"
  config.objective = dict(name="sampled_softmax", num_negatives=512, sharing="row", temperature=0.05)
  config.optimizer.learning_rate = 2e-3
  config.optimizer.schedule = "warmup_cosine"
  config.optimizer.warmup_steps = 50
  config.train.batch_size = 512
  config = _cross_domain.apply(config, choice, width=64, num_heads=2, dropout=0.4, stride=8)
  config.train.num_epochs = {"sasrec": 40, "bert4rec": 100}.get(config.model.name, 20)
  config.train.evaluate_every_epochs = config.train.num_epochs // 10
  if config.model.name == "bert4rec":  # Learns nothing in 800 steps of 512 users, most from the 2,000th of 128 on.
    config.train.batch_size = 128
    config.optimizer.learning_rate = 1e-3
    config.data.mask_probability = 0.4
  return config
