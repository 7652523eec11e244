"""AutoCDSR: recommendation and cross-domain attention, two objectives with a gradient each.

    L_rec = the item objective        L_cd = a score of cross-domain attention, `jaxrec.objectives.attention_score`

The weights of their gradients are computed in each step: see `jaxrec.multi_objective`.

Source: "Revisiting Self-attention for Cross-domain Sequential Recommendation", arXiv 2505.21811.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxrec.batches import SequenceBatch
from jaxrec.layers.attention import MASS, SIZES, masses_by_layer, sizes_by_layer
from jaxrec.layers.intra_domain import OWN
from jaxrec.multi_objective import task_gradients
from jaxrec.objectives import attention_score, item_losses
from jaxrec.objectives.attention_score import SCORES
from jaxrec.objectives.item import TABLE, ItemObjective, Items, ParameterItems
from jaxrec.objectives.objective import Gradients
from pallas_kernels.integers import as_arrays

INPUT = "input vectors"


@dataclasses.dataclass(frozen=True)
class CrossDomainObjective:
  """Recommendation and cross-domain attention: two losses from one forward pass.

  recommendation: the first objective; the item objective of the same model without AutoCDSR.
  own: the domain that attention should stay in, "query" or "target"; see `attention_score.visible_share`.
    Choice: "target" is not published. A model that predicts the next event queries from the last one, whose domain may
    differ from the domain of what it predicts.
  score: "visible", "excess" or "all_keys"; see `jaxrec.objectives.attention_score`. The first two are logged together
    with the shares of each layer's attention to oneself, to hidden events, to the own domain and to others.
  margin: of "excess", in log-odds.
  gate: whether only those queries are penalised whose target the model would predict better, with less loss, if it
    attended to the own domain only: one more forward pass, of the same parameters and items.
    Choice: ours, for what the paper intends; one weight for all queries cannot choose among them. The others count as 0
    in the mean, so that the push on a query does not grow as fewer are penalised.
  """

  recommendation: ItemObjective
  own: str = "query"
  score: str = "visible"
  margin: float = 0.0
  gate: bool = False
  names = ("recommendation", "cross_domain_attention")

  def __post_init__(self):
    if self.own not in OWN:
      raise ValueError(f"own={self.own!r} is not one of {OWN}")
    if self.score not in SCORES:
      raise ValueError(f"score={self.score!r} is not one of {SCORES}")
    if self.margin and self.score != "excess":
      raise ValueError(f"margin={self.margin} has no meaning for score={self.score!r}; use score='excess' or margin=0")
    if self.gate and self.score == "all_keys":
      raise ValueError(f"gate=True is for scores of visible keys, not {self.score!r}")

  def __call__(
    self, model: nn.Module, params: Any, batch: SequenceBatch, rng: PRNGKeyArray, deterministic: bool = False
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the recommendation objective alone; see `ItemObjective`."""
    return self.recommendation(model, params, batch, rng, deterministic)

  def scored_ids(self, model: nn.Module, batch: SequenceBatch, rng: PRNGKeyArray) -> dict[str, Array]:
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
      return self._forward(model, parts, items, parts[INPUT], batch, rng, deterministic)

    def recommend(outputs, parts):
      return self.recommendation.loss_from_queries(outputs[0], items, parts, batch, model.num_items)

    def attention_across(outputs, _):
      score, num_queries = self._score(*outputs[1:], batch)
      return score, (num_queries, self._scalars(*outputs[1:], batch))

    # One after the other: on a CPU both at once took a tenth longer.
    heads = recommend, attention_across
    losses, (_, (num_queries, scalars)), grads = task_gradients(trunk, heads, {**params, INPUT: item}, batched=False)

    def to_params_gradient(grad):
      (table,) = pull_item(grad[INPUT])
      total = {name: value for name, value in grad.items() if name != INPUT}
      return {**total, TABLE: jax.tree.map(jnp.add, grad[TABLE], table)}

    weights = jnp.stack([batch.target_weight.astype(jnp.float32).sum(), num_queries])
    return Gradients(losses, weights, grads, to_params_gradient, scalars, {})

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
  ) -> tuple[Float[Array, "K"], Any, dict[str, Float[Array, ""]]]:
    """Returns the losses, the gradient of their sum with these weights, from a single backward pass, and the scalars.

    Arguments are those of `gradients`, which gives the same gradient for the same weights.
    """
    batch = as_arrays("batch", batch)
    items = items or ParameterItems(model, batch, self.scored_ids(model, batch, rng))

    def total(params):
      outputs = self._forward(model, params, items, items.input(params), batch, rng, deterministic)
      query, attention, gate = outputs
      recommendation = self.recommendation.loss_from_queries(query, items, params, batch, model.num_items)
      losses = jnp.stack([recommendation, self._score(attention, gate, batch)[0]])
      return weights @ losses, (losses, self._scalars(attention, gate, batch))

    grad, (losses, scalars) = jax.grad(total, has_aux=True)(params)
    return losses, grad, scalars

  def _forward(self, model, params, items, item, batch, rng, deterministic):
    """Returns query vectors [B, N, M], what each layer attends to, and which queries are penalised (None: all)."""
    collection, by_layer = (MASS, masses_by_layer) if self.score == "all_keys" else (SIZES, sizes_by_layer)
    rest = {name: value for name, value in params.items() if name not in (TABLE, INPUT)}
    dropout_key, _ = jax.random.split(rng)
    rngs = {"dropout": dropout_key}
    query, state = model.apply({"params": rest}, batch, deterministic, item, rngs=rngs, mutable=[collection])
    if not self.gate:
      return query, by_layer(state[collection]), None
    rest, item, params, fixed = jax.lax.stop_gradient((rest, item, params, query))
    alone = model.apply({"params": rest}, batch, deterministic, item, self.own, rngs=rngs, method="within_domain")
    loss_of = functools.partial(self.recommendation.loss_of_positions, num_items=model.num_items)
    both, own = (loss_of(x, items, params, batch) for x in (fixed, alone))
    return query, by_layer(state[collection]), (own < both) & (batch.target_weight > 0)

  def _score(self, attention, gate, batch):
    """Returns the second loss and its number of queries."""
    if self.score == "all_keys":
      return attention_score.cross_domain_attention(attention, batch, self.own)
    if self.score == "excess":
      return attention_score.excess(attention, batch, self.own, self.margin, gate)
    return attention_score.visible_share(attention, batch, self.own, gate)

  def _scalars(self, attention, gate, batch):
    """Returns the shares of attention to log, and "gated", that of the targets that the own domain predicts better."""
    if self.score == "all_keys":
      return {}
    parts = attention_score.attention_parts(attention, batch, self.own)
    if gate is None:
      return parts
    return parts | {"gated": item_losses.weighted_mean(gate.astype(jnp.float32), batch.target_weight)}


def shared_parameters(grad: Any) -> Any:
  """Returns the part of a gradient that enters the Gram matrix: all but the item table, which one objective scores.

  Source: the released code of arXiv 2505.21811 leaves the item table out as well.
  """
  return {name: value for name, value in grad.items() if name not in (TABLE, INPUT)}
