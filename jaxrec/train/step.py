"""One training step: gradients of K objectives, in microbatches where memory asks for it, and one Optax update."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PRNGKeyArray

from jaxrec import parallel
from jaxrec.objectives.objective import Gradients, Objective
from jaxrec.train.item_table import IN_PARAMS, Gathered, InParams, ItemTable
from jaxrec.train.state import TrainState

Scalars = dict[str, Array]


def make_train_step(
  model: nn.Module,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  *,
  seed: int,
  item_table: ItemTable = IN_PARAMS,
  accumulate: int = 1,
  average: float = 0.0,
  mesh: Mesh | None = None,
  like: TrainState | None = None,
  reweight_every: int = 1,
  compiler_options: Mapping[str, Any] | None = None,
) -> TrainStep:
  """Returns the jitted step: (state, batch) -> (state after the update, scalars of the batch).

  The old state is donated: don't use it afterwards. The scalars are "loss", "grad_norm" (before clipping), those of the
  objective and of the item table; with K > 1 also each loss under its name, "weight/<name>" and "norm/<name>" of its
  gradient, and "cosine" between the first two. Reading them waits for the step, so read them a step later.

  Args:
    model: Linen module.
    objective: K >= 1 losses; see `jaxrec.objectives.objective.Objective`.
    optimizer: Optax transformation; for K > 1 `jaxrec.multi_objective.multi_objective` around one.
    seed: of dropout and negatives; the key of a step is `fold_in(key(seed), step)`, so a resumed run repeats an
      uninterrupted one.
    item_table: where the item table lives.
    accumulate: A, microbatches whose gradients are added up, weighted by their targets; must divide the rows. The
      result is that of the whole batch up to rounding, except for what is drawn at random, and for objectives that take
      negatives from the batch.
    average: decay of `state.average`; 0 where the state has none.
    mesh: devices over which the rows of a batch are sharded; None follows the arguments.
    like: a state, or its shapes with their shardings, with the shardings that updated states shall have; None: each
      device keeps all of it.
    reweight_every: for K > 1, steps from one solution for the weights to the next. The steps between reuse the weights
      and need one backward pass instead of K.
    compiler_options: XLA's options of this program, by name.

  Raises:
    ValueError: `reweight_every` above 1 with one objective, or together with `accumulate`; a sharded item table with
      `reweight_every` or `average`.
  """
  if reweight_every < 1 or (reweight_every > 1 and (accumulate > 1 or len(objective.names) == 1)):
    raise ValueError(f"{reweight_every=} must be 1, or more for several objectives with accumulate=1")
  if not isinstance(item_table, InParams) and (reweight_every > 1 or average):
    raise ValueError(f"{reweight_every=} and {average=} must be 1 and 0 for an item table outside params")

  def train_step(state, batch, seed):
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    batches, keys = split_microbatches(batch, rng, accumulate)  # [A, B, ...]
    ids = jax.vmap(partial(objective.scored_ids, model))(batches, keys)
    gathered = item_table.gather(model, state, batches, ids)
    microbatches = batches, keys, gathered.lookups
    whole = partial(parallel.whole_along_fsdp, mesh=None if like is None else mesh)
    update = partial(_update, model, objective, optimizer, gathered, state, microbatches, whole)
    if reweight_every == 1:
      updates, opt_state, scalars, model_state = update()
    else:
      is_due = state.opt_state.count % reweight_every == 0
      reuse = partial(_update_with_old_weights, model, objective, optimizer, gathered, state, microbatches, whole)
      updates, opt_state, scalars, model_state = jax.lax.cond(is_due, update, reuse)
    updates, tables = gathered.apply(updates)
    params = optax.apply_updates(state.params, updates)
    moved = optax.incremental_update(params, state.average, 1 - average) if average else state.average
    return TrainState(state.step + 1, params, opt_state, moved, tables, model_state), scalars | gathered.scalars

  jitted = jax.jit(
    parallel.with_mesh(train_step, mesh),
    donate_argnums=0,
    out_shardings=_shardings(mesh, like),
    compiler_options=dict(compiler_options or {}),
  )
  return TrainStep(jitted, np.uint32(seed))


def check_compiler_options(options: Mapping[str, Any]) -> None:
  """Raises: ValueError for options that the compiler of the default device does not know, or values it refuses."""
  if not options:
    return
  try:
    jax.jit(lambda x: x, compiler_options=dict(options)).lower(0.0).compile()
  except jax.errors.JaxRuntimeError as error:
    message, platform = str(error).removeprefix("INVALID_ARGUMENT: "), jax.default_backend()
    raise ValueError(f"config.train.compiler_options={dict(options)} on {platform!r}: {message}") from None


@dataclasses.dataclass(frozen=True)
class TrainStep:
  """A jitted step and its seed, which is an argument of the program: other seeds find it in the compilation cache."""

  jitted: Callable[..., Any]
  seed: np.uint32

  def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, Scalars]:
    """Makes one step."""
    return self.jitted(state, batch, self.seed)

  def lower(self, state: Any, batch: Any) -> jax.stages.Lowered:
    """Returns the program for arrays of these shapes, not compiled."""
    return self.jitted.lower(state, batch, self.seed)


def _update(model, objective, optimizer, gathered: Gathered, state, microbatches, whole):
  """Returns updates, optimizer state, scalars and model state of one step, with weights found for this step."""
  params = whole(gathered.params)

  def gradients_of(batch, key, lookup):
    items = gathered.items(batch, lookup)
    return objective.gradients(model, params, batch, key, items=items, model_state=state.model_state)

  found = mean_gradients(gradients_of, microbatches)

  def to_params_gradient(grad):
    return gathered.collect(whole(found.to_params_gradient(grad)))

  if len(objective.names) == 1:
    grad = to_params_gradient(found.grads[0])
    updates, opt_state = optimizer.update(grad, state.opt_state, gathered.params)
    scalars = {"loss": found.losses[0], "grad_norm": optax.tree.norm(grad)}
  else:
    updates, opt_state = optimizer.update(
      found.grads, state.opt_state, gathered.params, losses=found.losses, to_params_gradient=to_params_gradient
    )
    scalars = weighting_scalars(objective.names, found.losses, opt_state)
  return updates, opt_state, scalars | found.scalars, found.model_state


def _update_with_old_weights(model, objective, optimizer, gathered: Gathered, state, microbatches, whole):
  """As `_update`, with the weights of an earlier step and one backward pass."""
  batch, key, lookup = _first(microbatches)
  items, weights = gathered.items(batch, lookup), state.opt_state.weights
  params = whole(gathered.params)
  losses, grad, scalars = objective.weighted_gradient(model, params, batch, key, weights, items=items)
  grad = whole(grad)
  updates, opt_state = optimizer.update(grad, state.opt_state, gathered.params, losses=losses, reuse_weights=True)
  return updates, opt_state, weighting_scalars(objective.names, losses, opt_state) | scalars, state.model_state


def mean_gradients(gradients_of: Callable[..., Gradients], microbatches: Any) -> Gradients:
  """Returns losses and gradients of the mean losses over all microbatches.

  Args:
    gradients_of: (*microbatch) to the gradients of one.
    microbatches: pytree of arrays with a leading axis of A microbatches.

  With A > 1 the gradients are like the parameters already, since microbatches read different rows; the state of the
  model is the mean of the states after each microbatch.
  """
  num = jax.tree.leaves(microbatches)[0].shape[0]
  if num == 1:
    return gradients_of(*_first(microbatches))

  def weighted_sums(microbatch):
    found = gradients_of(*microbatch)
    grads = tuple(_times(found.weights[k], found.to_params_gradient(g)) for k, g in enumerate(found.grads))
    scalars = _times(found.weights[0], found.scalars)
    return found.losses * found.weights, found.weights, grads, scalars, found.model_state

  shapes = jax.eval_shape(weighted_sums, _first(microbatches))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  sums, _ = jax.lax.scan(lambda total, m: (jax.tree.map(jnp.add, total, weighted_sums(m)), None), zeros, microbatches)
  losses, weights, grads, scalars, model_state = sums
  scale = 1 / jnp.maximum(weights, 1e-6)
  grads = tuple(_times(scale[k], grad) for k, grad in enumerate(grads))
  model_state = jax.tree.map(lambda x: x / num, model_state)
  return Gradients(losses * scale, weights, grads, lambda grad: grad, _times(scale[0], scalars), model_state)


def split_microbatches(batch: Any, rng: PRNGKeyArray, num: int) -> tuple[Any, Array]:
  """Returns microbatches and their keys, with a leading axis of A; a whole batch keeps its key.

  Microbatch i takes rows i, i + A, ...: where rows are sharded over devices each microbatch is sharded over them too.

  Raises:
    ValueError: A does not divide the rows.
  """
  num_rows = jax.tree.leaves(batch)[0].shape[0]
  if num_rows % num:
    raise ValueError(f"the {num_rows} rows of a batch must be divisible by accumulate={num}; set data.rows_per_batch")

  def split(array):
    return array.reshape(num_rows // num, num, *array.shape[1:]).swapaxes(0, 1)  # [A, B, ...]

  return jax.tree.map(split, batch), rng[None] if num == 1 else jax.random.split(rng, num)


def weighting_scalars(names: tuple[str, ...], losses: Array, opt_state: Any) -> Scalars:
  """Returns what a step with several objectives logs; see `make_train_step`."""
  scalars = {"loss": losses[0], "grad_norm": opt_state.combined_norm, "cosine": opt_state.cosines[0, 1]}
  for name, *values in zip(names, losses, opt_state.weights, opt_state.norms, strict=True):
    scalars |= dict(zip((name, f"weight/{name}", f"norm/{name}"), values, strict=True))
  return scalars


def _shardings(mesh, like):
  """Shardings of the new state and of the scalars."""
  if mesh is None:
    return None
  replicated = NamedSharding(mesh, PartitionSpec())
  return replicated if like is None else (jax.tree.map(lambda x: x.sharding, like), replicated)


def _first(microbatches):
  return jax.tree.map(lambda x: x[0], microbatches)


def _times(factor, tree):
  return jax.tree.map(lambda x: x * factor, tree)
