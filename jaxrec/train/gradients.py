"""Gradients of a batch, whole or in pieces, of one objective or of several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxrec.batches import SequenceBatch


def pieces_of(batch: SequenceBatch, rng: PRNGKeyArray, parts: int) -> tuple[SequenceBatch, Array]:
  """The batch and its key in parts, along a new first axis; a whole batch keeps its key."""
  return split_rows(batch, parts), rng[None] if parts == 1 else jax.random.split(rng, parts)


def scalars_of_several(objective: Any, losses: Float[Array, "K"], opt_state: Any) -> dict[str, Array]:
  """What a step with several objectives reports; see `make_train_step`."""
  scalars = {"loss": losses[0], "grad_norm": opt_state.combined_norm, "cosine": opt_state.cosines[0, 1]}
  for name, *values in zip(objective.names, losses, opt_state.weights, opt_state.norms, strict=True):
    scalars |= dict(zip((name, f"weight/{name}", f"norm/{name}"), values, strict=True))
  return scalars


def mean_gradients(
  gradients: Callable[..., Any], num_objectives: int, params: Any, pieces: Any
) -> tuple[Float[Array, "K"], tuple[Any, ...], Callable[[Any], Any] | None]:
  """Losses and gradients of several objectives over all pieces of a batch.

  Args:
    gradients: (params, *piece) to losses, weights of their means, gradients, and what makes one like the parameters.
    num_objectives: K.
    params: of the model.
    pieces: pytree of arrays with an axis of the pieces in front.

  Returns:
    Losses, gradients, and what is left to be done to their weighted sum: nothing where there are several pieces, as
    these read different rows.
  """
  if _num_pieces(pieces) == 1:
    losses, _, grads, finish = gradients(params, *_only(pieces))
    return losses, grads, finish

  def add_part(sums, part):
    losses, weight, grads, finish = gradients(params, *part)
    grads = tuple(_times(weight[k], finish(grad)) for k, grad in enumerate(grads))
    return jax.tree.map(jnp.add, sums, (losses * weight, weight, grads)), None

  zero = jnp.zeros(num_objectives, jnp.float32)
  start = (zero, zero, (jax.tree.map(jnp.zeros_like, params),) * num_objectives)
  (losses, weight, grads), _ = jax.lax.scan(add_part, start, pieces)
  scale = 1 / jnp.maximum(weight, 1e-6)
  return losses * scale, tuple(_times(scale[k], grad) for k, grad in enumerate(grads)), None


def _times(factor, tree):
  return jax.tree.map(lambda x: x * factor, tree)


def mean_gradient(objective: Callable[..., Any], params: Any, pieces: Any) -> tuple[Any, dict[str, Array]]:
  """The gradient of the mean loss and the mean scalars, over all pieces of a batch.

  Args:
    objective: (params, *piece) to loss and scalars.
    params: of the model.
    pieces: pytree of arrays with an axis of the pieces in front.
  """
  if _num_pieces(pieces) == 1:
    (loss, scalars), grads = jax.value_and_grad(objective, has_aux=True)(params, *_only(pieces))
    return grads, _means(loss, scalars)

  def add_part(sums, part):
    (_, sums_of_part), grads = jax.value_and_grad(_as_sum(objective), has_aux=True)(params, *part)
    return jax.tree.map(jnp.add, sums, (grads, *sums_of_part)), None

  (_, shapes), _ = jax.eval_shape(jax.value_and_grad(_as_sum(objective), has_aux=True), params, *_only(pieces))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (params, *shapes))
  (grads, scalars, weight), _ = jax.lax.scan(add_part, zeros, pieces)
  return jax.tree.map(lambda x: x / jnp.maximum(weight, 1e-6), (grads, scalars))


def _as_sum(objective):
  """The objective and its scalars summed over targets instead of averaged: sums of parts add up, means don't."""

  def total(params, *part):
    loss, scalars = objective(params, *part)
    weight = scalars["weight"].astype(jnp.float32)
    sums = {name: value * weight for name, value in _means(loss, scalars).items()}
    return loss * weight, (sums, weight)

  return total


def _means(loss, scalars):
  named = {name: value for name, value in scalars.items() if name != "weight"} | {"loss": loss}
  return {name: value.astype(jnp.float32) for name, value in named.items()}


def _num_pieces(pieces):
  return jax.tree.leaves(pieces)[0].shape[0]


def _only(pieces):
  """The first piece."""
  return jax.tree.map(lambda x: x[0], pieces)


def split_rows(batch: SequenceBatch, parts: int) -> Any:
  """Part i takes rows i, i + parts, ...: with rows spread over devices each part is spread over them too.

  Raises:
    ValueError: parts that don't divide the rows.
  """
  num_rows = batch.item_id.shape[0]
  if num_rows % parts:
    raise ValueError(f"the {num_rows} rows of a batch must be divisible by accumulate={parts}; set data.rows_per_batch")

  def split(array):
    return array.reshape(num_rows // parts, parts, *array.shape[1:]).swapaxes(0, 1)  # [parts, B, ...]

  return jax.tree.map(split, batch)
