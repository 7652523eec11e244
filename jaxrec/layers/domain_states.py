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


def read_states(
  q: Float[Array, "B N H D"],
  k: Float[Array, "B N C H D"],
  v: Float[Array, "B N C H E"],
  may_read: Bool[Array, "B N C"],
) -> Float[Array, "B N H E"]:
  """Softmax attention of each token over the states that it may read; zero where there are none.

  >>> q, k = jnp.zeros((1, 1, 1, 2)), jnp.zeros((1, 1, 3, 1, 2))
  >>> v = jnp.array([2.0, 4.0, 9.0]).reshape(1, 1, 3, 1, 1)
  >>> read_states(q, k, v, jnp.array([[[True, True, False]]])).item()  # Equal scores: the mean of 2 and 4.
  3.0
  """
  score = jnp.einsum("bnhd,bnchd->bnhc", q, k) * q.shape[-1] ** -0.5  # [B, N, H, C]
  allowed = may_read[:, :, None]
  score = jnp.where(allowed, score.astype(jnp.promote_types(score.dtype, jnp.float32)), -jnp.inf)
  peak = jnp.max(score, axis=-1, keepdims=True, initial=-1e30, where=allowed)
  weight = jnp.where(allowed, jnp.exp(score - jax.lax.stop_gradient(peak)), 0)
  weight /= jnp.maximum(weight.sum(axis=-1, keepdims=True), 1e-30)
  return jnp.einsum("bnhc,bnche->bnhe", weight.astype(v.dtype), v)  # [B, N, H, E]


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
    may_read = readable(context)
    v = self._project("value", z)
    if self.read == "target":
      return _of_target(latest(self, "value_state", v, context), may_read, context.next_domain)
    init = nn.initializers.normal(0.02)
    asked = self.param("asked_table", init, (self.num_domains + 1, width)).astype(self.dtype)
    of_domain = self.param("domain_table", init, (self.num_domains, width)).astype(self.dtype)
    q = self._project("query", z) + asked[context.next_domain]
    k = latest(self, "key_state", self._project("key", z), context) + of_domain
    v = latest(self, "value_state", v, context)  # [B, N, C, W]
    return read_states(*(self._split(x) for x in (q, k, v)), may_read).reshape(z.shape)

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


def readable(context: AttentionContext) -> Bool[Array, "B N C"]:
  """Which states each token may read: those of other domains that have an event."""
  domain = jnp.arange(1, context.latest.shape[-1] + 1)
  return (context.latest >= 0) & (context.group[..., None] != domain)


def latest(module: nn.Module, name: str, x: Float[Array, "B N ..."], context: AttentionContext) -> Array:
  """`x` at the latest event of each domain, `[B, N, C, ...]`; arbitrary where there is none."""
  if context.place is not None:
    return with_latest(module, name, x, context.place)
  return jax.vmap(lambda row, index: row.at[jnp.maximum(index, 0)].get(mode="promise_in_bounds"))(x, context.latest)


def _of_target(v, may_read, next_domain):
  is_asked = jax.nn.one_hot(next_domain - 1, v.shape[2], dtype=v.dtype) * may_read  # [B, N, C]
  return jnp.einsum("bnc,bnc...->bn...", is_asked, v)
