"""The objective of click-through prediction: binary cross-entropy of two heads, and a penalty on weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from jaxrec.batches import AnyArray, CandidateBatch, PackedCandidates
from jaxrec.objectives.objective import Gradients, single_gradient


@dataclasses.dataclass(frozen=True)
class ClickObjective:
  """Predict whether a candidate is clicked: the losses of both heads and the penalty, added up.

  l2: factor of the penalty on weights.

  Source: arXiv 2410.02604, its scripts.
  """

  l2: float = 1e-6

  names: ClassVar[tuple[str, ...]] = ("click",)

  def scored_ids(self, model: nn.Module, batch: CandidateBatch | PackedCandidates, rng: PRNGKeyArray) -> dict[str, Any]:
    """Returns {}: candidates are inputs of the model."""
    return {}

  def gradients(
    self,
    model: nn.Module,
    params: Any,
    batch: CandidateBatch | PackedCandidates,
    rng: PRNGKeyArray,
    *,
    items: Any = None,
    model_state: Any = None,
  ) -> Gradients:
    """Returns the loss, its gradient, and the batch statistics after the batch; see `Objective`.

    Args:
      model: a `jaxrec.models.ctr.ClickThroughRanker`.
      params: its parameters.
      batch: candidates with their histories, or packed ones.
      rng: not used: the model has no dropout.
      items: not used.
      model_state: its other variables ("batch_stats").
    """
    rest = model_state or {}

    def loss_of(params):
      output, updated = model.apply({"params": params, **rest}, batch, deterministic=False, mutable=["batch_stats"])
      label = batch.label.reshape(-1)  # That of packed candidates has an axis for the rows.
      loss, parts = ctr_loss(output.logit, output.auxiliary_logit, label, params=params, l2=self.l2)
      return loss, (jnp.float32(label.shape[0]), parts, {**rest, **updated})

    return single_gradient(loss_of, params)


def ctr_loss(
  logit: Float[Array, " B"],
  auxiliary_logit: Float[Array, " B"] | None,
  label: Float[AnyArray, " B"],
  *,
  params: Mapping | None = None,
  l2: float = 1e-6,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """Returns `main + auxiliary + l2 * penalty`, and these three ("penalty" without its factor) by name.

  Args:
    logit: log-odds of a click.
    auxiliary_logit: the same of the auxiliary head; None: there is none.
    label: 1 for a click, else 0.
    params: parameters to be penalised; None: none are.
    l2: factor of the penalty.

  Source: DARE, arXiv 2410.02604: public code for the auxiliary loss and the penalty.

  >>> loss, parts = ctr_loss(jnp.zeros(2), jnp.zeros(2), jnp.array([1.0, 0.0]))
  >>> f"{float(loss):.4f}", f"{float(parts['auxiliary']):.4f}"  # 2 ln 2, ln 2
  ('1.3863', '0.6931')
  """
  zero = jnp.zeros((), logit.dtype)
  parts = {
    "main": click_loss(logit, label),
    "auxiliary": zero if auxiliary_logit is None else click_loss(auxiliary_logit, label),
    "penalty": zero if params is None else l2_penalty(params),
  }
  return parts["main"] + parts["auxiliary"] + l2 * parts["penalty"], parts


def click_loss(logit: Float[Array, " B"], label: Float[AnyArray, " B"]) -> Float[Array, ""]:
  """The mean binary cross-entropy in nats, from log-odds: its gradient doesn't vanish where a probability does.

  Choice: the published code takes the logarithm of a softmax plus 1e-8. That is the same up to 1e-8 / p, but a click
    that the model thinks impossible costs 18 nats at most, and the model learns nothing from it.

  >>> float(click_loss(jnp.array([-50.0, -50.0]), jnp.array([1.0, 0.0])))
  25.0
  """
  return optax.sigmoid_binary_cross_entropy(logit, label).mean()


def l2_penalty(params: Mapping) -> Float[Array, ""]:
  """The sum of squares of all parameters but biases and tables; scales of batch norms and PReLU's slopes included.

  Source: public code of arXiv 2410.02604 (parameters without "bias" or "embedding" in their names).

  >>> float(l2_penalty({"dense": {"kernel": jnp.array([1.0, 2.0]), "bias": jnp.ones(3)}, "item_table": jnp.ones(4)}))
  5.0
  """
  penalised = [
    value
    for path, value in jax.tree_util.tree_leaves_with_path(params)
    if path[-1].key != "bias" and not path[-1].key.endswith("table")
  ]
  return sum((jnp.square(value).sum() for value in penalised), jnp.zeros(()))
