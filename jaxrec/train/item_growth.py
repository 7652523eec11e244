"""A saved state with rows for the items of today: those of known items as saved, those of new ones as initialised."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from jaxrec.train.leaf_checksums import named_leaves

_MOST_SPECIAL = 16  # Rows of an item table other than items: padding, a mask token.


@dataclasses.dataclass(frozen=True)
class ItemGrowth:
  """The items of a saved model and of the model that continues it; ids 1..`before` are the same items in both.

  An item table has row 0 for padding, a row for each item, and special rows after them, which move with the items.

  before, now: V of either.
  """

  before: int
  now: int

  def rows_before(self, saved: Any, wanted: Any, counted: Mapping[str, int]) -> dict[str, int]:
    """Returns name -> saved rows of each array that has a row for each item.

    Args:
      saved: pytree of shapes, as they are in the checkpoint.
      wanted: the same of today's model.
      counted: name -> rows of today's sharded tables; their arrays have further ones that pad the shards.
    """
    added, rows = self.now - self.before, {}
    before, now = named_leaves(saved), named_leaves(wanted)
    for name in before.keys() & now.keys():
      old, new = before[name].shape, now[name].shape
      if name in counted:
        rows[name] = counted[name] - added
      elif added and old and old[1:] == new[1:] and new[0] - old[0] == added:
        if 1 <= old[0] - self.before <= _MOST_SPECIAL:
          rows[name] = old[0]
    return rows

  def filled(self, arrays: Any, fresh: Any, rows: Mapping[str, int]) -> Any:
    """Returns saved arrays with rows for all items of today.

    Args:
      arrays: pytree of saved arrays in today's shapes; rows beyond the saved ones hold anything.
      fresh: the same of a state before its first step.
      rows: what `rows_before` returned; other arrays stay as they are.
    """
    names = [*named_leaves(arrays)]
    leaves, structure = jax.tree.flatten(arrays)
    initial = named_leaves(fresh)
    chosen = {i: name for i, name in enumerate(names) if name in rows}
    shardings = [initial[name].sharding for name in chosen.values()]

    def fill(saved, new):
      return [self._rows(x, y, rows[name]) for x, y, name in zip(saved, new, chosen.values(), strict=True)]

    pairs = [leaves[i] for i in chosen], [initial[name] for name in chosen.values()]
    for i, leaf in zip(chosen, jax.jit(fill, out_shardings=shardings)(*pairs), strict=True):
      leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves)

  def _rows(self, saved: Shaped[Array, "R ..."], fresh: Shaped[Array, "R ..."], rows: int) -> Shaped[Array, "R ..."]:
    is_known = (jnp.arange(len(saved)) <= self.before).reshape(-1, *[1] * (saved.ndim - 1))
    result = jnp.where(is_known, saved, fresh)
    return result.at[self.now + 1 : self.now - self.before + rows].set(saved[self.before + 1 : rows])
