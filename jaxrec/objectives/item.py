"""Next-item and masked-item objectives: losses of query vectors against item vectors. `build` reads a config."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jaxrec.batches import SequenceBatch
from jaxrec.layers.item_embedding import HAS_ID
from jaxrec.objectives import item_losses, negatives
from jaxrec.objectives.objective import Gradients, single_gradient
from pallas_kernels import devices
from pallas_kernels.integers import as_arrays

LOSSES = ("sampled_softmax", "full_softmax", "bce", "gbce")
SHARING = ("position", "row", "batch")
TABLE = "items"  # The item table among the parameters of a model.
DROPPED = "dropped"  # Next to the scored ids: which items have no row of the table in this step.


@dataclasses.dataclass(frozen=True)
class ItemObjective:
  """Predict the target item at each position with a positive weight, in next-item and masked-item training.

  loss: "sampled_softmax", "full_softmax", "bce" or "gbce".
  num_negatives: R of at least 1, drawn with replacement.
  sampler: "uniform", "log_uniform", "in_batch" or "in_batch_frequency"; see `negatives.sample_in_batch`.
  sharing: what shares R negatives. "position": each position has its own, as published. "row": the positions of a row
    of the batch. "batch": all positions. Choice: sharing changes neither the expected gradient of a position nor R,
    only the correlation between positions; it replaces lookups by a matrix product.
  log_q: subtract the log-probability of sampling from the scores of negatives and positive.
  temperature: divides the scores.
  gbce_t: calibration of gBCE in 0..1.
  chunk_size: items scored at a time by "full_softmax".

  Raises:
    ValueError: an unknown name, a number out of range, or `log_q` where nothing is sampled by a known probability.

  >>> ItemObjective("sampled_softmax", num_negatives=256, sharing="row").temperature
  0.05
  """

  loss: str = "sampled_softmax"
  num_negatives: int = 128
  sampler: str = "uniform"
  sharing: str = "position"
  log_q: bool = False
  temperature: float = 0.05
  gbce_t: float = 0.75
  chunk_size: int = 4096

  names: ClassVar[tuple[str, ...]] = ("recommendation",)

  def __post_init__(self):
    for name, known in (("loss", LOSSES), ("sampler", negatives.SAMPLERS), ("sharing", SHARING)):
      if getattr(self, name) not in known:
        raise ValueError(f"objective {name}={getattr(self, name)!r} is not one of {known}")
    if self.log_q and (self.sampler in negatives.IN_BATCH or self.loss == "full_softmax"):
      raise ValueError(f"log_q has no meaning for sampler={self.sampler!r} with loss={self.loss!r}")
    for name in ("num_negatives", "chunk_size"):
      if not isinstance(getattr(self, name), numbers.Integral) or not 1 <= getattr(self, name) < 2**31:
        raise ValueError(f"objective.{name}={getattr(self, name)!r} must be an integer of at least 1 and below 2^31")
    if not 0 < self.temperature < math.inf or not 0 <= self.gbce_t <= 1:
      raise ValueError(
        f"objective.temperature={self.temperature} must be finite and above 0, objective.gbce_t={self.gbce_t} in 0..1"
      )

  def __call__(
    self,
    model: nn.Module,
    params: Any,
    batch: SequenceBatch,
    rng: PRNGKeyArray,
    deterministic: bool = False,
    items: Items | None = None,
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the mean loss over the target positions, and `{"loss", "weight"}` with the sum of their weights.

    Args:
      model: a `jaxrec.models.SequentialModel`.
      params: its parameters, or those and looked-up rows.
      batch: sequences and targets.
      rng: key of dropout and negatives; consumed.
      deterministic: no dropout.
      items: vectors of the items; None: the model computes them from its parameters.
    """
    dropout_key, _ = jax.random.split(rng)
    batch = as_arrays("batch", batch)
    if items is None:
      ids = self.scored_ids(model, batch, rng)
      items = ParameterItems(model, batch, without_dropped(ids) if deterministic else ids)
    query = items.encode(params, batch, deterministic, {"dropout": dropout_key})  # [B, N, M]
    loss = self.loss_from_queries(query, items, params, batch, model.num_items)
    return loss, {"loss": loss, "weight": batch.target_weight.astype(query.dtype).sum()}

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
    """Returns the loss and its gradient; see `jaxrec.objectives.objective.Objective`."""

    def loss_of(params):
      loss, scalars = self(model, params, batch, rng, deterministic, items)
      return loss, (scalars["weight"], {}, {})

    return single_gradient(loss_of, params)

  def scored_ids(self, model: nn.Module, batch: SequenceBatch, rng: PRNGKeyArray) -> dict[str, Array]:
    """Returns the items that the loss scores: "target" `[B, N]` and "negative" `[B, N, R]`, `[B, R]` or `[R]`.

    "full_softmax" scores all items and has no negatives. With features of items also "dropped", see `dropped_items`.

    Args:
      model: its `num_items` bounds the negatives.
      batch: has the targets.
      rng: the key that `__call__` gets.
    """
    dropped = dropped_items(model, rng)
    if self.loss == "full_softmax":
      return {"target": batch.target_item, **dropped}
    _, sample_key = jax.random.split(rng)
    negative = self.sample_negatives(sample_key, batch, model.num_items)
    return {"target": batch.target_item, "negative": negative, **dropped}

  def loss_from_queries(
    self, query: Float[Array, "B N M"], items: Items, params: Any, batch: SequenceBatch, num_items: int
  ) -> Float[Array, ""]:
    """Returns the mean loss of query vectors that a model has computed.

    Args:
      query: output of a model.
      items: vectors of the items of `scored_ids`.
      params: what those vectors are functions of.
      batch: has the targets.
      num_items: V.
    """
    value = self.loss_of_positions(query, items, params, batch, num_items)
    return item_losses.weighted_mean(value, batch.target_weight.astype(query.dtype))

  def loss_of_positions(
    self, query: Float[Array, "B N M"], items: Items, params: Any, batch: SequenceBatch, num_items: int
  ) -> Float[Array, "B N"]:
    """Returns the loss at each position, arbitrary where there is no target; arguments as of `loss_from_queries`."""
    query = jnp.where((batch.target_weight != 0)[..., None], query, 0)  # NaN elsewhere would reach the gradients.
    if self.loss == "full_softmax":
      return items.full_softmax(params, query, self.temperature, self.chunk_size)
    positive, negative = items.scores(params, query)
    positive = jnp.where(batch.target_weight != 0, positive, 0)
    return self._sampled_loss(positive, negative, items.ids, batch, num_items, items.is_candidate(params))

  def _sampled_loss(self, positive, negative, ids, batch, num_items, is_candidate):
    """Returns the loss of each position from the scores of its target and of sampled items that are candidates."""
    negative_id = ids["negative"]
    positive_logit, negative_logit = item_losses.sampled_logits(
      positive, negative, ids["target"], negative_id, self.temperature
    )
    if self.log_q:
      positive_logit -= negatives.log_probability(self.sampler, batch.target_item, num_items)
      log_q = negatives.log_probability(self.sampler, negative_id, num_items)
      negative_logit -= item_losses.per_position(log_q)
    if is_candidate is not None:
      is_sampled = item_losses.per_position(jnp.take(is_candidate, negative_id, mode="clip"))
      negative_logit = jnp.where(is_sampled, negative_logit, item_losses.EXCLUDED)
    if self.loss == "sampled_softmax":
      return item_losses.sampled_softmax(positive_logit, negative_logit)
    beta = item_losses.gbce_calibration(num_items, self.num_negatives, self.gbce_t) if self.loss == "gbce" else 1.0
    return item_losses.binary_cross_entropy(positive_logit, negative_logit, beta)

  def sample_negatives(self, key, batch, num_items):
    """Returns negative ids: `[B, N, R]`, `[B, R]` or `[R]`, as `sharing` says."""
    lead = {"position": batch.target_item.shape, "row": batch.target_item.shape[:1], "batch": ()}[self.sharing]
    shape = (*lead, self.num_negatives)
    if self.sampler in negatives.IN_BATCH:
      return negatives.sample_in_batch(key, shape, batch.target_item, batch.target_weight, self.sampler)
    return negatives.sample_items(key, self.sampler, shape, num_items)


@runtime_checkable
class Items(Protocol):
  """The vectors of a batch's items, as functions of what they are differentiated with respect to.

  That is `params`: the model's parameters, or at least `params["items"]`, the item table or its looked-up rows.

  ids: what `ItemObjective.scored_ids` returned.
  """

  ids: dict[str, Array]

  def encode(self, params: Any, batch: SequenceBatch, deterministic: bool, rngs: Any) -> Float[Array, "B N M"]:
    """Returns the query vectors of the model."""
    ...

  def input(self, params: Any) -> Float[Array, "B N M"]:
    """Returns the rows of the batch's items, as the encoder reads them."""
    ...

  def scores(self, params: Any, query: Float[Array, "B N M"]) -> tuple[Float[Array, "B N"], Float[Array, "B N R"]]:
    """Returns the inner products of queries with the scoring vectors of the target and of the negatives of `ids`."""
    ...

  def is_candidate(self, params: Any) -> Bool[Array, " rows"] | None:
    """Returns which items the target is compared with; None: all."""
    ...

  def full_softmax(
    self, params: Any, query: Float[Array, "B N M"], temperature: float, chunk_size: int
  ) -> Float[Array, "B N"]:
    """Returns `-log softmax` of the target among all items; see `item_losses.full_softmax`."""
    ...


def dropped_items(model: nn.Module, rng: PRNGKeyArray) -> dict[str, Bool[Array, " V1"]]:
  """Returns {"dropped": the items whose row of the table is left out}; {} for a model without features of items.

  In a step such an item is known by its features alone, wherever it occurs: in histories, as target, as negative. So
  the projection of features learns to rank items that have no row.

  Args:
    model: `id_dropout` is the probability of each item.
    rng: the key of the step.

  Source: Volkovs, Yu, Poutanen 2017, "DropoutNet: Addressing Cold Start in Recommender Systems", NeurIPS, section 4.1.
  Choice: items are drawn for a step, not for each of their events, so that vectors of an item agree within a step.
  """
  if not (getattr(model, "num_features", 0) and model.id_dropout):
    return {}
  key = jax.random.fold_in(rng, 0)
  return {DROPPED: jax.random.bernoulli(key, model.id_dropout, (model.num_items + 1,))}


def without_dropped(ids: Mapping[str, Array]) -> dict[str, Array]:
  """Returns the scored ids without "dropped"."""
  return {name: x for name, x in ids.items() if name != DROPPED}


@dataclasses.dataclass(frozen=True)
class ParameterItems:
  """Items whose vectors the model computes from its parameters."""

  model: nn.Module
  batch: SequenceBatch
  ids: dict[str, Array]

  def encode(self, params: Any, batch: SequenceBatch, deterministic: bool, rngs: Any) -> Float[Array, "B N M"]:
    """See `Items`."""
    return self.model.apply({"params": self._kept(params)}, batch, deterministic=deterministic, rngs=rngs)

  def input(self, params: Any) -> Float[Array, "B N M"]:
    """See `Items`."""
    return self.model.apply({"params": self._kept(params)}, self.batch.item_id, method="input_vectors")

  def scores(self, params: Any, query: Float[Array, "B N M"]) -> tuple[Float[Array, "B N"], Float[Array, "B N R"]]:
    """See `Items`."""
    positive = (query * self._vectors(params, self.ids["target"])).sum(axis=-1)
    index = self.ids["negative"]
    if index.ndim < 3:
      return positive, item_losses.scores_of_vectors(query, self._vectors(params, index))

    def scores(vectors, query, index):
      return item_losses.scores_of_rows(query, lambda index: jnp.take(vectors, index, axis=0, mode="clip"), index)

    return positive, devices.rows_on_each_device(scores, self._vectors(params, None), query, index)

  def is_candidate(self, params: Any) -> Bool[Array, " rows"] | None:
    """See `Items`. Items without a row of the table are no candidates: they came after training.

    Choice: as negatives they would teach the projection of features that nobody chooses items like them.
    """
    has_id = params.get(TABLE, {}).get(HAS_ID)
    return None if has_id is None else has_id[:, 0] > 0

  def full_softmax(
    self, params: Any, query: Float[Array, "B N M"], temperature: float, chunk_size: int
  ) -> Float[Array, "B N"]:
    """See `Items`."""
    vectors, is_candidate = self._vectors(params, None), self.is_candidate(params)
    if is_candidate is not None:
      is_candidate = is_candidate[: vectors.shape[0]]
    return item_losses.full_softmax(query, vectors, self.ids["target"], temperature, chunk_size, is_candidate)

  def _vectors(self, params, ids):
    return self.model.apply({"params": self._kept(params)}, ids, method="item_vectors")

  def _kept(self, params):
    """Returns the parameters without the rows of dropped items."""
    if DROPPED not in self.ids:
      return params
    table = params[TABLE]["table"]
    dropped = jnp.pad(self.ids[DROPPED], (0, table.shape[0] - self.ids[DROPPED].shape[0]))[:, None]  # [rows, 1]
    return {**params, TABLE: {**params[TABLE], "table": jnp.where(dropped, 0, table)}}


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
