"""What the last layer of a model attends to when it answers a request, by event of the history.

    (shares,) = event_attention(recommender, histories_of_events(recommender.data, [events]))

Weights of attention say what a layer reads. They do not say why an item is recommended: other layers have mixed the
events before, and what is read can count for or against an item.

Choice: weights of SiLU attention can be negative, so sizes are compared. Each head is normalised on its own, and heads
  are averaged, so that no head outweighs the others by the scale of its weights.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrec.batches import SequenceBatch
from jaxrec.layers.attention import WEIGHTS, group_shares, weights_by_layer
from jaxrec.models import SequentialModel
from jaxrec.serving.histories import Histories
from jaxrec.serving.recommender import Recommender


def why_no_attention(model: nn.Module) -> str | None:
  """Returns why the attention of a model cannot be shown by event; None if it can."""
  if not isinstance(model, SequentialModel):
    return f"{type(model).__name__.lstrip('_')} is no sequential model with attention weights"
  if model.num_bottlenecks:
    return "bottleneck tokens stand between the events"
  return None


def event_attention(
  recommender: Recommender, histories: Histories, *, domain: str | None = None, at: Any = None
) -> list[Float[np.ndarray, " E"]]:
  """Returns the share of attention, 0..1, of each event of each history in the last layer; NaN for events before those.

  The shares of a history add up to 1, or to less if the model attends to the request itself, as BERT4Rec does to its
  mask token. A model with attention inside a domain gives 0 to events of other domains than that of the latest event,
  though it may read states of these.

  Args:
    recommender: its model and how histories are cropped: `config.data.max_length` events are read.
    histories: of `histories_of_users` or `histories_of_events`; encoded one at a time.
    domain, at: as in `Recommender.recommend`; `at` is one time, or a list with one for each history.

  Raises:
    NotImplementedError: the model has no attention weights by event.
    ValueError: as `Recommender.recommend`.
  """
  if reason := why_no_attention(recommender.model):
    raise NotImplementedError(f"attention by event: {reason}")
  times = at if isinstance(at, list | tuple) else [at] * len(histories)
  found = []
  for row, time in enumerate(times):
    history = histories.take(np.array([row]))
    shares = np.full(len(history.item_id), np.nan, np.float32)
    for _, batch in recommender._batches(history, domain, [time], None):
      is_event = (batch.batch.sequence_id[0] > 0) & (batch.batch.item_id[0] <= recommender.data.num_items)
      read = np.asarray(_shares(recommender.model, recommender.params, batch.batch))[0, is_event]
      shares[len(shares) - len(read) :] = read
    found.append(shares)
  return found


@functools.partial(jax.jit, static_argnums=0)
def _shares(model: SequentialModel, params: Any, batch: SequenceBatch) -> Float[Array, "B N"]:
  _, stored = model.apply({"params": params}, batch, mutable=[WEIGHTS])
  weights = weights_by_layer(stored[WEIGHTS])[-1]  # [B, N, H, N]
  asked = jnp.argmax(batch.target_weight, axis=1)  # [B]
  of_request = jnp.take_along_axis(weights, asked[:, None, None, None], axis=1)[:, 0]  # [B, H, N]
  return group_shares(of_request, epsilon=1e-30).mean(axis=1)
