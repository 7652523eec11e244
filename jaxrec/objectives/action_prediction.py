"""The objective of generative ranking: one loss for each action that is predicted, and the gradients of all of them.

binary       cross-entropy of the log-odds
multi_class  cross-entropy of the softmax
regression   half the squared error, in standard deviations
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from jaxrec.batches import BINARY, MULTI_CLASS, ActionType, RankingBatch, as_ranking_batch
from jaxrec.layers.action_tokens import standardized
from jaxrec.objectives.item_losses import weighted_mean
from jaxrec.objectives.objective import Gradients

HEADS = "action_heads"  # Of the parameters.
SHARED, FULL = "shared", "full"
ACTIVATIONS = "activations"


@dataclasses.dataclass(frozen=True)
class ActionObjective:
  """Predict each action of the CANDIDATE tokens; K losses.

  heads: the actions.
  gradients: what the K gradients are, whose inner products a weighting reads: "shared", with respect to the activations
    that all heads read, so that the encoder is passed backwards once; or "full", with respect to all parameters, which
    passes it K times.

  Source: "shared": the upper bound of MGDA, Sener & Koltun 2018 (arXiv 1810.04650), section 3.3.
  """

  heads: tuple[ActionType, ...]
  gradients_at: str = SHARED

  def __post_init__(self):
    if self.gradients_at not in (SHARED, FULL):
      raise ValueError(f"{self.gradients_at=} must be one of {(SHARED, FULL)}")

  @property
  def names(self) -> tuple[str, ...]:
    """The names of the actions."""
    return tuple(head.name for head in self.heads)

  def scored_ids(self, model: nn.Module, batch: RankingBatch, rng: PRNGKeyArray) -> dict[str, Any]:
    """Returns {}: candidates are inputs of the model."""
    return {}

  def gradients(
    self,
    model: nn.Module,
    params: Any,
    batch: RankingBatch,
    rng: PRNGKeyArray,
    *,
    items: Any = None,
    model_state: Any = None,
  ) -> Gradients:
    """Returns the losses and their gradients; see `jaxrec.objectives.objective.Objective`.

    Args:
      model: a `jaxrec.models.ranking.RankingModel`.
      params: its parameters.
      batch: tokens; a loss is the mean over its CANDIDATE tokens, by `batch.weight`.
      rng: key of dropout; consumed.
      items: not used.
      model_state: not used.
    """
    batch = as_ranking_batch(batch)
    encoder = {name: value for name, value in params.items() if name != HEADS}

    def encode(encoder):
      return model.apply({"params": encoder}, batch, deterministic=False, method="encode", rngs={"dropout": rng})

    def loss_of(head, activations, heads):
      predictions = model.apply({"params": {HEADS: heads}}, activations, method="predict")
      return action_losses(predictions, batch, (head,))[0]

    activations, pull_encoder = jax.vjp(encode, encoder)
    found = [
      jax.value_and_grad(functools.partial(loss_of, head), argnums=(0, 1))(activations, params[HEADS])
      for head in self.heads
    ]
    losses = jnp.stack([loss for loss, _ in found])
    cotangents = [dict(zip((ACTIVATIONS, HEADS), grad, strict=True)) for _, grad in found]

    def to_params_gradient(grad):
      return {**pull_encoder(grad[ACTIVATIONS])[0], HEADS: grad[HEADS]}

    weights = jnp.full(len(losses), batch.weight.sum())
    if self.gradients_at == SHARED:
      return Gradients(losses, weights, tuple(cotangents), to_params_gradient, {}, {})
    return Gradients(losses, weights, tuple(map(to_params_gradient, cotangents)), lambda grad: grad, {}, {})

  def select(self, grad: Any) -> Any:
    """Returns the part of a gradient that the heads share: what a weighting compares."""
    if self.gradients_at == SHARED:
      return grad[ACTIVATIONS]
    return {name: value for name, value in grad.items() if name != HEADS}


def action_losses(
  predictions: dict[str, Array], batch: RankingBatch, heads: tuple[ActionType, ...]
) -> Float[Array, " K"]:
  """Returns the mean loss of each head over the CANDIDATE tokens: nats, or squared deviations / 2."""
  batch = as_ranking_batch(batch)
  found = [token_losses(predictions[head.name], batch.actions[head.name], head) for head in heads]
  return jnp.stack([weighted_mean(losses, batch.weight) for losses in found])


def token_losses(prediction: Array, label: Array, head: ActionType) -> Float[Array, "B N"]:
  """Returns the loss of one head at every token.

  >>> losses = token_losses(jnp.zeros((1, 1, 4)), jnp.array([[2]]), ActionType("kind", "multi_class", 4))
  >>> round(losses.item(), 4)
  1.3863
  """
  if head.kind == BINARY:
    return optax.sigmoid_binary_cross_entropy(prediction, label.astype(prediction.dtype))
  if head.kind == MULTI_CLASS:
    return optax.softmax_cross_entropy_with_integer_labels(prediction, label)
  return 0.5 * jnp.square(prediction - standardized(head, label))
