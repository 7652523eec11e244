"""Negative sampling for sampled losses, and the log-probability of each draw."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

IN_BATCH = ("in_batch", "in_batch_frequency")
SAMPLERS = ("uniform", "log_uniform", *IN_BATCH)


def sample_items(key: PRNGKeyArray, sampler: str, shape: tuple[int, ...], num_items: int) -> Int[Array, "..."]:
  """Returns ids 1..V drawn with replacement. The key is consumed.

  uniform: each item with probability 1/V.
  log_uniform: item i with probability `ln((i+1)/i) / ln(V+1)`, so ids must be ordered by descending popularity.

  Raises:
    ValueError: for another sampler.
  """
  if sampler == "uniform":
    return jax.random.randint(key, shape, 1, num_items + 1)
  if sampler == "log_uniform":
    u = jax.random.uniform(key, shape)
    return jnp.clip(jnp.exp(u * jnp.log(num_items + 1.0)).astype(jnp.int32), 1, num_items)
  raise ValueError(f"{sampler=} is not one of ('uniform', 'log_uniform')")


def sample_in_batch(
  key: PRNGKeyArray,
  shape: tuple[int, ...],
  target_item: Int[Array, "B N"],
  target_weight: Float[Array, "B N"],
  sampler: str = "in_batch",
) -> Int[Array, "..."]:
  """Returns ids drawn with replacement from the targets of the batch. The key is consumed.

  in_batch: each distinct target is equally likely.
  in_batch_frequency: a target is as likely as it is frequent in the batch: popular items are drawn more often.

  Source: the public code of arXiv 2402.17152, with and without its removal of duplicates.

  Raises:
    ValueError: for another sampler.
  """
  if sampler not in IN_BATCH:
    raise ValueError(f"{sampler=} is not one of {IN_BATCH}")
  if not target_item.size:
    return jnp.zeros(shape, jnp.int32)
  ids = jnp.where(target_weight > 0, target_item, 0).reshape(-1)
  is_drawn = ids > 0
  if sampler == "in_batch":
    ids = jnp.sort(ids)
    is_drawn = jnp.concatenate([ids[:1] > 0, (ids[1:] != ids[:-1]) & (ids[1:] > 0)])
  (index,) = jnp.nonzero(is_drawn, size=ids.size, fill_value=0)
  pick = jax.random.randint(key, shape, 0, jnp.maximum(is_drawn.sum(), 1))
  return ids[index][pick]


def log_probability(sampler: str, item_id: Int[Array, "..."], num_items: int) -> Float[Array, "..."]:
  """Returns the log-probability that one draw of `sample_items` is `item_id`."""
  if sampler == "uniform":
    return jnp.full(item_id.shape, -jnp.log(num_items * 1.0))
  if sampler == "log_uniform":
    item = jnp.maximum(item_id, 1).astype(jnp.float32)
    return jnp.log(jnp.log1p(1 / item) / jnp.log(num_items + 1.0))
  raise ValueError(f"{sampler=} has no known probabilities; log-q correction is for 'uniform' and 'log_uniform'")
