"""The items of a batch whose rows were looked up in a table outside the parameters."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from jaxtyping import Array, Float, Int

from jaxrec.batches import SequenceBatch
from jaxrec.embedding import Plan, Tables
from jaxrec.models.sequential import SequentialModel
from jaxrec.objectives import item_losses, sharded_softmax
from jaxrec.objectives.item import TABLE
from jaxrec.parallel.row_shards import RowShards
from jaxrec.train.state import Params

INPUT = "input"  # The encoder's items, next to the roles of `ItemObjective.scored_ids`.
CATALOGUE = "catalogue"  # All rows, next to the looked-up ones of each stack.


@dataclasses.dataclass(frozen=True)
class LookedUpItems:
  """The vectors of a batch's items as functions of the rows that were looked up; a `jaxrec.objectives.item.Items`."""

  model: SequentialModel
  tables: Tables
  plan: Plan
  ids: dict[str, Int[Array, "..."]]

  def encode(self, params: Params, batch: SequenceBatch, deterministic: bool, rngs: Any) -> Float[Array, "B N M"]:
    """See `Items`."""
    return self.model.apply({"params": without_rows(params)}, batch, deterministic, self.input(params), rngs=rngs)

  def input(self, params: Params) -> Float[Array, "B N M"]:
    """See `Items`."""
    return self._read(params, INPUT).astype(self.model.dtype)

  def scores(self, params: Params, query: Float[Array, "B N M"]) -> tuple[Float[Array, "B N"], Float[Array, "B N R"]]:
    """See `Items`."""
    positive, index = (query * self._scoring(params, "target")).sum(axis=-1), self.plan.index[TABLE]["negative"]
    if index.ndim < 3:
      return positive, item_losses.scores_of_vectors(query, self._scoring(params, "negative"))
    vectors_of = functools.partial(self._scoring, params, "negative")
    return positive, item_losses.scores_of_rows(query, vectors_of, index)

  def is_candidate(self, params: Params) -> None:
    """See `Items`: all are."""

  def full_softmax(
    self, params: Params, query: Float[Array, "B N M"], temperature: float, chunk_size: int
  ) -> Float[Array, "B N"]:
    """See `Items`."""
    positive, catalogue = self._scoring(params, "target"), self.model.scoring(params[TABLE][CATALOGUE])  # [R, M]
    shards, size = RowShards(self.tables.mesh, self.tables.axes_of(TABLE)), self.model.num_items
    return sharded_softmax.full_softmax(shards, query, positive, catalogue, size, temperature, chunk_size)

  def _scoring(self, params, role, index=None):
    return self.model.scoring(self._read(params, role, index))

  def _read(self, params, role, index=None):
    """Returns the rows of a role; `index`: some of its indices in the looked-up rows, None: all."""
    rows = {name: x for name, x in params[TABLE].items() if name != CATALOGUE}
    slots = {TABLE: self.plan.index[TABLE][role] if index is None else index}
    return self.tables.vectors(rows, self.plan.replace(index=slots))[TABLE]


def without_rows(tree: Params) -> Params:
  """Returns parameters, or what has their structure, without the looked-up rows."""
  return {name: value for name, value in tree.items() if name != TABLE}
