"""Tables: what a lookup returns, what a step changes, and what it does not."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.embedding import Table, Tables


def test_ids_that_stand_for_nothing_read_zeros_and_change_nothing():
  tables = Tables({"item": Table(10, 4, placement="sharded")})
  state = tables.init(jax.random.key(0))
  rows, plan = tables.lookup(state, {"item": jnp.array([[0, -1]])})
  gradient = jax.tree.map(jnp.ones_like, rows)
  after = tables.update(state, plan, gradient)
  assert not np.any(tables.vectors(rows, plan)["item"])
  for before, now in zip(jax.tree.leaves(state.stacks), jax.tree.leaves(after.stacks), strict=True):
    np.testing.assert_array_equal(before, now)
