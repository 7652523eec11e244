"""The references' padded id arrays as a `SequenceBatch`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxrec.batches import SequenceBatch


def sequence_batch(
  item_id: Int[np.ndarray, "B N"], lengths: Int[np.ndarray, " B"], timestamps: Int[np.ndarray, "B N"] | None = None
) -> SequenceBatch:
  """Returns rows of one sequence each; a prediction has the time of the next event, the last one its own."""
  times = np.zeros_like(item_id) if timestamps is None else timestamps
  position = np.broadcast_to(np.arange(item_id.shape[1], dtype=np.int32), item_id.shape)
  zeros = np.zeros_like(item_id)
  batch = SequenceBatch(
    item_id=item_id,
    domain_id=zeros,
    timestamp=times,
    sequence_id=(position < lengths[:, None]).astype(np.int32),
    position=position,
    target_item=zeros,
    target_domain=zeros,
    target_time=np.concatenate([times[:, 1:], times[:, -1:]], axis=1),
    target_weight=zeros.astype(np.float32),
  )
  return jax.tree.map(jnp.asarray, batch)
