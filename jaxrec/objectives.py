"""Objectives: named scalars computed from a model and a batch. `build` makes one from a config."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxrec import losses, negatives
from jaxrec.types import SequenceBatch

Objective = Callable[..., tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]
LOSSES = ("sampled_softmax", "full_softmax", "bce", "gbce")
SHARING = ("position", "row", "batch")


@dataclasses.dataclass(frozen=True)
class ItemObjective:
  """Predict the target item at each position with a positive weight: next-item and masked-item training alike.

  loss: "sampled_softmax", "full_softmax", "bce" or "gbce".
  num_negatives: R, drawn with replacement.
  sampler: "uniform", "log_uniform" or "in_batch".
  sharing: who shares a draw of R negatives. "position": nobody, as published. "row": the positions of a row of the
    batch. "batch": all. Choice: sharing changes neither the expected gradient of a position nor R, only the
    correlation between positions; it replaces a `[B, N, R, M]` gather by a matrix product.
  log_q: subtract the log-probability of the draw from the scores of negatives and positive.
  temperature: divides the scores.
  gbce_t: calibration of gBCE in 0..1.
  chunk_size: items scored at a time by "full_softmax".
  """

  loss: str = "sampled_softmax"
  num_negatives: int = 128
  sampler: str = "uniform"
  sharing: str = "position"
  log_q: bool = False
  temperature: float = 0.05
  gbce_t: float = 0.75
  chunk_size: int = 4096

  def __post_init__(self):
    for name, known in (("loss", LOSSES), ("sampler", negatives.SAMPLERS), ("sharing", SHARING)):
      if getattr(self, name) not in known:
        raise ValueError(f"objective {name}={getattr(self, name)!r} is not one of {known}")
    if self.log_q and (self.sampler == "in_batch" or self.loss == "full_softmax"):
      raise ValueError(f"log_q has no meaning for sampler={self.sampler!r} with loss={self.loss!r}")

  def __call__(
    self, model: nn.Module, params: Any, batch: SequenceBatch, rng: PRNGKeyArray, deterministic: bool = False
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the mean loss over the target positions, and `{"loss", "weight"}` with the sum of their weights.

    The key is consumed.
    """
    dropout_key, sample_key = jax.random.split(rng)
    variables = {"params": params}
    query = model.apply(variables, batch, deterministic=deterministic, rngs={"dropout": dropout_key})  # [B, N, M]
    loss = self.of_queries(query, functools.partial(item_vectors, model, params), batch, sample_key, model.num_items)
    return loss, {"loss": loss, "weight": batch.target_weight.astype(query.dtype).sum()}

  def of_queries(
    self,
    query: Float[Array, "B N M"],
    vectors: Callable[..., Float[Array, "... M"]],
    batch: SequenceBatch,
    rng: PRNGKeyArray,
    num_items: int,
  ) -> Float[Array, ""]:
    """The mean loss of query vectors that a model has computed.

    Args:
      query: a model's output.
      vectors: ids to their scoring vectors; without ids, of all items.
      batch: names the targets.
      rng: of the negatives; consumed.
      num_items: V.
    """
    value = self.at_positions(query, vectors, batch, rng, num_items)  # [B, N]
    return losses.weighted_mean(value, batch.target_weight.astype(query.dtype))

  def at_positions(self, query, vectors, batch, key, num_items) -> Float[Array, "B N"]:
    """The loss of each position."""
    if self.loss == "full_softmax":
      return losses.full_softmax(query, vectors(), batch.target_item, self.temperature, self.chunk_size)
    negative_id = self.draw(key, batch, num_items)
    positive_logit, negative_logit = losses.sampled_logits(
      query, vectors(batch.target_item), vectors(negative_id), batch.target_item, negative_id, self.temperature
    )
    if self.log_q:
      positive_logit -= negatives.log_probability(self.sampler, batch.target_item, num_items)
      log_q = negatives.log_probability(self.sampler, negative_id, num_items)
      negative_logit -= log_q[:, None] if log_q.ndim == 2 else log_q
    if self.loss == "sampled_softmax":
      return losses.sampled_softmax(positive_logit, negative_logit)
    t = self.gbce_t if self.loss == "gbce" else 0.0
    beta = losses.gbce_calibration(num_items, self.num_negatives, t)
    return losses.binary_cross_entropy(positive_logit, negative_logit, beta)

  def draw(self, key, batch, num_items):
    """Negative ids: `[B, N, R]`, `[B, R]` or `[R]`, as `sharing` says."""
    lead = {"position": batch.target_item.shape, "row": batch.target_item.shape[:1], "batch": ()}[self.sharing]
    shape = (*lead, self.num_negatives)
    if self.sampler == "in_batch":
      return negatives.sample_in_batch(key, shape, batch.target_item, batch.target_weight)
    return negatives.sample_items(key, self.sampler, shape, num_items)


def item_vectors(model: nn.Module, params: Any, item_id: Int[Array, "..."] | None = None) -> Float[Array, "... M"]:
  """Scoring vectors of items under `params`; of all items 0..V where no ids are given."""
  return model.apply({"params": params}, item_id, method="item_vectors")


def build(config: Mapping) -> ItemObjective:
  """The objective that `config` describes: "name" is the loss, other entries are fields of `ItemObjective`.

  Raises:
    ValueError: for an unknown name or field.
  """
  options = dict(config)
  options["loss"] = options.pop("name")
  known = {field.name for field in dataclasses.fields(ItemObjective)}
  if unknown := sorted(set(options) - known):
    raise ValueError(f"objective has no field {unknown}; it has {sorted(known - {'loss'} | {'name'})}")
  return ItemObjective(**options)
