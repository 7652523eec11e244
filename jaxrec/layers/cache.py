"""Keys and values of tokens that a model has read before: Flax variables in the collection "cache"."""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Integer

from pallas_kernels.integers import AnyArray, as_integers

CACHE = "cache"


@flax.struct.dataclass
class CacheSlot:
  """The cache slot of the one new event of each row. Events that attend to each other share a group: a domain, or all.

  group: 0..G - 1.
  index: number of earlier events in that group; `capacity` means that the event is not stored.
  num_groups: G.
  capacity: L, the events that fit in a group.

  >>> slot = CacheSlot(group=jnp.array([1]), index=jnp.array([0]), num_groups=2, capacity=3)
  >>> cached = slot.write(jnp.zeros((1, 2, 3)), jnp.array([7.0]))
  >>> cached.tolist(), slot.read_group(cached).tolist()
  ([[[0.0, 0.0, 0.0], [7.0, 0.0, 0.0]]], [[7.0, 0.0, 0.0]])
  """

  group: Int[Array, " B"]
  index: Int[Array, " B"]
  num_groups: int = flax.struct.field(pytree_node=False)
  capacity: int = flax.struct.field(pytree_node=False)

  def append(self, module: nn.Module, name: str, x: Array) -> Array:
    """Stores `x [B, 1, ...]` in the module's cache `name` and returns the group of each event, `[B, L, ...]`."""
    return append_to_cache(module, name, x, self)

  def write(self, cached: Array, x: Array) -> Array:
    """Returns `cached [B, G, L, ...]` with each row of `x [B, ...]` written into its slot."""
    row = jnp.arange(x.shape[0])
    return cached.at[row, self.group, self.index].set(x, mode="drop", unique_indices=True)

  def read_group(self, cached: Array) -> Array:
    """Returns `[B, L, ...]`: the cached group that each row's event belongs to."""
    if self.num_groups == 1:
      return cached[:, 0]
    return jax.vmap(lambda row, group: row[group])(cached, self.group)


@flax.struct.dataclass
class Prefill:
  """Keeps the keys and values of whole histories that a model reads at once, for `CachedRows`.

  capacity: L, at least the tokens of a row; the rest is room for tokens that come later.
  """

  capacity: int = flax.struct.field(pytree_node=False)

  def append(self, module: nn.Module, name: str, x: Array) -> Array:
    """Stores `x [B, S, ...]` as the module's cache `name` `[B, L, ...]` and returns `x`."""
    shape = (x.shape[0], self.capacity, *x.shape[2:])
    cached = module.variable(CACHE, name, jnp.zeros, shape, x.dtype)
    cached.value = jnp.zeros(shape, x.dtype).at[:, : x.shape[1]].set(x)
    return x


@flax.struct.dataclass
class CachedRows:
  """Q new tokens of each row, whose other tokens are in the cache of `Prefill`; the cache stays as it is.

  index: where the new tokens belong among the L of a row, L for none; masks and positions of keys are those of L.
  capacity: L, as of `Prefill`.

  >>> rows = CachedRows(index=jnp.array([[2, 3]]), capacity=3)
  >>> rows.insert(jnp.array([[7.0, 8.0, 0.0]]), jnp.array([[9.0, 1.0]])).tolist()
  [[7.0, 8.0, 9.0]]
  """

  index: Integer[AnyArray, "B Q"]
  capacity: int = flax.struct.field(pytree_node=False)

  def append(self, module: nn.Module, name: str, x: Array) -> Array:
    """Returns the module's cache `name` `[B, L, ...]` with `x [B, Q, ...]` in it.

    Raises:
      ValueError: there is no such cache.
    """
    if not module.has_variable(CACHE, name):
      raise ValueError(f"the collection {CACHE!r} has no {name!r}; run the histories with `Prefill` first")
    return self.insert(module.get_variable(CACHE, name), x)

  def insert(self, cached: Array, x: Array) -> Array:
    """Returns `cached [B, L, ...]` with `x [B, Q, ...]` at `index`."""
    row = jnp.arange(x.shape[0], dtype=jnp.int32)[:, None]
    index = as_integers("index", self.index)
    return cached.at[row, index].set(x.astype(cached.dtype), mode="drop", unique_indices=True)


def append_to_cache(module: nn.Module, name: str, x: Array, slot: CacheSlot) -> Array:
  """Writes `x [B, 1, ...]` into the module's cache `name` and returns the cached group of each event, `[B, L, ...]`."""
  shape = (x.shape[0], slot.num_groups, slot.capacity, *x.shape[2:])
  cached = module.variable(CACHE, name, jnp.zeros, shape, x.dtype)
  cached.value = slot.write(cached.value, x[:, 0])
  return slot.read_group(cached.value)


def update_latest(module: nn.Module, name: str, x: Array, slot: CacheSlot, count: int = 1) -> Array:
  """Makes `x [B, 1, ...]` the latest entry of its group and returns the K latest of all groups, `[B, 1, G K, ...]`.

  Those of a group lie side by side, the latest one first.

  Args:
    module: the layer that owns the cache.
    name: of the cache.
    x: new entries.
    slot: their groups; nothing is kept where it is full.
    count: K.
  """
  shape = (x.shape[0], slot.num_groups, count, *x.shape[2:])
  cached = module.variable(CACHE, name, jnp.zeros, (shape[0], shape[1] * count, *shape[3:]), x.dtype)
  before = cached.value.reshape(shape)  # [B, G, K, ...]
  latest = jnp.broadcast_to(x[:, :, None], (*shape[:2], 1, *shape[3:]))
  is_kept = (slot.index < slot.capacity)[:, None] & (jnp.arange(slot.num_groups)[None] == slot.group[:, None])  # [B, G]
  is_kept = is_kept.reshape(*is_kept.shape, *(1,) * (x.ndim - 1))
  after = jnp.where(is_kept, jnp.concatenate([latest, before[:, :, :-1]], axis=2), before)
  cached.value = after.reshape(cached.value.shape)
  return cached.value[:, None]
