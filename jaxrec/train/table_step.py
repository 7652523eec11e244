"""The part of a training step that differs where the item table is no parameter but a `jaxrec.embedding` table.

The vectors of a batch's items, targets and negatives are looked up in one exchange. What is differentiated is then the
parameters and the looked-up rows, under "items": clipping, accumulation and several objectives see these as they
see parameters. Full softmax is differentiated with respect to all rows as well, each device's where they lie.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxrec.batches import SequenceBatch
from jaxrec.embedding import Plan, Tables
from jaxrec.objectives import sharded_softmax
from jaxrec.objectives.item import TABLE, ItemObjective
from jaxrec.train.gradients import mean_gradient, mean_gradients, pieces_of, scalars_of_several
from jaxrec.train.state import TrainState

INPUT = "input"  # The encoder's items, beside the names of `ItemObjective.ids`.
CATALOGUE = "catalogue"  # All rows, beside the looked-up ones of each stack.


@dataclasses.dataclass(frozen=True)
class LookedUpItems:
  """The vectors of a batch's items as functions of the rows that were looked up; a `jaxrec.objectives.item.Items`."""

  model: nn.Module
  tables: Tables
  plan: Plan
  ids: dict[str, Int[Array, "..."]]

  def input(self, params: Any) -> Float[Array, "B N M"]:
    """See `Items`."""
    return self._read(params[TABLE], (INPUT,))[INPUT].astype(self.model.dtype)

  def scoring(self, params: Any) -> dict[str, Float[Array, "... M"]]:
    """See `Items`."""
    return {name: self.model.scoring(row) for name, row in self._read(params[TABLE], self.ids).items()}

  def full_softmax(
    self, params: Any, query: Float[Array, "B N M"], temperature: float, chunk_size: int
  ) -> Float[Array, "B N"]:
    """See `Items`."""
    positive, catalogue = self.scoring(params)["target"], self.model.scoring(params[TABLE][CATALOGUE])  # [R, M]
    size = self.model.num_items
    return sharded_softmax.full_softmax(self.tables, TABLE, query, positive, catalogue, size, temperature, chunk_size)

  def _read(self, rows, names):
    rows = {name: x for name, x in rows.items() if name != CATALOGUE}
    place = {TABLE: {name: self.plan.place[TABLE][name] for name in names}}
    return self.tables.vectors(rows, self.plan.replace(place=place))[TABLE]


def table_updates(
  tables: Tables,
  model: nn.Module,
  objective: Any,
  optimizer: optax.GradientTransformation,
  state: TrainState,
  batch: SequenceBatch,
  rng: PRNGKeyArray,
  parts: int,
) -> tuple[Any, Any, Any, dict[str, Array]]:
  """Returns the updates of the parameters, the optimizer's state, the tables after the step, and scalars.

  Args:
    tables: with a table "items", and `state.tables`.
    model: its parameters are without the item table.
    objective: an `ItemObjective`, or several as of `make_train_step`.
    optimizer: of `table_optimizer`, wrapped by `multi_objective` for several objectives.
    state: before the step.
    batch: sequences and targets.
    rng: of the step.
    parts: see `make_train_step`.
  """
  several = hasattr(objective, "gradients")
  of_items = objective.recommendation if several else objective
  batches, keys = pieces_of(batch, rng, parts)  # [parts, B, ...]
  ids = jax.vmap(partial(_ids, of_items, model))(batches, keys)
  rows, plan = tables.lookup(state.tables, {TABLE: jax.tree.map(_swap, ids)})  # Devices share the rows of each part.
  scored = {name: x for name, x in ids.items() if name != INPUT}
  pieces = batches, keys, jax.tree.map(_swap, plan.place), scored
  gathered = {}

  def collected(grad):
    of_rows = dict(grad[TABLE])
    of_catalogue = of_rows.pop(CATALOGUE, None)
    gathered.update(tables.collect(state.tables, plan, of_rows))
    if of_catalogue is not None:
      gathered.update(tables.add_catalogue(gathered, TABLE, of_catalogue, model.num_items))
    return {**grad, TABLE: {name: gradient.value for name, gradient in gathered.items()}}

  def with_items(function):
    return lambda params, batch, key, place, ids: function(
      model, params, batch, key, items=LookedUpItems(model, tables, plan.replace(place=place), ids)
    )

  if of_items.loss == "full_softmax":
    rows = rows | {CATALOGUE: tables.catalogue(state.tables, TABLE)}
  params = {**state.params, TABLE: rows}
  if several:
    gradients = with_items(objective.gradients)
    losses, grads, finish = mean_gradients(gradients, len(objective.names), params, pieces)
    finish_all = collected if finish is None else lambda grad: collected(finish(grad))
    updates, opt_state = optimizer.update(grads, state.opt_state, params, losses=losses, finish=finish_all)
    scalars = scalars_of_several(objective, losses, opt_state)
  else:
    grads, scalars = mean_gradient(with_items(objective), params, pieces)
    grads = collected(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, params)
    scalars["grad_norm"] = optax.tree.norm(grads)
  values = updates.pop(TABLE)
  new_tables = tables.apply(state.tables, {name: x._replace(value=values[name]) for name, x in gathered.items()})
  return updates, opt_state, new_tables, scalars | {f"tables/{name}": count for name, count in plan.counts.items()}


def beside_rows(inner: optax.GradientTransformation, clip_norm: float) -> optax.GradientTransformation:
  """`inner` for the parameters; the gradients of looked-up rows are only clipped: their tables have optimizers.

  Args:
    inner: without clipping.
    clip_norm: of the whole gradient, rows included; 0: none.
  """
  clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()

  def init(params):
    return inner.init(params)

  def update(grads, state, params):
    grads, _ = clip.update(grads, optax.EmptyState())
    updates, state = inner.update(_without_rows(grads), state, _without_rows(params))
    return {**updates, TABLE: grads[TABLE]}, state

  return optax.GradientTransformation(init, update)


def _without_rows(tree):
  return {name: value for name, value in tree.items() if name != TABLE}


def _ids(objective: ItemObjective, model, batch, rng):
  """All ids of a part of the batch whose vectors are needed."""
  _, sample_key = jax.random.split(rng)  # As the objective splits it.
  return {INPUT: batch.item_id, **objective.ids(batch, sample_key, model.num_items)}


def _swap(x):
  return x.swapaxes(0, 1)
