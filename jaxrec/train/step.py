"""One training step: gradient of the objective, in parts if memory asks for it, and the optimizer's update."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jaxrec.train import devices
from jaxrec.train.state import TrainState
from jaxrec.types import SequenceBatch

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
) -> Callable[[TrainState, SequenceBatch], tuple[TrainState, dict[str, Array]]]:
  """Returns the jitted step: (state, batch) -> (state after the update, scalars of the batch).

  The old state is donated: don't use it afterwards. Scalars are those of the objective, "loss" and "grad_norm" (before
  clipping); reading them waits for the step, so read them a step later.

  Args:
    model: Linen module.
    objective: its loss is a mean over target positions weighted by target_weight.
    optimizer: optax transformation.
    seed: of dropout and negatives; the key of a step is `fold_in(key(seed), step)`, so a resumed run repeats an
      uninterrupted one.
    accumulate: parts of the batch whose gradients are added up, weighted by their targets; must divide the rows. The
      result is that of the whole batch up to rounding, except for what is drawn at random, and for objectives that take
      negatives from the batch.
    average: decay of `state.average`; 0 where the state has none.
    mesh: devices over which the rows of a batch are spread, and that all keep the state; None follows the arguments.
  """
  mean = partial(objective, model, deterministic=False)

  def train_step(state, batch):
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    grads, scalars = _gradient(mean, state.params, batch, rng, accumulate)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    scalars["grad_norm"] = optax.tree.norm(grads)
    moved = optax.incremental_update(params, state.average, 1 - average) if average else state.average
    return TrainState(state.step + 1, params, opt_state, moved), scalars

  everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
  return jax.jit(devices.knows_mesh(train_step, mesh), donate_argnums=0, out_shardings=everywhere)


def _gradient(objective, params, batch, rng, parts):
  """Returns the gradient of the mean loss and the mean scalars, over all parts of the batch."""
  if parts == 1:
    (loss, scalars), grads = jax.value_and_grad(objective, has_aux=True)(params, batch, rng)
    return grads, _means(loss, scalars)

  def add_part(sums, part):
    (_, sums_of_part), grads = jax.value_and_grad(_as_sum(objective), has_aux=True)(params, *part)
    return jax.tree.map(jnp.add, sums, (grads, *sums_of_part)), None

  pieces = _split(batch, parts), jax.random.split(rng, parts)
  (_, shapes), _ = jax.eval_shape(
    jax.value_and_grad(_as_sum(objective), has_aux=True), params, *jax.tree.map(lambda x: x[0], pieces)
  )
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (params, *shapes))
  (grads, scalars, weight), _ = jax.lax.scan(add_part, zeros, pieces)
  return jax.tree.map(lambda x: x / jnp.maximum(weight, 1e-6), (grads, scalars))


def _as_sum(objective):
  """The objective and its scalars summed over targets instead of averaged: sums of parts add up, means don't."""

  def total(params, batch, rng):
    loss, scalars = objective(params, batch, rng)
    weight = scalars["weight"].astype(jnp.float32)
    sums = {name: value * weight for name, value in _means(loss, scalars).items()}
    return loss * weight, (sums, weight)

  return total


def _means(loss, scalars):
  named = {name: value for name, value in scalars.items() if name != "weight"} | {"loss": loss}
  return {name: value.astype(jnp.float32) for name, value in named.items()}


def _split(batch: SequenceBatch, parts: int) -> Any:
  """Part i takes rows i, i + parts, ...: with rows spread over devices each part is spread over them too."""
  num_rows = batch.item_id.shape[0]
  if num_rows % parts:
    raise ValueError(f"the {num_rows} rows of a batch must be divisible by accumulate={parts}; set data.rows_per_batch")

  def split(array):
    return array.reshape(num_rows // parts, parts, *array.shape[1:]).swapaxes(0, 1)  # [parts, B, ...]

  return jax.tree.map(split, batch)
