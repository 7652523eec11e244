"""What every attention layer of a model shares for one batch: the mask, and the inputs of the relative bias."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxrec.types import SequenceBatch
from pallas_kernels import IntervalMask


@flax.struct.dataclass
class AttentionContext:
  """The mask and the O(N) inputs of the relative bias.

  mask: which tokens each token reads.
  position: index of a token in its own sequence.
  query_time: when its prediction is asked for, in seconds.
  key_time: when it happened, in seconds.
  """

  mask: IntervalMask
  position: Int[Array, "B N"]
  query_time: Int[Array, "B N"]
  key_time: Int[Array, "B N"]


def causal_context(batch: SequenceBatch) -> AttentionContext:
  """Each token reads itself and earlier tokens of its sequence; the query's time is that of the event to be predicted.

  Choice: the published HSTU compares the *next* event's time with the times of the keys; data pipelines decide whether
  `target_time` is that (`request_time="target"`) or the token's own time (`"last_event"`).
  """
  batch = jax.tree.map(jnp.asarray, batch)  # Data pipelines make NumPy arrays.
  mask = IntervalMask.causal(batch.sequence_id)
  return AttentionContext(mask, batch.position, batch.target_time, batch.timestamp)


def bidirectional_context(batch: SequenceBatch) -> AttentionContext:
  """Each token reads its whole sequence."""
  batch = jax.tree.map(jnp.asarray, batch)
  mask = IntervalMask.full(batch.sequence_id)
  return AttentionContext(mask, batch.position, batch.timestamp, batch.timestamp)
