"""Dynamic Domain States: a token reads the states of the latest events in each other domain.

For the token at i and each domain d, `last(i, d)` is the latest event of d in the token's sequence, up to i; its state
is a vector that the layer computes for that event anyway. When attention stays inside a domain, these C vectors are all
that crosses between domains, at a cost of O(N C) instead of O(N^2). With K states the token reads those of the K latest
events of each other domain.

Source: DDSR, Loureiro et al. 2025, arXiv 2508.20945. The abstract: one dynamic state per domain, stored and read when
  later tokens are predicted; separate intra- and inter-domain representations, then combined.
Choice: the equations are not public; these are ours. A token does not read the state of its own domain, because it
  holds that domain's latest event itself; with a single domain nothing is added. K above 1 is ours: one state may have
  forgotten the event that matters, such as the one before the latest.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrec.layers.cache import CACHE, CachedRows, CacheSlot, Prefill, update_latest
from jaxrec.layers.context import AttentionContext
from jaxrec.layers.norm import layer_norm
from pallas_kernels.dtypes import at_least_float32

READS = ("all", "target", "key_value")
COMBINATIONS = ("sum", "gate")


def attend_states(
  q: Float[Array, "*X T H D"],
  k: Float[Array, "*X S H D"],
  v: Float[Array, "*X S H E"],
  may_read: Bool[Array, "*X T S"],
) -> Float[Array, "*X T H E"]:
  """Returns softmax attention of each token over the states that it may read; zero where it may read none.

  >>> q, k = jnp.zeros((1, 1, 2)), jnp.zeros((3, 1, 2))
  >>> v = jnp.array([2.0, 4.0, 9.0]).reshape(3, 1, 1)
  >>> attend_states(q, k, v, jnp.array([[True, True, False]])).item()  # Equal scores: the mean of 2 and 4.
  3.0
  """
  reads, is_read = (may_read.any(axis=axis)[..., None, None] for axis in (-1, -2))
  q, k, v = jnp.where(reads, q, 0), jnp.where(is_read, k, 0), jnp.where(is_read, v, 0)
  score = jnp.einsum("...thd,...shd->...hts", q, k) * q.shape[-1] ** -0.5  # [..., H, T, S]
  allowed = may_read[..., None, :, :]
  score = jnp.where(allowed, score.astype(at_least_float32(score.dtype)), -1e30)
  weight = jnp.where(allowed, jnp.exp(score - jax.lax.stop_gradient(score.max(axis=-1, keepdims=True))), 0)
  weight /= jnp.maximum(weight.sum(axis=-1, keepdims=True), 1e-30)
  return jnp.einsum("...hts,...she->...the", weight.astype(v.dtype), v)  # [..., T, H, E]


def read_states(
  module: nn.Module,
  q: Float[Array, "B N H D"],
  k: Float[Array, "B N H D"],
  v: Float[Array, "B N H E"],
  context: AttentionContext,
  only_target: bool = False,
) -> Float[Array, "B N H E"]:
  """Returns attention of each token to the domain states of a context, whose keys and values are those of its events.

  Args:
    module: the calling layer, which owns the cached states if the context has a cache slot. Those of `CachedRows` are
      the kept ones, and then those of the first new tokens.
    q, k, v: queries, keys and values of all tokens, in the order of the context.
    context: says which states each token may read.
    only_target: read the states of the target domain only.
  """
  states = context.states
  may_read = states.may_read & states.is_target_domain if only_target else states.may_read
  if isinstance(context.slot, CacheSlot):
    count = may_read.shape[-1] // context.slot.num_groups
    named = (("key_state", k), ("value_state", v))
    k, v = (update_latest(module, name, x, context.slot, count) for name, x in named)
    return attend_states(q[:, None], k, v, may_read)[:, 0]  # [B, 1, H, E]
  if isinstance(context.slot, CachedRows):
    k, v = (_with_kept(module, name, x, may_read.shape[3]) for name, x in (("key_state", k), ("value_state", v)))
    return attend_states(q[:, None], k[:, None], v[:, None], may_read)[:, 0]  # [B, Q, H, E]
  q, k, v = (context.order.undo(x) for x in (q, k, v))
  if isinstance(context.slot, Prefill):
    for name, x in (("key_state", k), ("value_state", v)):
      kept = _take(x, states.latest)  # [B, R, H, D]
      module.variable(CACHE, name, jnp.zeros, kept.shape, kept.dtype).value = kept
  q = _blocks(q, may_read.shape[2])
  k, v = (_with_carried(x, states.carried, may_read.shape[2]) for x in (k, v))
  out = attend_states(q, k, v, may_read)  # [B, X, T, H, E]
  return context.order(
    out.reshape(out.shape[0], out.shape[1] * out.shape[2], *out.shape[3:])[:, : context.group.shape[1]]
  )


class DomainStateAttention(nn.Module):
  """Attention of each token to the states of the other domains; how many of each, the context says.

  `c_i = sum_d softmax_d((W_q z_i + Q[t]) . (W_k z_last(i,d) + M[d]) / sqrt(D)) W_v z_last(i,d)`, where z is layer
  normalised and t is the target domain.

  num_domains: C.
  num_heads: H, used by "all".
  read: "all": attention over all other domains; "target": `W_v z` of the target domain alone, the mean of its states.

  >>> from jaxrec.batches import next_item_batch
  >>> from jaxrec.layers.intra_domain import intra_domain_context
  >>> batch = next_item_batch(jnp.array([[5, 3, 8]]), domain_id=jnp.array([[1, 1, 2]]))
  >>> z, context = jnp.arange(12.0).reshape(1, 3, 4) ** 2, intra_domain_context(batch, num_domains=2)
  >>> y, params = DomainStateAttention(num_domains=2).init_with_output(jax.random.key(0), z, context)
  >>> y.shape, y.any(axis=-1).tolist()  # Only the third event has an event of another domain before it.
  ((1, 3, 4), [[False, False, True]])
  """

  num_domains: int
  num_heads: int = 1
  read: str = "all"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, z: Float[Array, "B N W"], context: AttentionContext) -> Float[Array, "B N W"]:
    """Returns `c` for each token; zero while no other domain has an event.

    Raises:
      ValueError: an unknown `read`, or a width that `num_heads` does not divide.
    """
    if self.read not in ("all", "target"):
      raise ValueError(f"read={self.read!r} is not one of ('all', 'target')")
    width = z.shape[-1]
    if width % self.num_heads:
      raise ValueError(f"{width=} must be divisible by {self.num_heads=}")
    z = layer_norm(context.without_padding(z))
    v = self._project("value", z)
    if self.read == "target":
      zero = jnp.zeros((*z.shape[:2], 1, 1), z.dtype)  # Equal scores: the mean.
      return read_states(self, zero, zero, v[:, :, None], context, only_target=True)[:, :, 0]
    init = nn.initializers.normal(0.02)
    target_table = self.param("asked_table", init, (self.num_domains + 1, width), jnp.float32).astype(self.dtype)
    domain_table = self.param("domain_table", init, (self.num_domains + 1, width), jnp.float32).astype(self.dtype)
    q = self._project("query", z) + target_table[context.target_domain]
    k = self._project("key", z) + domain_table[context.group]
    return read_states(self, *(self._split(x) for x in (q, k, v)), context).reshape(z.shape)

  def _project(self, name, x):
    return nn.Dense(
      x.shape[-1], use_bias=False, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name=name
    )(x)

  def _split(self, x):
    return x.reshape(*x.shape[:-1], self.num_heads, x.shape[-1] // self.num_heads)  # [..., H, D]


class Combination(nn.Module):
  """Combines intra- and inter-domain representations; where `other` is zero the result is `own`.

  kind: "sum", or "gate": `own + sigmoid(W [own, other] + b) * other`.

  >>> own, other = jnp.ones((1, 1, 2)), jnp.full((1, 1, 2), 3.0)
  >>> Combination("sum").apply({}, own, other).tolist()
  [[[4.0, 4.0]]]
  """

  kind: str = "sum"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, own: Float[Array, "B N W"], other: Float[Array, "B N W"]) -> Float[Array, "B N W"]:
    """Returns the combination.

    Raises:
      ValueError: an unknown `kind`.
    """
    if self.kind not in COMBINATIONS:
      raise ValueError(f"combination={self.kind!r} is not one of {COMBINATIONS}")
    if self.kind == "sum":
      return own + other
    gate = nn.Dense(own.shape[-1], kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name="gate")
    return own + jax.nn.sigmoid(gate(jnp.concatenate([own, other], axis=-1))) * other


def _blocks(x, size):
  """`[B, N, ...]` -> `[B, X, T, ...]`."""
  x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), *((0, 0),) * (x.ndim - 2)))
  return x.reshape(x.shape[0], x.shape[1] // size, size, *x.shape[2:])


def _with_carried(x, carried, size):
  """`[B, N, ...]` -> `[B, X, T + R, ...]`: the tokens of each block, then the latest of each domain before it."""
  return jnp.concatenate([_blocks(x, size), _take(x, carried)], axis=2)


def _take(x, columns):
  """`x[b, columns[b]]`."""
  return jax.vmap(lambda row, index: row.at[index].get(mode="promise_in_bounds"))(x, columns)


def _with_kept(module, name, x, count):
  """Returns the states in the cache, and those of as many first tokens as make them `count`, `[B, S, ...]`."""
  kept = module.get_variable(CACHE, name)
  return jnp.concatenate([kept, x[:, : count - kept.shape[1]].astype(kept.dtype)], axis=1)
