"""Embedding tables that may be larger than a device: sharded by row, looked up by exchange, updated row by row.

tables = Tables({"item": Table(num_rows=10_000_000, width=64)}, mesh)
state = tables.init(jax.random.key(0))
rows, plan = tables.lookup(state, {"item": item_id})  # inside jit
gradient = jax.grad(lambda rows: loss(tables.vectors(rows, plan)["item"]))(rows)
state = tables.update(state, plan, gradient)

Works on its own: imports nothing else of jaxrec. The manual is the README.md of this folder.
"""

from jaxrec.embedding.hashed_ids import fold_id, two_rows
from jaxrec.embedding.placement import Placement, place_tables
from jaxrec.embedding.row_optimizers import RowAdagrad, RowAdamW, RowOptimizer, RowSGD
from jaxrec.embedding.shard import Plan, RowGradient
from jaxrec.embedding.table import Table
from jaxrec.embedding.tables import Tables, TableState

__all__ = [
  "Placement", "Plan", "RowAdagrad", "RowAdamW", "RowGradient", "RowOptimizer", "RowSGD", "Table", "TableState",
  "Tables", "fold_id", "place_tables", "two_rows",
]  # fmt: skip
