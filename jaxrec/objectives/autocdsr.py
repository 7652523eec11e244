"""AutoCDSR: recommendation, and how much attention leaves the own domain, as objectives with a gradient each.

    L_rec = the item objective        L_cd = mean over layers, heads and events of the cross-domain attention share

The weights of their gradients are found anew in each step: see `jaxrec.multi_objective`.

Source: "Revisiting Self-attention for Cross-domain Sequential Recommendation", arXiv 2505.21811.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
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

INPUT = "input vectors"
OWN = ("query", "target")


def cross_domain_attention(
  masses: list[Float[Array, "B S H G"]], batch: SequenceBatch, own: str = "query"
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Returns the mean share of attention that leaves the own domain, and the number of queries.

  Args:
    masses: of each layer; see `jaxrec.layers.attention.attend`.
    batch: the queries.
    own: which domain that is: "query": of the event that asks, as published, or of its target where the event's domain
      is hidden from the model (a masked event); "target": always of the event to be predicted.

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
  """The domain of each event, or of its target where the model doesn't see it (a masked event)."""
  return jnp.where(batch.domain_id == 0, batch.target_domain, batch.domain_id)


@dataclasses.dataclass(frozen=True)
class CrossDomainObjective:
  """Recommendation and cross-domain attention: two losses from one forward pass.

  recommendation: the first objective; the item objective of the same model without AutoCDSR.
  own: the domain that attention should not leave, "query" or "target"; see `cross_domain_attention`.
    Choice: "target" is not published. A model that predicts the next event asks at the last one, whose domain may be
    another one than that of what it predicts.
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
    """The recommendation objective by itself; see `ItemObjective`."""
    return self.recommendation(model, params, batch, rng, deterministic)

  def gradients(
    self,
    model: nn.Module,
    params: Any,
    batch: SequenceBatch,
    rng: PRNGKeyArray,
    deterministic: bool = False,
    items: Items | None = None,
  ) -> tuple[Float[Array, "K"], Float[Array, "K"], tuple[Any, ...], Callable[[Any], Any]]:
    """Returns the losses, the weights of their means, their gradients, and what makes a gradient of the parameters.

    The gradients are those of the parameters without the item table, under their names; of the table as scoring
    vectors, under "items"; and of the rows that the encoder reads, under "input vectors". The last result adds up any
    weighted sum of such gradients to one like `params`, so that a large table sees one gradient only.

    Args:
      model: a `jaxrec.models.SequentialModel` with `num_domains` > 1.
      params: its parameters.
      batch: sequences and targets.
      rng: of dropout and negatives; consumed.
      deterministic: no dropout.
      items: as of `ItemObjective`.

    Raises:
      ValueError: the model knows one domain only.
    """
    if model.num_domains < 2:
      raise ValueError(f"{model.num_domains=}: attention across domains needs at least two")
    dropout_key, sample_key = jax.random.split(rng)
    batch = jax.tree.map(jnp.asarray, batch)
    items = items or self._parameter_items(model, batch, sample_key)
    item, pull_item = jax.vjp(lambda table: items.input({TABLE: table}), params[TABLE])

    def trunk(parts):
      rest = {name: value for name, value in parts.items() if name not in (TABLE, INPUT)}
      query, state = model.apply(
        {"params": rest}, batch, deterministic, parts[INPUT], rngs={"dropout": dropout_key}, mutable=[MASS]
      )
      return query, masses_by_layer(state[MASS])

    def recommend(outputs, parts):
      return self.recommendation.of_queries(outputs[0], items, parts, batch, model.num_items)

    def cross(outputs, _):  # Its aux is the number of queries.
      return cross_domain_attention(outputs[1], batch, self.own)

    # One after the other: on a CPU the two at once took a tenth longer.
    values, (_, num_queries), grads = task_gradients(trunk, (recommend, cross), {**params, INPUT: item}, batched=False)

    def finish(grad):
      (table,) = pull_item(grad[INPUT])
      total = {name: value for name, value in grad.items() if name != INPUT}
      return {**total, TABLE: jax.tree.map(jnp.add, grad[TABLE], table)}

    return values, jnp.stack([batch.target_weight.astype(jnp.float32).sum(), num_queries]), grads, finish

  def weighted_gradient(
    self,
    model: nn.Module,
    params: Any,
    batch: SequenceBatch,
    rng: PRNGKeyArray,
    weights: Float[Array, "K"],
    deterministic: bool = False,
    items: Items | None = None,
  ) -> tuple[Float[Array, "K"], Any]:
    """Returns the losses and one gradient, of their sum with these weights: a single backward pass.

    Args: as of `gradients`, which gives the same gradient for the same weights.
    """
    dropout_key, sample_key = jax.random.split(rng)
    batch = jax.tree.map(jnp.asarray, batch)
    items = items or self._parameter_items(model, batch, sample_key)

    def total(params):
      rest = {name: value for name, value in params.items() if name != TABLE}
      query, state = model.apply(
        {"params": rest},
        batch,
        deterministic,
        items.input(params),
        rngs={"dropout": dropout_key},
        mutable=[MASS],
      )  # [B, N, M]
      recommendation = self.recommendation.of_queries(query, items, params, batch, model.num_items)
      losses = jnp.stack([recommendation, cross_domain_attention(masses_by_layer(state[MASS]), batch, self.own)[0]])
      return weights @ losses, losses

    grad, losses = jax.grad(total, has_aux=True)(params)
    return losses, grad

  def _parameter_items(self, model, batch, rng):
    return ParameterItems(model, batch, self.recommendation.ids(batch, rng, model.num_items))


def shared_parameters(grad: Any) -> Any:
  """What enters the Gram matrix: all but the item table, whose rows only one of the objectives scores.

  Source: the released code of arXiv 2505.21811 leaves the item table out as well.
  """
  return {name: value for name, value in grad.items() if name not in (TABLE, INPUT)}
