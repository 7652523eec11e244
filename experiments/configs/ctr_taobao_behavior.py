"""Click-through models on Taobao: is an event a purchase (cart, favourite)? For comparison with `taobao_ranking.py`.

    python -m experiments.train --config=experiments/configs/ctr_taobao_behavior.py:din --workdir=runs/buy_din
    python -m experiments.train --config=experiments/configs/ctr_taobao_behavior.py:din --workdir=runs/cart_din \
      --config.data.label=cart

Every event after a user's first is a candidate; splits are those of `taobao_ranking.py`. Histories hold the items
before, whatever was done with them: these models read no actions. One run for each of the labels buy, cart and fav.
"""

from ml_collections import ConfigDict

from experiments.configs import _click_through, taobao_ranking


def get_config(choice: str = "din") -> ConfigDict:
  """Returns the settings of a variant; see `ctr_taobao.py`."""
  config = _click_through.config("ctr_taobao_behavior", choice, width=16)
  config.data.source = "taobao"
  config.data.options = taobao_ranking.get_config().data.options
  config.data.label = "buy"
  config.data.history_length = 200
  config.optimizer.learning_rate = 1e-3
  config.train.batch_size = 512
  config.train.num_epochs = 5
  config.train.evaluate_every_steps = 44
  config.train.patience = 5
  return config
