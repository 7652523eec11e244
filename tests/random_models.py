"""Recommenders of small models with random parameters, for the data of `known_scores`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from known_scores import known_data, recommender

import jaxrec
from jaxrec.batches import next_item_batch

MAX_LENGTH = 40
SIZES = dict(width=8, num_layers=1, num_heads=2, max_positions=MAX_LENGTH)
HSTU = SIZES | dict(head_width=4, value_width=4, attention_length=MAX_LENGTH)
MODELS = {
  "HSTU": HSTU, "SASRec": SIZES | {"target_domain": True, "num_domains": 2}, "BERT4Rec": SIZES, "STUModel": HSTU,
  "MultiDomainHSTU": HSTU | {"num_domains": 2},
}  # fmt: skip


@functools.cache
def random_model(name):
  data = known_data()
  model = getattr(jaxrec, name)(num_items=data.num_items, **MODELS[name])
  made = recommender(data, lambda: model)
  made.config.data.max_length = MAX_LENGTH
  made.config.data.task = "masked_item" if name == "BERT4Rec" else "next_item"
  shapes = jax.eval_shape(model.init, jax.random.key(0), next_item_batch(np.ones((1, 4), np.int32)))["params"]
  rng = np.random.default_rng(1)
  made.params.update(jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), shapes))
  return made
