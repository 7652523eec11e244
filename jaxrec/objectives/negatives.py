"""Negative sampling for sampled losses, and the log-probability of each draw."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

SAMPLERS = ("uniform", "log_uniform", "in_batch")


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
  key: PRNGKeyArray, shape: tuple[int, ...], target_item: Int[Array, "B N"], target_weight: Float[Array, "B N"]
) -> Int[Array, "..."]:
  """Returns ids drawn with replacement from the distinct targets of the batch. The key is consumed.

  Choice: duplicates are removed first, so each distinct target is equally likely.
  """
  ids = jnp.sort(jnp.where(target_weight > 0, target_item, 0).reshape(-1))
  is_new = jnp.concatenate([ids[:1] > 0, (ids[1:] != ids[:-1]) & (ids[1:] > 0)])
  (first,) = jnp.nonzero(is_new, size=ids.size, fill_value=0)
  distinct = ids[first]
  pick = jax.random.randint(key, shape, 0, jnp.maximum(is_new.sum(), 1))
  return distinct[pick]


def log_probability(sampler: str, item_id: Int[Array, "..."], num_items: int) -> Float[Array, "..."]:
  """Returns the log-probability that one draw of `sample_items` is `item_id`."""
  if sampler == "uniform":
    return jnp.full(item_id.shape, -jnp.log(num_items * 1.0))
  if sampler == "log_uniform":
    item = jnp.maximum(item_id, 1).astype(jnp.float32)
    return jnp.log(jnp.log1p(1 / item) / jnp.log(num_items + 1.0))
  raise ValueError(f"{sampler=} has no known probabilities; log-q correction is for 'uniform' and 'log_uniform'")
