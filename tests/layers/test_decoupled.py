"""Tables and maps of click-through models: how large they are when training starts."""

import jax
import jax.numpy as jnp
import pytest

from jaxrec.layers.ctr.decoupled import DecoupledEmbedding, FieldWidths
from jaxrec.models.ctr import VARIANTS


@pytest.mark.parametrize(
  "name, options, attention, representation",
  [
    ("dare", {"init_scale": 0.5}, 0.5, 0.5),
    ("dare", {"init_scale": 0.5, "attention_init_scale": 2.0}, 2.0, 0.5),
    ("twin_4e", {"attention_init_scale": 2.0}, 2.0, 0.01),
    ("twin", {"init_scale": 0.5}, 0.5, 0.5),
  ],
)
def test_tables_of_each_role_start_at_their_own_scale(name, options, attention, representation):
  embedding = DecoupledEmbedding(
    2000, 2000, FieldWidths(4, 4, 4), tables=VARIANTS[name]["tables"], max_age=2000, **options
  )
  ids = jnp.array([1])
  for role, expected in (("attention", attention), ("representation", representation)):
    tables = embedding.init(jax.random.key(0), ids, ids, ids)["params"]
    chosen = [tables[x] for x in tables if role in x or x == "lookup_shared"]
    assert chosen
    for table in jax.tree.leaves(chosen):
      assert float(table.std()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("projection", ["per_field", "joint"])
@pytest.mark.parametrize("scale, expected", [(None, 64**-0.5), (0.01, 0.01)])
def test_maps_start_at_a_scale_of_their_own(projection, scale, expected):
  width = 64 if projection == "per_field" else 32
  embedding = DecoupledEmbedding(
    3, 2, FieldWidths(width, width, 0), tables="shared", projection=projection, projection_init_scale=scale
  )
  ids = jnp.array([1])
  maps = embedding.init(jax.random.key(0), ids, ids, ids)["params"]["projections_attention_history"]
  kernels = [x for x in jax.tree.leaves(maps) if x.ndim == 2]
  assert kernels
  for kernel in kernels:
    assert float(kernel.std()) == pytest.approx(expected, rel=0.05)
