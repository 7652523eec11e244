"""HSTU on Amazon Beauty (2014, 5-core).

python -m experiments.train --config=experiments/configs/beauty_hstu.py --workdir=runs/beauty_hstu
"""

from jaxrec.train.config import default_config


def get_config():
  """Returns the settings of HSTU on Beauty."""
  config = default_config()
  config.name = "beauty_hstu"
  config.data.source = "amazon-5core"
  config.data.options = {"name": "Beauty"}
  config.data.max_length = 50
  config.data.row_length = 256
  config.model = dict(
    name="hstu", width=64, num_layers=2, num_heads=2, head_width=32, value_width=32,
    max_positions=61, attention_length=61, input_dropout=0.5, dropout=0.5,
  )  # fmt: skip
  config.objective = dict(name="sampled_softmax", num_negatives=512, sharing="row", temperature=0.05)
  config.optimizer.learning_rate = 1e-3
  config.optimizer.schedule = "warmup_cosine"
  config.optimizer.warmup_steps = 100
  config.train.batch_size = 512
  config.train.num_epochs = 60
  config.train.evaluate_every_epochs = 5
  config.train.retrain = True
  return config
