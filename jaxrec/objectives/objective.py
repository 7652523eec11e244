"""What the training step asks of an objective: K >= 1 named losses of a model and a batch, and their gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

Params = Any  # A pytree of float32 arrays.


class Gradients(NamedTuple):
  """K losses of one microbatch and their gradients.

  losses: `[K]`, each a weighted mean over what it is computed on (target positions, queries, examples).
  weights: `[K]`, the sums of weights of those means: the mean over several microbatches is `sum(weight * loss) /
    sum(weight)`.
  grads: K pytrees of one structure.
  to_params_gradient: maps one of them, or a weighted sum of them, to a gradient like the parameters. It exists so that
    what all objectives share is pulled back once instead of K times; the identity where there is nothing to share.
  scalars: further numbers to log, means with the first weight.
  model_state: the model's variables other than parameters after the step, such as batch statistics; {} without.
  """

  losses: Float[Array, "K"]
  weights: Float[Array, "K"]
  grads: tuple[Any, ...]
  to_params_gradient: Callable[[Any], Params]
  scalars: dict[str, Float[Array, ""]]
  model_state: Any


@runtime_checkable
class Objective(Protocol):
  """K >= 1 named losses; see `jaxrec.objectives.item.ItemObjective` (K = 1) and `autocdsr` (K = 2).

  names: K names. Where K > 1 the step logs each loss, the weight and the norm of its gradient under them.
  """

  names: tuple[str, ...]

  def scored_ids(self, model: nn.Module, batch: Any, rng: PRNGKeyArray) -> dict[str, Int[Array, "..."]]:
    """Returns the ids of all items whose vectors the losses read, by role; {} where the objective scores no items."""
    ...

  def gradients(
    self, model: nn.Module, params: Params, batch: Any, rng: PRNGKeyArray, *, items: Any = None, model_state: Any = None
  ) -> Gradients:
    """Returns losses and gradients of a microbatch.

    Args:
      model: Linen module.
      params: its parameters, or those and looked-up rows; see `jaxrec.train.item_table`.
      batch: one microbatch.
      rng: key of dropout and negatives; consumed.
      items: vectors of the items of `scored_ids`; see `jaxrec.objectives.item.Items`.
      model_state: variables other than parameters, before the step.
    """
    ...


def single_gradient(loss: Callable[[Params], tuple[Float[Array, ""], tuple]], params: Params) -> Gradients:
  """Returns the `Gradients` of one loss.

  Args:
    loss: params -> (mean loss, (sum of weights, scalars, model state)).
    params: what is differentiated.

  >>> gradients = single_gradient(lambda w: (w**2, (jnp.array(1.0), {}, {})), jnp.array(3.0))
  >>> gradients.losses.tolist(), [grad.item() for grad in gradients.grads]
  ([9.0], [6.0])
  """
  (value, (weight, scalars, model_state)), grad = jax.value_and_grad(loss, has_aux=True)(params)
  one = jnp.reshape(jnp.asarray(weight, jnp.float32), (1,))
  return Gradients(value[None], one, (grad,), lambda grad: grad, scalars, model_state)


@dataclasses.dataclass(frozen=True)
class FunctionObjective:
  """The objective of a function: one loss, for models without batch statistics.

  function: (model, params, batch, rng) -> (mean loss, scalars), where scalars["weight"] is the sum of the weights of
    the mean; the other scalars are logged.
  names: one name.
  """

  function: Callable[..., tuple[Float[Array, ""], dict[str, Array]]]
  names: tuple[str, ...] = ("loss",)

  def scored_ids(self, model: nn.Module, batch: Any, rng: PRNGKeyArray) -> dict[str, Any]:
    """Returns {}: the function computes its own item vectors."""
    return {}

  def gradients(
    self, model: nn.Module, params: Params, batch: Any, rng: PRNGKeyArray, *, items: Any = None, model_state: Any = None
  ) -> Gradients:
    """See `Objective`."""

    def loss_of(params):
      loss, scalars = self.function(model, params, batch, rng)
      logged = {name: value.astype(jnp.float32) for name, value in scalars.items() if name not in ("loss", "weight")}
      return loss, (scalars["weight"], logged, {})

    return single_gradient(loss_of, params)
