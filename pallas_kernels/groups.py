"""Groups of keys, by which the weights of each query are added up beside its output."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.mask import IntervalMask

GROUP_SUMS = ("signed", "absolute")
WITHOUT_KERNEL = "sums of absolute weights by group are computed by 'reference', 'dense' and 'xla' only"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyGroups:
  """The group 0..G - 1 of each key.

  group: of each key.
  own_key: index of each query's own key, whose weight is counted apart, with absolute weights; None: weights are added
    up as they are, and the own key's with those of its group.
  num_groups: G.
  """

  group: Int[Array, "B S"]
  own_key: Int[Array, "B N"] | None
  num_groups: int = dataclasses.field(metadata={"static": True})

  @classmethod
  def of(cls, group: Int[Array, "B S"], num_groups: int, mask: IntervalMask, sums: str) -> KeyGroups:
    """Returns the groups of keys; `sums` is one of `GROUP_SUMS`."""
    own_key = jnp.broadcast_to(mask.own_index(), mask.shape) if sums == "absolute" else None
    return cls(group, own_key, num_groups)

  @property
  def is_absolute(self) -> bool:
    """Whether absolute weights are added up, the own key's apart."""
    return self.own_key is not None

  def one_hot(self, dtype: jnp.dtype) -> Float[Array, "B S G"]:
    """Returns the groups of the keys as 0 and 1."""
    return jax.nn.one_hot(self.group, self.num_groups, dtype=dtype)

  def is_own(self) -> Bool[Array, "B 1 N S"]:
    """Returns whether a key is the query's own."""
    key = jnp.arange(self.group.shape[1], dtype=jnp.int32)[None, None, None]
    return self.own_key[:, None, :, None] == key  # [B, 1, N, S]


def without_own(
  weights: Float[Array, "*X N S"], is_own: Bool[Array, "*Y N S"]
) -> tuple[Float[Array, "*X N S"], Float[Array, "*X N 1"]]:
  """Returns the absolute weights with zeros for the own keys, and those of the own keys.

  >>> others, own = without_own(jnp.array([[-1.0, 2.0]]), jnp.array([[False, True]]))
  >>> others.tolist(), own.tolist()
  ([[1.0, 0.0]], [[2.0]])
  """
  sizes = jnp.abs(weights)
  return jnp.where(is_own, 0, sizes), jnp.where(is_own, sizes, 0).sum(axis=-1, keepdims=True)
