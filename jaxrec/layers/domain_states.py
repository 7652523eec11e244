"""Dynamic Domain States: what a token hears of other domains is the state of the latest event in each of them.

A token at i has for each domain d the last event `last(i, d)` of its own sequence up to i. Its state is a vector that
the layer has at that event anyway. With attention that stays inside a domain these C vectors are all that crosses from
one domain to another, at a cost of O(N C) instead of O(N^2).

Source: DDSR, Loureiro et al. 2025, arXiv 2508.20945. The abstract says: one dynamic state a domain, stored and read
  when later tokens are predicted; separate intra- and inter-domain representations, combined.
Choice: the equations are not public; these are ours. A token doesn't read the state of its own domain, which it holds
  itself; so with one domain nothing is added.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrec.layers.cache import with_latest
from jaxrec.layers.context import AttentionContext
from jaxrec.layers.norm import layer_norm

READS = ("all", "target", "key_value")
COMBINATIONS = ("sum", "gate")


def attend_states(
  q: Float[Array, "*X T H D"],
  k: Float[Array, "*X S H D"],
  v: Float[Array, "*X S H E"],
  may_read: Bool[Array, "*X T S"],
) -> Float[Array, "*X T H E"]:
  """Softmax attention of each token over the states that it may read; zero where there are none.

  >>> q, k = jnp.zeros((1, 1, 2)), jnp.zeros((3, 1, 2))
  >>> v = jnp.array([2.0, 4.0, 9.0]).reshape(3, 1, 1)
  >>> attend_states(q, k, v, jnp.array([[True, True, False]])).item()  # Equal scores: the mean of 2 and 4.
  3.0
  """
  score = jnp.einsum("...thd,...shd->...hts", q, k) * q.shape[-1] ** -0.5  # [..., H, T, S]
  allowed = may_read[..., None, :, :]
  score = jnp.where(allowed, score.astype(jnp.promote_types(score.dtype, jnp.float32)), -1e30)
  weight = jnp.where(allowed, jnp.exp(score - jax.lax.stop_gradient(score.max(axis=-1, keepdims=True))), 0)
  weight /= jnp.maximum(weight.sum(axis=-1, keepdims=True), 1e-30)
  return jnp.einsum("...hts,...she->...the", weight.astype(v.dtype), v)  # [..., T, H, E]


def read_states(
  module: nn.Module,
  q: Float[Array, "B N H D"],
  k: Float[Array, "B N H D"],
  v: Float[Array, "B N H E"],
  context: AttentionContext,
  only_asked: bool = False,
) -> Float[Array, "B N H E"]:
  """What each token reads where tokens have these queries, and states of these keys and values.

  Args:
    module: the calling layer; keeps the states where the context has a `place`.
    only_asked: read no state but that of the domain that is asked for.
  """
  states = context.states
  may_read = states.may_read & states.is_asked if only_asked else states.may_read
  if context.place is not None:
    k, v = (with_latest(module, name, x, context.place) for name, x in (("key_state", k), ("value_state", v)))
    return attend_states(q[:, None], k, v, may_read)[:, 0]  # [B, 1, H, E]
  q, k, v = (context.order.undo(x) for x in (q, k, v))
  q = _blocks(q, may_read.shape[2])
  k, v = (_with_carried(x, states.carried, may_read.shape[2]) for x in (k, v))
  out = attend_states(q, k, v, may_read)  # [B, X, T, H, E]
  return context.order(out.reshape(out.shape[0], -1, *out.shape[3:])[:, : context.group.shape[1]])


class DomainStateAttention(nn.Module):
  """What each token reads from the states of the other domains.

  `c_i = sum_d softmax_d((W_q z_i + Q[asked]) . (W_k z_last(i,d) + M[d]) / sqrt(D)) W_v z_last(i,d)`, where z are layer
  normalised.

  read: "all": the sum over all other domains. "target": `W_v z` of the domain that is asked for, by itself.
  num_heads: H of "all".
  """

  num_domains: int
  num_heads: int = 1
  read: str = "all"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, z: Float[Array, "B N W"], context: AttentionContext) -> Float[Array, "B N W"]:
    """The sum for each token; zero where no other domain has an event yet.

    Raises:
      ValueError: an unknown `read`, or a width that the heads do not divide.
    """
    if self.read not in ("all", "target"):
      raise ValueError(f"read={self.read!r} is not one of ('all', 'target')")
    width = z.shape[-1]
    if width % self.num_heads:
      raise ValueError(f"{width=} must be divisible by {self.num_heads=}")
    z = layer_norm(z)
    v = self._project("value", z)
    if self.read == "target":
      nothing = jnp.zeros((*z.shape[:2], 1, 1), z.dtype)  # One state at most is read, whatever its score.
      return read_states(self, nothing, nothing, v[:, :, None], context, only_asked=True)[:, :, 0]
    init = nn.initializers.normal(0.02)
    asked = self.param("asked_table", init, (self.num_domains + 1, width)).astype(self.dtype)
    of_domain = self.param("domain_table", init, (self.num_domains + 1, width)).astype(self.dtype)
    q = self._project("query", z) + asked[context.next_domain]
    k = self._project("key", z) + of_domain[context.group]
    return read_states(self, *(self._split(x) for x in (q, k, v)), context).reshape(z.shape)

  def _project(self, name, x):
    return nn.Dense(
      x.shape[-1], use_bias=False, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name=name
    )(x)

  def _split(self, x):
    return x.reshape(*x.shape[:-1], self.num_heads, x.shape[-1] // self.num_heads)  # [..., H, D]


class Combination(nn.Module):
  """Intra- and inter-domain representations as one: "sum", or "gate": `own + sigmoid(W [own, other] + b) * other`.

  Either is `own` alone where `other` is zero.
  """

  kind: str = "sum"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, own: Float[Array, "B N W"], other: Float[Array, "B N W"]) -> Float[Array, "B N W"]:
    """The combination. Raises a ValueError where `kind` is another."""
    if self.kind not in COMBINATIONS:
      raise ValueError(f"combination={self.kind!r} is not one of {COMBINATIONS}")
    if self.kind == "sum":
      return own + other
    gate = nn.Dense(own.shape[-1], kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name="gate")
    return own + jax.nn.sigmoid(gate(jnp.concatenate([own, other], axis=-1))) * other


def _blocks(x, size):
  """`[B, N, ...]` -> `[B, X, T, ...]`."""
  x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), *((0, 0),) * (x.ndim - 2)))
  return x.reshape(x.shape[0], -1, size, *x.shape[2:])


def _with_carried(x, carried, size):
  """`[B, N, ...]` -> `[B, X, T + C, ...]`: the tokens of each block, and the C that stand for what is before it."""
  before = jax.vmap(lambda row, index: row.at[index].get(mode="promise_in_bounds"))(x, carried)  # [B, X, C, ...]
  return jnp.concatenate([_blocks(x, size), before], axis=2)
