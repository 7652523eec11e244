"""Generative ranking on Taobao: is an event a mere view, or does the user buy the item, put it into the cart, like it?

    python -m experiments.train --config=experiments/configs/taobao_ranking.py --workdir=runs/taobao_ranking
    python -m experiments.evaluate --workdir=runs/taobao_ranking  # beside averages and a regression on ids

The log has a row for each behaviour, so that the views before it are part of the history. Protocol: the last 10% of all
events are for test, the 10% before them for validation. The sizes suit the excerpt of the first 84,475 rows: most of
its items occur once or twice, so that rows of items are left out of most steps (`id_dropout`) and neither categories
nor users are read: with them the model learns its training events by heart within three epochs. For the whole log try
`--config.data.features="('category',)" --config.model.id_dropout=0`.
"""

from jaxrec.train.ranking_task import default_config


def get_config():
  """Returns the settings of a small model."""
  config = default_config()
  config.name = "taobao_ranking"
  config.data.source = "taobao"
  config.data.options = {"split": "by_time", "validation_quantile": 0.8, "test_quantile": 0.9}
  config.data.max_length = 200
  config.data.heads = ("behavior", "buy", "cart", "fav")
  config.data.actions = ("behavior",)
  config.model = dict(
    name="ranking",
    width=32,
    num_layers=2,
    num_heads=2,
    head_width=16,
    value_width=16,
    input_dropout=0.5,
    dropout=0.4,
    id_dropout=0.98,
  )
  config.optimizer.learning_rate = 2e-3
  config.optimizer.schedule = "warmup_cosine"
  config.optimizer.warmup_steps = 50
  config.train.batch_size = 4
  config.train.num_epochs = 16
  config.train.patience = 3
  config.train.average = 0.99
  return config
