"""Models whose scores are known, and data of six items with titles: 1, 2, 3 are books, 4, 5, 6 are films."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxrec.data.prepared import PreparedData
from jaxrec.serving.recommender import Recommender
from jaxrec.train.config import default_config

ITEM_DOMAIN = np.array([0, 1, 1, 1, 2, 2, 2])
EVENTS = {"ann": [1, 4, 2, 5], "bob": [6, 5, 4], "cyd": [3]}
TITLES = ["Emma", "Ulysses", "Dune", "Alien", "Brazil", "Heat"]
RAW_ITEMS = ["b1", "b2", "b3", "f4", "f5", "f6"]
DAY = 86_400


class NextItem(nn.Module):
  """Ranks the items in cyclic order after the last item: after 4 come 5, 6, 1, 2, 3."""

  num_items: int = 6

  def __call__(self, batch, deterministic=True):
    order = jnp.arange(self.num_items)
    distance = (order - batch.item_id[..., None]) % self.num_items  # [B, N, V], 0 for the next item
    scores = -distance.astype(jnp.float32)
    return jnp.concatenate([jnp.zeros_like(scores[..., :1]), scores], axis=-1)  # [B, N, V1]

  def item_vectors(self):
    return jnp.eye(self.num_items + 1)


class FirstOfTargetDomain(NextItem):
  """Ranks the first item of the target domain highest."""

  needs_target_domain = True

  def __call__(self, batch, deterministic=True):
    return jnp.eye(self.num_items + 1)[1 + 3 * (batch.target_domain - 1)]  # [B, N, V1]


class HoursSinceLastEvent(NextItem):
  """Gives every item the hours between the last event and the request as its score."""

  def __call__(self, batch, deterministic=True):
    hours = (batch.target_time - batch.timestamp) / 3600
    return jnp.broadcast_to(hours[..., None], (*hours.shape, self.num_items + 1)).astype(jnp.float32)


class WithReservedRows(NextItem):
  """Has three rows for items that the data does not have yet, which score highest."""

  num_items: int = 9

  def __call__(self, batch, deterministic=True):
    scores = jnp.arange(self.num_items + 1.0)  # [V1]
    return jnp.broadcast_to(scores, (*batch.item_id.shape, self.num_items + 1))  # [B, N, V1]


def known_data(**changes):
  items = np.concatenate(list(EVENTS.values()))
  columns = {
    "offsets": np.cumsum([0, *map(len, EVENTS.values())]),
    "item_id": items,
    "domain_id": ITEM_DOMAIN[items],
    "timestamp": DAY * np.arange(len(items)),
    "domain_names": ("books", "films"),
    "item_domain": ITEM_DOMAIN,
    "titles": TITLES,
    "raw_items": RAW_ITEMS,
    "raw_users": list(EVENTS),
  }
  return PreparedData.from_columns(**columns | changes)


def recommender(data=None, model=NextItem):
  config = default_config()
  config.data.max_length = 8
  config.eval.batch_size = 2
  return Recommender(model(), {}, known_data() if data is None else data, config)
