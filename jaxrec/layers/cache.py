"""What a model keeps of a history while it is fed event by event: Flax variables in the collection "cache"."""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

CACHE = "cache"


@flax.struct.dataclass
class CachePlace:
  """Where the one event of each row goes. Events that read each other share a group: a domain, or all events.

  group: 0..G - 1.
  index: how many events of that group came before; `capacity` = keep nothing of this row's event.
  num_groups: G.
  capacity: L, events of a group that can be kept.
  """

  group: Int[Array, " B"]
  index: Int[Array, " B"]
  num_groups: int = flax.struct.field(pytree_node=False)
  capacity: int = flax.struct.field(pytree_node=False)

  def added(self, cached: Array, x: Array) -> Array:
    """`cached [B, G, L, ...]` with the rows of `x [B, ...]` in their places."""
    row = jnp.arange(x.shape[0])
    return cached.at[row, self.group, self.index].set(x, mode="drop", unique_indices=True)

  def of_group(self, cached: Array) -> Array:
    """`[B, L, ...]`: what is kept of the group of each row's event."""
    return jax.vmap(lambda row, group: row[group])(cached, self.group)


def with_earlier(module: nn.Module, name: str, x: Array, place: CachePlace) -> Array:
  """Puts `x [B, 1, ...]` into the module's cache `name`; returns what is kept of its group, `[B, L, ...]`."""
  shape = (x.shape[0], place.num_groups, place.capacity, *x.shape[2:])
  cached = module.variable(CACHE, name, jnp.zeros, shape, x.dtype)
  cached.value = place.added(cached.value, x[:, 0])
  return place.of_group(cached.value)


def with_latest(module: nn.Module, name: str, x: Array, place: CachePlace) -> Array:
  """Makes `x [B, 1, ...]` the latest of its group; returns the latest of every group, `[B, 1, G, ...]`."""
  cached = module.variable(CACHE, name, jnp.zeros, (x.shape[0], place.num_groups, *x.shape[2:]), x.dtype)
  is_kept = (place.index < place.capacity)[:, None] & (jnp.arange(place.num_groups) == place.group[:, None])  # [B, G]
  is_kept = is_kept.reshape(*is_kept.shape, *(1,) * (x.ndim - 2))
  cached.value = jnp.where(is_kept, x, cached.value)
  return cached.value[:, None]
