"""Attention of a layer under the masks of its context, and how much of it goes to each domain or event."""

from __future__ import annotations

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrec.layers.cache import CacheSlot
from jaxrec.layers.context import AttentionContext
from pallas_kernels import segment_attention
from pallas_kernels.dtypes import at_least_float32
from pallas_kernels.reference import attention_weights

# Flax collections; make one mutable to get what `attend` stores there.
MASS = "attention_mass"
SIZES = "attention_sizes"
WEIGHTS = "attention_weights"


@flax.struct.dataclass
class AttentionSizes:
  """What a layer's tokens attend to, without signs.

  sizes: sums of the absolute weights of each token by group of keys, its own key not among them but in the last column.
  counts: how many keys of each group the token may attend to, without its own.
  """

  sizes: Float[Array, "B S H G1"]
  counts: Float[Array, "B S G"]


def attend(
  module: nn.Module,
  q: Float[Array, "B S H D"],
  k: Float[Array, "B S H D"],
  v: Float[Array, "B S H E"],
  context: AttentionContext,
  **options,
) -> Float[Array, "B S H E"]:
  """Returns `segment_attention` of the tokens of a context.

  If the collection `attention_mass` is mutable, as in `model.apply(..., mutable=[MASS])`, the sum of the attention
  weights of each token over each group of `context.group` is stored there as "mass", `[B, S, H, G]`: events first, in
  the order of the batch. If `attention_sizes` is, `AttentionSizes` are stored there as "sizes", in the same order. If
  `attention_weights` is, the weights of each event for each event are stored there as "weights", `[B, N, H, N]`, which
  takes as much memory as the definition of attention; they are not divided by a normalizer.

  If the context has a cache slot, keys and values of earlier tokens are read from the collection "cache".

  Args:
    module: the calling layer, which owns the cache and the stored mass.
    q, k, v: one query, key and value per token.
    context: the mask, and the rules that turn tokens into queries and keys.
    **options: passed on to `segment_attention`.

  Raises:
    NotImplementedError: weights of a model with bottleneck tokens.
  """
  options["finite_padding"] = context.is_token is None
  wanted = [name for name in (MASS, SIZES) if _is_asked(module, name)] if context.is_scored else []
  if context.slot is not None:
    k, v = (context.slot.append(module, name, x) for name, x in (("cached_key", k), ("cached_value", v)))
  if isinstance(context.slot, CacheSlot) and options.get("implementation") == "auto":
    options["implementation"] = "dense"  # One query a row has no tiles to leave out.
  if _is_asked(module, WEIGHTS):
    _store(module, WEIGHTS, _weights_by_event(q, k, context, **options))
  bottlenecks = context.bottlenecks
  if bottlenecks is not None:
    q, k, v = bottlenecks.expand_queries(q), bottlenecks.keys(k), bottlenecks.keys(v)
  if not wanted:
    y = segment_attention(q, k, v, context.mask, **options)
    return y if bottlenecks is None else bottlenecks.merge_outputs(y)
  group = context.group if bottlenecks is None else bottlenecks.keys(context.group)
  options |= {"key_group": group, "num_groups": context.num_groups}
  for name in wanted:
    sums = "signed" if name == MASS else "absolute"
    y, stored = segment_attention(q, k, v, context.mask, group_sums=sums, **options)
    if name == SIZES:
      counts = context.mask.count_keys(group, context.num_groups).astype(stored.dtype)
      stored = AttentionSizes(stored, counts)
    stored = jax.tree.map(functools.partial(_in_order_of_batch, context), stored)
    _store(module, name, stored)
  return y if bottlenecks is None else bottlenecks.merge_outputs(y)


_NAMES = {MASS: "mass", SIZES: "sizes", WEIGHTS: "weights"}


def _is_asked(module, collection) -> bool:
  return module.is_mutable_collection(collection) and not module.is_initializing()


def _store(module, collection, value):
  module.sow(collection, _NAMES[collection], value, init_fn=lambda: None, reduce_fn=lambda _, new: new)


def _weights_by_event(q, k, context, *, activation="silu", scale=1.0, bias=None, **_) -> Float[Array, "B N H N"]:
  """Returns the weights of each query for each key, both in the order of the batch."""
  if context.bottlenecks is not None:
    raise NotImplementedError("attention weights by event are for models without bottleneck tokens")
  weights = attention_weights(q, k, context.mask, bias, activation=activation, scale=scale)  # [B, H, N, N]
  by_query = _in_order_of_batch(context, jnp.moveaxis(weights, 1, 3))  # [B, N, N, H]
  return jnp.moveaxis(_in_order_of_batch(context, jnp.moveaxis(by_query, 2, 1)), 1, 3)  # [B, N, H, N]


def _in_order_of_batch(context, x):
  x = x if context.bottlenecks is None else context.bottlenecks.merge_outputs(x)
  return x if context.order is None else context.order.undo(x)


def cross_domain_share(
  mass: Float[Array, "B N H G"], domain_id: Int[Array, "B N"], epsilon: float = 1e-6
) -> Float[Array, "B N H"]:
  """Returns the share of a query's attention that goes to other domains and to bottleneck tokens, in 0..1.

  `sum_{g != d, 0} |m_g| / (sum_g |m_g| + epsilon)`, which for softmax weights is `sum_j A_ij [d_j != d_i]`.

  Args:
    mass: attention of each query to each group of keys; group 0 is keys whose domain is hidden.
    domain_id: domain of each query.
    epsilon: keeps the share of a query without attention at 0.

  Source: AutoCDSR, arXiv 2505.21811, the cross-domain attention score.
  Choice: SiLU weights can be negative, need not sum to 1, and their output is normalised later; so shares of absolute
    masses replace the masses.

  >>> mass = jnp.array([[[[0.0, 0.25, 0.75]]]])  # one query of one head: a quarter goes to domain 1
  >>> f"{float(cross_domain_share(mass, jnp.array([[1]]))[0, 0, 0]):.2f}"
  '0.75'
  """
  share = group_shares(mass, epsilon)  # [B, N, H, G]
  return (share * is_other_group(domain_id, mass.shape[-1])[:, :, None].astype(share.dtype)).sum(axis=-1)


def group_shares(mass: Float[Array, "... G"], epsilon: float = 1e-6) -> Float[Array, "... G"]:
  """Returns the share of a query's attention that goes to each group: `|m_g| / (sum_g |m_g| + epsilon)`.

  >>> [f"{x:.2f}" for x in group_shares(jnp.array([1.0, -3.0])).tolist()]
  ['0.25', '0.75']
  """
  size = jnp.abs(mass.astype(at_least_float32(mass.dtype)))
  return size / (size.sum(axis=-1, keepdims=True) + epsilon)


def is_other_group(domain_id: Int[Array | np.ndarray, "..."], num_groups: int) -> Bool[Array | np.ndarray, "... G"]:
  """Returns which groups of keys are other domains than `domain_id` or bottleneck tokens; group 0 never is.

  >>> is_other_group(np.array([2]), num_groups=4).tolist()
  [[False, True, False, True]]
  """
  group = np.arange(num_groups, dtype=np.int32).reshape(*(1,) * domain_id.ndim, -1)
  return (group != domain_id[..., None]) & (group != 0)


def masses_by_layer(collection) -> list[Float[Array, "B N H G"]]:
  """Returns the attention masses of a model's layers, first layer first.

  Args:
    collection: `variables["attention_mass"]`, or None where it is missing.
  """
  return [masses for (masses,) in _leaves_by_layer(collection)]


def sizes_by_layer(collection) -> list[AttentionSizes]:
  """Returns the `AttentionSizes` of a model's layers, first layer first.

  Args:
    collection: `variables["attention_sizes"]`, or None where it is missing.
  """
  return [AttentionSizes(*leaves) for leaves in _leaves_by_layer(collection)]


def weights_by_layer(collection) -> list[Float[Array, "B N H N"]]:
  """Returns the attention weights of a model's layers, first layer first.

  Args:
    collection: `variables["attention_weights"]`, or None where it is missing.
  """
  return [weights for (weights,) in _leaves_by_layer(collection)]


def _leaves_by_layer(collection):
  names = sorted(collection or (), key=lambda name: int(name.rsplit("_", 1)[1]))
  return [jax.tree.leaves(collection[name]) for name in names]
