"""One training step: gradient of the objective, or of several, in parts if memory asks for it, and the update."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jaxrec import parallel
from jaxrec.batches import SequenceBatch
from jaxrec.embedding import Tables
from jaxrec.train.gradients import mean_gradient, mean_gradients, pieces_of, scalars_of_several
from jaxrec.train.state import TrainState
from jaxrec.train.table_step import table_updates

# (model, params, batch, rng, deterministic) -> (loss, scalars); scalars["weight"] is the sum of target weights.
Objective = Callable[..., tuple[Float[Array, ""], dict[str, Array]]]


def make_train_step(
  model: nn.Module,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  *,
  seed: int,
  accumulate: int = 1,
  average: float = 0.0,
  mesh: Mesh | None = None,
  like: TrainState | None = None,
  solve_every: int = 1,
  tables: Tables | None = None,
) -> TrainStep:
  """Returns the jitted step: (state, batch) -> (state after the update, scalars of the batch).

  The old state is donated: don't use it afterwards. Scalars are those of the objective, "loss" and "grad_norm" (before
  clipping); reading them waits for the step, so read them a step later.

  Args:
    model: Linen module.
    objective: its loss is a mean over target positions weighted by target_weight. Or several, which have `names` and
      `gradients` as `CrossDomainObjective` does: then the scalars are its losses by name ("loss" is the first),
      "weight/<name>" and "norm/<name>" of their gradients, "cosine" between the first two, and the "grad_norm" of the
      weighted sum.
    optimizer: optax transformation; for several objectives, `jaxrec.multi_objective.multi_objective` around one.
    seed: of dropout and negatives; the key of a step is `fold_in(key(seed), step)`, so a resumed run repeats an
      uninterrupted one.
    accumulate: parts of the batch whose gradients are added up, weighted by their targets; must divide the rows. The
      result is that of the whole batch up to rounding, except for what is drawn at random, and for objectives that take
      negatives from the batch.
    average: decay of `state.average`; 0 where the state has none.
    mesh: devices over which the rows of a batch are spread; None follows the arguments.
    like: a state, or its shapes with their shardings, that lies on the mesh as updated ones shall lie; None: each
      device keeps all of it.
    solve_every: several objectives only: steps from one solution for their weights to the next. Those between reuse the
      weights and need one backward pass instead of K.
    tables: of items, where the item table is not a parameter; see `jaxrec.train.table_step`. Scalars then have
      "tables/overflow", "tables/out_of_range" and "tables/rows"; see `jaxrec.embedding.Plan`.

  Raises:
    ValueError: `solve_every` above 1 with one objective, or together with `accumulate`; tables with `solve_every` or
      `average`.
  """
  several = hasattr(objective, "gradients")
  if solve_every < 1 or (solve_every > 1 and (accumulate > 1 or not several)):
    raise ValueError(f"{solve_every=} must be 1, or more for several objectives with accumulate=1")
  if tables is not None and (solve_every > 1 or average):
    raise ValueError(f"{solve_every=} and {average=} must be 1 and 0 where items are in a table of their own")
  updates_of = partial(_several_updates, solve_every) if several else _updates

  def train_step(state, batch, seed):
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    arguments = (model, objective, optimizer, state, batch, rng, accumulate)
    if tables is None:
      new_tables = None
      updates, opt_state, scalars = updates_of(*arguments)
    else:
      updates, opt_state, new_tables, scalars = table_updates(tables, *arguments)
    params = optax.apply_updates(state.params, updates)
    moved = optax.incremental_update(params, state.average, 1 - average) if average else state.average
    return TrainState(state.step + 1, params, opt_state, moved, new_tables), scalars

  jitted = jax.jit(parallel.with_mesh(train_step, mesh), donate_argnums=0, out_shardings=_layout(mesh, like))
  return TrainStep(jitted, np.uint32(seed))


def _layout(mesh, like):
  """Where the new state and the scalars lie."""
  if mesh is None:
    return None
  everywhere = NamedSharding(mesh, PartitionSpec())
  return everywhere if like is None else (jax.tree.map(lambda x: x.sharding, like), everywhere)


@dataclasses.dataclass(frozen=True)
class TrainStep:
  """A jitted step and its seed, which is an argument of the program: other seeds find it in the compilation cache."""

  jitted: Callable[..., Any]
  seed: np.uint32

  def __call__(self, state: TrainState, batch: SequenceBatch) -> tuple[TrainState, dict[str, Array]]:
    """Makes one step."""
    return self.jitted(state, batch, self.seed)

  def lower(self, state: Any, batch: Any) -> jax.stages.Lowered:
    """The program for arrays of these shapes, not compiled."""
    return self.jitted.lower(state, batch, self.seed)


def _updates(model, objective, optimizer, state, batch, rng, parts):
  pieces = pieces_of(batch, rng, parts)
  grads, scalars = mean_gradient(partial(objective, model, deterministic=False), state.params, pieces)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  return updates, opt_state, scalars | {"grad_norm": optax.tree.norm(grads)}


def _several_updates(solve_every, model, objective, optimizer, state, batch, rng, parts):
  """As `_updates`, with a gradient for each objective where their weights are solved for."""
  arguments = (model, objective, optimizer)
  if solve_every == 1:
    updates, opt_state, losses = _solved(*arguments, state, batch, rng, parts)
  else:
    is_due = state.opt_state.count % solve_every == 0
    solve, reuse = partial(_solved, *arguments, parts=parts), partial(_reused, *arguments)
    updates, opt_state, losses = jax.lax.cond(is_due, solve, reuse, state, batch, rng)
  return updates, opt_state, scalars_of_several(objective, losses, opt_state)


def _reused(model, objective, optimizer, state, batch, rng):
  """Updates with the weights of an earlier step."""
  losses, grad = objective.weighted_gradient(model, state.params, batch, rng, state.opt_state.weights)
  updates, opt_state = optimizer.update(grad, state.opt_state, state.params, losses=losses, weighed=True)
  return updates, opt_state, losses


def _solved(model, objective, optimizer, state, batch, rng, parts):
  """Updates with weights found for this step."""
  gradients, pieces = partial(objective.gradients, model), pieces_of(batch, rng, parts)
  losses, grads, finish = mean_gradients(gradients, len(objective.names), state.params, pieces)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params, losses=losses, finish=finish)
  return updates, opt_state, losses
