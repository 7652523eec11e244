"""AutoCDSR: recommendation and cross-domain attention, two objectives with a gradient each.

    L_rec = the item objective        L_cd = mean over layers, heads and events of the cross-domain attention share

The weights of their gradients are computed in each step: see `jaxrec.multi_objective`.

Source: "Revisiting Self-attention for Cross-domain Sequential Recommendation", arXiv 2505.21811.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxrec.batches import SequenceBatch
from jaxrec.layers.attention import MASS, cross_domain_share, masses_by_layer
from jaxrec.multi_objective import task_gradients
from jaxrec.objectives import item_losses
from jaxrec.objectives.item import TABLE, ItemObjective, Items, ParameterItems
from jaxrec.objectives.objective import Gradients
from pallas_kernels.integers import as_arrays

INPUT = "input vectors"
OWN = ("query", "target")


def cross_domain_attention(
  masses: list[Float[Array, "B S H G"]], batch: SequenceBatch, own: str = "query"
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Returns the mean share of attention paid to other domains, and the number of queries.

  Args:
    masses: attention mass by domain of each layer; see `jaxrec.layers.attention.attend`.
    batch: the queries.
    own: the query's own domain: "query", that of the query event, as published, or of its target where the event's
      domain is hidden from the model (a masked event); "target", always that of the event to be predicted.

  Source: a_cd of AutoCDSR, arXiv 2505.21811, and for bottleneck tokens the attention paid to these.
  Choice: a mean over queries, heads and layers, so that it lies in 0..1 whatever the lengths (the paper's is a sum).
  """
  if own == "target":
    domain, asks = batch.target_domain, batch.target_weight > 0
  else:
    domain, asks = query_domain(batch), batch.sequence_id != 0
  is_real = asks.astype(jnp.float32)
  events = [mass[:, : domain.shape[1]] for mass in masses]  # Without bottleneck tokens.
  share = sum(cross_domain_share(mass, domain).mean(axis=-1) for mass in events) / len(events)  # [B, N]
  return item_losses.weighted_mean(share, is_real), is_real.sum()


def query_domain(batch: SequenceBatch) -> Int[Array, "B N"]:
  """Returns the domain of each event, or that of its target where the model doesn't see it (a masked event)."""
  return jnp.where(batch.domain_id == 0, batch.target_domain, batch.domain_id)


@dataclasses.dataclass(frozen=True)
class CrossDomainObjective:
  """Recommendation and cross-domain attention: two losses from one forward pass.

  recommendation: the first objective; the item objective of the same model without AutoCDSR.
  own: the domain that attention should stay in, "query" or "target"; see `cross_domain_attention`.
    Choice: "target" is not published. A model that predicts the next event queries from the last one, whose domain may
    differ from the domain of what it predicts.
  """

  recommendation: ItemObjective
  own: str = "query"
  names = ("recommendation", "cross_domain_attention")

  def __post_init__(self):
    if self.own not in OWN:
      raise ValueError(f"own={self.own!r} is not one of {OWN}")

  def __call__(
    self, model: nn.Module, params: Any, batch: SequenceBatch, rng: PRNGKeyArray, deterministic: bool = False
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the recommendation objective alone; see `ItemObjective`."""
    return self.recommendation(model, params, batch, rng, deterministic)

  def scored_ids(self, model: nn.Module, batch: SequenceBatch, rng: PRNGKeyArray) -> dict[str, Int[Array, "..."]]:
    """Returns the items that the recommendation objective scores."""
    return self.recommendation.scored_ids(model, batch, rng)

  def gradients(
    self,
    model: nn.Module,
    params: Any,
    batch: SequenceBatch,
    rng: PRNGKeyArray,
    deterministic: bool = False,
    *,
    items: Items | None = None,
    model_state: Any = None,
  ) -> Gradients:
    """Returns both losses and their gradients from one forward pass; see `jaxrec.objectives.objective.Objective`.

    The gradients are those of the parameters without the item table, under their names; of the table as scoring
    vectors, under "items"; and of the rows that the encoder reads, under "input vectors". `to_params_gradient` adds up
    any weighted sum of such gradients to one like `params`, so that a large table sees one gradient only.

    Args:
      model: a `jaxrec.models.SequentialModel` with `num_domains` > 1.
      params: its parameters, or those and looked-up rows.
      batch: sequences and targets.
      rng: key of dropout and negatives; consumed.
      deterministic: no dropout.
      items: vectors of the items; None: the model computes them from its parameters.
      model_state: not used.

    Raises:
      ValueError: the model has one domain only.
    """
    if model.num_domains < 2:
      raise ValueError(f"{model.num_domains=}: attention across domains needs at least two")
    batch = as_arrays("batch", batch)
    items = items or ParameterItems(model, batch, self.scored_ids(model, batch, rng))
    item, pull_item = jax.vjp(lambda table: items.input({TABLE: table}), params[TABLE])

    def trunk(parts):
      return self._forward(model, parts, parts[INPUT], batch, rng, deterministic)

    def recommend(outputs, parts):
      return self.recommendation.loss_from_queries(outputs[0], items, parts, batch, model.num_items)

    def attention_across(outputs, _):  # Its second result is the number of queries.
      return cross_domain_attention(outputs[1], batch, self.own)

    # One after the other: on a CPU both at once took a tenth longer.
    heads = recommend, attention_across
    losses, (_, num_queries), grads = task_gradients(trunk, heads, {**params, INPUT: item}, batched=False)

    def to_params_gradient(grad):
      (table,) = pull_item(grad[INPUT])
      total = {name: value for name, value in grad.items() if name != INPUT}
      return {**total, TABLE: jax.tree.map(jnp.add, grad[TABLE], table)}

    weights = jnp.stack([batch.target_weight.astype(jnp.float32).sum(), num_queries])
    return Gradients(losses, weights, grads, to_params_gradient, {}, {})

  def weighted_gradient(
    self,
    model: nn.Module,
    params: Any,
    batch: SequenceBatch,
    rng: PRNGKeyArray,
    weights: Float[Array, "K"],
    deterministic: bool = False,
    *,
    items: Items | None = None,
  ) -> tuple[Float[Array, "K"], Any]:
    """Returns the losses and the gradient of their sum with these weights, from a single backward pass.

    Arguments are those of `gradients`, which gives the same gradient for the same weights.
    """
    batch = as_arrays("batch", batch)
    items = items or ParameterItems(model, batch, self.scored_ids(model, batch, rng))

    def total(params):
      query, masses = self._forward(model, params, items.input(params), batch, rng, deterministic)
      recommendation = self.recommendation.loss_from_queries(query, items, params, batch, model.num_items)
      losses = jnp.stack([recommendation, cross_domain_attention(masses, batch, self.own)[0]])
      return weights @ losses, losses

    grad, losses = jax.grad(total, has_aux=True)(params)
    return losses, grad

  def _forward(self, model, params, item, batch, rng, deterministic):
    """Returns query vectors [B, N, M] and the attention mass of each layer."""
    rest = {name: value for name, value in params.items() if name not in (TABLE, INPUT)}
    dropout_key, _ = jax.random.split(rng)
    rngs = {"dropout": dropout_key}
    query, state = model.apply({"params": rest}, batch, deterministic, item, rngs=rngs, mutable=[MASS])
    return query, masses_by_layer(state[MASS])


def shared_parameters(grad: Any) -> Any:
  """Returns the part of a gradient that enters the Gram matrix: all but the item table, which one objective scores.

  Source: the released code of arXiv 2505.21811 leaves the item table out as well.
  """
  return {name: value for name, value in grad.items() if name not in (TABLE, INPUT)}
