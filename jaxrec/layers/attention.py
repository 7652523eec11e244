"""Attention of a layer in its context, and how much of it goes to each domain."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrec.layers.cache import with_earlier
from jaxrec.layers.context import AttentionContext
from pallas_kernels import segment_attention

MASS = "attention_mass"  # The Flax collection; make it mutable to get masses.


def attend(
  module: nn.Module,
  q: Float[Array, "B S H D"],
  k: Float[Array, "B S H D"],
  v: Float[Array, "B S H E"],
  context: AttentionContext,
  **options,
) -> Float[Array, "B S H E"]:
  """`segment_attention` of the tokens of a context.

  Where the collection `attention_mass` is mutable, as in `model.apply(..., mutable=[MASS])`, the attention that each
  token pays to each group of `context.group` is put there under "mass", `[B, S, H, G]`, events first and in the order
  of the batch.

  Where the context has a `place`, keys and values of earlier tokens come from the collection "cache".

  Args:
    module: the calling layer.
    **options: of `segment_attention`.
  """
  wants_mass = module.is_mutable_collection(MASS) and not module.is_initializing()
  if context.place is not None:
    k, v = (with_earlier(module, name, x, context.place) for name, x in (("cached_key", k), ("cached_value", v)))
  bottlenecks = context.bottlenecks
  if bottlenecks is not None:
    q, k, v = bottlenecks.asked(q), bottlenecks.keys(k), bottlenecks.keys(v)
  if not wants_mass:
    y = segment_attention(q, k, v, context.mask, **options)
    return y if bottlenecks is None else bottlenecks.answered(y)
  group = context.group if bottlenecks is None else bottlenecks.keys(context.group)
  y, mass = segment_attention(q, k, v, context.mask, key_group=group, num_groups=context.num_groups, **options)
  if bottlenecks is not None:
    y, mass = bottlenecks.answered(y), bottlenecks.answered(mass)
  mass = mass if context.order is None else context.order.undo(mass)
  module.sow(MASS, "mass", mass, init_fn=lambda: None, reduce_fn=lambda _, new: new)
  return y


def cross_domain_share(
  mass: Float[Array, "B N H G"], domain_id: Int[Array, "B N"], epsilon: float = 1e-6
) -> Float[Array, "B N H"]:
  """The share of its attention that each query pays to other domains than its own, and to bottleneck tokens: 0..1.

  `sum_{g != d, 0} |m_g| / (sum_g |m_g| + epsilon)`, which for softmax weights is `sum_j A_ij [d_j != d_i]`.

  Args:
    mass: attention by group of keys; 0 is the group of keys that count for no domain.
    domain_id: of the queries.

  Source: AutoCDSR, arXiv 2505.21811, the cross-domain attention score.
  Choice: SiLU weights have any sum and may be negative, and what they weigh is normalised afterwards; so the share of
    the absolute masses takes the place of the mass.

  >>> mass = jnp.array([[[[0.0, 0.25, 0.75]]]])  # one query of one head: a quarter goes to domain 1
  >>> f"{float(cross_domain_share(mass, jnp.array([[1]]))[0, 0, 0]):.2f}"
  '0.75'
  """
  share = group_shares(mass, epsilon)  # [B, N, H, G]
  return (share * is_other_group(domain_id, mass.shape[-1])[:, :, None]).sum(axis=-1)


def group_shares(mass: Float[Array, "... G"], epsilon: float = 1e-6) -> Float[Array, "... G"]:
  """What part of its attention a query pays to each group: `|m_g| / (sum_g |m_g| + epsilon)`."""
  size = jnp.abs(mass.astype(jnp.promote_types(mass.dtype, jnp.float32)))
  return size / (size.sum(axis=-1, keepdims=True) + epsilon)


def is_other_group(domain_id: Int[Array | np.ndarray, "..."], num_groups: int) -> Bool[Array | np.ndarray, "... G"]:
  """Which groups of keys are neither of a domain nor of none: other domains, and bottleneck tokens."""
  group = np.arange(num_groups)
  return (group != domain_id[..., None]) & (group != 0)


def masses_by_layer(collection) -> list[Float[Array, "B N H G"]]:
  """The masses of a model's layers, first layer first, from `variables["attention_mass"]`."""
  if not collection:
    return []
  names = sorted(collection, key=lambda name: int(name.rsplit("_", 1)[1]))
  return [jax.tree.leaves(collection[name])[0] for name in names]
