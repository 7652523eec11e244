"""Histories as arrays of events, and a request each, as the `SequenceBatch` that a model was trained to read.

The same as `jaxrec.data.batches.evaluation`, in JAX, so that it is a part of an exported program.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from jaxrec.batches import SequenceBatch


def request_batch(
  item: Int[Array, "B N"],
  domain: Int[Array, "B N"],
  time: Int[Array, "B N"],
  target_domain: Int[Array, " B"],
  target_time: Int[Array, " B"],
  settings: ConfigDict,
  mask_token: int,
) -> SequenceBatch:
  """Returns the batch whose position of `target_weight` 1 answers the request.

  Args:
    item, domain, time: the events, oldest first, padded on the right with 0. With `settings.task="masked_item"` at
      least one position is padding: the mask token stands there.
    target_domain, target_time: of the request.
    settings: `task`, `request_time` and `reveal_domain` of `config.data`.
    mask_token: id V + 1.
  """
  count = jnp.sum(item != 0, axis=1, dtype=jnp.int32)[:, None]  # [B, 1]
  index = jnp.arange(item.shape[1], dtype=jnp.int32)[None]  # [1, N]
  is_last = index == count - 1
  last_time = jnp.max(jnp.where(is_last, time, jnp.iinfo(jnp.int32).min), axis=1)
  asked = (target_time if settings.request_time == "target" else last_time)[:, None]
  target_domain = target_domain[:, None]
  if settings.task == "next_item":
    is_real = index < count
    following = time if settings.request_time == "last_event" else _next(time)
    position = jnp.where(is_real, index, 0)
    target = jnp.where(is_last, target_domain, _next(domain)), jnp.where(is_last, asked, following)
  else:
    is_real, is_last = index <= count, index == count
    position = jnp.where(is_real, count - index, 0)
    item = jnp.where(is_last, mask_token, item)
    domain = jnp.where(is_last, target_domain, domain) if settings.reveal_domain else domain
    time = jnp.where(is_last, asked, time)
    target = jnp.where(is_last, target_domain, 0), time
  return SequenceBatch(
    item_id=item, domain_id=domain, timestamp=time, sequence_id=is_real.astype(jnp.int32), position=position,
    target_item=item, target_domain=jnp.where(is_real, target[0], 0), target_time=jnp.where(is_real, target[1], 0),
    target_weight=is_last.astype(jnp.float32),
  )  # fmt: skip


def _next(x):
  return jnp.concatenate([x[:, 1:], x[:, -1:]], axis=1)  # [B, N]
