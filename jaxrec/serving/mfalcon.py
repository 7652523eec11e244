"""M-FALCON: the actions that a user would take with m candidates, at the cost of one encoding of the history.

    scorer = MFalcon(model, params, capacity=2048)
    history = scorer.encode(batch)                         # once: keys and values of all layers
    found = scorer.score(history, items, time)             # [B, m] for each action, in microbatches

A candidate reads the history and itself, never another candidate; each has the position after the last event. So the
predictions equal those of one candidate at a time, whatever the microbatch. Candidates are padded to whole
microbatches: one compiled program serves every m.

`jaxrec.serving.mfalcon_retrieval` does the same with the encoders of retrieval.

Source: Zhai et al. 2024, arXiv 2402.17152, section 3.4 and appendix H ("Microbatched-Fast Attention Leveraging
  Cacheable OperatioNs").
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxrec.batches import CANDIDATE, CONTEXT, AnyArray, RankingBatch, as_ranking_batch
from jaxrec.layers.cache import CACHE, CachedRows, Prefill
from jaxrec.models import SequentialModel
from jaxrec.models.ranking import RankingModel
from pallas_kernels.integers import as_integers

SMALLEST, LARGEST = 32, 1024


@flax.struct.dataclass
class CachedHistories:
  """The histories of B users, encoded (a pytree).

  cache: keys and values of all layers, `[B, capacity + microbatch, ...]`.
  position, time: of the tokens of the histories, `[B, capacity + microbatch]`.
  length: tokens of each.
  num_events: events of each: the position of a candidate.
  user_id: as in the batch.
  """

  cache: Any
  position: Int[Array, "B L"]
  time: Int[Array, "B L"]
  length: Int[Array, " B"]
  num_events: Int[Array, " B"]
  user_id: Int[Array, " B"]


@dataclasses.dataclass(frozen=True)
class MFalcon:
  """Scores candidates of users whose histories were encoded before.

  model: a ranking model.
  params: its parameters.
  capacity: tokens of the longest history.
  microbatch: b_m, candidates of each user that are scored at a time; see `plan_microbatch`.
  """

  model: RankingModel
  params: Any
  capacity: int
  microbatch: int = 256

  def __post_init__(self):
    if self.capacity < 1 or self.microbatch < 1:
      raise ValueError(f"{self.capacity=} and {self.microbatch=} must be at least 1")

  def encode(self, batch: RankingBatch) -> CachedHistories:
    """Returns the encoded histories.

    Args:
      batch: one history a row, without targets: `jaxrec.data.batches.ranking_batches.history_batch`.

    Raises:
      ValueError: a row has several histories, targets of the layout "one_token", or more than `capacity` tokens.
    """
    kind = np.asarray(batch.kind)
    if np.asarray(batch.sequence_id).max(initial=0) > 1:
      raise ValueError("a row holds several histories; encode one history a row")
    if kind.shape[1] > self.capacity:
      raise ValueError(f"the histories have {kind.shape[1]} tokens, more than {self.capacity=}")
    return encode_histories(self.model, self.capacity + self.microbatch, self.params, as_ranking_batch(batch))

  def score(
    self,
    histories: CachedHistories,
    item: Int[AnyArray, "B K"],
    time: Int[AnyArray, " B"],
    features: Mapping[str, Int[AnyArray, "B K"]] | None = None,
  ) -> dict[str, np.ndarray]:
    """Returns the predictions for each candidate by action, `[B, m]` or `[B, m, classes]`; see `RankingModel`.

    Args:
      histories: of B users, see `encode`.
      item: m candidates of each user; any m.
      time: of the request, in seconds since the epoch of the data, as in a batch.
      features: name -> categories of the candidates.

    Raises:
      ValueError: features that the model does not have, or lacks, or integers that JAX would cut to 32 bits.
    """
    item, time = (np.asarray(as_integers(name, x)) for name, x in (("item", item), ("time", time)))
    features = {name: np.asarray(as_integers(name, x)) for name, x in (features or {}).items()}
    if set(features) != {name for name, _ in self.model.features}:
      raise ValueError(f"features {sorted(features)} must be those of the model, {[n for n, _ in self.model.features]}")

    def score(item, *values):
      named = dict(zip(features, values, strict=True))
      return score_microbatch(self.model, self.params, histories, item, named, time)

    return in_microbatches(score, (item, *features.values()), self.microbatch)


def in_microbatches(score: Callable[..., Any], columns: Sequence[Int[np.ndarray, "B K"]], size: int) -> Any:
  """Returns what a function finds for m candidates, given them in microbatches of one size; the last one is padded.

  Args:
    score: called with a microbatch of each column, `[B, size]`; returns a pytree of arrays `[B, size, ...]`.
    columns: of the candidates; padded with 0.
    size: candidates of a microbatch.

  >>> in_microbatches(lambda item: 2 * item, (np.array([[1, 2, 3]]),), size=2).tolist()
  [[2, 4, 6]]
  """
  count = columns[0].shape[1]
  padded = [np.pad(x, ((0, 0), (0, -count % size))) for x in columns]
  parts = [score(*(x[:, start : start + size] for x in padded)) for start in range(0, count, size)]
  return jax.tree.map(lambda *x: np.concatenate(x, axis=1)[:, :count], *map(jax.device_get, parts))


@functools.partial(jax.jit, static_argnums=(0, 1))
def encode_histories(model: RankingModel, length: int, params: Any, batch: RankingBatch) -> CachedHistories:
  """Returns the encoded histories of `MFalcon.encode`, compiled once for each shape.

  Args:
    model: a ranking model.
    length: tokens of the cache: those of the longest history and of a microbatch.
    params: its parameters.
    batch: one history a row.
  """
  _, variables = model.apply({"params": params}, batch, method="encode", slot=Prefill(length), mutable=[CACHE])
  room = ((0, 0), (0, length - batch.kind.shape[1]))
  is_event = batch.kind > CONTEXT
  return CachedHistories(
    cache=variables[CACHE],
    position=jnp.pad(batch.position, room),
    time=jnp.pad(batch.timestamp, room),
    length=(batch.kind != 0).sum(axis=1, dtype=jnp.int32),
    num_events=jnp.where(is_event, batch.position + 1, 0).max(axis=1),
    user_id=batch.user_id.max(axis=1),
  )


@functools.partial(jax.jit, static_argnums=0)
def score_microbatch(
  model: RankingModel,
  params: Any,
  histories: CachedHistories,
  item: Int[AnyArray, "B Q"],
  features: Mapping[str, Int[AnyArray, "B Q"]],
  time: Int[AnyArray, " B"],
) -> dict[str, Array]:
  """Returns the predictions for one microbatch of `MFalcon.score`, compiled once for each shape.

  Args:
    model: a ranking model.
    params: its parameters.
    histories: of `encode_histories`.
    item: candidates, 0 for none.
    features: name -> categories of the candidates.
    time: of the request.
  """
  batch, slot = _candidates(model, histories, item, features, time)
  keys = {
    "key_position": slot.insert(histories.position, batch.position),
    "key_time": slot.insert(histories.time, batch.timestamp),
  }
  variables = {"params": params, CACHE: histories.cache}
  return model.apply(variables, batch, method="predict_cached", slot=slot, **keys)


def _candidates(model, histories, item, features, time) -> tuple[RankingBatch, CachedRows]:
  """Returns the candidates as tokens that read the whole history and themselves, and their places behind it."""
  shape = item.shape
  spread = lambda x: jnp.broadcast_to(x[:, None], shape)  # noqa: E731
  none = jnp.zeros(shape, jnp.int32)
  batch = RankingBatch(
    kind=jnp.where(item != 0, CANDIDATE, 0), sequence_id=jnp.ones_like(none), position=spread(histories.num_events),
    item_id=item, features=features, context_id=none, timestamp=spread(time),
    actions={action.name: none for action in model.actions}, start=none, end=spread(histories.length),
    weight=jnp.ones(shape, jnp.float32), user_id=spread(histories.user_id),
  )  # fmt: skip
  capacity = histories.position.shape[1]
  index = jnp.broadcast_to(capacity - shape[1] + jnp.arange(shape[1], dtype=jnp.int32), shape)
  return batch, CachedRows(index, capacity)


def plan_microbatch(
  model: RankingModel | SequentialModel,
  capacity: int,
  num_candidates: int,
  num_users: int = 1,
  memory_bytes: int = 2**28,
) -> int:
  """Returns the microbatch: the largest power of two in 32..1024 that memory holds and that candidates fill.

  Args:
    model: a ranking model, or an encoder of retrieval.
    capacity: tokens of the longest history.
    num_candidates: m, of each user.
    num_users: users scored at once.
    memory_bytes: for the keys and values of one layer and the attention weights and activations of a microbatch.

  >>> from jaxrec.batches import ActionType
  >>> like = ActionType("like", "binary")
  >>> model = RankingModel(num_items=9, actions=(like,), heads=(like,), width=64, max_positions=4)
  >>> [plan_microbatch(model, 2048, m) for m in (1, 100, 5000)]
  [32, 128, 1024]
  >>> plan_microbatch(model, 2048, 5000, memory_bytes=2**23)
  256
  """
  size = SMALLEST
  while size < min(LARGEST, num_candidates) and microbatch_bytes(model, capacity, 2 * size, num_users) <= memory_bytes:
    size *= 2
  return size


def microbatch_bytes(model: RankingModel | SequentialModel, capacity: int, microbatch: int, num_users: int = 1) -> int:
  """Returns an estimate of what a layer holds at once: keys and values, attention weights, projections, in bytes."""
  heads, item_bytes = model.num_heads, jnp.dtype(model.dtype).itemsize
  head_width = getattr(model, "head_width", model.width // heads)  # SASRec splits its width.
  widths = heads * (head_width + getattr(model, "value_width", head_width))
  keys_and_values = (capacity + microbatch) * widths * item_bytes
  weights = heads * microbatch * (capacity + microbatch) * 4
  activations = microbatch * (2 * widths + 3 * model.width) * item_bytes
  return num_users * (keys_and_values + weights + activations)
